"""What the studies share: batches, losses, tuning, and a file of runs that continues where it was stopped."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.results import read_lines
from benchmarks.quality.tasks import Task

RESULTS = Path(__file__).parent.parent / "results"

# The texts come with Python, and differ from one version to the next.
PACKAGES = ("hf_warmcos", "torch", "transformers", "datasets", "numpy", "scikit-learn", "schedulefree")


def batches(num_rows: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows of each batch, without end: epoch after epoch in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(num_rows, generator=generator)[: num_rows // batch_size * batch_size].split(
            batch_size
        )


def update(task: Task, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    """One update on these rows of the training split."""
    logits = task.logits(model, task.train.inputs[batch])
    torch.nn.functional.cross_entropy(logits, task.train.labels[batch].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def log_probabilities(task: Task, model: torch.nn.Module, split: str) -> Tensor:
    """The logarithm of the probability of each class, a row per prediction of a split."""
    return task.logits(model, getattr(task, split).inputs).log_softmax(-1)


def loss_and_accuracy(log_probs: Tensor, labels: Tensor) -> dict[str, float | None]:
    """The mean cross-entropy in nats and the fraction of right predictions; the loss is None if training diverged."""
    labels = labels.flatten()
    loss = float(torch.nn.functional.nll_loss(log_probs, labels))
    accuracy = float((log_probs.argmax(-1) == labels).double().mean())
    return {"loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}


class Records:
    """A file of results with a line for each run: what determines it (`"run"`), and what was measured."""

    def __init__(self, path: Path, packages: Iterable[str] = PACKAGES) -> None:
        self.path = path
        self.versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:  # without the half line of a run that was stopped while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        records = [json.loads(line) for line in read_lines(path)]
        self.known = {json.dumps(record["run"], sort_keys=True): record for record in records}

    def of(self, run: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a run, measured now where it is not there yet."""
        key = json.dumps(run, sort_keys=True)
        if key not in self.known:
            start = time.perf_counter()
            record = {"run": run, **measure(), "seconds": round(time.perf_counter() - start, 3)}
            line = json.dumps(record | {"versions": self.versions, "machine": platform.machine()})
            with self.path.open("a") as file:
                file.write(line + "\n")
            self.known[key] = json.loads(line)
        return self.known[key]


def best_peak_lr(
    peak_lrs: tuple[float, ...], max_grid_extensions: int, validation_loss: Callable[[float], float]
) -> float:
    """The peak learning rate of the lowest loss on a grid of factor 2, which grows if its best value is at an edge."""
    tried = {peak_lr: validation_loss(peak_lr) for peak_lr in peak_lrs}
    for _ in range(max_grid_extensions):
        best = min(tried, key=tried.__getitem__)
        if best == max(tried):
            tried[best * 2] = validation_loss(best * 2)
        elif best == min(tried):
            tried[best / 2] = validation_loss(best / 2)
    return min(tried, key=tried.__getitem__)


class Stage(NamedTuple):
    """Some updates in a row."""

    shares: tuple[float, ...]  # of the peak rate, one per update
    data: int  # the kind of data, by its place among a task's kinds
    stops: tuple[int, ...]  # the numbers of updates in it after which the model is evaluated


Stages = tuple[Stage, ...]


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    num_updates: int = 160  # N, the plan
    tuning_seeds: tuple[int, ...] = (100, 101)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    num_peak_lrs: int = 3
    max_grid_extensions: int = 2
    num_evaluation_blocks: int = 64

    @property
    def num_warmup_steps(self) -> int:
        return max(1, self.num_updates // 16)


@dataclass
class State:
    """A model on its way."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    num_batches: tuple[int, ...]  # that were seen of each kind of data


Losses = dict[str, dict[str, float | None]]
Contender = Any  # a study's own dataclass: with a `name`, and `tuned_as()`, the contender whose tuned peak it uses
PlannedPaths = Callable[[str, Contender, Budget], list[Stages]]  # what is trained in a scenario, in the order of time


class Runs:
    """The runs of one task and one seed. What several have in common is trained once.

    Args:
        kinds: The task with each kind of data, the one that a run begins with first.
        seed: Of the weights and of the order of the batches.
        num_warmup_steps: For an optimizer that warms up by itself.
    """

    def __init__(self, kinds: Sequence[Task], seed: int, num_warmup_steps: int) -> None:
        self.kinds, self.seed, self.num_warmup_steps = kinds, seed, num_warmup_steps
        self.known: dict[Any, tuple[State, dict[int, Losses]]] = {}

    def start(self, schedule_free: bool, peak_lr: float) -> State:
        torch.manual_seed(self.seed)
        model = self.kinds[0].make_model()
        optimizer: torch.optim.Optimizer
        if schedule_free:
            optimizer = AdamWScheduleFree(model.parameters(), lr=peak_lr, warmup_steps=self.num_warmup_steps)
        else:
            decay = self.kinds[0].weight_decay
            optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=decay, fused=True)
        return State(model, optimizer, (0,) * len(self.kinds))

    def evaluate(self, state: State, splits: Sequence[str], num_kinds: int) -> Losses:
        state.model.eval()
        if isinstance(state.optimizer, AdamWScheduleFree):
            state.optimizer.eval()
        losses = {
            f"{task.name}, {split}": loss_and_accuracy(
                log_probabilities(task, state.model, split), getattr(task, split).labels
            )
            for task in self.kinds[:num_kinds]
            for split in splits
        }
        if isinstance(state.optimizer, AdamWScheduleFree):
            state.optimizer.train()
        state.model.train()
        return losses

    def train(self, path: Stages, schedule_free: bool, peak_lr: float, splits: Sequence[str]) -> dict[int, Losses]:
        """Train the last stage of a path, and what leads to it where that is not known.

        Returns:
            `dict`: The losses by the number of updates in the last stage.
        """
        num_kinds = 1 + max(stage.data for stage in path)
        key = (path, schedule_free, peak_lr, tuple(splits))
        if key in self.known:
            return self.known[key][1]
        *before, stage = path
        if before:
            self.train(tuple(before), schedule_free, peak_lr, splits)
            state = copy.deepcopy(self.known[tuple(before), schedule_free, peak_lr, tuple(splits)][0])
        else:
            state = self.start(schedule_free, peak_lr)
        if isinstance(state.optimizer, AdamWScheduleFree):
            state.optimizer.train()
        state.model.train()
        task = self.kinds[stage.data]
        rows = batches(len(task.train.inputs), task.batch_size, self.seed)
        for _ in range(state.num_batches[stage.data]):
            next(rows)
        torch.manual_seed(self.seed)  # dropout is then the same whatever was trained before
        losses = {}
        for num_updates, share in enumerate(stage.shares, start=1):
            for group in state.optimizer.param_groups:
                group["lr"] = peak_lr * share
            update(task, state.model, state.optimizer, next(rows))
            if num_updates in stage.stops:
                losses[num_updates] = self.evaluate(state, splits, num_kinds)
        state.num_batches = tuple(
            count + len(stage.shares) * (kind == stage.data) for kind, count in enumerate(state.num_batches)
        )
        self.known[key] = (state, losses)
        return losses

    def measure(
        self, contender: Contender, all_paths: list[Stages], peak_lr: float, splits: Sequence[str]
    ) -> dict[str, Any]:
        """The losses of a contender, by the number of all the updates that it has made."""
        curve: dict[int, Losses] = {}
        time, done = 0, set()
        for path in all_paths:
            for length in range(1, len(path) + 1):
                if path[:length] in done:
                    continue
                losses = self.train(path[:length], contender.name == "schedule_free", peak_lr, splits)
                curve |= {time + num_updates: of for num_updates, of in losses.items()}
                time += len(path[length - 1].shares)
                done.add(path[:length])
        return {"curve": curve}


@dataclass(frozen=True)
class Run:
    """One line of the results: what determines the numbers in it."""

    task: str
    scenario: str  # "tuning", or one of the study's
    contender: Contender
    num_updates: int  # N
    peak_lr: float
    seed: int


class Study:
    """The runs of one task: makes those that the file lacks.

    Args:
        records: The file.
        kinds: The task with each kind of data.
        budget: How much is measured.
        planned_paths: What is trained in a scenario: "tuning", or one of the study's.
        settings: What determines the numbers beside a [`Run`]; part of each line of the results.
    """

    def __init__(
        self,
        records: Records,
        kinds: Sequence[Task],
        budget: Budget,
        planned_paths: PlannedPaths,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.records, self.kinds, self.budget, self.settings = records, kinds, budget, settings or {}
        self.planned_paths = planned_paths
        self.runs = Runs(kinds, -1, budget.num_warmup_steps)
        self.peak_lrs: dict[Contender, float] = {}

    def of(self, scenario: str, contender: Contender, peak_lr: float, seed: int) -> dict[str, Any]:
        """The line of a run, made now where it is not there yet."""
        run = asdict(Run(self.kinds[0].name, scenario, contender, self.budget.num_updates, peak_lr, seed))
        return self.records.of(run | self.settings, lambda: self.made(scenario, contender, peak_lr, seed))

    def made(self, scenario: str, contender: Contender, peak_lr: float, seed: int) -> dict[str, Any]:
        """Make a run, and return what was measured: a `curve` of the losses by the number of updates."""
        if self.runs.seed != seed:
            self.runs = Runs(self.kinds, seed, self.budget.num_warmup_steps)
        # A tuning run needs only its validation loss.
        splits = ["validation"] if scenario == "tuning" else ["validation", "test"]
        return self.runs.measure(contender, self.planned_paths(scenario, contender, self.budget), peak_lr, splits)

    def peak_lr(self, contender: Contender) -> float:
        """The peak learning rate with the lowest mean validation loss at the end that the contender is planned for."""
        contender = contender.tuned_as()

        def validation_loss(peak_lr: float) -> float:
            curves = [self.of("tuning", contender, peak_lr, seed)["curve"] for seed in self.budget.tuning_seeds]
            losses = [[*curve.values()][-1][f"{self.kinds[0].name}, validation"]["loss"] for curve in curves]
            return math.inf if None in losses else sum(losses) / len(losses)

        if contender not in self.peak_lrs:
            grid = self.kinds[0].peak_lrs[: self.budget.num_peak_lrs]
            self.peak_lrs[contender] = best_peak_lr(grid, self.budget.max_grid_extensions, validation_loss)
        return self.peak_lrs[contender]


Row = tuple[Study, str, Contender]  # a study, the scenario and the contender


def measure_all(blocks: Sequence[Sequence[Row]]) -> None:
    """Tune and measure the rows of each block, but for the runs that the file has already.

    A plan is tuned right before the first run that needs it. All rows of a block are run with one seed, then with the
    next: wherever it is stopped, what is there can be compared.
    """
    with tqdm(total=sum(len(block) * len(block[0][0].budget.seeds) for block in blocks if block), unit="run") as bar:
        for block in blocks:
            for seed in block[0][0].budget.seeds if block else ():
                for study, scenario, contender in block:
                    study.of(scenario, contender, study.peak_lr(contender), seed)
                    bar.update()


def estimated_hours(blocks: Sequence[Sequence[Row]]) -> float:
    """How long it takes at most where no tuning grid grows, by the speed of a few updates and of one evaluation."""
    seconds = 0.0
    for study in {row[0] for block in blocks for row in block}:
        budget = study.budget
        rows = [(scenario, contender) for block in blocks for of, scenario, contender in block if of is study]
        tuning = {("tuning", contender.tuned_as()) for _, contender in rows}
        counted = [(row, len(budget.seeds)) for row in rows]
        counted += [(row, len(budget.tuning_seeds) * budget.num_peak_lrs) for row in tuning]
        runs = Runs(study.kinds, 0, 1)

        def timed(num_updates: int, *stops: int, runs: Runs = runs) -> float:
            start = time.perf_counter()
            runs.train((Stage((1.0,) * num_updates, 0, stops),), False, 1e-4, ("validation", "test"))
            return time.perf_counter() - start

        timed(3)  # the first updates are slower
        of_update = timed(8) / 8
        of_evaluation = max(0.0, timed(1, 1) - of_update)
        for row, times in counted:
            # What several paths have in common is trained once.
            stages = {
                path[:n]: path[n - 1] for path in study.planned_paths(*row, budget) for n in range(1, len(path) + 1)
            }
            for stage in stages.values():
                seconds += times * (len(stage.shares) * of_update + len(stage.stops) * of_evaluation)
    return seconds / 3600


def parse(description: str | None, name: str, scales: Iterable[str] = ("cpu",)) -> argparse.Namespace:
    """The arguments of a study; sets up torch so that a seed gives the same numbers again."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=[*scales], default="cpu", help="the machine (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few updates, into output/")
    parser.add_argument("--estimate", action="store_true", help="only say how long all of it takes")
    parser.add_argument("--half", type=int, choices=[1, 2], help="only this half, so that two processes share the work")
    parser.add_argument("--output", type=Path, help=f"the results (default: in {RESULTS})")
    arguments = parser.parse_args()
    if arguments.scale == "gpu":
        if not torch.cuda.is_available():
            parser.error("Expected a GPU for --scale gpu, but torch sees none")
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        name += "-gpu"
    default = Path("output") / f"{name}-quick.jsonl" if arguments.quick else RESULTS / f"{name}.jsonl"
    arguments.output = arguments.output or default
    torch.set_num_threads(1)  # sums are then always taken in the same order
    return arguments


def estimate_or_measure(blocks: Sequence[Sequence[Row]], arguments: argparse.Namespace) -> None:
    """Measure the rows, or only say how long they take."""
    if arguments.estimate:
        hours = estimated_hours(blocks)
        print(f"It takes at most {hours:.2f} hours at this machine's speed, longer where a tuning grid grows.")
    else:
        measure_all(blocks)
