"""The function in the style of transformers' `get_…_schedule` functions, and the class with torch's arguments."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import ParamSpec

from torch.optim import Optimizer

from hf_warmcos.arguments import doubts, schedule_from_arguments, with_hints
from hf_warmcos.schedule import CosineRestartSchedule, Cycles
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
    cycles: Cycles | None = None,
    extend_from: int | Sequence[int] | None = None,
    extend_peak: float | Sequence[float] = 1.0,
) -> CosineRestartLR:
    r"""
    Create a schedule whose learning rate rises linearly to the optimizer's initial learning rate during a warmup, and
    then follows cosine cycles: each falls from a peak to `min_lr` and restarts at the next peak, which is `decay` times
    the one before.

    After the warmup, at step :math:`\tau` of the :math:`T_k` steps of cycle k, whose plateau has :math:`h_k` steps:

    .. math::
        h_k &= \min(\mathrm{round}(stable\_ratio \cdot T_k), T_k - 1) \\
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, min\_lr)) \\
        lr &= min\_lr + (peak_k - min\_lr) \frac{1 + \cos(\pi \max(0, \tau - h_k) / (T_k - h_k))}{2}

    With listed `cycles`, the fraction given for a cycle stands for :math:`decay^k`.

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
            its number of steps and the fraction of the initial learning rate at which it peaks, or a dict with
            `"steps"` and any of `"peak"`, `"warmup_steps"` (steps at its start that rise from the minimum to its peak)
            and `"stable_ratio"`: `[1000, [2000, 0.5], {"steps": 4000, "peak": 0.5, "warmup_steps": 100}]`.
        extend_from (`int` or list of `int`, *optional*):
            To continue a run: the number of training steps at which it ended before. Keep the other arguments, and give
            the new, larger `num_training_steps`: one cycle more takes the steps from there. A list continues a run that
            was continued before.
        extend_peak (`float` or list of `float`, *optional*, defaults to 1.0):
            The fraction of the initial learning rate at which the added cycle peaks; or one for each of `extend_from`.

    Returns:
        [`CosineRestartLR`] with the appropriate schedule.

    Raises:
        TypeError, ValueError: If an argument is unknown, of the wrong type or out of its range, if both `min_lr` and
            `min_lr_rate` or both `T_0` and `cycles` are given, if nothing sets the lengths of the cycles, if the cycles
            or the warmup do not fit, or if the cycles do not end at `extend_from`. The optimizer is then as it was.

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
        min_lr=min_lr,
        min_lr_rate=min_lr_rate,
        extend_from=extend_from,
        extend_peak=extend_peak,
    )
    scheduler = CosineRestartLR(with_all_groups(optimizer), schedule, last_epoch=last_epoch)
    num_training_steps = None if num_training_steps is None else int(num_training_steps)
    for doubt in doubts(schedule, num_training_steps, scheduler.base_lrs):
        warnings.warn(doubt, UserWarning, stacklevel=3)
    if fact := _fact_about(optimizer):
        message = f"With {type(getattr(optimizer, 'optimizer', optimizer)).__name__}, {fact}. See docs/optimizers.md."
        warnings.warn(message, UserWarning, stacklevel=3)
    if scaled := sum(group.get("lr_scale", 1) != 1 for group in scheduler.optimizer.param_groups):
        message = (
            f"{scaled} parameter groups have an lr_scale, which no scheduler uses: multiply lr by it and remove it."
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return scheduler


# Optimizers with which the schedule does not do what one expects: package, class, what happens.
# `python -m benchmarks.optimizers` measures it.
_FACTS = {
    ("torch", "Rprop"): "the learning rate has no effect",
    ("pytorch_optimizer", "AdaFactor"): "the learning rate has no effect unless you pass relative_step=False",
    ("pytorch_optimizer", "ASGD"): "a learning rate of 0 is an error: set warmup_lr_rate and min_lr_rate",
    ("pytorch_optimizer", "FTRL"): "each change of the learning rate moves the weights far",
    ("pytorch_optimizer", "Gravity"): "a learning rate of 0 at the first update is an error: set warmup_lr_rate",
    ("dadaptation", "DAdaptSGD"): "a learning rate of 0 is an error: set warmup_lr_rate and min_lr_rate",
}


def _fact_about(optimizer: Optimizer) -> str | None:
    kind = type(getattr(optimizer, "optimizer", optimizer))
    if "ScheduleFree" in kind.__name__:
        return "updates at a low learning rate count in the average of the weights as much as others"
    if optimizer.param_groups[0].get("relative_step") is False:
        return None
    return _FACTS.get((kind.__module__.partition(".")[0], kind.__name__))


class _LayerWiseGroups(Optimizer):
    """The parameter groups of several optimizers, for one scheduler. The optimizers step by themselves."""

    _opt_called = True  # so that no scheduler warns that it stepped before the optimizer

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})


def with_all_groups(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer, or the groups of all its own optimizers if it is a layer-wise one (GaLore, APOLLO).

    There each parameter has an optimizer of its own, which steps in a hook of its gradient, and transformers'
    `LayerWiseDummyOptimizer` around them has one group, with a parameter that nobody trains. The Trainer may hand it
    over in Accelerate's wrapper.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    own_optimizers = getattr(inner, "optimizer_dict", None)
    return _LayerWiseGroups(*own_optimizers.values()) if isinstance(own_optimizers, dict) else optimizer


class CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(CosineRestartLR):
    r"""Cosine annealing with warm restarts, whose peak decays at each restart, after one linear warmup.

    [`CosineRestartLR`], constructed with the arguments of torch's `CosineAnnealingWarmRestarts`. At step t in cycle k,
    which starts at :math:`s_k` and has :math:`T_k` steps, of which :math:`h_k` stay at the peak:

    .. math::
        h_k &= \min(\mathrm{round}(stable\_ratio \cdot T_k), T_k - 1) \\
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \cdot \left(\eta_{min} + (peak_k - \eta_{min})
        \frac{1 + \cos(\pi \max(0, t - s_k - h_k) / (T_k - h_k))}{2}\right)

    where ``warm(t)`` is ``min(1, t / warmup_steps)``, or 1 without a warmup. The formulas of other warmup modes are
    in [`CosineRestartSchedule`].

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer whose learning rates are scheduled. A tensor
            `lr` is filled in place.
        T_0 (`float`): Length of the first cycle, in steps.
        T_mult (`float`, *optional*, defaults to 1): Factor on the length of a cycle at each restart, > 0.
        eta_min (`float`, *optional*, defaults to 0.0): The learning rate at the end of each cycle, >= 0.
        last_epoch (`int`, *optional*, defaults to -1): When training is resumed, the number of steps that were taken,
            minus 1.
        verbose (`bool`, *optional*, defaults to `False`): Print one line at each restart.
        warmup_steps (`int`, *optional*, defaults to 0): Length of the warmup, in steps.
        decay (`float`, *optional*, defaults to 1.0): Factor on the peak at each restart, 0 < decay <= 1.
        eta_min_rate (`float`, *optional*): In place of `eta_min`: the fraction of its initial learning rate that each
            parameter group has at the end of each cycle, between 0 and 1.
        warmup_mode (`str`, *optional*, defaults to `"overlap"`): Where the warmup lies: `"overlap"`, `"prefix"` or
            `"every_cycle"`.
        num_cycles (`int`, *optional*): Number of cycles, after which the learning rate stays at `eta_min`. Without it
            the restarts never end.
        warmup_lr_rate (`float`, *optional*, defaults to 0.0): Fraction of the learning rate at which the warmup
            starts.
        stable_ratio (`float`, *optional*, defaults to 0.0): Fraction of each cycle's steps at which the learning rate
            stays at the peak before it anneals, 0 <= stable_ratio < 1.

    Raises:
        TypeError, ValueError, KeyError: As from [`CosineRestartSchedule`] and [`CosineRestartLR`].

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=100, warmup_steps=20, decay=0.75)
    >>> scheduler.schedule == CosineRestartSchedule(T_0=100, warmup_steps=20, decay=0.75)
    True

    ```

    Source: name, arguments and meaning as in
    https://github.com/qu-gg/pytorch-cosine-annealing-with-decay-and-initial-warmup, without its off-by-one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: float,
        T_mult: float = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        verbose: bool = False,
        warmup_steps: int = 0,
        decay: float = 1.0,
        *,
        eta_min_rate: float | None = None,
        warmup_mode: str = "overlap",
        num_cycles: int | None = None,
        warmup_lr_rate: float = 0.0,
        stable_ratio: float = 0.0,
    ) -> None:
        schedule = CosineRestartSchedule(
            T_0=T_0,
            T_mult=T_mult,
            decay=decay,
            warmup_steps=warmup_steps,
            warmup_mode=warmup_mode,
            num_cycles=num_cycles,
            warmup_lr_rate=warmup_lr_rate,
            stable_ratio=stable_ratio,
            eta_min=eta_min,
            eta_min_rate=eta_min_rate,
        )
        super().__init__(optimizer, schedule, last_epoch=last_epoch, verbose=verbose)
