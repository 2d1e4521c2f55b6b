"""What a scheduler costs at each update, side by side with the other schedulers that you could use.

    pip install -e ".[bench]"
    python -m benchmarks.speed.step_cost --output benchmarks/results

An update is what a training loop calls: `step()` and `get_last_lr()`, and here also `at_cycle_end`, which the other
schedulers do not have. `step()` is timed alone, too. All contenders are timed in one run, in rounds that interleave
them, over optimizers of 1, 2, 50 and 1000 parameter groups. The first cycle has 10,000 steps and each one after it
twice as many; the restarts among the timed steps count. Learning rates are floats, as most optimizers have them, or
tensors, one for each group, as compiled and capturable optimizers need them.

The bare loop is what you would write by hand for this one schedule: one factor for the step, and `base_lr * factor` for
each group of the optimizer; no state, no checks. With tensors it fills them in place.
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
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR

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
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

NUM_GROUPS = (1, 2, 50, 1000)
T_0, T_MULT = 10_000, 2
DECAY = 0.9
WARMUP_STEPS = 10  # over before the first timed step
NUM_CYCLES = 20  # of the contenders that need an end; beyond the last timed step

OURS = "hf_warmcos"
OURS_IN_WARMUP = "hf_warmcos, in an overlap warmup"
BARE_LOOP = "bare loop"
TORCH = "torch CosineAnnealingWarmRestarts"
TORCH_SEQUENTIAL = "torch SequentialLR(LinearLR, CosineAnnealingWarmRestarts)"
TRANSFORMERS = "transformers get_cosine_with_hard_restarts_schedule_with_warmup"
TIMM = "timm CosineLRScheduler"
PYTORCH_OPTIMIZER = "pytorch_optimizer CosineAnnealingWarmupRestarts"

PEERS = (TORCH, TORCH_SEQUENTIAL, TRANSFORMERS, TIMM, PYTORCH_OPTIMIZER)
# The ratio of our median to the peer's, at most, by number of parameter groups.
UPDATE_BARS = {TORCH: dict.fromkeys(NUM_GROUPS, 1.0)}
BARS = {peer: dict.fromkeys(NUM_GROUPS, 0.65 if peer == TORCH else 1.0) for peer in PEERS}
TENSOR_BARS = {BARE_LOOP: {1: 2.5, 2: 2.0, 50: 1.5, 1000: 1.5}}
PROPERTIES = ("at_cycle_end", "cycle_index", "T_i", "T_cur")
PROPERTY_BAR = 0.5  # our median over that of torch's step(), with one parameter group

Run = Callable[[int], None]
Timings = dict[str, Timing]


def make_optimizer(num_groups: int, rates: str) -> Optimizer:
    """An optimizer that has made its first update, which schedulers expect before their first step.

    Args:
        num_groups: The number of its parameter groups.
        rates: `"float"` or `"tensor"`.
    """
    groups: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)]
    for index, group in enumerate(groups):
        lr = 0.1 + 1e-5 * index
        group["lr"] = torch.tensor(lr) if rates == "tensor" else lr
    optimizer = SGD(groups, lr=0.1)
    optimizer.step()
    return optimizer


def ours(optimizer: Optimizer, warmup_steps: int = WARMUP_STEPS) -> CosineRestartLR:
    return CosineRestartLR(optimizer, CosineRestartSchedule(T_0, T_MULT, DECAY, warmup_steps))


def torch_restarts(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingWarmRestarts(optimizer, T_0, T_MULT)


def torch_sequential(optimizer: Optimizer) -> LRScheduler:
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=WARMUP_STEPS)
    restarts = CosineAnnealingWarmRestarts(optimizer, T_0, T_MULT)
    return SequentialLR(optimizer, [warmup, restarts], milestones=[WARMUP_STEPS])


def transformers_hard_restarts(optimizer: Optimizer) -> LRScheduler:
    from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

    num_training_steps = WARMUP_STEPS + 100 * T_0
    return get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, WARMUP_STEPS, num_training_steps, num_cycles=100
    )


def pytorch_optimizer_restarts(optimizer: Optimizer) -> LRScheduler:
    from pytorch_optimizer import CosineAnnealingWarmupRestarts

    return CosineAnnealingWarmupRestarts(
        optimizer, T_0, cycle_mult=T_MULT, max_lr=0.1, warmup_steps=WARMUP_STEPS, gamma=DECAY
    )


# A training loop calls `step()` and `get_last_lr()` of each of them.
SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    OURS: ours,
    OURS_IN_WARMUP: partial(ours, warmup_steps=2**40),
    TORCH: torch_restarts,
    TORCH_SEQUENTIAL: torch_sequential,
    TRANSFORMERS: transformers_hard_restarts,
    PYTORCH_OPTIMIZER: pytorch_optimizer_restarts,
}


def only_step(make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer) -> Run:
    return repeated(make(optimizer).step)


def whole_update(make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer) -> Run:
    scheduler = make(optimizer)

    def update() -> None:
        scheduler.step()
        scheduler.get_last_lr()

    def update_of_ours() -> None:
        scheduler.step()
        scheduler.at_cycle_end  # type: ignore[attr-defined]  # noqa: B018
        scheduler.get_last_lr()

    return repeated(update_of_ours if isinstance(scheduler, CosineRestartLR) else update)


def bare_loop(optimizer: Optimizer) -> Run:
    base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    of_tensors = isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    position, start, length, peak = 0, 0, T_0, 1.0

    # Each written out in full, as you would by hand: a function for what they share would cost the loop a call.
    def step() -> None:
        nonlocal position, start, length, peak
        position += 1
        if position == start + length:
            start, length, peak = position, T_MULT * length, DECAY * peak
        factor = min(1, position / WARMUP_STEPS) * peak * (1 + cos(pi * (position - start) / length)) / 2
        for group, base_lr in zip(optimizer.param_groups, base_lrs):
            group["lr"] = base_lr * factor

    def fill() -> None:
        nonlocal position, start, length, peak
        position += 1
        if position == start + length:
            start, length, peak = position, T_MULT * length, DECAY * peak
        factor = min(1, position / WARMUP_STEPS) * peak * (1 + cos(pi * (position - start) / length)) / 2
        for group, base_lr in zip(optimizer.param_groups, base_lrs):
            group["lr"].fill_(base_lr * factor)

    return repeated(fill if of_tensors else step)


def timm_cosine(optimizer: Optimizer) -> Run:
    scheduler = import_timm_scheduler().CosineLRScheduler(
        optimizer,
        T_0,
        cycle_mul=T_MULT,
        cycle_decay=DECAY,
        warmup_t=WARMUP_STEPS,
        cycle_limit=NUM_CYCLES,
        t_in_epochs=False,
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


UPDATES = {name: partial(whole_update, make) for name, make in SCHEDULERS.items()}
STEPS = {name: partial(only_step, make) for name, make in SCHEDULERS.items()} | {
    BARE_LOOP: bare_loop,
    TIMM: timm_cosine,
}
TENSOR_STEPS = {name: STEPS[name] for name in (OURS, BARE_LOOP, TORCH, TRANSFORMERS)}


def measure(
    contenders: Mapping[str, Callable[[Optimizer], Run]], num_groups: int, rates: str, rounds: int, least_calls: int = 1
) -> tuple[Timings, dict[str, str]]:
    """Time all contenders that are installed, and say why of the others."""
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
    if BARE_LOOP in optimizers:  # which describes our schedule, and has to have arrived at the same learning rates
        ours, bare = ([group["lr"] for group in optimizers[name].param_groups] for name in (OURS, BARE_LOOP))
        torch.testing.assert_close(ours, bare, rtol=1e-9 if rates == "float" else 1e-6, atol=1e-15)
    return timings, unavailable


def measure_properties(rounds: int) -> Timings:
    """Time what a loop may read at each update, and torch's step() beside it."""
    scheduler = ours(make_optimizer(1, "float"))
    runs = {name: repeated(partial(getattr, scheduler, name)) for name in PROPERTIES}
    return interleave(runs | {TORCH: only_step(torch_restarts, make_optimizer(1, "float"))}, rounds, calls=200)


def counted_groups(num_groups: int | str) -> str:
    return f"{num_groups} group{'s' if int(num_groups) > 1 else ''}"


def compare(kind: str, timings: Mapping[int, Timings], limits_by_peer: Mapping[str, Mapping[int, float]]) -> list[Bar]:
    """Our medians over the peers'."""
    bars = []
    for peer, limits in limits_by_peer.items():
        for num_groups, limit in limits.items():
            of = timings[num_groups]
            ratio = of[OURS].median / of[peer].median if peer in of else None
            bars.append(Bar(f"{kind}: {OURS} over {peer}, {counted_groups(num_groups)}", ratio, "<=", limit))
    return bars


def as_record(timings: Mapping[int, Timings]) -> dict[str, Any]:
    return {str(key): {name: timing._asdict() for name, timing in of.items()} for key, of in timings.items()}


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    warnings.simplefilter("ignore")  # SequentialLR steps its schedulers in a way that torch has deprecated
    rounds = 5 if arguments.quick else 2000
    # With tensors, what comes between two calls (a contender that takes milliseconds) would empty the caches.
    few_long_rounds = (2, 2) if arguments.quick else (100, 20)
    updates: dict[int, Timings] = {}
    steps: dict[int, Timings] = {}
    tensor_steps: dict[int, Timings] = {}
    for num_groups in NUM_GROUPS:
        updates[num_groups], _ = measure(UPDATES, num_groups, "float", rounds)
        steps[num_groups], unavailable = measure(STEPS, num_groups, "float", rounds)
        tensor_steps[num_groups], _ = measure(TENSOR_STEPS, num_groups, "tensor", *few_long_rounds)
    properties = measure_properties(rounds)

    where = surroundings("transformers", "timm", "pytorch_optimizer")
    print(f"Microseconds: median (quartiles) of {rounds} interleaved rounds. {describe(where)}.")
    for title, contenders, timings in (
        ("An update: `step()`, `get_last_lr()`, and `at_cycle_end` of hf_warmcos", UPDATES, updates),
        ("`step()` alone", STEPS, steps),
        ("`step()` alone, learning rates are tensors", TENSOR_STEPS, tensor_steps),
    ):
        rows = [
            [name, *(str(of[name]) if name in of else "not available" for of in timings.values())]
            for name in contenders
        ]
        print(f"\n{title}:\n\n{markdown_table(['', *map(counted_groups, timings)], rows)}")
    print("\nReading: " + ", ".join(f"`{name}` {properties[name]}" for name in PROPERTIES))
    for name, reason in unavailable.items():
        print(f"\nNot available: {name} ({reason})")

    record = {
        "surroundings": where,
        "rounds": rounds,
        "unit": "microseconds",
        "update": as_record(updates),
        "num_groups": as_record(steps),
        "tensor_rates": as_record(tensor_steps),
        "properties": {name: timing._asdict() for name, timing in properties.items()},
        "unavailable": unavailable,
    }
    bars = [
        *compare("update", updates, UPDATE_BARS),
        *compare("step()", steps, BARS),
        *compare("step(), tensors", tensor_steps, TENSOR_BARS),
    ]
    for name in PROPERTIES:
        ratio = properties[name].median / properties[TORCH].median
        bars.append(Bar(f"{name} over step() of {TORCH}", ratio, "<=", PROPERTY_BAR))
    finish(arguments, "step_cost", record, bars)


if __name__ == "__main__":
    main()
