"""The schedule on a torch optimizer: one arc at a time, and one method that writes learning rates."""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_warmcos.checks import MOST_STEPS, learning_rate, minimum, real_number, whole_number
from hf_warmcos.saved_state import SavedState, read_state
from hf_warmcos.schedule import Arc, CosineRestartSchedule

logger = logging.getLogger("hf_warmcos")


class CosineRestartLR(LRScheduler):
    r"""A [`CosineRestartSchedule`] on a torch optimizer.

    At step t in cycle k, which starts at :math:`s_k` and has :math:`T_k` steps:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi (t - s_k) / T_k)}{2}\right)

    With ``decay=1`` and ``warmup_steps=0`` every learning rate equals that of
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` to the last bit. Call ``step()`` after each
    ``optimizer.step()``: a step is one optimizer update.

    ``step()`` writes learning rates into the parameter groups that the optimizer has at that time. A tensor `lr` is
    filled in place. A learning rate that you set by hand, or that a loaded state of the optimizer brings, stays until
    the next ``step()``.

    You can add and remove parameter groups at any time: each group keeps its initial learning rate as ``initial_lr``. A
    group that you add gets its learning rate before the next update. If you have set another learning rate by hand, it
    gets it at the next ``step()``. Removing one group and adding another between two steps goes unnoticed, as with
    torch's schedulers.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer whose learning rates are scheduled.
        schedule ([`CosineRestartSchedule`]): The schedule.
        eta_min (`float`, *optional*, defaults to 0.0): The learning rate at the end of each cycle, >= 0.
        eta_min_rate (`float`, *optional*): In place of `eta_min`: the fraction of its own initial learning rate that
            each parameter group has at the end of each cycle, between 0 and 1.
        last_epoch (`int`, *optional*, defaults to -1): When training is resumed, the number of steps that were
            taken, minus 1.
        verbose (`bool`, *optional*, defaults to `False`): Print one line at each restart.

    Attributes:
        base_lrs (`list[float]`): The initial learning rate of each parameter group. Values that you set hold from the
            next ``step()`` on.
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

    _arc: Arc | None = None  # the arc of the position, looked up when the position leaves it
    _computed_for: list[float] | None = None  # the base_lrs that the arc's floors and spans were computed for
    _initial_lrs: list[float] | None = None  # the base_lrs that the groups were given as their initial_lr
    _last_lr: list[float]  # type: ignore[assignment]  # the learning rates of the position

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
        kinds = {"optimizer": Optimizer, "schedule": CosineRestartSchedule, "verbose": bool}
        for (name, kind), value in zip(kinds.items(), (optimizer, schedule, verbose)):
            if not isinstance(value, kind):
                raise TypeError(f"Expected {name} to be a {kind.__name__}, but got a {type(value).__name__}")
        self._eta_min, self._eta_min_rate = minimum(eta_min, eta_min_rate)
        last_epoch = whole_number("last_epoch", last_epoch, (">=", -1), ("<", MOST_STEPS))
        for index, group in enumerate(optimizer.param_groups):
            _group_lr(index, group)  # an error before anything is changed
        self._schedule = schedule
        self._warns_after = MOST_STEPS if schedule.end is None else schedule.end
        super().__init__(optimizer, last_epoch)
        self.verbose = verbose  # after the base class, whose older releases have a deprecated attribute of this name
        self._await_added_groups()

    def _initial_step(self) -> None:
        # Called by the base class, and once more by SequentialLR, after it took the first step back.
        self._step_count = 1
        self._update_lr(self.last_epoch + 1)

    # What was constructed holds.

    schedule = property(lambda self: self._schedule, doc="The schedule as a function of the step.")
    T_0 = property(lambda self: self._schedule.T_0, doc="The length of the first cycle; None where cycles are listed.")
    T_mult = property(lambda self: self._schedule.T_mult, doc="The factor on the length of a cycle at each restart.")
    eta_min = property(lambda self: self._eta_min, doc="The learning rate at the end of each cycle.")
    eta_min_rate = property(lambda self: self._eta_min_rate, doc="The same as a fraction of the initial learning rate.")

    @property
    def eta_mins(self) -> list[float]:
        """The learning rate of each parameter group at the end of each cycle."""
        return [self.eta_min if self.eta_min_rate is None else lr * self.eta_min_rate for lr in self.base_lrs]

    @property  # type: ignore[override]
    def base_lrs(self) -> list[float]:
        """The initial learning rate of each parameter group. Values that you set hold from the next ``step()`` on."""
        return self._base_lrs

    @base_lrs.setter
    def base_lrs(self, base_lrs: Sequence[Any]) -> None:
        groups = self.optimizer.param_groups
        if len(base_lrs) != len(groups):
            raise ValueError(
                f"Expected base_lrs of {len(groups)} parameter groups, but got {len(base_lrs)}: {base_lrs}"
            )
        checked = [_initial_lr(f"base_lrs[{index}]", base_lr) for index, base_lr in enumerate(base_lrs)]
        for group, base_lr in zip(groups, checked):
            group["initial_lr"] = base_lr
        self._base_lrs = checked

    # The position.

    def _here(self) -> Arc:
        """The arc that holds at the current position."""
        arc = self._arc
        if arc is None or not arc.start <= self.last_epoch < arc.stop:
            arc = self._arc = self.schedule.arc_at(max(0, self.last_epoch))
            self._computed_for = None
        return arc

    cycle = property(lambda self: self._here().cycle.index, doc="The index of the current cycle, counted from 0.")
    T_i = property(lambda self: self._here().cycle.length, doc="The length of the current cycle, in steps.")

    @property
    def T_cur(self) -> float:
        """Steps since the current cycle started: negative in a prefix warmup, ``T_i`` and more after the last cycle."""
        return max(0, self.last_epoch) - self._here().cycle.start + self._fraction

    @property
    def at_cycle_end(self) -> bool:
        """True after the ``step()`` that ends a cycle: evaluate and save then."""
        arc = self._here()
        # A restart ends the cycle before; after the last cycle there is none.
        return self.last_epoch in (arc.start, arc.cycle.end) and not self._fraction

    def step(self, epoch: float | None = None) -> None:
        """Move to the next step, or to step ``epoch``, and set the learning rate of each parameter group.

        The first call that passes the end of the schedule logs a warning: training continues at the minimum from there.

        Args:
            epoch (`float`, *optional*): The step to move to, >= 0, whole or fractional, forwards or backwards.

        Raises:
            TypeError, ValueError: If `epoch` is not a number >= 0, or if groups were removed and those that are left
                have no `initial_lr`. Nothing is changed then.
        """
        before = self._arc
        if epoch is not None:
            epoch = real_number("epoch", epoch, (">=", 0), ("<=", MOST_STEPS))
        elif self._step_count == 1:
            self._warn_if_optimizer_has_not_stepped()
            self._arc = None  # looked up anew, so that a compiler sees at the first step what it sees at each restart
        self._update_lr(epoch)
        self._step_count += 1
        if self.last_epoch > self._warns_after:
            self._warn_of_passed_end()
        if self.verbose and self._here() != before and self.cycle > 0:
            peaks = [self.schedule.peak_lr(self.cycle, *of_group) for of_group in zip(self.base_lrs, self.eta_mins)]
            print(f"Step {self.last_epoch}: restart, cycle {self.cycle} of {self.T_i} steps with peak {peaks}")

    def _warn_if_optimizer_has_not_stepped(self) -> None:
        # The marks that torch.optim.lr_scheduler.LRScheduler leaves on an optimizer whose step it watches.
        if hasattr(self.optimizer.step, "_wrapped_by_lr_sched") and not getattr(self.optimizer, "_opt_called", False):
            message = "You called `lr_scheduler.step()` before `optimizer.step()`: the first learning rate is skipped."
            warnings.warn(f"{message} Call `optimizer.step()` first, then `lr_scheduler.step()`.", stacklevel=3)

    def _warn_of_passed_end(self) -> None:
        self._warns_after = MOST_STEPS  # once
        message = "Training continues after the end of the schedule at step %d: the learning rate stays at its minimum."
        logger.warning(f"{message} To add cycles, use scheduler.schedule.extend(...).", self.schedule.end)

    # The learning rates. Other code may write into the optimizer; this scheduler writes in `_update_lr` only.

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each parameter group at the current position, from the schedule.

        A subclass may override it; what it returns is what ``step()`` writes.
        """
        arc = self._here()
        if self._computed_for != self._base_lrs:
            self._floors_and_spans = [arc.floor_and_span(*of_group) for of_group in zip(self.base_lrs, self.eta_mins)]
            self._computed_for = [*self._base_lrs]
        of_floor, of_span = arc.fractions_at(self.last_epoch + self._fraction)
        lrs = []
        for floor, span in self._floors_and_spans:  # a comprehension would cost as much as five groups
            lrs.append(of_floor * floor + of_span * span)
        return lrs

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each parameter group at the position of the last ``step()``, as plain floats."""
        return [*self._last_lr]

    def _update_lr(self, epoch: float | None = None) -> None:
        """Take a position, by default the next step, and write the learning rates of all groups that there are now.

        SequentialLR calls it in place of `step` when the turn of a scheduler begins.
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(self._base_lrs):
            self._take_in(groups)
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch += 1
        else:
            self.last_epoch, self._fraction = math.floor(epoch or 0), (epoch or 0) % 1
        lrs = self.get_lr()
        if self._initial_lrs is not self._computed_for:  # anew for another arc, or for base_lrs that were changed
            self._initial_lrs = self._computed_for
            for group, base_lr in zip(groups, self.base_lrs):
                group["initial_lr"] = base_lr
        on_devices: dict[int, tuple[Tensor, float]] | None = None
        for group, lr in zip(groups, lrs):
            held = group["lr"]
            if held.__class__ is float or not isinstance(held, Tensor):  # a float is recognized much faster
                group["lr"] = lr
            elif held.is_cpu:
                held.fill_(lr)
            else:
                on_devices = on_devices or {}
                on_devices[id(held)] = held, lr  # once where groups share one: the last of them decides, as above
        if on_devices:
            # Two launches for all of them. The learning rates travel as arguments: nothing waits for the device.
            tensors, values = zip(*on_devices.values())
            torch._foreach_zero_(tensors)
            torch._foreach_add_(tensors, values)
        self._last_lr = lrs

    def _take_in(self, groups: list[dict[str, Any]]) -> None:
        """Take the initial learning rates anew where groups were added or removed: each group keeps its own."""
        known = self.base_lrs
        if len(groups) < len(known) and not all("initial_lr" in group for group in groups):
            came = f"{len(groups)} of {len(known)} groups, of which some have none"
            raise ValueError(f"Expected each parameter group that is left to have its initial_lr, but got {came}")
        for index, group in enumerate(groups):
            if "initial_lr" not in group:  # an added group, or one of a state that was saved without a scheduler
                group["initial_lr"] = known[index] if index < len(known) else _group_lr(index, group)
        self.base_lrs = [group["initial_lr"] for group in groups]

    def _is_in_charge(self) -> bool:
        """Whether the groups hold the learning rates of this scheduler's position, so that it may write there."""
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            held = group["lr"]
            if held != (torch.tensor(lr, dtype=held.dtype) if isinstance(held, Tensor) else lr):
                return False
        return self.last_epoch >= 0

    def _join_added_groups(self) -> None:
        """Let groups that were added join at the current position.

        Groups that are missing are no concern here: DeepSpeed steps its optimizer with one group at a time.
        """
        if len(self.optimizer.param_groups) > len(self.base_lrs) and self._is_in_charge():
            self._update_lr(self.last_epoch + self._fraction)

    def _await_added_groups(self) -> None:
        """Let parameter groups that are added join before the next update."""
        _keep_out_of_compilation()

        def join(*_: Any) -> None:
            if (scheduler := scheduler_ref()) is not None:
                scheduler._join_added_groups()

        # A wrapper may have no hooks, or never call them: the optimizer inside it does. A plain dict does for hooks,
        # although register_step_pre_hook cannot refer to one.
        optimizer, hooks = self.optimizer, []
        while hasattr(optimizer, "__dict__"):
            hooks.append(vars(optimizer).get("_optimizer_step_pre_hooks", {}))
            hooks[-1][id(join)] = join
            optimizer = getattr(optimizer, "optimizer", None)  # type: ignore[assignment]
        # The hooks go when the scheduler does, and keep nothing alive.
        scheduler_ref: weakref.ref[CosineRestartLR] = weakref.ref(
            self, lambda _: [of_one.pop(id(join), None) for of_one in hooks]
        )

    # Saved and loaded.

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._await_added_groups()  # the copy of an optimizer has no hooks

    def _state(self) -> SavedState:
        # SequentialLR takes one step back in a scheduler that waits, and two in one within two sequences.
        position = max(-1, self.last_epoch), self._fraction, self._step_count
        eta_min = self.eta_min, self.eta_min_rate
        in_charge = self._is_in_charge() and self._last_lr == self.get_lr()  # else base_lrs wait for the next step
        return SavedState(*position, self.base_lrs, in_charge, self.schedule, *eta_min)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the initial learning rates and the schedule: plain numbers, strings, lists and dicts.

        A `LambdaLR` (the schedules of transformers) and torch's `CosineAnnealingWarmRestarts` load it as well, so that
        a run can change back to one.
        """
        self._join_added_groups()
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in(self.optimizer.param_groups)
            self._last_lr = self.get_lr()
        # The first two are for torch's CosineAnnealingWarmRestarts.
        return self._state().to_dict() | {"T_cur": self.T_cur, "T_i": self.T_i, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position and the initial learning rates, and write the learning rates of that position.

        If the saved scheduler was not in charge of its optimizer when it was saved, for example because you had set a
        learning rate by hand, nothing is written until the next ``step()``.

        The schedule stays the one that this scheduler was constructed with, as with the schedules of transformers.
        Where it changes the learning rate of steps already taken, a warning of the logger `hf_warmcos` lists the
        arguments that differ. Another warning says so where this scheduler was given another initial learning rate than
        the saved one, which is used.

        Args:
            state_dict (`dict`): What `state_dict()` of this class, of torch's `CosineAnnealingWarmRestarts` or of a
                `LambdaLR` (the schedules of transformers) returned.

        Raises:
            TypeError, ValueError: If it is not such a state, or one of another number of parameter groups. Nothing
                is changed then.
        """
        saved = read_state(state_dict)
        if len(self.optimizer.param_groups) != len(self._base_lrs):
            self._take_in(self.optimizer.param_groups)
        given, self.base_lrs = self.base_lrs, saved.base_lrs
        if differences := self._state().differences_from(saved):
            message = "The saved schedule differs from this run's before step %d: %s. This run's schedule is used."
            logger.warning(message, saved.last_epoch, "; ".join(differences))
        if saved.base_lrs != given:
            message = (
                "This run was given the initial learning rates %s, but continues with the saved ones, %s. "
                "To use others, set scheduler.base_lrs after loading."
            )
            logger.warning(message, sorted({*given}), sorted({*saved.base_lrs}))
        self.last_epoch, self._fraction, self._step_count = saved.last_epoch, saved.fraction, saved.step_count
        self._last_lr = self.get_lr()
        if saved.in_charge and saved.last_epoch >= 0:
            self._update_lr(saved.last_epoch + saved.fraction)

    def __repr__(self) -> str:
        eta_min = f"eta_min={self.eta_min}" if self.eta_min_rate is None else f"eta_min_rate={self.eta_min_rate}"
        return f"{type(self).__name__}({self.schedule}, {eta_min}, last_epoch={self.last_epoch})"


def _group_lr(index: int, group: dict[str, Any]) -> float:
    """The initial learning rate of a parameter group: `initial_lr`, or else `lr`, both checked."""
    lr = _initial_lr(f"param_groups[{index}]['lr']", group.get("lr"))
    return _initial_lr(f"param_groups[{index}]['initial_lr']", group["initial_lr"]) if "initial_lr" in group else lr


def _initial_lr(name: str, lr: Any) -> float:
    """A learning rate to begin with, checked: a number, or a tensor of one."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.is_floating_point() or lr.is_inference() or lr.requires_grad:
            expected = f"{name} to be one float, without a gradient and outside of inference mode"
            raise ValueError(f"Expected {expected}, but got {lr!r}")
        lr = lr.item()
    return learning_rate(name, lr, (">=", 0))


@cache
def _keep_out_of_compilation() -> None:
    # As torch does with its own schedulers: what is looked at here changes with each step, and a compiled function that
    # calls step(), or an optimizer's step that calls the hook, would be compiled anew for each. It costs nothing else
    # if a torch to come does it in another way.
    with suppress(ImportError, AttributeError):
        from torch._dynamo import trace_rules

        for module in ("checks", "cycles", "schedule", "scheduler"):
            trace_rules.add(f"{__package__}.{module}")


class CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(CosineRestartLR):
    r"""Cosine annealing with warm restarts, whose peak decays at each restart, after one linear warmup.

    [`CosineRestartLR`], constructed with the arguments of torch's `CosineAnnealingWarmRestarts`. At step t in cycle k,
    which starts at :math:`s_k` and has :math:`T_k` steps:

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi (t - s_k) / T_k)}{2}\right)

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
        shape = T_0, T_mult, decay, warmup_steps, warmup_mode, num_cycles, warmup_lr_rate, stable_ratio
        schedule = CosineRestartSchedule(*shape)
        super().__init__(
            optimizer, schedule, eta_min=eta_min, eta_min_rate=eta_min_rate, last_epoch=last_epoch, verbose=verbose
        )
