"""What one call of a scheduler's `step()` costs, beside everything that one could pick instead.

    pip install -e ".[bench]"
    python benchmarks/step_cost.py --output benchmarks/results

All contenders are timed in one run, in rounds that interleave them, over optimizers of 1, 2, 50 and 1000 parameter
groups. Cycles have 10,000 steps, and the restarts among the timed steps count. A contender that cannot be imported is
named with the reason.

The bare loop is what one would write by hand for one schedule: the groups and base rates in a list, one cosine, one
assignment per group; no warmup, decay, state, checks, or groups that are added or replaced.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import cos, pi
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timing import Bar, Timing, argument_parser, describe, finish, interleave, markdown_table, repeated, surroundings
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup

NUM_GROUPS = (1, 2, 50, 1000)
T_0 = 10_000
ETA_MIN = 1e-5
WARMUP_STEPS = 10  # of the contenders that have a warmup; over before the first timed step
NUM_CYCLES = 10_000  # of the contenders that need an end; beyond the last timed step

OURS = "hf_warmcos"
OURS_IN_WARMUP = "hf_warmcos, in an overlap warmup"
OURS_AT_RESTART = "hf_warmcos, each step a restart"
BARE_LOOP = "bare loop"
TORCH = "torch CosineAnnealingWarmRestarts"
TORCH_SEQUENTIAL = "torch SequentialLR(LinearLR, CosineAnnealingWarmRestarts)"
TRANSFORMERS = "transformers get_cosine_with_hard_restarts_schedule_with_warmup"
TIMM = "timm CosineLRScheduler"
PYTORCH_OPTIMIZER = "pytorch_optimizer CosineAnnealingWarmupRestarts"

# The ratio of our median to the peer's, at most, by number of parameter groups.
BARS = {
    BARE_LOOP: {1: 1.2, 2: 1.2, 50: 1.5, 1000: 1.7},
    TORCH: dict.fromkeys(NUM_GROUPS, 0.45),
    TRANSFORMERS: dict.fromkeys(NUM_GROUPS, 0.3),
    TIMM: dict.fromkeys(NUM_GROUPS, 0.6),
}


def make_optimizer(num_groups: int) -> Optimizer:
    """An optimizer whose groups have rates of their own, after the update that schedulers want to come first."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1 + 1e-5 * i} for i in range(num_groups)]
    return SGD(groups, lr=0.1)


def ours(optimizer: Optimizer, **arguments: Any) -> Callable[[int], None]:
    arguments = {"T_0": T_0, "eta_min": ETA_MIN} | arguments
    return repeated(CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, **arguments).step)


def bare_loop(optimizer: Optimizer) -> Callable[[int], None]:
    groups_and_base_lrs = [(group, group["lr"]) for group in optimizer.param_groups]
    position = 0

    def step() -> None:
        nonlocal position
        position += 1
        share = (1 + cos(pi * (position % T_0) / T_0)) / 2
        for group, base_lr in groups_and_base_lrs:
            group["lr"] = ETA_MIN + (base_lr - ETA_MIN) * share

    return repeated(step)


def torch_restarts(optimizer: Optimizer) -> Callable[[int], None]:
    return repeated(CosineAnnealingWarmRestarts(optimizer, T_0, eta_min=ETA_MIN).step)


def torch_sequential(optimizer: Optimizer) -> Callable[[int], None]:
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=WARMUP_STEPS)
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0, eta_min=ETA_MIN)
    return repeated(SequentialLR(optimizer, [warmup, restarts], milestones=[WARMUP_STEPS]).step)


def transformers_hard_restarts(optimizer: Optimizer) -> Callable[[int], None]:
    from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

    num_training_steps = WARMUP_STEPS + NUM_CYCLES * T_0
    return repeated(
        get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, WARMUP_STEPS, num_training_steps, num_cycles=NUM_CYCLES
        ).step
    )


def timm_cosine(optimizer: Optimizer) -> Callable[[int], None]:
    scheduler_class = import_timm_scheduler().CosineLRScheduler
    scheduler = scheduler_class(
        optimizer, T_0, lr_min=ETA_MIN, warmup_t=WARMUP_STEPS, cycle_limit=NUM_CYCLES, t_in_epochs=False
    )
    num_updates = 0

    def run(calls: int) -> None:  # the caller counts the updates
        nonlocal num_updates
        for update in range(num_updates + 1, num_updates + calls + 1):
            scheduler.step_update(update)
        num_updates += calls

    return run


def import_timm_scheduler() -> ModuleType:
    """Import `timm.scheduler.cosine_lr` without `timm` itself where torchvision, which only its models need, is not."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("torchvision"):
        return import_module("timm.scheduler.cosine_lr")
    package = ModuleType("timm_scheduler")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "scheduler")]
    sys.modules[package.__name__] = package
    return import_module("timm_scheduler.cosine_lr")


def pytorch_optimizer_restarts(optimizer: Optimizer) -> Callable[[int], None]:
    from pytorch_optimizer import CosineAnnealingWarmupRestarts

    return repeated(
        CosineAnnealingWarmupRestarts(optimizer, T_0, max_lr=0.1, min_lr=ETA_MIN, warmup_steps=WARMUP_STEPS).step
    )


CONTENDERS: dict[str, Callable[[Optimizer], Callable[[int], None]]] = {
    OURS: ours,
    OURS_IN_WARMUP: partial(ours, T_0=T_0 * NUM_CYCLES, warmup_steps=T_0 * NUM_CYCLES),
    OURS_AT_RESTART: partial(ours, T_0=1, decay=0.999),
    BARE_LOOP: bare_loop,
    TORCH: torch_restarts,
    TORCH_SEQUENTIAL: torch_sequential,
    TRANSFORMERS: transformers_hard_restarts,
    TIMM: timm_cosine,
    PYTORCH_OPTIMIZER: pytorch_optimizer_restarts,
}


def measure(num_groups: int, rounds: int) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time all contenders that there are, and say why of the others."""
    optimizers, runs, unavailable = {}, {}, {}
    for name, make in CONTENDERS.items():
        optimizer = make_optimizer(num_groups)
        try:
            run = make(optimizer)
        except ImportError as error:
            unavailable[name] = f"{type(error).__name__}: {error}"
            continue
        optimizer.step()
        run(2 * WARMUP_STEPS)
        optimizers[name], runs[name] = optimizer, run
    # Short rounds: a longer one would more often be the one in which the system runs something else.
    timings = interleave(runs, rounds, calls=max(1, 200 // num_groups))
    rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    # The contenders that describe the same schedule have to have arrived at the same rates.
    torch.testing.assert_close(rates[OURS], rates[TORCH], rtol=0, atol=0)
    torch.testing.assert_close(rates[OURS], rates[BARE_LOOP], rtol=1e-12, atol=0)
    return timings, unavailable


def counted_groups(num_groups: int) -> str:
    return f"{num_groups} group{'s' if num_groups > 1 else ''}"


def compare(timings: dict[int, dict[str, Timing]]) -> list[Bar]:
    """Our medians over the peers'; in a warmup over the peers' that know one."""
    bars = []
    for row in (OURS, OURS_IN_WARMUP):
        for peer, limits in BARS.items():
            if row == OURS_IN_WARMUP and peer == BARE_LOOP:
                continue
            for num_groups, limit in limits.items():
                of = timings[num_groups]
                ratio = of[row].median / of[peer].median if peer in of else None
                bars.append(Bar(f"{row} over {peer}, {counted_groups(num_groups)}", ratio, "<=", limit))
    return bars


def draw(timings: dict[int, dict[str, Timing]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(timings), figsize=(16, 4.2), sharey=True, layout="constrained")
    for axis, (num_groups, of) in zip(axes, timings.items()):
        names = [name for name in reversed(CONTENDERS) if name in of and name != OURS_AT_RESTART]
        medians = [of[name].median for name in names]
        spread = [
            [of[name].median - of[name].lower_quartile for name in names],
            [of[name].upper_quartile - of[name].median for name in names],
        ]
        colors = ["tab:orange" if name.startswith(OURS) else "tab:gray" for name in names]
        bars = axis.barh([name.replace(" get_", "\nget_") for name in names], medians, xerr=spread, color=colors)
        axis.bar_label(bars, [f"{median:.3g}" for median in medians], padding=4, fontsize=8)
        axis.set_title(counted_groups(num_groups))
        axis.set_xlabel("µs per step(), median and quartiles")
        axis.set_xlim(0, 1.25 * max(medians))
        axis.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    warnings.simplefilter("ignore")  # SequentialLR steps its schedulers in a way that torch has deprecated
    rounds = 5 if arguments.quick else 2000
    timings: dict[int, dict[str, Timing]] = {}
    for num_groups in NUM_GROUPS:
        timings[num_groups], unavailable = measure(num_groups, rounds)

    where = surroundings("transformers", "timm", "pytorch_optimizer")
    print(f"Microseconds per `step()`: median (quartiles) of {rounds} interleaved rounds. {describe(where)}.\n")
    rows = []
    for name in CONTENDERS:
        cells = [str(of[name]) if name in of else "not available" for of in timings.values()]
        rows.append([name, *cells])
    print(markdown_table(["", *map(counted_groups, NUM_GROUPS)], rows))
    for name, reason in unavailable.items():
        print(f"\nNot available: {name} ({reason})")

    bars = compare(timings)
    record = {
        "surroundings": where,
        "rounds": rounds,
        "unit": "microseconds per step",
        "num_groups": {num: {name: timing._asdict() for name, timing in of.items()} for num, of in timings.items()},
        "unavailable": unavailable,
    }
    finish(arguments, "step_cost", record, bars, partial(draw, timings))


if __name__ == "__main__":
    main()
