"""What one call of a scheduler's `step()` costs, beside everything that one could pick instead.

    pip install -e ".[bench]"
    python -m benchmarks.speed.step_cost --output benchmarks/results

All contenders are timed in one run, in rounds that interleave them, over optimizers of 1, 2, 50 and 1000 parameter
groups. Cycles have 10,000 steps, and the restarts among the timed steps count. Rates are floats, as most optimizers
have them, or tensors, as compiled and capturable ones need them: a tensor for each group, or one for all.

The bare loop is what one would write by hand for one schedule with warmup and decay: one factor for the step, and
`base_lr * factor` for each group that the optimizer has then; no state, no checks.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from math import cos, pi
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR

from benchmarks.documents import markdown_table
from benchmarks.speed.timing import (
    Bar,
    Timing,
    argument_parser,
    describe,
    finish,
    interleave,
    repeated,
    surroundings,
)
from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup

NUM_GROUPS = (1, 2, 50, 1000)
SHARED = "1000 groups that share one tensor"
T_0 = 10_000
DECAY = 0.9
WARMUP_STEPS = 10  # over before the first timed step
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
BARS: dict[str, dict[int, float]] = {
    BARE_LOOP: {1: 0.9, 2: 0.9, 50: 1.25, 1000: 1.35},
    TORCH: dict.fromkeys(NUM_GROUPS, 0.45),
    TRANSFORMERS: dict.fromkeys(NUM_GROUPS, 0.3),
    TIMM: dict.fromkeys(NUM_GROUPS, 0.6),
}
TENSOR_BARS: dict[str, dict[int, float]] = {BARE_LOOP: {1: 1.5, 2: 1.5, 50: 1.1, 1000: 1.1}}
SHARED_BAR = 2.0  # our median for many groups that share one tensor over that for one group

Step = Callable[[int], None]
Timings = dict[str, Timing]


def make_optimizer(num_groups: int, rates: str) -> Optimizer:
    """An optimizer that has made the update that schedulers want to come first.

    Args:
        num_groups: The number of its parameter groups.
        rates: `"float"`, `"tensor"` (for each group its own) or `"shared"` (one tensor for all).
    """
    groups: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)]
    for index, group in enumerate(groups):
        lr = 0.1 + 1e-5 * index
        if rates != "shared":
            group["lr"] = torch.tensor(lr) if rates == "tensor" else lr
    optimizer = SGD(groups, lr=torch.tensor(0.1) if rates == "shared" else 0.1)
    optimizer.step()
    return optimizer


def ours(optimizer: Optimizer, **arguments: Any) -> Step:
    arguments = {"T_0": T_0, "decay": DECAY, "warmup_steps": WARMUP_STEPS} | arguments
    return repeated(CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, **arguments).step)


def bare_loop(optimizer: Optimizer) -> Step:
    base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    of_tensors = isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    position = 0

    # Each written out in full, as one would by hand: a function for what they share would cost the loop a call.
    def step() -> None:
        nonlocal position
        position += 1
        warm, peak = min(1, position / WARMUP_STEPS), DECAY ** (position // T_0)
        factor = warm * peak * (1 + cos(pi * (position % T_0) / T_0)) / 2
        for group, base_lr in zip(optimizer.param_groups, base_lrs):
            group["lr"] = base_lr * factor

    def fill() -> None:
        nonlocal position
        position += 1
        warm, peak = min(1, position / WARMUP_STEPS), DECAY ** (position // T_0)
        factor = warm * peak * (1 + cos(pi * (position % T_0) / T_0)) / 2
        for group, base_lr in zip(optimizer.param_groups, base_lrs):
            group["lr"].fill_(base_lr * factor)

    return repeated(fill if of_tensors else step)


def torch_restarts(optimizer: Optimizer) -> Step:
    return repeated(CosineAnnealingWarmRestarts(optimizer, T_0).step)


def torch_sequential(optimizer: Optimizer) -> Step:
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=WARMUP_STEPS)
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0)
    return repeated(SequentialLR(optimizer, [warmup, restarts], milestones=[WARMUP_STEPS]).step)


def transformers_hard_restarts(optimizer: Optimizer) -> Step:
    from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

    num_training_steps = WARMUP_STEPS + NUM_CYCLES * T_0
    return repeated(
        get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, WARMUP_STEPS, num_training_steps, num_cycles=NUM_CYCLES
        ).step
    )


def timm_cosine(optimizer: Optimizer) -> Step:
    scheduler_class = import_timm_scheduler().CosineLRScheduler
    scheduler = scheduler_class(
        optimizer, T_0, cycle_decay=DECAY, warmup_t=WARMUP_STEPS, cycle_limit=NUM_CYCLES, t_in_epochs=False
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


def pytorch_optimizer_restarts(optimizer: Optimizer) -> Step:
    from pytorch_optimizer import CosineAnnealingWarmupRestarts

    return repeated(
        CosineAnnealingWarmupRestarts(optimizer, T_0, max_lr=0.1, warmup_steps=WARMUP_STEPS, gamma=DECAY).step
    )


CONTENDERS: dict[str, Callable[[Optimizer], Step]] = {
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
TENSOR_CONTENDERS = {name: CONTENDERS[name] for name in (OURS, BARE_LOOP, TORCH, TRANSFORMERS)}


def measure(
    contenders: Mapping[str, Callable[[Optimizer], Step]],
    num_groups: int,
    rates: str,
    rounds: int,
    least_calls: int = 1,
) -> tuple[Timings, dict[str, str]]:
    """Time all contenders that there are, and say why of the others."""
    optimizers, runs, unavailable = {}, {}, {}
    for name, make in contenders.items():
        optimizer = make_optimizer(num_groups, rates)
        try:
            run = make(optimizer)
        except ImportError as error:
            unavailable[name] = f"{type(error).__name__}: {error}"
            continue
        run(2 * WARMUP_STEPS)
        optimizers[name], runs[name] = optimizer, run
    # Short rounds: a longer one would more often be the one in which the system runs something else.
    timings = interleave(runs, rounds, calls=max(least_calls, 200 // num_groups))
    # The contenders that describe the same schedule have to have arrived at the same rates.
    ours, bare = ([group["lr"] for group in optimizers[name].param_groups] for name in (OURS, BARE_LOOP))
    torch.testing.assert_close(ours, bare, rtol=1e-9 if rates == "float" else 1e-6, atol=1e-15)
    return timings, unavailable


def counted_groups(num_groups: int | str) -> str:
    return f"{num_groups} group{'s' if int(num_groups) > 1 else ''}"


def measure_shared(rounds: int) -> Timings:
    """Time our step for one group and for many groups that share one tensor, side by side."""
    runs = {
        counted_groups(num_groups): ours(make_optimizer(num_groups, "shared")) for num_groups in (1, NUM_GROUPS[-1])
    }
    for run in runs.values():
        run(2 * WARMUP_STEPS)
    return interleave(runs, rounds, calls=200)


def compare(floats: dict[int, Timings], tensors: dict[int, Timings], shared: Timings) -> list[Bar]:
    """Our medians over the peers'; in a warmup over those of the peers that know one."""
    in_warmup = {peer: limits for peer, limits in BARS.items() if peer != BARE_LOOP}
    compared = [
        (OURS, "", floats, BARS),
        (OURS_IN_WARMUP, "", floats, in_warmup),
        (OURS, ", tensor rates", tensors, TENSOR_BARS),
    ]
    bars = []
    for row, kind, timings, peers in compared:
        for peer, limits in peers.items():
            for num_groups, limit in limits.items():
                of = timings[num_groups]
                ratio = of[row].median / of[peer].median if peer in of else None
                bars.append(Bar(f"{row} over {peer}, {counted_groups(num_groups)}{kind}", ratio, "<=", limit))
    one, many = shared.values()
    return [*bars, Bar(f"{OURS}, {SHARED} over 1 group", many.median / one.median, "<=", SHARED_BAR)]


def as_record(timings: Mapping[Any, Timings]) -> dict[str, Any]:
    return {str(key): {name: timing._asdict() for name, timing in of.items()} for key, of in timings.items()}


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    warnings.simplefilter("ignore")  # SequentialLR steps its schedulers in a way that torch has deprecated
    rounds = 5 if arguments.quick else 2000
    # With tensors, what comes between two calls (a contender that takes milliseconds) would empty the caches.
    few_long_rounds = (2, 2) if arguments.quick else (100, 20)
    floats: dict[int, Timings] = {}
    tensors: dict[int, Timings] = {}
    for num_groups in NUM_GROUPS:
        floats[num_groups], unavailable = measure(CONTENDERS, num_groups, "float", rounds)
        tensors[num_groups], _ = measure(TENSOR_CONTENDERS, num_groups, "tensor", *few_long_rounds)
    shared, _ = measure(TENSOR_CONTENDERS, NUM_GROUPS[-1], "shared", *few_long_rounds)
    shared_alone = measure_shared(rounds)

    where = surroundings("transformers", "timm", "pytorch_optimizer")
    print(f"Microseconds per `step()`: median (quartiles) of {rounds} interleaved rounds. {describe(where)}.")
    of_floats = {counted_groups(num_groups): of for num_groups, of in floats.items()}
    of_tensors = {counted_groups(num_groups): of for num_groups, of in tensors.items()} | {SHARED: shared}
    for kind, contenders, columns in (("floats", CONTENDERS, of_floats), ("tensors", TENSOR_CONTENDERS, of_tensors)):
        rows = [
            [name, *(str(of[name]) if name in of else "not available" for of in columns.values())]
            for name in contenders
        ]
        print(f"\nRates are {kind}:\n\n{markdown_table(['', *columns], rows)}")
    for name, reason in unavailable.items():
        print(f"\nNot available: {name} ({reason})")

    record = {
        "surroundings": where,
        "rounds": rounds,
        "unit": "microseconds per step",
        "num_groups": as_record(floats),
        "tensor_rates": as_record(of_tensors),
        "shared_tensor": {counted: of._asdict() for counted, of in shared_alone.items()},
        "unavailable": unavailable,
    }
    finish(arguments, "step_cost", record, compare(floats, tensors, shared_alone))


if __name__ == "__main__":
    main()
