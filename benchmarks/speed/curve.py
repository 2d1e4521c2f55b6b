"""What the whole curve costs, beside stepping torch's scheduler over it, and what random access costs near and far.

    python -m benchmarks.speed.curve --output benchmarks/results

The curve is checked against the rates that torch's scheduler gives, bit for bit, before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from benchmarks.documents import markdown_table
from benchmarks.speed.timing import Bar, Timing, argument_parser, describe, finish, interleave, repeated, surroundings
from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup, CosineRestartSchedule

BASE_LR, ETA_MIN = 0.1, 1e-5
CYCLES = {"T_0=10,000": (10_000, 1), "T_0=10,000, T_mult=2": (10_000, 2), "T_0=100": (100, 1)}
NEAR, FAR = 100, 10**15
NUM_CALLS = 100  # of each round of random access


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)


def torch_curve(T_0: int, T_mult: int, num_steps: int) -> np.ndarray:
    """The rates of as many steps, by stepping torch's scheduler: what one does without a closed form."""
    optimizer = make_optimizer()
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, eta_min=ETA_MIN)
    optimizer.step()
    rates = np.empty(num_steps)
    for step in range(num_steps):
        rates[step] = optimizer.param_groups[0]["lr"]
        scheduler.step()
    return rates


def measure_curves(num_steps: int, rounds: int) -> dict[str, dict[str, Timing]]:
    """Microseconds per curve, by the curve's cycles and by who computes it."""
    timings = {}
    for cycles, (T_0, T_mult) in CYCLES.items():
        schedule = CosineRestartSchedule(T_0, T_mult, eta_min=ETA_MIN)
        curve = partial(schedule.curve, num_steps, BASE_LR)
        stepped = partial(torch_curve, T_0, T_mult, num_steps)
        np.testing.assert_array_equal(curve(), stepped())
        timings[cycles] = interleave({"curve": repeated(curve), "torch": repeated(stepped)}, rounds, calls=1)
    return timings


def measure_access(rounds: int) -> dict[str, dict[str, Timing]]:
    """Microseconds per call, by what is called and by the step that is asked for."""
    schedule = CosineRestartSchedule(10_000, decay=0.75, warmup_steps=2000, eta_min=ETA_MIN)
    growing = CosineRestartSchedule(10_000, 2, decay=0.75, eta_min=ETA_MIN)
    optimizer = make_optimizer()
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, 10_000, decay=0.75, warmup_steps=2000)
    calls: dict[str, Callable[[int], object]] = {
        "lr_at": lambda step: schedule.lr_at(step, BASE_LR),
        "lr_at, T_mult=2": lambda step: growing.lr_at(step, BASE_LR),
        "cycle_at": schedule.cycle_at,
        "step(epoch)": scheduler.step,
    }
    contenders = {
        f"{name} {step}": repeated(partial(call, step)) for name, call in calls.items() for step in (NEAR, FAR)
    }
    timings = interleave(contenders, rounds, NUM_CALLS)
    return {name: {"near": timings[f"{name} {NEAR}"], "far": timings[f"{name} {FAR}"]} for name in calls}


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    num_steps, curve_rounds, access_rounds = (10_000, 2, 3) if arguments.quick else (10**6, 9, 300)
    curves, access = measure_curves(num_steps, curve_rounds), measure_access(access_rounds)

    where = surroundings("numpy")
    print(
        f"The curve of {num_steps:,} steps, median (quartiles) of {curve_rounds} interleaved rounds, in milliseconds."
    )
    print(f"{describe(where)}.\n")
    rows = []
    for cycles, of in curves.items():
        milliseconds = [str(Timing(*(time / 1000 for time in of[name]))) for name in ("curve", "torch")]
        rows.append([cycles, *milliseconds, f"{of['torch'].median / of['curve'].median:.0f}"])
    print(markdown_table(["", "`curve`", "stepping torch's scheduler", "times as fast"], rows))
    print(f"\nRandom access, median (quartiles) of {access_rounds} interleaved rounds, in microseconds per call.\n")
    header = ["", f"step {NEAR}", f"step {FAR:.0e}".replace("1e+", "10**")]
    print(markdown_table(header, [[name, str(of["near"]), str(of["far"])] for name, of in access.items()]))

    times_as_fast = {cycles: of["torch"].median / of["curve"].median for cycles, of in curves.items()}
    bars = [Bar(f"times as fast as torch, {cycles}", times_as_fast[cycles], ">=", 20) for cycles in [*CYCLES][:2]]
    # Wherever the step lies.
    for name, of in access.items():
        bars.append(Bar(f"microseconds of {name}", max(timing.median for timing in of.values()), "<=", 100))
    record = {
        "surroundings": where,
        "num_steps": num_steps,
        "unit": "microseconds",
        "curves": {cycles: {name: timing._asdict() for name, timing in of.items()} for cycles, of in curves.items()},
        "access": {name: {step: timing._asdict() for step, timing in of.items()} for name, of in access.items()},
    }
    finish(arguments, "curve", record, bars)


if __name__ == "__main__":
    main()
