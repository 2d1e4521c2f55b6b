"""The options of accelerate_finetune.py. A wrong option ends the script with one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from causal_lm_data import ModelAndDataArguments, expect_at_least
from checkpoints import TrainingState
from transformers import HfArgumentParser

from hf_warmcos.arguments import schedule_from_arguments
from hf_warmcos.options import add_schedule_options, schedule_arguments


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print errors of these kinds as one line, on the first process, and end the script."""
    try:
        yield
    except kinds as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"accelerate_finetune.py: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


@dataclass
class FinetuneArguments:
    """How to train, and for how long."""

    output_dir: str = field(metadata={"help": "The folder of the run. The same command continues the run in it."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples per process and micro-batch."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Samples per process in evaluations."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches per update."})
    learning_rate: float = field(default=2e-3, metadata={"help": "The initial learning rate: peak of the first cycle."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of all but biases and norms."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradients to this norm. 0: no clipping."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs of a new run. Default: 1."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Updates, in place of --num_train_epochs."})
    extend_cycles: int | None = field(default=None, metadata={"help": "Append cycles that end at --max_train_steps."})
    extend_decay: float | None = field(default=None, metadata={"help": "Factor on the peak at each appended restart."})
    seed: int = field(default=42, metadata={"help": "Seed of the weights, the order of the samples and dropout."})
    checkpointing_steps: int | None = field(default=None, metadata={"help": "Save every N updates, too."})
    save_total_limit: int | None = field(default=None, metadata={"help": "Keep only this many newest checkpoints."})
    report_to: str | None = field(default=None, metadata={"help": "Accelerate's trackers: tensorboard, wandb, all, …"})

    def __post_init__(self) -> None:
        expect_at_least(self, max_train_steps=1, gradient_accumulation_steps=1, extend_cycles=1)
        expect_at_least(self, checkpointing_steps=1, save_total_limit=1, max_grad_norm=0)
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < float("inf"):
            raise ValueError(f"Expected --num_train_epochs > 0 and finite, but got {self.num_train_epochs}")
        for option, needed in (("extend_cycles", "max_train_steps"), ("extend_decay", "extend_cycles")):
            if getattr(self, option) is not None and getattr(self, needed) is None:
                raise ValueError(f"Expected --{option} together with --{needed}, but got it alone")


@one_line_errors(ValueError)
def parse_arguments(
    arguments: list[str] | None,
) -> tuple[ModelAndDataArguments, FinetuneArguments, dict[str, Any]]:
    """Return the options of the command line. The last are those of the schedule: of them, the ones that were given."""
    parser = HfArgumentParser([ModelAndDataArguments, FinetuneArguments], usage="%(prog)s --output_dir DIR [options]")  # type: ignore[list-item]
    about = "By default, three cycles in all updates, each cycle twice as long as the one before."
    schedule = parser.add_argument_group("schedule", about, argument_default=argparse.SUPPRESS)
    schedule.add_argument("--num_warmup_steps", type=int, default=None, help="a fifteenth of the updates if not given")
    add_schedule_options(schedule)
    data_args, args, schedule_args = parser.parse_args_into_dataclasses(arguments)
    return data_args, args, schedule_arguments(schedule_args)


def plan_schedule(args: FinetuneArguments, given: dict[str, Any], state: TrainingState) -> dict[str, Any]:
    """Return the arguments of `get_cosine_restarts_with_decay_and_warmup_schedule`.

    Args:
        args: The options of the command line, among them those that extend the schedule of a run.
        given: The options of the schedule that were given. Without any, a run that continues keeps its schedule.
        state: The state of the run: its number of updates, and its schedule if it continues.
    """
    if args.extend_cycles is not None:
        if state.schedule is None or given:
            got = f"got --{', --'.join(given)} as well" if given else f"there is none in {args.output_dir}"
            raise ValueError(f"Expected --extend_cycles to extend the schedule of a run, but {got}")
        return extend(state.schedule, state.max_train_steps, args.extend_cycles, args.extend_decay)
    if state.schedule is not None and not given:
        return state.schedule
    if "T_0" not in given and "cycles" not in given:
        given = {"num_training_steps": state.max_train_steps, **given}
        if "num_cycles" not in given:
            # Three cycles, each twice as long as the one before. Very few updates do not have room for three.
            num_cycles = min(3, (state.max_train_steps + 1).bit_length() - 1)
            given = {"num_cycles": num_cycles, "T_mult": 2, "stable_ratio": 0.8, **given}
    return {"num_warmup_steps": state.max_train_steps // 15, **given}


def extend(schedule: dict[str, Any], end: int, num_cycles: int, decay: float | None) -> dict[str, Any]:
    """Append cycles that end at update `end`. The updates before them keep their learning rates."""
    minimum = {name: schedule[name] for name in ("min_lr", "min_lr_rate") if name in schedule}
    past = schedule_from_arguments(**{name: value for name, value in schedule.items() if name not in minimum})
    if past.end == end:  # the same command was given before
        return schedule
    fixed = {"num_training_steps", "num_cycles", "T_0", "T_mult", "decay", "cycles"}  # a list of cycles replaces these
    others = {name: value for name, value in schedule.items() if name not in fixed}
    return {**others, "cycles": past.extend(end, num_cycles, decay=decay).cycles}
