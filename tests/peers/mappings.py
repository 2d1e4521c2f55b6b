"""The formula of each scheduler, its arguments as the factory's, and the cases in which both are compared.

A formula takes a number of steps and the scheduler's arguments, and returns its learning rates. `lr` is the learning
rate of the optimizer that the scheduler was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count, islice, repeat
from typing import Any

STEPS = 140
LR = 0.02


def annealed(peak: float, minimum: float, fraction: float) -> float:
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * fraction)) / 2


def grown(first: float, grow: Callable[[float], float]) -> Iterator[float]:
    """Lengths, each made from the one before."""
    return accumulate(count(), lambda length, _: grow(length), initial=first)


def risen_and_fallen(
    steps: int, lengths: Iterable[float], peaks: Iterable[float], minimum: float, warmups: int | Iterable[int]
) -> list[float]:
    """Cycles that rise from the minimum for the steps of their warmups, and fall for the others."""
    rates: list[float] = []
    for length, peak, warmup in zip(lengths, peaks, repeat(warmups) if isinstance(warmups, int) else warmups):
        for step in range(math.ceil(length)):
            if step < warmup:
                rates.append(minimum + (peak - minimum) * step / warmup)
            else:
                rates.append(annealed(peak, minimum, (step - warmup) / (length - warmup)))
        if len(rates) >= steps:
            break
    return rates[:steps]


def real_valued_cycle(t: float, first: float, factor: float) -> tuple[int, float, float]:
    """The index of a cycle, the steps since its start, and its length: by a logarithm, as several libraries do it."""
    if factor == 1:
        return int(t // first), t % first, first
    index = math.floor(math.log(1 - t / first * (1 - factor), factor))
    return index, t - first * (1 - factor**index) / (1 - factor), first * factor**index


def stepped(scheduler_of: Callable[[Any], Any], steps: int, lr: float) -> list[float]:
    """The learning rates of a torch scheduler."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def torch_restarts(steps: int, lr: float = LR, **arguments: Any) -> list[float]:
    from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

    return stepped(lambda optimizer: CosineAnnealingWarmRestarts(optimizer, **arguments), steps, lr)


def transformers_restarts(steps: int, lr: float = LR, **arguments: Any) -> list[float]:
    from transformers import get_cosine_with_hard_restarts_schedule_with_warmup as schedule

    return stepped(lambda optimizer: schedule(optimizer, **arguments), steps, lr)


def transformers_wsd(steps: int, lr: float = LR, **arguments: Any) -> list[float]:
    from transformers import get_wsd_schedule

    return stepped(lambda optimizer: get_wsd_schedule(optimizer, **arguments), steps, lr)


def katsura(
    steps: int,
    first_cycle_steps: int,
    cycle_mult: float = 1.0,
    max_lr: float = LR,
    min_lr: float = 1e-4,
    warmup_steps: int = 0,
    gamma: float = 1.0,
) -> list[float]:
    lengths = grown(first_cycle_steps, lambda of: int((of - warmup_steps) * cycle_mult) + warmup_steps)
    peaks = (max_lr * gamma**k for k in count())
    return [min_lr, *risen_and_fallen(steps, lengths, peaks, min_lr, warmup_steps)[1:]]


def pytorch_scheduler(
    steps: int,
    first_cycle_steps: int,
    cycle_mult: float = 1.0,
    max_lr: float = LR,
    min_lr: float = 1e-4,
    warmup_steps: int = 0,
    gamma: float = 1.0,
) -> list[float]:
    lengths = [int(first_cycle_steps * cycle_mult**k) for k in range(30)]
    rates = risen_and_fallen(steps, lengths, (max_lr * gamma**k for k in count()), min_lr, warmup_steps)
    for restart in accumulate(lengths, initial=0):
        if restart < steps:
            rates[restart] = min_lr
    return rates


def copied_class(
    steps: int, lr: float, T_0: int, T_mult: int = 1, eta_max: float = LR, T_up: int = 0, gamma: float = 1.0
) -> list[float]:
    lengths = grown(T_0, lambda length: (length - T_up) * T_mult + T_up)
    return risen_and_fallen(steps, lengths, (eta_max * gamma**k for k in count()), lr, T_up)


def lora_easy(
    steps: int,
    first_cycle_max_steps: int,
    gamma: float,
    cycle_multiplier: float = 1,
    min_lr: float = 1e-6,
    warmup_steps: int = 0,
    lr: float = LR,
) -> list[float]:
    lengths = grown(first_cycle_max_steps, lambda of: round((of - warmup_steps) * cycle_multiplier) + warmup_steps)
    return risen_and_fallen(steps, lengths, (max(min_lr, lr * gamma**k) for k in count()), min_lr, warmup_steps)


def torch_cosine_annealing(
    steps: int,
    cycle_period: float,
    cycle_mult: float = 1,
    warmup_period: int = 0,
    min_lr: float = 1e-8,
    gamma: float = 1,
    warmup_once: bool = False,
    lr: float = LR,
) -> list[float]:
    lengths = (cycle_period * cycle_mult**k for k in count())
    warmups = ((0 if warmup_once and k else warmup_period) for k in count())
    return risen_and_fallen(steps, lengths, (lr * gamma**k for k in count()), min_lr, warmups)


def timm(
    steps: int,
    t_initial: int,
    lr_min: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int = 1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = False,
    lr: float = LR,
) -> list[float]:
    def rate(step: int) -> float:
        if step < warmup_t:
            return warmup_lr_init + step * (lr - warmup_lr_init) / warmup_t
        index, since, length = real_valued_cycle(step - warmup_t * warmup_prefix, t_initial, cycle_mul)
        return annealed(lr * cycle_decay**index, lr_min, since / length) if index < cycle_limit else lr_min

    return [*map(rate, range(steps))]


def mmengine(
    steps: int,
    periods: list[int],
    restart_weights: list[float],
    eta_min: float | None = None,
    eta_min_ratio: float | None = None,
    lr: float = LR,
) -> list[float]:
    """It computes each learning rate from the one before."""
    minimum = lr * eta_min_ratio if eta_min is None else eta_min  # type: ignore[operator]
    rates: list[float] = []
    for period, weight in zip(periods, restart_weights):
        rates.append(lr * weight)
        for step in range(1, period):
            now, before = (1 + math.cos(math.pi * of / period) for of in (step, step - 1))
            rates.append(now / before * (rates[-1] - minimum) + minimum)
    return (rates + [rates[-1]] * steps)[:steps]


def optax(steps: int, cosine_kwargs: list[dict[str, Any]]) -> list[float]:
    rates: list[float] = []
    for of in cosine_kwargs:
        warmup, minimum, peak = of["warmup_steps"], of.get("end_value", 0.0), of["peak_value"]
        for step in range(of["decay_steps"]):
            if step < warmup:
                rates.append(of["init_value"] + (peak - of["init_value"]) * step / warmup)
            else:
                rates.append(annealed(peak, minimum, (step - warmup) / (of["decay_steps"] - warmup)))
    return (rates + [minimum] * steps)[:steps]


def keras(
    steps: int,
    first_decay_steps: int,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
    initial_learning_rate: float = LR,
) -> list[float]:
    def rate(step: int) -> float:
        index, since, length = real_valued_cycle(step, first_decay_steps, t_mul)
        return initial_learning_rate * ((1 - alpha) * annealed(m_mul**index, 0, since / length) + alpha)

    return [*map(rate, range(steps))]


def ignite(
    steps: int,
    start_value: float,
    end_value: float,
    cycle_size: int,
    cycle_mult: float = 1.0,
    start_value_mult: float = 1.0,
) -> list[float]:
    lengths = grown(cycle_size, lambda length: int(length * cycle_mult))
    return risen_and_fallen(steps, lengths, (start_value * start_value_mult**k for k in count()), end_value, 0)


def composer(steps: int, t_0: int, t_mult: float = 1.0, alpha_f: float = 0.0, lr: float = LR) -> list[float]:
    lengths = grown(t_0, lambda length: int(length * t_mult))
    return risen_and_fallen(steps, lengths, (lr for _ in count()), lr * alpha_f, 0)


def paddle(steps: int, T_0: int, T_mult: int = 1, eta_min: float = 0.0, learning_rate: float = LR) -> list[float]:
    lengths = grown(T_0, lambda length: length * T_mult)
    return risen_and_fallen(steps, lengths, (learning_rate for _ in count()), eta_min, 0)


def fairseq(
    steps: int,
    lr_period_updates: float,
    t_mult: float = 1.0,
    lr_shrink: float = 0.1,
    min_lr: float = 0.0,
    warmup_updates: int = 0,
    warmup_init_lr: float = -1.0,
    lr: float = LR,
) -> list[float]:
    start = min_lr if warmup_init_lr < 0 else warmup_init_lr

    def rate(step: int) -> float:
        if step < warmup_updates:
            return start + step * (lr - start) / warmup_updates
        index, since, length = real_valued_cycle(step - warmup_updates, lr_period_updates, t_mult)
        return annealed(lr * lr_shrink**index, min_lr * lr_shrink**index, since / length)

    return [*map(rate, range(steps))]


def fairseq2(
    steps: int,
    cycle_len: int,
    num_warmup_steps: int,
    cycle_mul: float = 1.0,
    lr_mul: float = 1.0,
    start_lr: float = 0.0,
    final_lr: float = 0.0,
    lr: float = LR,
) -> list[float]:
    return fairseq(steps, cycle_len, cycle_mul, lr_mul, final_lr, num_warmup_steps, start_lr, lr)


def allennlp(
    steps: int, t_initial: int, t_mul: float = 1.0, eta_min: float = 0.0, eta_mul: float = 1.0, lr: float = LR
) -> list[float]:
    lengths = (int(t_initial * t_mul**k) for k in count())
    return risen_and_fallen(steps, lengths, (lr * eta_mul**k for k in count()), eta_min, 0)


def olmo_core(
    steps: int,
    period_lengths: list[int],
    period_lr_multipliers: list[float] | None = None,
    warmup: int = 0,
    decay_fraction: float | None = None,
    decay: int | None = None,
    warmup_min_lr: float = 0.0,
    decay_min_lr: float = 0.0,
    lr: float = LR,
) -> list[float]:
    """Its decay is linear. The step at which a period ends belongs to it, and is at the minimum."""
    rates: list[float] = []
    for index, length in enumerate(period_lengths):
        peak = lr * (period_lr_multipliers[index] if period_lr_multipliers else 1.0)
        falling = round(decay_fraction * length) if decay is None else decay  # type: ignore[operator]
        for step in range(length):
            left = min(length - step, falling) / falling
            rates.append(decay_min_lr + (peak - decay_min_lr) * left)
            if index == 0 and step < warmup:
                rates[-1] = warmup_min_lr + (peak - warmup_min_lr) * step / warmup
            if index and step == 0:
                rates[-1] = decay_min_lr
    return (rates + [decay_min_lr] * steps)[:steps]


def levanter(
    steps: int,
    num_train_steps: int,
    cycles: int,
    warmup: int = 0,
    rewarmup: int = 0,
    decay: float | None = None,
    min_lr_ratio: float = 0.1,
    learning_rate: float = LR,
) -> list[float]:
    """The first warmup rises from 0, later ones from the minimum. `decay` is a fraction of the cycle's steps."""
    minimum, rates, ends = learning_rate * min_lr_ratio, [], levanter_ends(num_train_steps, cycles)
    for index, (start, end) in enumerate(zip([0, *ends], ends)):
        own_warmup = rewarmup if index else warmup
        falling = end - start - own_warmup if decay is None else int(decay * (end - start))
        for step in range(end - start):
            if step < own_warmup:
                bottom = minimum if index else 0.0
                rates.append(bottom + (learning_rate - bottom) * step / own_warmup)
            else:
                rates.append(annealed(learning_rate, minimum, max(0, step - (end - start - falling)) / falling))
    return (rates + [minimum] * steps)[:steps]


def levanter_ends(num_train_steps: int, cycles: int) -> list[int]:
    return [int(num_train_steps / cycles * (k + 1)) for k in range(cycles)]


# What the arguments are here: `lr`, and the factory's arguments.


def same(lr: float = LR, num_warmup_steps: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"lr": lr, "num_warmup_steps": num_warmup_steps, **arguments}


def from_torch(T_0: int, T_mult: int = 1, eta_min: float = 0.0, lr: float = LR) -> dict[str, Any]:
    return same(lr, T_0=T_0, T_mult=T_mult, min_lr=eta_min)


def from_wsd(
    num_warmup_steps: int, num_stable_steps: int, num_decay_steps: int, min_lr_ratio: float = 0.0
) -> dict[str, Any]:
    cycle = num_stable_steps + num_decay_steps
    arguments = {"T_0": cycle, "num_cycles": 1, "stable_ratio": num_stable_steps / cycle, "min_lr_rate": min_lr_ratio}
    arguments |= {"warmup_lr_rate": min_lr_ratio}
    return same(num_warmup_steps=num_warmup_steps, **arguments)


def with_own_warmups(
    lr: float, min_lr: float, first: int, factor: float, warmup: int, decay: float, cut: Callable[[float], int] = int
) -> dict[str, Any]:
    """Where only the part of a cycle after its warmup grows, or lengths are cut: the cycles one by one."""
    arguments: dict[str, Any] = {"num_warmup_steps": warmup, "warmup_mode": "every_cycle", "min_lr": min_lr}
    if factor % 1 or (warmup and factor != 1):
        lengths = islice(grown(first, lambda length: cut((length - warmup) * factor) + warmup), 12)
        return same(lr, cycles=[[length, decay**k] for k, length in enumerate(lengths)], **arguments)
    return same(lr, T_0=first, T_mult=factor, decay=decay, **arguments)


def from_katsura(
    first_cycle_steps: int,
    cycle_mult: float = 1.0,
    max_lr: float = LR,
    min_lr: float = 1e-4,
    warmup_steps: int = 0,
    gamma: float = 1.0,
) -> dict[str, Any]:
    return with_own_warmups(max_lr, min_lr, first_cycle_steps, cycle_mult, warmup_steps, gamma)


def from_pytorch_scheduler(
    first_cycle_steps: int,
    cycle_mult: float = 1.0,
    max_lr: float = LR,
    min_lr: float = 1e-4,
    warmup_steps: int = 0,
    gamma: float = 1.0,
) -> dict[str, Any]:
    return same(
        max_lr,
        warmup_steps,
        T_0=first_cycle_steps,
        T_mult=cycle_mult,
        min_lr=min_lr,
        decay=gamma,
        warmup_mode="every_cycle",
    )


def from_copied_class(
    lr: float, T_0: int, T_mult: int = 1, eta_max: float = LR, T_up: int = 0, gamma: float = 1.0
) -> dict[str, Any]:
    return with_own_warmups(eta_max, lr, T_0, T_mult, T_up, gamma)


def from_lora_easy(
    first_cycle_max_steps: int, gamma: float, cycle_multiplier: float = 1, min_lr: float = 1e-6, warmup_steps: int = 0
) -> dict[str, Any]:
    return with_own_warmups(LR, min_lr, first_cycle_max_steps, cycle_multiplier, warmup_steps, gamma, round)


def from_torch_cosine_annealing(
    cycle_period: int,
    cycle_mult: float = 1,
    warmup_period: int = 0,
    min_lr: float = 1e-8,
    gamma: float = 1,
    warmup_once: bool = False,
) -> dict[str, Any]:
    if warmup_once:
        cycles: list[dict[str, Any]] = [{"steps": cycle_period * cycle_mult**k, "peak": gamma**k} for k in range(8)]
        cycles[0]["warmup_steps"] = warmup_period
        return same(cycles=cycles, min_lr=min_lr)
    shape = {"T_0": cycle_period, "T_mult": cycle_mult, "min_lr": min_lr, "decay": gamma}
    return same(num_warmup_steps=warmup_period, warmup_mode="every_cycle", **shape)


def from_timm(
    t_initial: int,
    lr_min: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int = 1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = True,
) -> dict[str, Any]:
    shape = {"T_0": t_initial, "T_mult": cycle_mul, "num_cycles": cycle_limit, "decay": cycle_decay, "min_lr": lr_min}
    return same(num_warmup_steps=warmup_t, warmup_lr_rate=warmup_lr_init / LR, **shape)


def from_mmengine(
    periods: list[int],
    restart_weights: list[float],
    eta_min: float | None = None,
    eta_min_ratio: float | None = None,
) -> dict[str, Any]:
    return same(cycles=[*zip(periods, restart_weights)], min_lr=eta_min, min_lr_rate=eta_min_ratio)


def from_optax(cosine_kwargs: list[dict[str, Any]]) -> dict[str, Any]:
    cycles = [
        {"steps": of["decay_steps"], "peak": of["peak_value"] / LR, "warmup_steps": of["warmup_steps"]}
        for of in cosine_kwargs
    ]
    return same(cycles=cycles, min_lr=cosine_kwargs[0].get("end_value", 0.0))


def from_keras(first_decay_steps: int, t_mul: float = 2.0, m_mul: float = 1.0, alpha: float = 0.0) -> dict[str, Any]:
    if alpha == 0 or m_mul == 1:
        return same(T_0=first_decay_steps, T_mult=t_mul, decay=m_mul, min_lr_rate=alpha)
    peaks = [(1 - alpha) * m_mul**k + alpha for k in range(12)]
    cycles = [[int(first_decay_steps * t_mul**k), peak] for k, peak in enumerate(peaks)]
    return same(cycles=cycles, min_lr_rate=alpha)


def from_ignite(
    start_value: float, end_value: float, cycle_size: int, cycle_mult: float = 1.0, start_value_mult: float = 1.0
) -> dict[str, Any]:
    return with_own_warmups(start_value, end_value, cycle_size, cycle_mult, 0, start_value_mult)


def from_composer(t_0: int, t_mult: float = 1.0, alpha_f: float = 0.0) -> dict[str, Any]:
    return with_own_warmups(LR, LR * alpha_f, t_0, t_mult, 0, 1.0)


def from_fairseq(
    lr_period_updates: int,
    t_mult: float = 1.0,
    lr_shrink: float = 0.1,
    min_lr: float = 0.0,
    warmup_updates: int = 0,
    warmup_init_lr: float = -1.0,
) -> dict[str, Any]:
    start = min_lr if warmup_init_lr < 0 else warmup_init_lr
    shape = {"T_0": lr_period_updates, "T_mult": t_mult, "decay": lr_shrink, "min_lr": min_lr}
    return same(num_warmup_steps=warmup_updates, warmup_lr_rate=start / LR, **shape)


def from_fairseq2(
    cycle_len: int,
    num_warmup_steps: int,
    cycle_mul: float = 1.0,
    lr_mul: float = 1.0,
    start_lr: float = 0.0,
    final_lr: float = 0.0,
) -> dict[str, Any]:
    return from_fairseq(cycle_len, cycle_mul, lr_mul, final_lr, num_warmup_steps, start_lr)


def from_allennlp(t_initial: int, t_mul: float = 1.0, eta_min: float = 0.0, eta_mul: float = 1.0) -> dict[str, Any]:
    if t_mul % 1 == 0:
        return same(T_0=t_initial, T_mult=t_mul, decay=eta_mul, min_lr=eta_min)
    return same(cycles=[[int(t_initial * t_mul**k), eta_mul**k] for k in range(12)], min_lr=eta_min)


def from_olmo_core(
    period_lengths: list[int],
    period_lr_multipliers: list[float] | None = None,
    warmup: int = 0,
    decay_fraction: float | None = None,
    decay: int | None = None,
    warmup_min_lr: float = 0.0,
    decay_min_lr: float = 0.0,
) -> dict[str, Any]:
    peaks = period_lr_multipliers or [1.0] * len(period_lengths)
    cycles = [
        {"steps": steps, "peak": peak, "stable_ratio": 1 - (decay / steps if decay else decay_fraction)}
        for steps, peak in zip(period_lengths, peaks)
    ]
    arguments = {"warmup_mode": "overlap", "warmup_lr_rate": warmup_min_lr / LR, "min_lr": decay_min_lr}
    return same(num_warmup_steps=warmup, cycles=cycles, **arguments)


def from_levanter(
    num_train_steps: int,
    cycles: int,
    warmup: int = 0,
    rewarmup: int = 0,
    decay: float | None = None,
    min_lr_ratio: float = 0.1,
) -> dict[str, Any]:
    listed, ends = [], levanter_ends(num_train_steps, cycles)
    for index, (start, end) in enumerate(zip([0, *ends], ends)):
        own_warmup = rewarmup if index else warmup
        falling = end - start - own_warmup if decay is None else int(decay * (end - start))
        annealed_part = end - start - own_warmup
        stable_ratio = (annealed_part - falling) / annealed_part
        if index:
            listed.append({"steps": end - start, "warmup_steps": own_warmup, "stable_ratio": stable_ratio})
        else:
            listed.append({"steps": annealed_part, "stable_ratio": stable_ratio})
    return same(num_warmup_steps=warmup, cycles=listed, min_lr_rate=min_lr_ratio)


# The steps at which a scheduler is known to differ: the facts say how.


def nowhere(**arguments: Any) -> set[int]:
    return set()


def first_step_without_a_warmup(warmup_steps: int = 0, **arguments: Any) -> set[int]:
    return set() if warmup_steps else {0}


def after_the_last_period(periods: list[int], **arguments: Any) -> set[int]:
    return {*range(sum(periods), STEPS)}


def first_steps_of_later_periods_and_decays(
    period_lengths: list[int], decay_fraction: float = 0.0, decay: int | None = None, **arguments: Any
) -> set[int]:
    steps, start = set(), 0
    for length in period_lengths:
        steps |= {start} if start else set()
        start += length
        steps |= {*range(start - (decay or round(decay_fraction * length)) + 1, start)}
    return steps


@dataclass(frozen=True)
class Peer:
    """A scheduler: its formula, its arguments here, and the cases in which they are compared.

    Attributes:
        package: The package that `python -m tests.peers` installs, with its release; or the source that was read.
        sections: Where the table of names has its arguments.
    """

    package: str
    section: str
    formula: Callable[..., list[float]]
    here: Callable[..., dict[str, Any]]
    cases: list[dict[str, Any]]
    apart: Callable[..., set[int]] = field(default=nowhere)

    @property
    def is_installed(self) -> bool:
        return "==" in self.package


KATSURA_CASES: list[dict[str, Any]] = [
    {"first_cycle_steps": 20, "gamma": 0.5, "warmup_steps": 5},
    {"first_cycle_steps": 10, "cycle_mult": 2, "gamma": 0.5},
    {"first_cycle_steps": 20, "cycle_mult": 1.5, "gamma": 0.7, "warmup_steps": 5},
]
RISE = {"init_value": 1e-4, "end_value": 1e-4}
WSDS = {"period_lengths": [40, 30, 20, 50], "warmup": 10}

PEERS = (
    Peer(
        "torch==2.13.0",
        "torch `CosineAnnealingWarmRestarts`",
        torch_restarts,
        from_torch,
        [{"T_0": 10, "T_mult": 2, "eta_min": 1e-4}, {"T_0": 30}],
    ),
    Peer(
        "transformers==5.24.0",
        "transformers `get_cosine_with_hard_restarts_schedule_with_warmup`",
        transformers_restarts,
        same,
        [{"num_warmup_steps": 20, "num_training_steps": 120, "num_cycles": 4}],
    ),
    Peer(
        "transformers==5.24.0",
        "transformers `get_wsd_schedule`",
        transformers_wsd,
        from_wsd,
        [{"num_warmup_steps": 10, "num_stable_steps": 70, "num_decay_steps": 30, "min_lr_ratio": 0.1}],
    ),
    Peer(
        "pytorch-optimizer==4.1.0",
        "katsura-jp and pytorch_optimizer `CosineAnnealingWarmupRestarts`",
        katsura,
        from_katsura,
        KATSURA_CASES,
        first_step_without_a_warmup,
    ),
    Peer(
        "pytorch-scheduler==0.2.2",
        "pytorch-scheduler `CosineAnnealingWarmupRestarts`",
        pytorch_scheduler,
        from_pytorch_scheduler,
        [KATSURA_CASES[0], {"first_cycle_steps": 20, "cycle_mult": 2, "gamma": 0.7, "warmup_steps": 5}],
    ),
    Peer(
        "source of several projects, read in 2026",
        "`CosineAnnealingWarmUpRestarts`, copied from project to project",
        copied_class,
        from_copied_class,
        [{"lr": 1e-4, "T_0": 20, "T_up": 5, "gamma": 0.5}, {"lr": 0, "T_0": 10, "T_mult": 2, "T_up": 3, "gamma": 0.5}],
    ),
    Peer(
        "source at 162e56d",
        "LoRA Easy Training Scripts `CosineAnnealingWarmRestarts`",
        lora_easy,
        from_lora_easy,
        [
            {"first_cycle_max_steps": 20, "gamma": 0.5, "warmup_steps": 5, "min_lr": 1e-4},
            {"first_cycle_max_steps": 15, "gamma": 0.1, "cycle_multiplier": 1.5, "warmup_steps": 4, "min_lr": 1e-4},
        ],
    ),
    Peer(
        "torch-cosine-annealing==0.1.3",
        "torch-cosine-annealing `CosineAnnealingWithWarmRestarts`",
        torch_cosine_annealing,
        from_torch_cosine_annealing,
        [
            {"cycle_period": 10, "cycle_mult": 2, "warmup_period": 4, "gamma": 0.5, "min_lr": 1e-4},
            {"cycle_period": 10, "cycle_mult": 2, "warmup_period": 4, "gamma": 0.5, "warmup_once": True},
            {"cycle_period": 30},
        ],
    ),
    Peer(
        "timm==1.0.31",
        "timm `CosineLRScheduler`",
        timm,
        from_timm,
        [
            {
                "t_initial": 10,
                "lr_min": 1e-4,
                "cycle_mul": 2,
                "cycle_decay": 0.5,
                "cycle_limit": 4,
                "warmup_prefix": True,
            }
            | more
            for more in ({}, {"warmup_t": 7, "warmup_lr_init": 1e-3}, {"cycle_mul": 1, "warmup_t": 7})
        ],
    ),
    Peer(
        "mmengine-lite==0.10.7",
        "MMEngine `CosineRestartLR`",
        mmengine,
        from_mmengine,
        [
            {"periods": [20, 30, 40, 45], "restart_weights": [1, 0.5, 0.75, 0.3], "eta_min": 1e-4},
            {"periods": [20, 30, 40, 45], "restart_weights": [1, 0.5, 0.75, 0.3], "eta_min_ratio": 0.1},
        ],
        after_the_last_period,
    ),
    Peer(
        "optax==0.2.8",
        "optax `sgdr_schedule`",
        optax,
        from_optax,
        [
            {
                "cosine_kwargs": [
                    {"decay_steps": 20, "peak_value": LR, "warmup_steps": 5, **RISE},
                    {"decay_steps": 30, "peak_value": 0.5 * LR, "warmup_steps": 10, **RISE},
                    {"decay_steps": 40, "peak_value": 0.7 * LR, "warmup_steps": 0, **RISE},
                    {"decay_steps": 30, "peak_value": LR, "warmup_steps": 5, **RISE},
                ]
            }
        ],
    ),
    Peer(
        "keras==3.15.1",
        "keras `CosineDecayRestarts`",
        keras,
        from_keras,
        [
            {"first_decay_steps": 10, "m_mul": 0.5},
            {"first_decay_steps": 10, "m_mul": 0.5, "alpha": 0.1},
            {"first_decay_steps": 30, "t_mul": 1, "alpha": 0.1},
        ],
    ),
    Peer(
        "pytorch-ignite==0.5.5",
        "ignite `CosineAnnealingScheduler`",
        ignite,
        from_ignite,
        [
            {"start_value": LR, "end_value": 1e-4, "cycle_size": 10, "cycle_mult": 2, "start_value_mult": 0.5},
            {"start_value": LR, "end_value": 1e-4, "cycle_size": 15, "cycle_mult": 1.5, "start_value_mult": 0.5},
        ],
    ),
    Peer(
        "composer==0.32.1",
        "composer `CosineAnnealingWarmRestartsScheduler`",
        composer,
        from_composer,
        [{"t_0": 10, "t_mult": 2, "alpha_f": 0.1}, {"t_0": 15, "t_mult": 1.5}],
    ),
    Peer(
        "paddlepaddle==3.3.1",
        "paddle `CosineAnnealingWarmRestarts`",
        paddle,
        from_torch,
        [{"T_0": 10, "T_mult": 2, "eta_min": 1e-4}, {"T_0": 30}],
    ),
    Peer(
        "source at 3d262bb",
        "fairseq `cosine`",
        fairseq,
        from_fairseq,
        [
            {"lr_period_updates": 10, "t_mult": 2, "lr_shrink": 0.5, "warmup_updates": 7, "warmup_init_lr": 1e-3},
            {"lr_period_updates": 30, "lr_shrink": 1, "min_lr": 1e-4, "warmup_updates": 7},
        ],
    ),
    Peer(
        "fairseq2==0.8.1",
        "fairseq2 `CosineAnnealingLR`",
        fairseq2,
        from_fairseq2,
        [
            {"cycle_len": 10, "cycle_mul": 2, "lr_mul": 0.5, "num_warmup_steps": 7, "start_lr": 1e-3},
            {"cycle_len": 30, "final_lr": 1e-4, "num_warmup_steps": 7},
        ],
    ),
    Peer(
        "source at 80fb606",
        "allennlp `cosine`",
        allennlp,
        from_allennlp,
        [
            {"t_initial": 10, "t_mul": 2, "eta_mul": 0.5, "eta_min": 1e-4},
            {"t_initial": 15, "t_mul": 1.5, "eta_mul": 0.5, "eta_min": 1e-4},
        ],
    ),
    Peer(
        "ai2-olmo-core==3.0.0",
        "OLMo-core `WSDS`",
        olmo_core,
        from_olmo_core,
        [
            WSDS | {"decay_fraction": 0.2},
            WSDS | {"decay": 7},
            WSDS
            | {"decay_fraction": 0.2}
            | {"period_lr_multipliers": [1, 0.5, 0.8, 1.0], "decay_min_lr": 1e-4, "warmup_min_lr": 1e-3},
        ],
        first_steps_of_later_periods_and_decays,
    ),
    Peer(
        "source at 9263f81",
        "levanter `OptimizerConfig`",
        levanter,
        from_levanter,
        [
            {"num_train_steps": 130, "cycles": 4, "warmup": 10, "min_lr_ratio": 0.1, "decay": 0.4},
            {"num_train_steps": 130, "cycles": 3, "warmup": 10, "rewarmup": 5, "decay": 0.4},
        ],
    ),
)


def ours(peer: Peer, **case: Any) -> list[float]:
    """The learning rates of this package, with the arguments of another scheduler."""
    from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule as factory

    arguments = peer.here(**case)
    return stepped(lambda optimizer: factory(optimizer, **arguments), STEPS, arguments.pop("lr"))


def largest_difference(peer: Peer, theirs: list[float], case: dict[str, Any]) -> float:
    """The largest difference from the learning rates of this package, as a fraction of the peak."""
    apart = peer.apart(**case)
    pairs = [*zip(theirs, ours(peer, **case))]
    return max(abs(a - b) for step, (a, b) in enumerate(pairs) if step not in apart) / max(theirs)
