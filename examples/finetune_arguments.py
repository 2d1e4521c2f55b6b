"""The options of accelerate_finetune.py, and its errors, which are one line on one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from causal_lm_data import ModelAndDataArguments, expect_at_least
from checkpoints import CheckpointError, TrainingState
from transformers import HfArgumentParser

from hf_warmcos.arguments import schedule_from_arguments

# What a list of cycles stands for.
SAID_BY_CYCLES = ("num_training_steps", "num_cycles", "T_0", "T_mult", "decay", "cycles")


@dataclass
class TrainingArguments:
    """How long and how it is trained."""

    output_dir: str = field(metadata={"help": "Where the model, the metrics and the checkpoints go."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples per process and micro-batch."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Samples per process in evaluations."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches per update."})
    learning_rate: float = field(default=2e-3, metadata={"help": "The peak of the first cycle."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of all but biases and norms."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm to which the gradients are clipped."})
    num_train_epochs: float = field(
        default=1, metadata={"help": "Passes over the training data, where --max_train_steps is not given."}
    )
    max_train_steps: int | None = field(
        default=None,
        metadata={"help": "Updates in all. A resumed run keeps the number it began with unless it is given."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the model's weights, the order of the data and dropout."})
    checkpointing_steps: str = field(
        default="cycle",
        metadata={"help": "Save the state every N updates, at the end of each `epoch` or `cycle`; `no`."},
    )
    save_total_limit: int | None = field(
        default=None,
        metadata={"help": "Checkpoints to keep: where there are more, the oldest are deleted. Default: all."},
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "The folder of a checkpoint, or `latest`: the newest whole one in output_dir."}
    )
    report_to: str | None = field(
        default=None, metadata={"help": "Trackers of Accelerate, by comma: `tensorboard`, `wandb`, … or `all`."}
    )

    def __post_init__(self) -> None:
        expect_at_least(self, per_device_train_batch_size=1, per_device_eval_batch_size=1, max_train_steps=1)
        expect_at_least(self, gradient_accumulation_steps=1, num_train_epochs=0, max_grad_norm=0, save_total_limit=1)
        expect_at_least(self, learning_rate=0, weight_decay=0, seed=0)
        saving = self.checkpointing_steps
        if saving not in ("no", "epoch", "cycle") and not (saving.isdecimal() and int(saving) > 0):
            raise ValueError(f"Expected --checkpointing_steps to be a number, epoch, cycle or no, but got {saving!r}")

    def checkpoint_name(self, step: int, ended_epoch: int | None, ended_cycle: int | None) -> str | None:
        """The name of the checkpoint that is due after this update; None where none is."""
        if self.checkpointing_steps == "epoch":
            return None if ended_epoch is None else f"epoch_{ended_epoch}"
        if self.checkpointing_steps == "cycle":
            return None if ended_cycle is None else f"cycle_{ended_cycle}"
        is_due = self.checkpointing_steps != "no" and step % int(self.checkpointing_steps) == 0
        return f"step_{step}" if is_due else None


@dataclass
class ScheduleArguments:
    """The schedule, under the names of `get_cosine_restarts_with_decay_and_warmup_schedule`.

    A resumed run keeps the schedule of its checkpoint unless one of these is given. `extend_…` keep its past as well
    and append cycles to it.
    """

    num_warmup_steps: int | None = field(default=None, metadata={"help": "Default: a fifteenth of the updates."})
    num_cycles: int | None = field(
        default=None, metadata={"help": "Cycles. Default: 3 that double and fill the updates; without end with T_0."}
    )
    decay: float | None = field(default=None, metadata={"help": "The factor on the peak at each restart. Default: 1."})
    T_0: float | None = field(default=None, metadata={"help": "Updates of the first cycle, if not fitted."})
    T_mult: float | None = field(
        default=None, metadata={"help": "The factor on the length of a cycle at each restart. Default: 1."}
    )
    cycles: str | None = field(
        default=None,
        metadata={
            "help": "The cycles one by one: their updates and, after a colon, the share of the peak: 1000,2000:0.5"
        },
    )
    stable_ratio: float | None = field(
        default=None, metadata={"help": "The share of each cycle for which the rate stays at the peak. Default: 0."}
    )
    min_lr: float | None = field(default=None, metadata={"help": "The rate at the end of each cycle. Default: 0."})
    min_lr_rate: float | None = field(default=None, metadata={"help": "The same as a share of --learning_rate."})
    warmup_mode: str | None = field(
        default=None,
        metadata={
            "help": "Warmup before the cycles (prefix, the default), over the first one, or in each one.",
            "choices": ["prefix", "overlap", "every_cycle"],
        },
    )
    warmup_lr_rate: float | None = field(
        default=None, metadata={"help": "The share of the rate where the warmup starts. Default: 0."}
    )
    extend_cycles: int | None = field(
        default=None, metadata={"help": "Resume, and append so many cycles that end at --max_train_steps."}
    )
    extend_decay: float | None = field(
        default=None, metadata={"help": "The factor on the peak at each of their restarts. Default: as before."}
    )
    extend_peak: float | None = field(
        default=None, metadata={"help": "The share of --learning_rate at which the first of them peaks, in its place."}
    )


def parse_arguments(arguments: list[str] | None) -> tuple[ModelAndDataArguments, TrainingArguments, ScheduleArguments]:
    """Return what the command line says."""
    parser = HfArgumentParser(
        [ModelAndDataArguments, TrainingArguments, ScheduleArguments],  # type: ignore[list-item]
        usage="%(prog)s --output_dir DIR [options]",
    )
    with one_line_errors():
        return parser.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


def plan_schedule(arguments: ScheduleArguments, state: TrainingState) -> dict[str, Any]:
    """Return the arguments of `get_cosine_restarts_with_decay_and_warmup_schedule`, but for the optimizer.

    Args:
        arguments: What the command line says.
        state: The run: its updates in all, and the schedule of the checkpoint that it goes on from.

    Raises:
        TypeError, ValueError: If they do not fit; the message names them.
    """
    given = {name: value for name, value in asdict(arguments).items() if value is not None}
    extension = {name.removeprefix("extend_"): given.pop(name) for name in [*given] if name.startswith("extend_")}
    if extension:
        if "cycles" not in extension:
            raise ValueError(f"Expected --extend_cycles with --extend_{', --extend_'.join(extension)}")
        if given:
            raise ValueError(
                f"Expected --extend_cycles to keep the run's schedule, but got --{', --'.join(given)} as well"
            )
        return _extend(state, extension.pop("cycles"), **extension)
    if state.schedule is not None and not given:
        return state.schedule
    if "cycles" in given:
        given["cycles"] = parse_cycles(given["cycles"])
    elif "T_0" not in given:
        given["num_training_steps"] = state.max_train_steps
        if "num_cycles" not in given:
            # Of the cycles in docs/when-to-use.md, doubling ones did best. A number n of them takes 2**n - 1 updates.
            given = {"num_cycles": min(3, (state.max_train_steps + 1).bit_length() - 1), "T_mult": 2, **given}
    return {"num_warmup_steps": state.max_train_steps // 15, **given}


def parse_cycles(text: str) -> list[int | list[float]]:
    """Return the cycles that a text like `1000,2000:0.5` lists."""
    try:
        pairs = [cycle.partition(":") for cycle in text.split(",")]
        return [[int(steps), float(share)] if colon else int(steps) for steps, colon, share in pairs]
    except ValueError:
        raise ValueError(f"Expected --cycles to be like 1000,2000:0.5, but got {text!r}") from None


def _extend(state: TrainingState, num_cycles: int, **peaks: float) -> dict[str, Any]:
    if state.schedule is None:
        raise ValueError("Expected --extend_cycles with --resume_from_checkpoint and a checkpoint to go on from")
    past = schedule_from_arguments(
        **{name: value for name, value in state.schedule.items() if name not in ("min_lr", "min_lr_rate")}
    )
    if past.end == state.max_train_steps:
        print(f"The cycles end at update {past.end} already, as training does: --extend_cycles appends none")
        return state.schedule
    longer = past.extend(state.max_train_steps, num_cycles, **peaks)
    kept = {name: value for name, value in state.schedule.items() if name not in SAID_BY_CYCLES}
    return {**kept, "cycles": longer.cycles}


@contextmanager
def one_line_errors(is_main_process: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End the script with one line on the main process where the user's arguments do not fit."""
    try:
        yield
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        if is_main_process():
            print(f"accelerate_finetune.py: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
