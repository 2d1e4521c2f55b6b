"""Study 1: the number of steps is known, and schedules are compared at equal budgets.

    python -m benchmarks.quality.known_end            # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.known_end --half 1   # the text; and at the same time, the images: --half 2
    python -m benchmarks.quality.known_end --quick    # the same code on a few updates, in under a minute
    python -m benchmarks.quality.report               # tables and pictures from the results

For each task and each schedule, the peak learning rate is tuned: the same grid for all, and the mean loss on the
validation split over the same tuning seeds at the end of the budget. If the best value is at an edge of the grid, the
grid grows there. The runs for the results use that peak and other seeds, and are measured on the test split.

Runs of one seed start from the same weights and see the same batches in the same order, whatever the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler
from transformers import get_scheduler

from benchmarks.quality.tasks import Task, load_images, load_images_for_long, load_text
from benchmarks.quality.training import (
    Budget,
    Records,
    Row,
    Stage,
    Stages,
    Study,
    batches,
    estimate_or_measure,
    log_probabilities,
    loss_and_accuracy,
    parse,
    update,
)
from hf_warmcos import CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule

# With 420 updates, 28 of them warmup, every cycle of 4 equal ones and of 3 doubling ones has a whole number of steps.
WARMUP_FRACTION = 1 / 15
NUM_CYCLES = {1: 4, 2: 3}  # by T_mult


BUDGET = Budget(420, num_peak_lrs=4, max_grid_extensions=3, num_evaluation_blocks=160)
QUICK = Budget(20, (100,), (0, 1), num_peak_lrs=2, max_grid_extensions=0, num_evaluation_blocks=16)


@dataclass(frozen=True)
class Setting:
    """A schedule with its arguments and its budget."""

    name: str
    num_training_steps: int
    num_warmup_steps: int = 0
    num_cycles: int = 1
    T_mult: int = 1
    decay: float = 1.0

    def tuned_as(self) -> Setting:
        return self

    def cycle_ends(self) -> list[int]:
        """The numbers of updates after which a cycle is complete; the whole budget where there is one cycle."""
        fitted = CosineRestartSchedule.fit(
            self.num_training_steps, self.num_cycles, T_mult=self.T_mult, warmup_steps=self.num_warmup_steps
        )
        return [*fitted.restarts(self.num_training_steps), self.num_training_steps]

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The scheduler, for an optimizer whose learning rate is the peak."""
        if self.name == "hf_warmcos":
            return get_cosine_restarts_with_decay_and_warmup_schedule(
                optimizer,
                self.num_warmup_steps,
                self.num_training_steps,
                num_cycles=self.num_cycles,
                T_mult=self.T_mult,
                decay=self.decay,
            )
        if self.name == "torch":
            return CosineAnnealingWarmRestarts(optimizer, T_0=self.num_training_steps // self.num_cycles)
        name = "constant_with_warmup" if self.name == "constant" else self.name
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


def planned_paths(scenario: str, setting: Setting, budget: Budget) -> list[Stages]:
    """How many updates, and where the model is evaluated: a tuning run needs only its final loss."""
    stops = [setting.num_training_steps] if scenario == "tuning" else setting.cycle_ends()
    return [(Stage((1.0,) * setting.num_training_steps, 0, tuple(stops)),)]


class KnownEnd(Study):
    """The schedulers themselves set the learning rates."""

    def made(self, scenario: str, contender: Setting, peak_lr: float, seed: int) -> dict[str, Any]:
        """The `curve` of the losses at cycle ends, and the loss of the `ensemble` of all (their mean probability)."""
        (task,) = self.kinds
        split = "validation" if scenario == "tuning" else "test"
        labels = getattr(task, split).labels
        [(stage,)] = self.planned_paths(scenario, contender, self.budget)
        members = [
            log_probabilities(task, model, split) for model in train(task, contender, peak_lr, seed, stage.stops)
        ]
        losses = [{f"{task.name}, {split}": loss_and_accuracy(member, labels)} for member in members]
        mean = reduce(torch.logaddexp, reversed(members)) - math.log(len(members))
        return {"curve": dict(zip(stage.stops, losses)), "ensemble": loss_and_accuracy(mean, labels)}


def rows(tasks: list[Task], budget: Budget, path: Path) -> list[Row]:
    """All settings on these tasks."""
    records = Records(path)
    studies = [KnownEnd(records, [task], budget, planned_paths) for task in tasks]
    return [
        (study, "test", setting)
        for study in studies
        for setting in settings(budget.num_updates, study.kinds[0].budget_factor)
    ]


def main() -> None:
    arguments = parse(__doc__, "known_end")
    budget = QUICK if arguments.quick else BUDGET
    images = [load_images()] if arguments.quick else [load_images(), load_images_for_long()]
    halves = [[load_text(budget.num_evaluation_blocks)], images]
    tasks = halves[arguments.half - 1] if arguments.half else [*halves[0], *images]
    estimate_or_measure([rows(tasks, budget, arguments.output)], arguments)


if __name__ == "__main__":
    main()
