"""The schedule as transformers' users know theirs: a `get_…_schedule` function."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch.optim import Optimizer

from hf_warmcos.arguments import eta_min_from_arguments, misfit, schedule_from_arguments
from hf_warmcos.scheduler import CosineRestartLR


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
    stable_ratio: float = 0.0,
    cycles: Sequence[int | Sequence[float]] | None = None,
) -> CosineRestartLR:
    r"""
    Create a schedule with a learning rate that decreases following the values of the cosine function between a peak and
    `min_lr`, with several hard restarts at which the peak decays, after a warmup period during which it increases
    linearly to the initial lr set in the optimizer.

    After the warmup, at step :math:`\tau` of the :math:`T_k` steps of cycle k:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, min\_lr)) \\
        lr &= min\_lr + (peak_k - min\_lr) \frac{1 + \cos(\pi \tau / T_k)}{2}

    One of three says how long cycles are: `T_0`, the steps of the first cycle (the restarts then never end, or there
    are `num_cycles` of them); `num_training_steps`, into which `num_cycles` cycles are fitted, so that the last one
    ends there; or `cycles`, which lists them.

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
        stable_ratio (`float`, *optional*, defaults to 0.0):
            The share of each cycle's steps at which the learning rate stays at the peak before it anneals, from 0 to
            below 1.
        cycles (`list`, *optional*):
            The cycles one by one, in place of `T_0`, `T_mult`, `num_cycles` and `decay`: for each its number of steps,
            or its number of steps and the share of the initial lr at which it peaks: `[1000, 2000, [4000, 0.5]]`.

    Returns:
        [`CosineRestartLR`] with the appropriate schedule.

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
    schedule = schedule_from_arguments(
        num_warmup_steps,
        num_training_steps,
        num_cycles,
        decay=decay,
        T_0=T_0,
        T_mult=T_mult,
        warmup_mode=warmup_mode,
        warmup_lr_rate=warmup_lr_rate,
        stable_ratio=stable_ratio,
        cycles=cycles,
    )
    minimum = eta_min_from_arguments(min_lr, min_lr_rate)
    scheduler = CosineRestartLR(optimizer, schedule, last_epoch=last_epoch, **minimum)  # type: ignore[arg-type]
    if num_training_steps is not None:
        how = misfit(schedule, int(num_training_steps), scheduler.base_lrs, scheduler.eta_mins)
        if how is not None:
            warnings.warn(how, UserWarning, stacklevel=2)
    return scheduler
