"""Study 1: the number of steps is known, and schedules are compared at equal budgets.

    python -m benchmarks.quality.known_end            # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.known_end --quick    # the same code on a few updates, in under a minute
    python -m benchmarks.quality.report               # tables and pictures from the results

For each task and each schedule:

1. The peak learning rate is tuned: the same grid for all schedules, and the mean loss on the validation split over the
   same tuning seeds at the end of the budget. If the best value is at an edge of the grid, the grid grows there.
2. The runs for the results use that peak and other seeds, and are measured on the test split.

Runs of one seed start from the same weights and see the same batches in the same order, whatever the schedule. Each run
is one line of the results; a run whose line is there is not made again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler
from tqdm import tqdm
from transformers import get_scheduler

from benchmarks.quality.tasks import Task, load_images, load_images_for_long, load_text
from benchmarks.quality.training import (
    Records,
    batches,
    best_peak_lr,
    log_probabilities,
    loss_and_accuracy,
    parse,
    results_file,
    update,
)
from hf_warmcos import CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule

# With 420 updates, 28 of them warmup, every cycle of 4 equal ones and of 3 doubling ones has a whole number of steps.
WARMUP_FRACTION = 1 / 15
NUM_CYCLES = {1: 4, 2: 3}  # by T_mult


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    num_training_steps: int = 420
    tuning_seeds: tuple[int, ...] = (100, 101)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    num_peak_lrs: int = 4
    max_grid_extensions: int = 3
    num_evaluation_blocks: int = 160


QUICK = Budget(
    num_training_steps=20,
    tuning_seeds=(100,),
    seeds=(0, 1),
    num_peak_lrs=2,
    max_grid_extensions=0,
    num_evaluation_blocks=16,
)


@dataclass(frozen=True)
class Setting:
    """A schedule with its arguments and its budget."""

    schedule: str
    num_training_steps: int
    num_warmup_steps: int = 0
    num_cycles: int = 1
    T_mult: int = 1
    decay: float = 1.0

    def cycle_ends(self) -> list[int]:
        """The numbers of updates after which a cycle is complete; the whole budget where there is one cycle."""
        fitted = CosineRestartSchedule.fit(
            self.num_training_steps, self.num_cycles, T_mult=self.T_mult, warmup_steps=self.num_warmup_steps
        )
        return [*fitted.restarts(self.num_training_steps), self.num_training_steps]

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The scheduler, for an optimizer whose learning rate is the peak."""
        if self.schedule == "hf_warmcos":
            return get_cosine_restarts_with_decay_and_warmup_schedule(
                optimizer,
                self.num_warmup_steps,
                self.num_training_steps,
                num_cycles=self.num_cycles,
                T_mult=self.T_mult,
                decay=self.decay,
            )
        if self.schedule == "torch":
            return CosineAnnealingWarmRestarts(optimizer, T_0=self.num_training_steps // self.num_cycles)
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        return get_scheduler(
            name,
            optimizer,
            self.num_warmup_steps,
            self.num_training_steps,
            {"num_cycles": self.num_cycles} if name == "cosine_with_restarts" else {},
        )


def settings(num_training_steps: int, budget_factor: int = 1) -> list[Setting]:
    """What is compared, peers first. Each has the same budget, and the same warmup or none.

    A longer budget is measured with warmup only, to keep the whole within its time.
    """
    num_training_steps *= budget_factor

    def each(schedule: str, num_training_steps: int = num_training_steps, **arguments: Any) -> list[Setting]:
        num_warmup_steps = max(1, round(num_training_steps * WARMUP_FRACTION))
        lengths = (0, num_warmup_steps) if budget_factor == 1 else (num_warmup_steps,)
        return [Setting(schedule, num_training_steps, length, **arguments) for length in lengths]

    peers = [
        *each("constant"),
        *each("linear"),
        *each("cosine"),
        *each("cosine_with_restarts", num_cycles=NUM_CYCLES[1]),
    ]
    if budget_factor == 1:  # without warmup, which torch's does not have
        peers.append(Setting("torch", num_training_steps, num_cycles=NUM_CYCLES[1]))
    own = [
        setting
        for T_mult, num_cycles in NUM_CYCLES.items()
        for decay in (1.0, 0.75, 0.5)
        for setting in each("hf_warmcos", num_cycles=num_cycles, T_mult=T_mult, decay=decay)
    ]
    return [*peers, *own]


@dataclass(frozen=True)
class Run:
    """One line of the results: what determines the numbers in it."""

    task: str
    setting: Setting
    peak_lr: float
    seed: int
    split: str


def train(task: Task, setting: Setting, peak_lr: float, seed: int, stops: Collection[int]) -> Iterator[torch.nn.Module]:
    """Train, and yield the model where the number of updates is among `stops`."""
    torch.manual_seed(seed)
    model = task.make_model()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, fused=True)
    scheduler = setting.make_scheduler(optimizer)
    rows = batches(len(task.train.inputs), task.batch_size, seed)
    for num_updates in range(1, setting.num_training_steps + 1):
        update(task, model, optimizer, next(rows))
        scheduler.step()
        if num_updates in stops:
            model.eval()
            yield model
            model.train()


def ensembles(members: list[Tensor], labels: Tensor) -> dict[int, dict[str, float | None]]:
    """What the mean of the probabilities of the last 1, 2, … members gives, by the number of members."""
    results, total = {}, torch.full_like(members[0], -math.inf)
    for size, member in enumerate(reversed(members), start=1):
        total = torch.logaddexp(total, member)
        results[size] = loss_and_accuracy(total - math.log(size), labels)
    return results


def measure(task: Task, run: Run) -> dict[str, Any]:
    """Make one run and return its results.

    Returns:
        `dict`: `members` has loss and accuracy of each cycle end, the last one being the result; `ensembles` those of
        the last 1, 2, … members, their probabilities averaged.
    """
    setting = run.setting
    labels = getattr(task, run.split).labels
    # A tuning run (on the validation split) needs only its final loss.
    cycle_ends = setting.cycle_ends() if run.split == "test" else [setting.num_training_steps]
    members = [
        log_probabilities(task, model, run.split) for model in train(task, setting, run.peak_lr, run.seed, cycle_ends)
    ]
    of_each = [loss_and_accuracy(member, labels) for member in members]
    return {"members": of_each, "ensembles": ensembles(members, labels)}


class Results:
    """The runs of all tasks in one file: makes those that it lacks."""

    def __init__(self, path: Path, tasks: list[Task]) -> None:
        self.records = Records(path)
        self.tasks = {task.name: task for task in tasks}

    def of(self, run: Run) -> dict[str, Any]:
        """The line of a run, made now where it is not there yet."""
        return self.records.of(asdict(run), lambda: measure(self.tasks[run.task], run))


def tuned_peak_lr(results: Results, task: Task, setting: Setting, budget: Budget) -> float:
    """The peak learning rate with the lowest mean validation loss."""

    def validation_loss(peak_lr: float) -> float:
        runs = [Run(task.name, setting, peak_lr, seed, "validation") for seed in budget.tuning_seeds]
        losses = [results.of(run)["members"][-1]["loss"] for run in runs]
        return math.inf if None in losses else sum(losses) / len(losses)

    return best_peak_lr(task.peak_lrs[: budget.num_peak_lrs], budget.max_grid_extensions, validation_loss)


def measure_all(tasks: list[Task], budget: Budget, path: Path) -> Results:
    """Tune and measure all settings on these tasks, but for the runs that the file has already."""
    results = Results(path, tasks)
    combinations = [(t, s) for t in tasks for s in settings(budget.num_training_steps, t.budget_factor)]
    runs = [
        Run(task.name, setting, tuned_peak_lr(results, task, setting, budget), seed, "test")
        for task, setting in tqdm(combinations, desc="tuning", unit="setting")
        for seed in budget.seeds
    ]
    for run in tqdm(runs, desc="measuring", unit="run"):
        results.of(run)
    return results


def main() -> None:
    arguments = parse(__doc__)
    budget = QUICK if arguments.quick else Budget()
    tasks = [load_text(budget.num_evaluation_blocks), load_images()]
    if not arguments.quick:
        tasks.append(load_images_for_long())
    measure_all(tasks, budget, results_file("known_end", arguments))


if __name__ == "__main__":
    main()
