"""Study 2: training continues after its planned end, on the same data or on other data.

    python -m benchmarks.quality.moving_end            # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.moving_end --half 1   # the text; and at the same time, the images: --half 2
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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from benchmarks.quality.tasks import Task, load_code, load_images, load_text, turned
from benchmarks.quality.training import (
    Budget,
    Records,
    Row,
    Stage,
    Stages,
    Study,
    estimate_or_measure,
    parse,
)
from hf_warmcos import CosineRestartSchedule

LOW_RATE = 0.1  # of the peak: where cosines of large models often end
COOLDOWN_FRACTION = 0.2
QUICK = Budget(20, tuning_seeds=(100,), seeds=(0, 1), num_peak_lrs=1, max_grid_extensions=0, num_evaluation_blocks=8)


@dataclass(frozen=True)
class Contender:
    """A way to continue training.

    Attributes:
        name: The kind of schedule.
        plan: The length that it is planned for, in multiples of N; other than 1 only for "cosine".
        decay: Of restarts: the factor on the peak at each.
        restart_warmup: Of restarts: whether each rises to its peak as the first cycle does.
    """

    name: str
    plan: int = 1
    decay: float = 1.0
    restart_warmup: bool = False

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
    ("same data", Contender("growing_wsd_s")),
    ("same data", RESTARTS[2]),
    *(("other data", contender) for contender in (RESTARTS[3], *RESTARTS_WITH_WARMUP[1:])),
]


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
    stable_ratio = 0.8 if contender.name in ("wsd_s", "growing_wsd_s") else 0.0
    if contender.name == "cosine":
        return list(cosine.curve(planned * contender.plan))
    if contender.name in ("growing", "growing_wsd_s"):
        growing = CosineRestartSchedule.fit(
            planned, 3, T_mult=2, warmup_steps=num_warmup_steps, stable_ratio=stable_ratio
        )
        return list(growing.curve(planned))
    if contender.name == "low":
        return [*cosine.curve(planned), *[LOW_RATE] * (total - planned)]
    if contender.name == "wsd":
        return [*(step / num_warmup_steps for step in range(num_warmup_steps)), *[1.0] * (total - num_warmup_steps)]
    if contender.name == "schedule_free":  # its optimizer warms up by itself
        return [1.0] * total
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


def cooldown(num_steps: int) -> list[float]:
    """The cooldown of Hägele et al. 2024, as fractions of the peak."""
    return [1 - math.sqrt(step / num_steps) for step in range(num_steps)]


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
        cooldown_length = round(COOLDOWN_FRACTION * (end - wasted)) if contender.name == "wsd" else 0
        next_trunk_length = end - wasted - cooldown_length
        pieces = [shares[trunk_length:next_trunk_length]]
        if cooldown_length:
            pieces.append(cooldown(cooldown_length))
        path, time = trunk, start
        for piece in pieces:
            times = range(time + 1, time + len(piece) + 1)
            stops = tuple(at - time for at in times if at % interval == 0 or at == end)
            path += (Stage(tuple(map(float, piece)), data, stops),)
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


def load_texts(budget: Budget) -> list[Task]:
    """With half the first study's batch: 4 N updates are still less than an epoch."""
    texts = (load_text(budget.num_evaluation_blocks), load_code(budget.num_evaluation_blocks))
    return [replace(text, batch_size=4, peak_lrs=text.peak_lrs[1:]) for text in texts]


def load_both_images(budget: Budget) -> list[Task]:
    images = load_images()
    images = replace(images, peak_lrs=images.peak_lrs[1:])
    return [images, turned(images)]


def main() -> None:
    arguments = parse(__doc__, "moving_end")
    budget = QUICK if arguments.quick else Budget()
    records = Records(arguments.output)
    studies = [
        Study(records, load(budget), budget, planned_paths)
        for half, load in enumerate((load_texts, load_both_images), start=1)
        if arguments.half in (None, half)
    ]
    blocks: list[list[Row]] = [[(study, *row) for study in studies for row in rows] for rows in (FIRST, THEN)]
    estimate_or_measure(blocks, arguments)


if __name__ == "__main__":
    main()
