"""The schedule as transformers' users know theirs: a `get_…_schedule` function."""

from __future__ import annotations

import warnings

from torch.optim import Optimizer

from hf_warmcos._checks import real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule
from hf_warmcos.scheduler import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup


def get_cosine_restarts_with_decay_and_warmup_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int | None = None,
    num_cycles: int | None = None,
    last_epoch: int = -1,
    decay: float = 1.0,
    T_0: float | None = None,
    T_mult: float = 1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_mode: str = "prefix",
    warmup_lr_rate: float = 0.0,
) -> CosineAnnealingWarmRestartsWithDecayAndLinearWarmup:
    r"""
    Create a schedule with a learning rate that decreases following the values of the cosine function between a peak and
    `min_lr`, with several hard restarts at which the peak decays, after a warmup period during which it increases
    linearly to the initial lr set in the optimizer.

    After the warmup, at step :math:`\tau` of the :math:`T_k` steps of cycle k:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, min\_lr)) \\
        lr &= min\_lr + (peak_k - min\_lr) \frac{1 + \cos(\pi \tau / T_k)}{2}

    Give either `T_0`, the steps of the first cycle (the restarts then never end, or there are `num_cycles` of them), or
    `num_training_steps`, into which `num_cycles` cycles are fitted: the last one ends at `num_training_steps`.

    Args:
        optimizer ([`~torch.optim.Optimizer`]):
            The optimizer for which to schedule the learning rate.
        num_warmup_steps (`int`):
            The number of steps for the warmup phase.
        num_training_steps (`int`, *optional*):
            The total number of training steps: optimizer updates, whatever the number of processes.
        num_cycles (`int`, *optional*):
            The number of cycles; with `num_training_steps` alone it defaults to 1.
        last_epoch (`int`, *optional*, defaults to -1):
            The index of the last epoch when resuming training.
        decay (`float`, *optional*, defaults to 1.0):
            The factor on the peak at each restart, 0 < decay <= 1.
        T_0 (`float`, *optional*):
            The number of steps of the first cycle.
        T_mult (`float`, *optional*, defaults to 1):
            The factor on the number of steps of a cycle at each restart, > 0.
        min_lr (`float`, *optional*):
            The learning rate at the end of each cycle, >= 0. Defaults to 0.
        min_lr_rate (`float`, *optional*):
            The learning rate at the end of each cycle as a share of the initial lr of each parameter group, between 0
            and 1. If set, `min_lr` should not be set.
        warmup_mode (`str`, *optional*, defaults to `"prefix"`):
            Where the warmup lies: before the cycles (`"prefix"`), over the first cosine (`"overlap"`) or in each cycle
            (`"every_cycle"`).
        warmup_lr_rate (`float`, *optional*, defaults to 0.0):
            The share of the learning rate at which the warmup starts, between 0 and 1.

    Returns:
        [`CosineAnnealingWarmRestartsWithDecayAndLinearWarmup`] with the appropriate schedule.

    Raises:
        TypeError, ValueError: If an argument is of the wrong type or out of its range, if both or none of two
            alternatives are given, or if the cycles or the warmup do not fit. The optimizer is then as it was.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    >>> scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    ...     optimizer, num_warmup_steps=100, num_training_steps=1100, num_cycles=4, decay=0.75
    ... )
    >>> scheduler.schedule.restarts(1100)
    [350, 600, 850]

    ```

    Source: with `decay=1`, the rates of `transformers.get_cosine_with_hard_restarts_schedule_with_warmup`; `min_lr` and
    `min_lr_rate` as in `transformers.get_cosine_with_min_lr_schedule_with_warmup`.
    """
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(f"Expected only one of min_lr and min_lr_rate, but got {min_lr=} and {min_lr_rate=}")
    if min_lr is not None:
        min_lr = real_number("min_lr", min_lr, (">=", 0))
    if min_lr_rate is not None:
        min_lr_rate = real_number("min_lr_rate", min_lr_rate, (">=", 0), ("<=", 1))
    num_warmup_steps = whole_number("num_warmup_steps", num_warmup_steps, (">=", 0))
    if num_training_steps is not None:
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">=", 1))
        if num_warmup_steps > num_training_steps:
            raise ValueError(f"Expected num_warmup_steps <= {num_training_steps=}, but got {num_warmup_steps=}")
    if T_0 is None:
        if num_training_steps is None:
            raise ValueError("Expected T_0 or num_training_steps, but got T_0=None and num_training_steps=None")
        fitted = CosineRestartSchedule.fit(
            num_training_steps,
            num_cycles=1 if num_cycles is None else num_cycles,
            T_mult=T_mult,
            decay=decay,
            warmup_steps=num_warmup_steps,
            warmup_mode=warmup_mode,
            warmup_lr_rate=warmup_lr_rate,
        )
        T_0, num_cycles = fitted.T_0, fitted.num_cycles
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(
        optimizer,
        T_0=T_0,
        T_mult=T_mult,
        eta_min=0.0 if min_lr is None else min_lr,
        eta_min_rate=min_lr_rate,
        last_epoch=last_epoch,
        warmup_steps=num_warmup_steps,
        decay=decay,
        warmup_mode=warmup_mode,
        num_cycles=num_cycles,
        warmup_lr_rate=warmup_lr_rate,
    )
    if num_training_steps is not None:
        _warn_if_training_ends_inside_a_cycle(scheduler, num_training_steps)
    return scheduler


def _warn_if_training_ends_inside_a_cycle(
    scheduler: CosineAnnealingWarmRestartsWithDecayAndLinearWarmup, num_training_steps: int
) -> None:
    schedule = scheduler.schedule
    cycle = schedule.cycle_at(num_training_steps)
    steps_into_cycle = num_training_steps - cycle.start
    if steps_into_cycle >= cycle.length or (steps_into_cycle == 0 and cycle.index > 0):
        return
    # The numbers of whole cycles just below and just above this length of training: the one whose T_0 is nearer.
    fitted = []
    for num_cycles in (cycle.index, cycle.index + 1):
        try:
            fitted.append(
                CosineRestartSchedule.fit(
                    num_training_steps,
                    num_cycles,
                    T_mult=schedule.T_mult,
                    warmup_steps=schedule.warmup_steps,
                    warmup_mode=schedule.warmup_mode,
                )
            )
        except ValueError:
            continue
    advice = ""
    if fitted:
        nearest = min(fitted, key=lambda other: abs(other.T_0 - schedule.T_0))
        advice = f" num_cycles={nearest.num_cycles} in place of T_0 would end at the minimum."
    rates = [
        schedule.lr_at(num_training_steps, base_lr, eta_min)
        for base_lr, eta_min in zip(scheduler.base_lrs, scheduler.eta_mins)
    ]
    warnings.warn(
        f"Training ends inside a cycle: {num_training_steps=} is step {steps_into_cycle} of the {cycle.length} steps "
        f"of cycle {cycle.index}, at a learning rate of {', '.join(f'{rate:.6g}' for rate in rates)}.{advice}",
        UserWarning,
        stacklevel=3,
    )
