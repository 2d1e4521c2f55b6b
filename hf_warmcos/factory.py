"""The function in the style of transformers' `get_…_schedule` functions."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import ParamSpec

from torch.optim import Optimizer

from hf_warmcos.arguments import eta_min_from_arguments, misfit, schedule_from_arguments, with_hints
from hf_warmcos.layerwise import with_all_groups
from hf_warmcos.scheduler import CosineRestartLR

P = ParamSpec("P")


def _hinting(function: Callable[P, CosineRestartLR]) -> Callable[P, CosineRestartLR]:
    """Give the error about an unknown argument a hint at the one that was probably meant."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> CosineRestartLR:
        known = [*inspect.signature(function).parameters]
        if unknown := [name for name in kwargs if name not in known]:
            raise TypeError(f"Expected arguments among {', '.join(known)}, but got {with_hints(unknown, known)}")
        return function(*args, **kwargs)

    return call


@_hinting
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
    Create a schedule whose learning rate rises linearly to the optimizer's initial learning rate during a warmup, and
    then follows cosine cycles: each falls from a peak to `min_lr` and restarts at the next peak, which is `decay` times
    the one before.

    After the warmup, at step :math:`\tau` of the :math:`T_k` steps of cycle k:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, min\_lr)) \\
        lr &= min\_lr + (peak_k - min\_lr) \frac{1 + \cos(\pi \tau / T_k)}{2}

    Choose one way to set the lengths of the cycles. `num_training_steps` with `num_cycles`: the cycles are fitted into
    the training, so that the last one ends with it. `T_0`: the steps of the first cycle; the restarts then never end,
    unless `num_cycles` says how many cycles there are. `cycles`: a list. With the last two, `num_training_steps` only
    gives a warning if training ends inside a cycle or long after the last one.

    Args:
        optimizer ([`~torch.optim.Optimizer`]):
            The optimizer for which to schedule the learning rate.
        num_warmup_steps (`int`):
            The number of steps for the warmup phase.
        num_training_steps (`int`, *optional*):
            The total number of training steps: optimizer updates, on any number of processes.
        num_cycles (`int`, *optional*):
            The number of cycles; with `num_training_steps` alone it defaults to 1.
        last_epoch (`int`, *optional*, defaults to -1):
            When resuming training, the number of steps that were taken, minus 1.
        decay (`float`, *optional*, defaults to 1.0):
            The factor on the peak at each restart, 0 < decay <= 1.
        T_0 (`float`, *optional*):
            The number of steps of the first cycle.
        T_mult (`float`, *optional*, defaults to 1):
            The factor on the number of steps of a cycle at each restart, > 0.
        min_lr (`float`, *optional*):
            The learning rate at the end of each cycle, >= 0. Defaults to 0.
        min_lr_rate (`float`, *optional*):
            The learning rate at the end of each cycle as a fraction of the initial learning rate of each parameter
            group, between 0 and 1. If set, `min_lr` should not be set.
        warmup_mode (`str`, *optional*, defaults to `"prefix"`):
            Where the warmup lies: before the cycles (`"prefix"`), over the first cosine (`"overlap"`) or in each cycle
            (`"every_cycle"`).
        warmup_lr_rate (`float`, *optional*, defaults to 0.0):
            The fraction of the learning rate at which the warmup starts, between 0 and 1.
        stable_ratio (`float`, *optional*, defaults to 0.0):
            The fraction of each cycle's steps at which the learning rate stays at the peak before it anneals, from 0
            to below 1.
        cycles (`list`, *optional*):
            The cycles one by one, in place of `T_0`, `T_mult`, `num_cycles` and `decay`: for each its number of steps,
            or its number of steps and the fraction of the initial learning rate at which it peaks:
            `[1000, 2000, [4000, 0.5]]`.

    Returns:
        [`CosineRestartLR`] with the appropriate schedule.

    Raises:
        TypeError, ValueError: If an argument is unknown, of the wrong type or out of its range, if both `min_lr` and
            `min_lr_rate` or both `T_0` and `cycles` are given, if nothing sets the lengths of the cycles, or if the
            cycles or the warmup do not fit. The optimizer is then as it was.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    >>> scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    ...     optimizer, num_warmup_steps=100, num_training_steps=1500, num_cycles=3, T_mult=2, stable_ratio=0.8
    ... )
    >>> scheduler.schedule.restarts(1500)
    [300, 700]

    ```

    Source: with `decay=1`, the learning rates of `transformers.get_cosine_with_hard_restarts_schedule_with_warmup`,
    with restarts that are rounded to whole steps; `min_lr` and `min_lr_rate` as in
    `transformers.get_cosine_with_min_lr_schedule_with_warmup`.
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
    optimizer = with_all_groups(optimizer)
    scheduler = CosineRestartLR(optimizer, schedule, last_epoch=last_epoch, **minimum)  # type: ignore[arg-type]
    if num_training_steps is not None:
        how = misfit(schedule, int(num_training_steps), scheduler.base_lrs, scheduler.eta_mins)
        if how is not None:
            warnings.warn(how, UserWarning, stacklevel=3)
    return scheduler
