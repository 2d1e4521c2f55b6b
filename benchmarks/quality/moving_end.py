"""Study 2: training continues after its planned end, on the same data or on other data.

    python -m benchmarks.quality.moving_end            # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.moving_end --quick    # the same code on a few updates, in under a minute
    python -m benchmarks.quality.report                # tables and pictures from the results

A run is planned for N updates, and each peak learning rate is tuned for that plan, with other seeds. Then:

- "same data": it is extended to 2 N, and to 4 N.
- "other data": N more updates follow on data of another kind, and both kinds are evaluated.

A contender that was planned for another length is tuned for that length. Updates that only lead to a checkpoint, and
that training does not continue from, count too: warmup-stable-decay pays for its cooldowns out of the same budget.

Runs of one seed start from the same weights and see the same batches in the same order. Runs that begin in the same
way are trained once up to where they part.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from schedulefree import AdamWScheduleFree
from tqdm import tqdm

from benchmarks.quality.tasks import Task, load_code, load_images, load_text, turned
from benchmarks.quality.training import Records, batches, best_peak_lr, log_probabilities, loss_and_accuracy, update
from hf_warmcos import CosineRestartSchedule

RESULTS = Path(__file__).parent.parent / "results" / "moving_end.jsonl"
QUICK_RESULTS = Path("output") / "moving_end-quick.jsonl"

LOW_RATE = 0.1  # of the peak: where cosines of large models often end
COOLDOWN_FRACTION = 0.2
INFINITE_COSINE_FRACTION, INFINITE_RATE, INFINITE_LAST_RATE = 0.6, 0.55, 0.01


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


QUICK = Budget(20, tuning_seeds=(100,), seeds=(0, 1), num_peak_lrs=1, max_grid_extensions=0, num_evaluation_blocks=8)


@dataclass(frozen=True)
class Contender:
    """A way to continue training.

    Attributes:
        name: The kind of schedule.
        plan: The length that it is planned for, in multiples of N; other than 1 only for "cosine" and "linear".
        decay: Of restarts: the factor on the peak at each.
        restart_warmup: Of restarts: whether each rises to its peak as the first cycle does.
        fresh_optimizer: Of restarts: whether each begins with an optimizer without moments.
    """

    name: str
    plan: int = 1
    decay: float = 1.0
    restart_warmup: bool = False
    fresh_optimizer: bool = False

    def tuned_as(self) -> Contender:
        """The contender whose tuned peak it uses: it was tuned before it was known that training continues."""
        return Contender("cosine") if self.name in ("restarts", "low") else self


RESTARTS = [Contender("restarts", decay=decay) for decay in (1.0, 0.5, 0.25, 0.7)]
RESTARTS_WITH_WARMUP = [replace(contender, restart_warmup=True) for contender in RESTARTS]
# The most important runs come first, for all seeds: a study that is stopped has fewer contenders, not fewer seeds.
FIRST = [
    *(("same data", Contender("cosine", plan)) for plan in (1, 2, 4)),
    *(("same data", contender) for contender in RESTARTS[:2]),
    *(("same data", Contender(name)) for name in ("low", "wsd", "wsd_s", "schedule_free")),
    ("other data", Contender("cosine", 2)),
    *(("other data", contender) for contender in (*RESTARTS[:3], RESTARTS_WITH_WARMUP[0])),
    *(("other data", Contender(name)) for name in ("low", "wsd", "wsd_s", "schedule_free")),
]
THEN = [
    *(
        (scenario, Contender(name))
        for name in ("constant", "infinite_cosine")
        for scenario in ("same data", "other data")
    ),
    ("same data", Contender("growing_wsd_s")),
    ("same data", Contender("linear", 4)),
    ("same data", RESTARTS[2]),
    *(("other data", contender) for contender in (RESTARTS[3], *RESTARTS_WITH_WARMUP[1:])),
    *(("other data", replace(c, fresh_optimizer=True)) for c in (RESTARTS[0], RESTARTS_WITH_WARMUP[0])),
]
SAME_DATA, OTHER_DATA = (
    [contender for of, contender in (*FIRST, *THEN) if of == scenario] for scenario in ("same data", "other data")
)


def warmup(num_steps: int) -> list[float]:
    return [step / num_steps for step in range(num_steps)]


def linear(num_steps: int) -> list[float]:
    return [1 - step / num_steps for step in range(num_steps)]


def one_minus_sqrt(num_steps: int) -> list[float]:
    """The cooldown of Hägele et al. 2024."""
    return [1 - math.sqrt(step / num_steps) for step in range(num_steps)]


def exponential(num_steps: int, first: float, last: float) -> list[float]:
    """The annealing of Ibrahim et al. 2024."""
    return [first * (last / first) ** (step / num_steps) for step in range(num_steps)]


def rates(contender: Contender, ends: Sequence[int], num_warmup_steps: int) -> list[float]:
    """The learning rate at each update up to the last end, as a fraction of the peak, without cooldowns.

    Args:
        contender: The contender.
        ends: The numbers of updates at which a run ends: N, and those to which it is extended.
        num_warmup_steps: The length of the first warmup.
    """
    planned, total = ends[0], ends[-1]
    cosine = CosineRestartSchedule(
        planned * contender.plan - num_warmup_steps, num_cycles=1, warmup_steps=num_warmup_steps, warmup_mode="prefix"
    )
    warm = warmup(num_warmup_steps)
    stable = [*warm, *[1.0] * (total - num_warmup_steps)]
    stable_ratio = 0.8 if contender.name in ("wsd_s", "growing_wsd_s") else 0.0
    if contender.name == "cosine":
        return list(cosine.curve(planned * contender.plan))
    if contender.name in ("growing", "growing_wsd_s"):
        growing = CosineRestartSchedule.fit(
            planned, 3, T_mult=2, warmup_steps=num_warmup_steps, stable_ratio=stable_ratio
        )
        return list(growing.curve(planned))
    if contender.name == "linear":
        return [*warm, *linear(planned * contender.plan - num_warmup_steps)]
    if contender.name == "low":
        return [*cosine.curve(planned), *[LOW_RATE] * (total - planned)]
    if contender.name == "constant" or contender.name == "wsd":
        return stable
    if contender.name == "schedule_free":  # its optimizer warms up by itself
        return [1.0] * total
    if contender.name == "infinite_cosine":
        length = round(INFINITE_COSINE_FRACTION * planned) - num_warmup_steps
        falling = CosineRestartSchedule(length, num_cycles=1).curve(length, 1.0, INFINITE_RATE)
        return [*warm, *falling, *[INFINITE_RATE] * (total - num_warmup_steps - length)]
    # Restarts: a cycle to each end.
    lengths = [end - start for start, end in pairwise([0, *ends])]
    if not contender.restart_warmup:
        lengths[0] -= num_warmup_steps  # the warmup lies before the first cycle
    schedule = CosineRestartSchedule(
        cycles=[(length, contender.decay**index) for index, length in enumerate(lengths)],
        warmup_steps=num_warmup_steps,
        warmup_mode="every_cycle" if contender.restart_warmup else "prefix",
        stable_ratio=stable_ratio,
    )
    return list(schedule.curve(total))


def cooldown(contender: Contender, num_steps: int) -> list[float] | None:
    """The learning rates of a cooldown, as fractions of the peak, or None for a schedule that has none."""
    if contender.name == "wsd":
        return one_minus_sqrt(num_steps)
    if contender.name == "infinite_cosine":
        return exponential(num_steps, INFINITE_RATE, INFINITE_LAST_RATE)
    return None


class Stage(NamedTuple):
    """Some updates in a row."""

    shares: tuple[float, ...]  # of the peak rate, one per update
    data: int  # the kind of data, by its place among a task's kinds
    stops: tuple[int, ...]  # the numbers of updates in it after which the model is evaluated
    fresh_optimizer: bool = False


Stages = tuple[Stage, ...]


def paths(contender: Contender, ends: Sequence[int], num_warmup_steps: int, other_data: bool) -> list[Stages]:
    """What is trained, in the order of time: each path continues an earlier one, or begins at the start.

    A schedule without cooldowns is a single path. One with cooldowns leaves its trunk for each, and then continues from
    where it left; the trunk is shorter by the cooldowns that were made, so that the end is where it is for the others.
    """
    shares = rates(contender, ends, num_warmup_steps)
    ends = [end for end in ends if end <= len(shares)]
    interval = ends[0] // 2
    result: list[Stages] = []
    trunk: Stages = ()
    trunk_length = wasted = 0
    for index, (start, end) in enumerate(pairwise([0, *ends])):
        data = int(other_data and index > 0)
        cooldown_length = round(COOLDOWN_FRACTION * (end - wasted)) if cooldown(contender, 1) else 0
        next_trunk_length = end - wasted - cooldown_length
        pieces = [shares[trunk_length:next_trunk_length]]
        if cooldown_length:
            pieces.append(cooldown(contender, cooldown_length) or [])
        path, time = trunk, start
        for piece in pieces:
            times = range(time + 1, time + len(piece) + 1)
            stops = tuple(at - time for at in times if at % interval == 0 or at == end)
            path += (Stage(tuple(map(float, piece)), data, stops, contender.fresh_optimizer and index > 0),)
            time += len(piece)
            if len(path) == len(trunk) + 1:
                next_trunk = path
        result.append(path)
        trunk, trunk_length, wasted = next_trunk, next_trunk_length, wasted + cooldown_length
    return result


def planned_paths(scenario: str, contender: Contender, budget: Budget) -> list[Stages]:
    """What is trained in a scenario: "tuning", "same data" or "other data"."""
    factors = {"tuning": (1, contender.plan), "same data": (1, 2, 4), "other data": (1, 2)}[scenario]
    ends = [budget.num_updates * factor for factor in dict.fromkeys(factors)]
    return paths(contender, ends, budget.num_warmup_steps, other_data=scenario == "other data")


@dataclass
class State:
    """A model on its way."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    num_batches: tuple[int, ...]  # that were seen of each kind of data


Losses = dict[str, dict[str, float | None]]


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
            optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, fused=True)
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
        if stage.fresh_optimizer:
            state.optimizer = torch.optim.AdamW(state.model.parameters(), lr=peak_lr, fused=True)
        if isinstance(state.optimizer, AdamWScheduleFree):
            state.optimizer.train()
        state.model.train()
        task = self.kinds[stage.data]
        rows = batches(len(task.train.inputs), task.batch_size, self.seed)
        for _ in range(state.num_batches[stage.data]):
            next(rows)
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

    def measure(self, contender: Contender, all_paths: list[Stages], peak_lr: float, splits: Sequence[str]) -> Any:
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
    scenario: str  # "tuning", "same data" or "other data"
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
        tick: Called after each run.
        settings: What determines the numbers beside a [`Run`]; part of each line of the results.
    """

    def __init__(
        self,
        records: Records,
        kinds: Sequence[Task],
        budget: Budget,
        tick: Callable[[], object],
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.records, self.kinds, self.budget, self.tick, self.settings = records, kinds, budget, tick, settings or {}
        self.runs = Runs(kinds, -1, budget.num_warmup_steps)
        self.peak_lrs: dict[Contender, float] = {}

    def of(self, scenario: str, contender: Contender, peak_lr: float, seed: int) -> dict[str, Any]:
        run = asdict(Run(self.kinds[0].name, scenario, contender, self.budget.num_updates, peak_lr, seed))
        if self.runs.seed != seed:
            self.runs = Runs(self.kinds, seed, self.budget.num_warmup_steps)
        # A tuning run needs only its validation loss.
        splits = ["validation"] if scenario == "tuning" else ["validation", "test"]
        stages = planned_paths(scenario, contender, self.budget)
        return self.records.of(run | self.settings, lambda: self.runs.measure(contender, stages, peak_lr, splits))

    def peak_lr(self, contender: Contender) -> float:
        """The peak learning rate with the lowest mean validation loss at the end that the contender is planned for."""
        contender = contender.tuned_as()

        def validation_loss(peak_lr: float) -> float:
            curves = [self.of("tuning", contender, peak_lr, seed)["curve"] for seed in self.budget.tuning_seeds]
            name = f"{self.kinds[0].name}, validation"
            losses = [curve[str(self.budget.num_updates * contender.plan)][name]["loss"] for curve in curves]
            return math.inf if None in losses else sum(losses) / len(losses)

        if contender not in self.peak_lrs:
            grid = self.kinds[0].peak_lrs[1:][: self.budget.num_peak_lrs]
            self.peak_lrs[contender] = best_peak_lr(grid, self.budget.max_grid_extensions, validation_loss)
        return self.peak_lrs[contender]

    def measure(self, seed: int, runs: Sequence[tuple[str, Contender]]) -> None:
        """Make these runs, by scenario and contender."""
        tuned = [(scenario, contender, self.peak_lr(contender)) for scenario, contender in runs]
        for scenario, contender, peak_lr in tuned:
            self.of(scenario, contender, peak_lr, seed)
            self.tick()


def load_texts(budget: Budget) -> list[Task]:
    """With half the first study's batch: 4 N updates are still less than an epoch."""
    texts = (load_text(budget.num_evaluation_blocks), load_code(budget.num_evaluation_blocks))
    return [replace(text, batch_size=4) for text in texts]


def load_both_images(budget: Budget) -> list[Task]:
    images = load_images()
    return [images, turned(images)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a few updates each, into {QUICK_RESULTS}")
    parser.add_argument("--output", type=Path, help=f"the results (default: {RESULTS})")
    parser.add_argument(
        "--task", choices=["text", "digits"], help="only this task, so that two processes can share the work"
    )
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else Budget()
    # One thread: sums are then always taken in the same order, and a seed gives the same numbers again.
    torch.set_num_threads(1)
    records = Records(arguments.output or (QUICK_RESULTS if arguments.quick else RESULTS))
    loaders = {"text": load_texts, "digits": load_both_images}
    tasks = [arguments.task] if arguments.task else list(loaders)
    with tqdm(total=len(tasks) * len(budget.seeds) * len(FIRST + THEN), unit="run") as bar:
        studies = [Study(records, loaders[task](budget), budget, bar.update) for task in tasks]
        for runs in (FIRST, THEN):
            for seed in budget.seeds:
                for study in studies:
                    study.measure(seed, runs)


if __name__ == "__main__":
    main()
