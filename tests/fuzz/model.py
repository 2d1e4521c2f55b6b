"""The learning rate, written as plainly as it can be. It shares nothing with the package, and takes its arguments.

A schedule is a dict of the arguments of `CosineRestartSchedule`, those that are left out aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from typing import Any

DEFAULTS = {"T_0": None, "T_mult": 1, "decay": 1, "warmup_steps": 0, "warmup_mode": "overlap", "num_cycles": None}
DEFAULTS |= {"warmup_lr_rate": 0, "stable_ratio": 0, "cycles": None, "eta_min": 0, "eta_min_rate": None}


def cycles_of(schedule: dict[str, Any]) -> Iterator[tuple[int, float, int, float]]:
    """The cycles one by one: steps, peak, steps of its own warmup, stable_ratio."""
    of = DEFAULTS | schedule
    warmup_steps = of["warmup_steps"] if of["warmup_mode"] == "every_cycle" else 0
    if of["cycles"] is not None:
        for cycle in of["cycles"]:
            own = (
                cycle
                if isinstance(cycle, dict)
                else dict(zip(("steps", "peak"), cycle if type(cycle) is list else [cycle]))
            )
            own = {"peak": 1, "warmup_steps": warmup_steps, "stable_ratio": of["stable_ratio"]} | own
            yield own["steps"], own["peak"], own["warmup_steps"], own["stable_ratio"]
        return
    start, length = Fraction(0), Fraction(of["T_0"])
    for k in count() if of["num_cycles"] is None else range(of["num_cycles"]):
        yield round(start + length) - round(start), of["decay"] ** k, warmup_steps, of["stable_ratio"]
        start, length = start + length, length * Fraction(of["T_mult"])


def learning_rate(schedule: dict[str, Any], step: float, base_lr: float = 1.0) -> float:
    """The learning rate at a step: a walk over the cycles."""
    of = DEFAULTS | schedule
    minimum = of["eta_min"] if of["eta_min_rate"] is None else base_lr * of["eta_min_rate"]
    W, r = of["warmup_steps"], of["warmup_lr_rate"]
    warm = r + (1 - r) * step / W if step < W else 1
    start = W if of["warmup_mode"] == "prefix" else 0
    for cycle in cycles_of(schedule):
        steps, fraction, own, stable_ratio = cycle
        peak = max(base_lr * fraction, min(base_lr, minimum))
        if step < start:  # a prefix warmup
            return warm * peak
        if step < start + steps:
            break
        start += steps
    else:
        return minimum
    tau = step - start
    if tau < own:
        return minimum + (r + (1 - r) * tau / own) * (peak - minimum)
    stable = min(round(stable_ratio * (steps - own)), steps - own - 1)
    angle = math.pi * max(0, tau - own - stable) / (steps - own - stable)
    lr = minimum + (peak - minimum) * (1 + math.cos(angle)) / 2
    return warm * lr if of["warmup_mode"] == "overlap" else lr


def is_possible(schedule: dict[str, Any]) -> bool:
    """Whether each of (the first) cycles has a step beside its own warmup, and the one warmup fits. For values that are
    within their ranges each by itself."""
    of, total = DEFAULTS | schedule, 0
    if of["T_mult"] < 1 and of["num_cycles"] is None:
        return False
    one_warmup = 0 if of["warmup_mode"] == "every_cycle" else of["warmup_steps"]
    for k, (steps, _, own, _) in zip(range(60), cycles_of(schedule)):
        reached = k == 0 or (total < one_warmup and of["warmup_mode"] == "overlap")
        if steps <= own or (one_warmup and own and reached):
            return False
        total += steps
    return of["warmup_mode"] == "prefix" or of["cycles"] is of["num_cycles"] is None or of["warmup_steps"] <= total


def fitted(num_training_steps: int, num_cycles: int, T_mult: float) -> float:
    """The steps of the first of `num_cycles` cycles that end at `num_training_steps`."""
    T_0 = num_training_steps / sum(Fraction(T_mult) ** k for k in range(num_cycles))
    return int(T_0) if int(T_0) == T_0 else float(T_0)


def end(schedule: dict[str, Any]) -> int:
    """The step at which the last cycle ends."""
    of = DEFAULTS | schedule
    return sum(steps for steps, *_ in cycles_of(schedule)) + of["warmup_steps"] * (of["warmup_mode"] == "prefix")


def extended(schedule: dict[str, Any], num_training_steps: int, peak: float) -> dict[str, Any]:
    """A schedule with one cycle more, which ends at `num_training_steps`."""
    names = "steps", "peak", "warmup_steps", "stable_ratio"
    shape = (
        (schedule.get("warmup_steps", 0) if schedule.get("warmup_mode") == "every_cycle" else 0),
        schedule.get("stable_ratio", 0),
    )
    added = num_training_steps - end(schedule), peak, *shape
    cycles = [dict(zip(names, cycle)) for cycle in (*cycles_of(schedule), added)]
    rest = {name: value for name, value in schedule.items() if name not in ("T_0", "T_mult", "num_cycles", "decay")}
    return rest | {"cycles": cycles}
