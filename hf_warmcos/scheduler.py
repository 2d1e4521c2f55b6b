"""The schedule on a torch optimizer."""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.saved_state import SavedState, read_state
from hf_warmcos.schedule import CosineRestartSchedule
from hf_warmcos.written_rates import WrittenRates

logger = logging.getLogger("hf_warmcos")


class CosineRestartLR(LRScheduler):
    r"""A [`CosineRestartSchedule`] on a torch optimizer.

    At step t in cycle k, which starts at :math:`s_k` and has :math:`T_k` steps:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi (t - s_k) / T_k)}{2}\right)

    With ``decay=1`` and ``warmup_steps=0`` every rate equals that of
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` to the last bit. Call ``step()`` after each
    ``optimizer.step()``: a step is one optimizer update.

    It writes rates in ``step()``, into the parameter groups that the optimizer has then. Outside of ``step()`` (when a
    state is loaded, or a group was added) it writes only where it is in charge: where the groups still hold what its
    last write left, so that a rate set by hand, by another scheduler or by a loaded state of the optimizer stays until
    the next ``step()``. A group that is added joins at the current position with the next update. A tensor `lr` is
    filled in place; one that several groups share is filled once, so whoever exchanges it has to exchange it in all of
    them.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer whose rates are scheduled.
        schedule ([`CosineRestartSchedule`]): The schedule.
        eta_min (`float`, *optional*, defaults to 0.0): The rate at the end of each cycle, >= 0.
        eta_min_rate (`float`, *optional*): In place of `eta_min`: the share of its own base rate that each parameter
            group has at the end of each cycle, between 0 and 1.
        last_epoch (`int`, *optional*, defaults to -1): The last step that was done when training goes on; -1 to begin.
        verbose (`bool`, *optional*, defaults to `False`): Print one line at each restart.

    Attributes:
        base_lrs (`list[float]`): The rate that each parameter group was given.
        last_epoch (`int`): The current step; -1 in a scheduler that waits for its turn in a `SequentialLR`.

    Raises:
        TypeError, ValueError: If an argument is of the wrong type or out of its range; the message names it. The
            optimizer is then as it was.
        KeyError: If `last_epoch` is not -1 and a parameter group has no `initial_lr`, as in torch.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=4, warmup_steps=2, decay=0.5))
    >>> for step in range(5):
    ...     print(step, scheduler.cycle, round(scheduler.get_last_lr()[0], 4))
    ...     optimizer.step()
    ...     scheduler.step()
    0 0 0.0
    1 0 0.0427
    2 0 0.05
    3 0 0.0146
    4 1 0.05

    ```

    Source: SGDR, https://arxiv.org/abs/1608.03983; the contract is that of
    `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`.
    """

    base_lrs: list[float]  # type: ignore[assignment]
    last_epoch: int
    _rates: Any  # WrittenRates where this scheduler has written into the optimizer, else None
    _constants: tuple[Any, ...]

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: CosineRestartSchedule,
        *,
        eta_min: float = 0.0,
        eta_min_rate: float | None = None,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Expected optimizer to be a torch Optimizer, but got a {type(optimizer).__name__}")
        if not isinstance(schedule, CosineRestartSchedule):
            raise TypeError(f"Expected schedule to be a CosineRestartSchedule, but got a {type(schedule).__name__}")
        if not isinstance(verbose, bool):
            raise TypeError(
                f"Expected verbose to be a bool, but got verbose={verbose!r} of type {type(verbose).__name__}"
            )
        eta_min = float(real_number("eta_min", eta_min, (">=", 0)))
        if eta_min_rate is not None:
            eta_min_rate = real_number("eta_min_rate", eta_min_rate, (">=", 0), ("<=", 1))
            if eta_min != 0:
                raise ValueError(f"Expected one of eta_min and eta_min_rate, but got {eta_min=} and {eta_min_rate=}")
        last_epoch = whole_number("last_epoch", last_epoch, (">=", -1), ("<", MOST_STEPS))
        self._schedule, self._eta_min, self._eta_min_rate = schedule, eta_min, eta_min_rate
        super().__init__(optimizer, last_epoch)
        self.verbose = verbose  # after the base class, whose older releases have a deprecated attribute of this name
        self._await_added_groups()

    def _initial_step(self) -> None:
        # Called by the base class, whose base_lrs are tensors where the rates are (the last time that they are read),
        # and by SequentialLR, once more, after it took the first step back.
        self.base_lrs = [float(base_lr) for base_lr in self.base_lrs]
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor) and group["initial_lr"] is group["lr"]:
                group["initial_lr"] = group["lr"].clone()  # SequentialLR of older releases makes them one
        self._count_ahead = -self.last_epoch  # counted as the first call
        self._move_to(self.last_epoch + 1)

    # The schedule: what was constructed holds.

    @property
    def schedule(self) -> CosineRestartSchedule:
        """The schedule as a pure function of the step."""
        return self._schedule

    @property
    def T_0(self) -> float | None:
        """The length of the first cycle, in steps, or None where cycles are listed."""
        return self.schedule.T_0

    @property
    def T_mult(self) -> float:
        """The factor on the length of a cycle at each restart."""
        return self.schedule.T_mult

    @property
    def eta_min(self) -> float:
        """The rate at the end of each cycle, unless `eta_min_rate` says it."""
        return self._eta_min

    @property
    def eta_min_rate(self) -> float | None:
        """The share of its base rate that each parameter group has at the end of each cycle."""
        return self._eta_min_rate

    @property
    def eta_mins(self) -> list[float]:
        """The rate of each parameter group at the end of each cycle."""
        if self.eta_min_rate is None:
            return [self.eta_min] * len(self.base_lrs)
        return [base_lr * self.eta_min_rate for base_lr in self.base_lrs]

    # The position.

    @property
    def _position(self) -> Any:
        # Exactly, for a float that holds a late step holds little of the fraction.
        return self._step + Fraction(self._fraction) if self._fraction else self._step

    @property
    def _step(self) -> int:
        return max(0, self.last_epoch)

    @property
    def _step_count(self) -> int:
        # Calls of `step()`, the constructor's included, kept as what they are ahead of the step, which each one moves.
        return self.last_epoch + self._count_ahead

    @_step_count.setter
    def _step_count(self, count: int) -> None:
        self._count_ahead = count - self.last_epoch

    @property
    def cycle(self) -> int:
        """The index of the current cycle, counted from 0."""
        return self.schedule.cycle_at(self._step).index

    @property
    def T_i(self) -> int:
        """The length of the current cycle, in steps."""
        return self.schedule.cycle_at(self._step).length

    @property
    def T_cur(self) -> float:
        """Steps since the current cycle started: negative in a prefix warmup, ``T_i`` and more after the last cycle."""
        return self._step - self.schedule.cycle_at(self._step).start + (self._fraction or 0)

    @property
    def at_cycle_end(self) -> bool:
        """True after the ``step()`` that follows a cycle's last optimizer step: the moment to evaluate and to save."""
        cycle = self.schedule.cycle_at(self._step)
        return not self._fraction and (
            self.last_epoch == cycle.start > self.schedule.origin or self.last_epoch == cycle.end
        )

    def step(self, epoch: float | None = None) -> None:
        """Move to the next step, or to step ``epoch``, and set the rate of each parameter group.

        Args:
            epoch (`float`, *optional*): The step to move to, >= 0, whole or fractional, forwards or backwards.

        Raises:
            TypeError, ValueError: If `epoch` is not a number >= 0, or if the optimizer has lost parameter groups.
        """
        groups, num_groups, start, stop, base_lrs, kind, share_at, floor, spans, rates = self._constants
        step = self.last_epoch + 1
        if (
            epoch is not None
            or not start <= step < stop
            or groups is not self.optimizer.param_groups
            or len(groups) != num_groups
            or base_lrs != self.base_lrs
            or groups[0]["lr"].__class__ is not kind
        ):
            return self._step_anywhere(epoch)
        self.last_epoch = step
        share = share_at(step)
        if not spans:
            return self._rewrite(groups, step, share)
        for group, span in zip(groups, spans):
            group["lr"] = rate = floor + span * share
        rates.last_rate = rate
        return None

    def _rewrite(self, groups: list[dict[str, Any]], step: int, share: float) -> None:
        """What ``step()`` does where rates are tensors or floors differ.

        It stands apart since names that a comprehension refers to, too, are slow in the whole function around it.
        """
        warm = 1.0 if self._warm_at is None else self._warm_at(step)
        if not self._rates.rewrite(groups, [warm * floor + span * share for floor, span in self._bounds]):
            self._move_to(step)

    def _step_anywhere(self, epoch: float | None) -> None:
        """What ``step()`` does where the constants of the last step do not hold: at a restart, in a jump."""
        if epoch is None and self._step_count == 1:
            self._warn_if_optimizer_has_not_stepped()
        count_before, cycle_before = self._step_count, self.cycle
        self._update_lr(epoch)
        self._step_count = count_before + 1
        cycle = self.schedule.cycle_at(self._step)
        if self.verbose and cycle.index not in (0, cycle_before):
            peaks = [
                self.schedule.peak_lr(cycle.index, base_lr, eta_min)
                for base_lr, eta_min in zip(self.base_lrs, self.eta_mins)
            ]
            print(f"Step {self.last_epoch}: restart, cycle {cycle.index} of {cycle.length} steps with peak {peaks}")

    def _update_lr(self, epoch: float | None = None) -> None:
        # SequentialLR calls this in place of step() where a scheduler's turn begins.
        if epoch is None:
            self._move_to(max(0, self.last_epoch + 1), self._fraction)
        else:
            epoch = real_number("epoch", epoch, (">=", 0))
            whole = math.floor(epoch)
            self._move_to(whole, epoch - whole)

    def _warn_if_optimizer_has_not_stepped(self) -> None:
        # The marks that torch.optim.lr_scheduler.LRScheduler leaves on an optimizer whose step it watches.
        watched = hasattr(self.optimizer.step, "_wrapped_by_lr_sched")
        if watched and not getattr(self.optimizer, "_opt_called", False):
            warnings.warn(
                "Detected call of `lr_scheduler.step()` before `optimizer.step()`: the first rate of the schedule is "
                "skipped. Call `optimizer.step()` first, then `lr_scheduler.step()`.",
                UserWarning,
                stacklevel=4,
            )

    # The rates. Whatever else writes into an optimizer, this scheduler does it in `_move_to` and `step` only.

    def _move_to(self, step: int, fraction: float = 0.0) -> None:
        """Take a position, with every parameter group that the optimizer has now, and write their rates."""
        groups = self.optimizer.param_groups
        self._take_in(groups)
        self.last_epoch, self._fraction = step, fraction
        segment = self.schedule.segment_at(self._position)
        bounds = self._bounds_in(segment)
        self._rates, self._written_at = WrittenRates(groups, self._lrs(self._position, segment, bounds)), step
        self._prepare_steps(groups, segment, bounds)

    def _stand_aside(self, last_epoch: int, fraction: float) -> None:
        """Take a position, and leave the optimizer to whoever is in charge of it."""
        self.last_epoch, self._fraction = last_epoch, fraction
        self._rates = None
        self._constants = _NO_STEPS

    def _take_in(self, groups: list[dict[str, Any]]) -> None:
        """Take in the parameter groups that were added behind those that are known."""
        known = len(self.base_lrs)
        if len(groups) < known:
            raise ValueError(
                f"Expected the optimizer to have the {known} parameter groups that the scheduler has base_lrs of, but "
                f"got {len(groups)}"
            )
        if len(groups) > known and not all("initial_lr" in group for group in groups[:known]):
            raise ValueError(
                f"Expected parameter groups to be added behind the {known} that the scheduler knows, but got "
                f"{len(groups)} of which the first are not these"
            )
        for group in groups[known:]:
            group.setdefault("initial_lr", float(group["lr"]))  # not the tensor itself, which is filled with each rate
            self.base_lrs.append(float(group["initial_lr"]))

    def _prepare_steps(self, groups: list[dict[str, Any]], segment: Any, bounds: list[tuple[float, float]]) -> None:
        """Work out what stays as it is for the steps from this one to the end of its segment."""
        start, stop, share_at, warm_at = segment.start, segment.stop, segment.share, None
        overlap = self.schedule.overlap
        if overlap is not None and self._position < overlap.stop:
            stop, warm_at = min(stop, overlap.stop), overlap.share
            share_at = lambda step: warm_at(step) * segment.share(step)  # noqa: E731
        if self._fraction or self._step_count == 1:
            stop = start  # a fractional position and the first step, which may warn, take the long way
        owners = self._rates.owners
        base_lrs = [*self.base_lrs] if len(owners) == len(groups) else _Deciding(self.base_lrs, owners)
        floors, spans = zip(*bounds)
        self._bounds = [bounds[index] for index in owners]
        self._warm_at = warm_at
        is_plain = self._rates.all_floats and {*floors} == {floors[0]} and (warm_at is None or not floors[0])
        self._constants = (
            groups,
            len(groups),
            start,
            stop,
            base_lrs,
            groups[0]["lr"].__class__,
            share_at,
            floors[0],
            spans if is_plain else (),
            self._rates,
        )

    def _bounds_in(self, segment: Any) -> list[tuple[float, float]]:
        return [
            self.schedule.floor_and_span(segment, base_lr, eta_min)
            for base_lr, eta_min in zip(self.base_lrs, self.eta_mins)
        ]

    def _lrs(self, position: float, segment: Any, bounds: list[tuple[float, float]]) -> list[float]:
        share, overlap = segment.share(position), self.schedule.overlap
        warm = overlap.share(position) if overlap is not None and position < overlap.stop else 1.0
        return [warm * floor + span * (warm * share) for floor, span in bounds]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each parameter group at the current position, from the schedule."""
        segment = self.schedule.segment_at(self._position)
        return self._lrs(self._position, segment, self._bounds_in(segment))

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each parameter group at the current position, as plain floats, in rates per step."""
        return self.get_lr()

    @property
    def _last_lr(self) -> list[float]:  # type: ignore[override]
        return self.get_lr()

    def _is_in_charge(self) -> bool:
        """Whether the optimizer still has what this scheduler wrote last, so that it may write outside of `step()`."""
        if self._rates is None or self.last_epoch < 0:
            return False
        groups, known = self.optimizer.param_groups, len(self.base_lrs)
        rewrites = self.last_epoch - self._written_at
        return len(groups) >= known and self._rates.stand(groups[:known], self.get_lr(), rewrites)

    def _join_added_groups(self) -> None:
        if len(self.optimizer.param_groups) > len(self.base_lrs) and self._is_in_charge():
            self._move_to(self.last_epoch, self._fraction)

    def _await_added_groups(self) -> None:
        """Let parameter groups that are added join at the current position with the next update."""
        _keep_out_of_compilation()

        def join(*_: Any) -> None:
            scheduler = scheduler_ref()
            if scheduler is not None:
                scheduler._join_added_groups()

        # The hook goes when the scheduler does, and holds nothing alive.
        scheduler_ref = weakref.ref(self, lambda _: handle.remove())
        try:
            handle = self.optimizer.register_step_pre_hook(join)
        except AttributeError:
            # A wrapper, such as Accelerate's, that is an Optimizer by its class alone: groups join at the next step().
            return

    # Saved and loaded.

    def __getstate__(self) -> dict[str, Any]:
        of_this_optimizer = ("_rates", "_written_at", "_constants", "_bounds", "_warm_at")
        state = {name: value for name, value in vars(self).items() if name not in of_this_optimizer}
        return state | {"in_charge": self._is_in_charge()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        in_charge = state.pop("in_charge")
        vars(self).update(state)
        self._place(in_charge, self.last_epoch, self._fraction)
        self._await_added_groups()  # a copy of an optimizer has only its groups and its state

    def _place(self, in_charge: bool, last_epoch: int, fraction: float) -> None:
        if in_charge and last_epoch >= 0:
            self._move_to(last_epoch, fraction)
        else:
            self._stand_aside(last_epoch, fraction)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the base rates and the schedule, as plain numbers, strings, lists and dicts.

        A `LambdaLR` (the schedules of transformers) loads it, too, so that a run can leave again.
        """
        self._join_added_groups()  # so that the state is one of all groups
        schedule = _arguments(self)
        if self.schedule.cycles is not None:
            schedule["cycles"] = [[*cycle] for cycle in self.schedule.cycles]  # type: ignore[misc]
        last_epoch = max(-1, self.last_epoch)  # nested sequences take more than one step back
        return {
            "last_epoch": last_epoch,
            "fraction": self._fraction,
            "base_lrs": [*self.base_lrs],
            "_step_count": max(0, self._step_count),
            "in_charge": self._is_in_charge(),
            "schedule": schedule,
            # A LambdaLR that goes on from this state carries it along: where the two differ, it was one.
            "saved_at": last_epoch,
            "_last_lr": self.get_last_lr(),
            "lr_lambdas": [None] * len(self.base_lrs),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position and the base rates; where the saved scheduler was in charge, also the optimizer's rates.

        The schedule stays the one that this scheduler was constructed with, as with the schedules of transformers. If
        the saved one had other rates up to the saved position, a warning of the logger `hf_warmcos` names each
        difference.

        Args:
            state_dict (`dict`): What `state_dict()` of this class, of torch's `CosineAnnealingWarmRestarts` or of a
                `LambdaLR` (the schedules of transformers) returned. The latter two do not say whether they were in
                charge, which is then supposed.

        Raises:
            TypeError, ValueError: If it is not such a state, or one of another number of parameter groups. Nothing
                is changed then.
        """
        saved = read_state(state_dict)
        groups = self.optimizer.param_groups
        if len(saved.base_lrs) != len(groups):
            raise ValueError(
                f"Expected base_lrs of {len(groups)} parameter groups, but got {len(saved.base_lrs)}: {saved.base_lrs}"
            )
        differences = self._differences_from(saved)
        if differences:
            logger.warning(
                "The saved schedule had other rates up to step %d than this one, which holds: %s",
                saved.last_epoch,
                "; ".join(differences),
            )
        self.base_lrs, self._count_ahead = saved.base_lrs, saved.step_count - saved.last_epoch
        if saved.in_charge:
            for group, base_lr in zip(groups, saved.base_lrs):
                group["initial_lr"] = base_lr
        self._place(saved.in_charge, saved.last_epoch, saved.fraction)

    def _differences_from(self, saved: SavedState) -> list[str]:
        """The arguments that differ from the saved ones, if the rates up to the saved position do."""
        if saved.schedule is None or not saved.base_lrs:
            return []
        base_lr = max(saved.base_lrs)

        def past(of: Any, steps: range) -> np.ndarray:
            eta_min = of.eta_min if of.eta_min_rate is None else base_lr * of.eta_min_rate
            return of.schedule.curve(steps, base_lr, eta_min)

        here, there = _arguments(self), _arguments(saved)
        done = min(saved.last_epoch, _MOST_STEPS_TO_COMPARE)
        parts = (range(first, min(first + 2**16, done)) for first in range(0, done, 2**16))
        if here == there or all(np.allclose(past(self, part), past(saved, part), rtol=1e-9, atol=0) for part in parts):
            return []
        return [f"{name} was {there[name]}, is {here[name]}" for name in here if there[name] != here[name]]

    def __repr__(self) -> str:
        minimum = f"eta_min={self.eta_min}" if self.eta_min_rate is None else f"eta_min_rate={self.eta_min_rate}"
        return f"{type(self).__name__}({self.schedule}, {minimum}, last_epoch={self.last_epoch})"


def _arguments(of: CosineRestartLR | SavedState) -> dict[str, Any]:
    assert of.schedule is not None
    return asdict(of.schedule) | {"eta_min": of.eta_min, "eta_min_rate": of.eta_min_rate}


class _Deciding:
    """The base rates of the last of the groups that share a tensor: the others may change without any effect."""

    def __init__(self, base_lrs: list[float], owners: list[int]) -> None:
        self.base_lrs = {index: base_lrs[index] for index in owners}

    def __ne__(self, base_lrs: Any) -> bool:
        return any(base_lrs[index] != base_lr for index, base_lr in self.base_lrs.items())


_NO_STEPS: tuple[Any, ...] = (None, 0, 0, 0, None, None, None, 0.0, (), None)
# Two curves of so many steps take some seconds where their cycles are short.
_MOST_STEPS_TO_COMPARE = 10**6


@cache
def _keep_out_of_compilation() -> None:
    # As torch does with its own schedulers: what is looked at here changes with each step, and a compiled function that
    # calls step(), or an optimizer's step that calls the hook, would be compiled anew for each. It costs nothing else
    # if a torch to come does it in another way.
    with suppress(ImportError, AttributeError):
        from torch._dynamo import trace_rules

        for module in ("checks", "cycles", "schedule", "written_rates", "scheduler"):
            trace_rules.add(f"{__package__}.{module}")


class CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(CosineRestartLR):
    r"""Cosine annealing with warm restarts, whose peak decays at each restart, after one linear warmup.

    [`CosineRestartLR`], constructed with the arguments of torch's `CosineAnnealingWarmRestarts`. At step t in cycle k,
    which starts at :math:`s_k` and has :math:`T_k` steps:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi (t - s_k) / T_k)}{2}\right)

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer whose rates are scheduled. A tensor `lr` is filled in place.
        T_0 (`float`): Length of the first cycle, in steps.
        T_mult (`float`, *optional*, defaults to 1): Factor on the length of a cycle at each restart, > 0.
        eta_min (`float`, *optional*, defaults to 0.0): The rate at the end of each cycle, >= 0.
        last_epoch (`int`, *optional*, defaults to -1): The last step that was done when training goes on; -1 to begin.
        verbose (`bool`, *optional*, defaults to `False`): Print one line at each restart.
        warmup_steps (`int`, *optional*, defaults to 0): Length of the warmup, in steps.
        decay (`float`, *optional*, defaults to 1.0): Factor on the peak at each restart, 0 < decay <= 1.
        eta_min_rate (`float`, *optional*): In place of `eta_min`: the share of its own base rate that each parameter
            group has at the end of each cycle, between 0 and 1.
        warmup_mode (`str`, *optional*, defaults to `"overlap"`): Where the warmup lies: `"overlap"`, `"prefix"` or
            `"every_cycle"`.
        num_cycles (`int`, *optional*): Number of cycles, after which the rate stays at `eta_min`; endless if not given.
        warmup_lr_rate (`float`, *optional*, defaults to 0.0): Share of the rate at which the warmup starts.

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
    ) -> None:
        schedule = CosineRestartSchedule(T_0, T_mult, decay, warmup_steps, warmup_mode, num_cycles, warmup_lr_rate)
        super().__init__(
            optimizer, schedule, eta_min=eta_min, eta_min_rate=eta_min_rate, last_epoch=last_epoch, verbose=verbose
        )
