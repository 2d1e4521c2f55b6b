"""Fine-tune a causal language model under Accelerate with warm restarts, a decaying peak and one warmup.

    python examples/accelerate_finetune.py --output_dir /tmp/run
    accelerate launch examples/accelerate_finetune.py --output_dir /tmp/run

The script is the same for one process and for many, on CPU and on GPU. Without a model and a data set it runs offline:
a small GPT-2 learns the reference of the Python language, byte by byte. Every length is in optimizer updates.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from causal_lm_data import (
    ModelAndDataArguments,
    expect_at_least,
    load_blocks,
    load_model_and_tokenizer,
)
from checkpoints import (
    METRICS,
    CheckpointError,
    ResumableSampler,
    TrainingState,
    begin_run_at,
    find_checkpoint,
    keep_checkpoints_portable,
    load_checkpoint,
    on_main_process,
    save_checkpoint,
)
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import HfArgumentParser, default_data_collator

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule


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
    checkpointing_steps: str | None = field(
        default=None, metadata={"help": "Save the state every N updates, at the end of each `epoch` or `cycle`."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "The folder of a checkpoint, or `latest`: the newest whole one in output_dir."}
    )
    report_to: str | None = field(
        default=None, metadata={"help": "Trackers of Accelerate, by comma: `tensorboard`, `wandb`, … or `all`."}
    )

    def __post_init__(self) -> None:
        expect_at_least(self, per_device_train_batch_size=1, per_device_eval_batch_size=1, max_train_steps=1)
        expect_at_least(self, gradient_accumulation_steps=1, num_train_epochs=0, max_grad_norm=0)
        expect_at_least(self, learning_rate=0, weight_decay=0, seed=0)
        saving = self.checkpointing_steps
        if saving not in (None, "epoch", "cycle") and not (saving.isdecimal() and int(saving) > 0):
            raise ValueError(f"Expected --checkpointing_steps to be a number, epoch or cycle, but got {saving!r}")


@dataclass
class ScheduleArguments:
    """The arguments of `get_cosine_restarts_with_decay_and_warmup_schedule`, under its names."""

    num_warmup_steps: int | None = field(default=None, metadata={"help": "Default: a twentieth of the updates."})
    num_cycles: int | None = field(
        default=None, metadata={"help": "Cycles. Default: 4 that fill the updates, or without end where T_0 is given."}
    )
    decay: float = field(default=0.75, metadata={"help": "The factor on the peak at each restart."})
    T_0: float | None = field(default=None, metadata={"help": "Updates of the first cycle, if not fitted."})
    T_mult: float = field(default=1, metadata={"help": "The factor on the length of a cycle at each restart."})
    min_lr: float | None = field(default=None, metadata={"help": "The rate at the end of each cycle. Default: 0."})
    min_lr_rate: float | None = field(default=None, metadata={"help": "The same as a share of --learning_rate."})
    warmup_mode: str = field(
        default="prefix",
        metadata={
            "help": "Warmup before the cycles, over the first one, or in each one.",
            "choices": ["prefix", "overlap", "every_cycle"],
        },
    )
    warmup_lr_rate: float = field(default=0.0, metadata={"help": "The share of the rate where the warmup starts."})


@contextmanager
def one_line_errors(is_main_process: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End the script with one line on the main process where the user's arguments do not fit."""
    try:
        yield
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        if is_main_process():
            print(f"accelerate_finetune.py: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def end_with_the_launcher() -> None:
    """Let Linux end this process when the launcher that started it is killed.

    A killed launcher cannot stop its processes. They would train on, beside the run that resumes theirs.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_signal_at_death_of_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_at_death_of_parent, signal.SIGKILL)


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, dataloader: DataLoader[Any]) -> dict[str, float]:
    """Return the mean held-out loss per token and its exponential, the perplexity."""
    model.eval()
    losses = []
    for batch in dataloader:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
        token_losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        # The processes get equally many samples, some of them twice; gather_for_metrics leaves out the second ones.
        losses.append(accelerator.gather_for_metrics(token_losses.mean(dim=1)))
    model.train()
    eval_loss = torch.cat(losses).mean().item()
    return {"eval_loss": eval_loss, "perplexity": math.exp(min(eval_loss, 700))}


def draw_learning_rate(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw the rate that each update used, with its loss beside it."""
    steps = [line["step"] for line in metrics]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    rate_axis = figure.subplots()
    loss_axis = rate_axis.twinx()
    loss_axis.plot(steps, [line["loss"] for line in metrics], color="tab:orange", linewidth=0.8)
    loss_axis.set_ylabel("loss", color="tab:orange")
    rate_axis.plot(steps, [line["learning_rate"] for line in metrics], color="tab:blue")
    rate_axis.set(xlabel="step", ylim=(0, None))
    rate_axis.set_ylabel("learning rate", color="tab:blue")
    rate_axis.set_zorder(loss_axis.get_zorder() + 1)
    rate_axis.patch.set_visible(False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    end_with_the_launcher()
    parser = HfArgumentParser(
        [ModelAndDataArguments, TrainingArguments, ScheduleArguments],  # type: ignore[list-item]
        usage="%(prog)s --output_dir DIR [options]",
    )
    with one_line_errors():
        data_args, args, schedule_args = parser.parse_args_into_dataclasses(arguments)
    output_dir = Path(args.output_dir)

    # Accelerate joins processes without an accelerator to one run only if it is told that they are on the CPU. Told
    # here, and not to Accelerator, that leaves DeepSpeed its place.
    if not torch.accelerator.is_available():
        PartialState(cpu=True)
    with one_line_errors():
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.report_to is None else args.report_to.split(","),
            project_dir=output_dir,
        )
    accelerator.print(f"Processes: {accelerator.num_processes}, device: {accelerator.device.type}")

    with one_line_errors(lambda: accelerator.is_main_process):
        # 1. Where does the run begin? At the beginning, or where a checkpoint of it stands.
        checkpoint, state = None, None
        if args.resume_from_checkpoint is not None:
            found = on_main_process(accelerator, find_checkpoint, args.resume_from_checkpoint, output_dir)
            if found is None:
                accelerator.print(f"No checkpoint in {output_dir} yet: starting from the beginning")
            else:
                checkpoint, state = found
                accelerator.print(f"Resuming from {checkpoint} after update {state.completed_steps}")

        # 2. The model and the data. The processes have to begin with the same weights, but not with the same dropout.
        set_seed(args.seed)
        model, tokenizer = load_model_and_tokenizer(data_args.model_name_or_path)
        with accelerator.main_process_first():
            blocks = load_blocks(data_args, tokenizer)
        set_seed(args.seed, device_specific=True)

        samples_per_batch = args.per_device_train_batch_size * accelerator.num_processes
        batches_per_epoch = len(blocks["train"]) // samples_per_batch
        if batches_per_epoch == 0 or len(blocks["validation"]) == 0:
            raise ValueError(
                f"Expected at least {samples_per_batch} blocks of --block_size {data_args.block_size} tokens to train "
                f"on and 1 held out, but got {len(blocks['train'])} and {len(blocks['validation'])}"
            )

        # 3. How many updates? An update is gradient_accumulation_steps batches, on all processes together.
        updates_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
        if state is None:
            state = TrainingState(max_train_steps=max(1, round(args.num_train_epochs * updates_per_epoch)))
        if args.max_train_steps is not None:
            state.max_train_steps = args.max_train_steps

        # Samples that no longer fill a batch are left out, a different few in each epoch. A generator of their own
        # keeps the loaders from drawing on the random numbers of dropout, so that a resumed run draws the same ones.
        if len(blocks["train"]) - state.samples_seen < samples_per_batch:
            state.epoch, state.samples_seen = state.epoch + 1, 0
        train_dataloader: Any = DataLoader(
            blocks["train"],  # type: ignore[arg-type]
            batch_size=args.per_device_train_batch_size,
            sampler=ResumableSampler(len(blocks["train"]), args.seed, state),
            drop_last=True,
            collate_fn=default_data_collator,
            generator=torch.Generator(),
        )
        eval_dataloader: Any = DataLoader(
            blocks["validation"],  # type: ignore[arg-type]
            batch_size=args.per_device_eval_batch_size,
            collate_fn=default_data_collator,
            generator=torch.Generator(),
        )

        # 4. The optimizer and its schedule.
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": args.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=args.learning_rate,
        )
        if schedule_args.num_warmup_steps is None:
            schedule_args.num_warmup_steps = state.max_train_steps // 20
        if schedule_args.num_cycles is None and schedule_args.T_0 is None:
            schedule_args.num_cycles = min(4, state.max_train_steps)
        scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
            optimizer, num_training_steps=state.max_train_steps, **asdict(schedule_args)
        )

        schedule = scheduler.schedule

        model, optimizer, train_dataloader, eval_dataloader, scheduler = accelerator.prepare(
            model, optimizer, train_dataloader, eval_dataloader, scheduler
        )
        # Accelerate steps a schedule once per process at each update. This one counts updates.
        count_optimizer_steps(scheduler)

        keep_checkpoints_portable(accelerator)
        if checkpoint is not None:
            load_checkpoint(accelerator, checkpoint)
        metrics_so_far = None if checkpoint is None else checkpoint / METRICS
        on_main_process(accelerator, begin_run_at, state.completed_steps, metrics_so_far, output_dir)
        if args.report_to is not None:
            config = {**asdict(data_args), **asdict(args), **asdict(schedule_args)}
            accelerator.init_trackers("accelerate_finetune", config=config)

    # 5. Train.
    progress_bar = tqdm(
        total=state.max_train_steps, initial=state.completed_steps, disable=not accelerator.is_main_process
    )

    def evaluate_at(cycle: int | None, name: str) -> None:
        result = evaluate(accelerator, model, eval_dataloader)
        state.evaluations.append({"cycle": cycle, "step": state.completed_steps, **result})
        accelerator.log(result, step=state.completed_steps)
        if accelerator.is_main_process:
            progress_bar.write(f"{name}: loss {result['eval_loss']:.4f}, perplexity {result['perplexity']:.3f}")

    if not state.evaluations:
        evaluate_at(None, "Held-out data before training")
    model.train()
    # Each line reaches the file at once, so that a kill of this process loses none.
    metrics_file = (output_dir / METRICS).open("a", buffering=1) if accelerator.is_main_process else None
    losses: list[torch.Tensor] = []
    while state.completed_steps < state.max_train_steps:
        completed_before_epoch = state.completed_steps
        train_dataloader.set_epoch(state.epoch)
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                losses.append(loss.detach())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                learning_rate = scheduler.get_last_lr()[0]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            state.samples_seen += samples_per_batch
            if not accelerator.sync_gradients:
                continue
            update_loss = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
            losses = []
            epoch, epoch_ended = state.epoch, accelerator.gradient_state.end_of_dataloader
            if epoch_ended:
                state.epoch, state.samples_seen = epoch + 1, 0
            if accelerator.optimizer_step_was_skipped:
                continue  # the gradients overflowed in mixed precision: no update, and the schedule stays

            cycle = schedule.cycle_at(state.completed_steps).index
            state.completed_steps += 1
            if metrics_file is not None:
                line = {
                    "step": state.completed_steps,
                    "cycle": cycle,
                    "learning_rate": learning_rate,
                    "loss": update_loss,
                }
                metrics_file.write(json.dumps(line) + "\n")
            accelerator.log({"train_loss": update_loss, "learning_rate": learning_rate}, step=state.completed_steps)
            progress_bar.set_postfix(loss=f"{update_loss:.3f}", lr=f"{learning_rate:.2e}", refresh=False)
            progress_bar.update()

            # The end of a cycle is where this schedule's weights are worth looking at, and keeping.
            cycle_ended = scheduler.scheduler.at_cycle_end
            if cycle_ended:
                evaluate_at(cycle, f"Held-out data at the end of cycle {cycle}, step {state.completed_steps}")
            name = None
            if args.checkpointing_steps == "epoch":
                name = f"epoch_{epoch}" if epoch_ended else None
            elif args.checkpointing_steps == "cycle":
                name = f"cycle_{cycle}" if cycle_ended else None
            elif args.checkpointing_steps and state.completed_steps % int(args.checkpointing_steps) == 0:
                name = f"step_{state.completed_steps}"
            if name is not None:
                with one_line_errors(lambda: accelerator.is_main_process):
                    save_checkpoint(accelerator, state, output_dir, name)
            if state.completed_steps >= state.max_train_steps:
                break
        if state.completed_steps == completed_before_epoch:
            raise RuntimeError(f"Every update of epoch {epoch} was skipped: its gradients overflow at every loss scale")
    progress_bar.close()

    # 6. The results.
    if state.evaluations[-1]["step"] != state.completed_steps:
        evaluate_at(None, "Held-out data at the end of training")
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(output_dir, state_dict=weights)
        tokenizer.save_pretrained(output_dir)
        metrics = [json.loads(line) for line in (output_dir / METRICS).read_text().splitlines()]
        untrained, final = state.evaluations[0], state.evaluations[-1]
        results = {
            "completed_steps": state.completed_steps,
            "train_loss": sum(line["loss"] for line in metrics) / len(metrics),
            "untrained_eval_loss": untrained["eval_loss"],
            "untrained_perplexity": untrained["perplexity"],
            "eval_loss": final["eval_loss"],
            "perplexity": final["perplexity"],
            "cycles": [result for result in state.evaluations if result["cycle"] is not None],
        }
        (output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
        draw_learning_rate(metrics, output_dir / "learning_rate.png")
        print(
            f"Held-out loss {untrained['eval_loss']:.4f} before training, {final['eval_loss']:.4f} after "
            f"{state.completed_steps} updates; everything is in {output_dir}"
        )
    # The model uses the group of processes, and goes before it: the other way round, some runs never end.
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
