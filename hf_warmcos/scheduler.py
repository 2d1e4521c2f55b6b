"""The schedule on a torch optimizer: one arc at a time, and one method that writes learning rates."""

from __future__ import annotations

import logging
import math
import time
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

from hf_warmcos.checks import MOST_STEPS, learning_rate, real_number, shown, whole_number
from hf_warmcos.saved_state import SavedState, read_state
from hf_warmcos.schedule import Arc, CosineRestartSchedule

logger = logging.getLogger("hf_warmcos")


class CosineRestartLR(LRScheduler):
    r"""A [`CosineRestartSchedule`] on a torch optimizer.

    At step t each parameter group has the learning rate ``schedule.lr_at(t, base_lr)``, where ``base_lr`` is its
    initial learning rate. The formula is in [`CosineRestartSchedule`].

    With a plain schedule (``T_0``, ``T_mult`` and ``eta_min``, and nothing else) every learning rate equals that of
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` to the last bit. Call ``step()`` after each
    ``optimizer.step()``: a step is one optimizer update.

    ``step()`` writes learning rates into the parameter groups that the optimizer has at that time. A tensor `lr` is
    filled in place. A learning rate that you set by hand, or that a loaded state of the optimizer brings, stays until
    the next ``step()``.

    You can add and remove parameter groups at any time: each group keeps its initial learning rate as ``initial_lr``. A
    group that you add gets its learning rate before the next update. If you have set another learning rate by hand, it
    gets it at the next ``step()``. Removing one group and adding another between two steps goes unnoticed, as with
    torch's schedulers.

    Groups can share one tensor as their `lr`: torch gives all groups the one that was passed to the optimizer. Groups
    with another initial learning rate get a tensor of their own. An added group that holds the tensor of another group
    has the initial learning rate of that one.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer whose learning rates are scheduled.
        schedule ([`CosineRestartSchedule`]): The schedule.
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
    ...     print(step, scheduler.cycle_index, round(scheduler.get_last_lr()[0], 4))
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
    # Of an arc, for base_lrs: together, because a saving thread computes them as well.
    _floors_and_spans: tuple[Any, Any, list[tuple[float, float]]] = None, None, []
    _in_use: list[float] | None = None  # the base_lrs that the groups have as their initial_lr
    _groups: list[dict[str, Any]]  # these groups: others may be there now
    _last_lr: list[float]  # type: ignore[assignment]  # the learning rates of the position
    _moves = False  # while a step is taken

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: CosineRestartSchedule,
        *,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        kinds = {"optimizer": Optimizer, "schedule": CosineRestartSchedule, "verbose": bool}
        for (name, kind), value in zip(kinds.items(), (optimizer, schedule, verbose)):
            if not isinstance(value, kind):
                raise TypeError(f"Expected {name} to be a {kind.__name__}, but got a {type(value).__name__}")
        last_epoch = whole_number("last_epoch", last_epoch, (">=", -1), ("<", MOST_STEPS))
        for index, group in enumerate(optimizer.param_groups):
            _group_lr(index, group)  # an error before anything is changed
        self._schedule = schedule
        self._warns_after = MOST_STEPS if schedule.end is None else schedule.end
        super().__init__(optimizer, last_epoch)
        self.verbose = verbose  # after the base class, whose older releases have a deprecated attribute of this name
        self._await_added_groups()

    def _initial_step(self) -> None:
        # Called by the base class, and once more by SequentialLR, after it took the first step back:
        # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/lr_scheduler.py#L1169
        self._step_count = 1
        self._update_lr(self.last_epoch + 1)

    # What was constructed holds.

    schedule = property(lambda self: self._schedule, doc="The schedule as a function of the step.")
    T_0 = property(lambda self: self._schedule.T_0, doc="The length of the first cycle; None where cycles are listed.")
    T_mult = property(lambda self: self._schedule.T_mult, doc="The factor on the length of a cycle at each restart.")
    eta_min = property(lambda self: self._schedule.eta_min, doc="The learning rate at the end of each cycle.")
    eta_min_rate = property(lambda self: self._schedule.eta_min_rate, doc="The same, of each initial learning rate.")

    @property  # type: ignore[override]
    def base_lrs(self) -> list[float]:
        """The initial learning rate of each parameter group. Values that you set hold from the next ``step()`` on."""
        return self._base_lrs

    @base_lrs.setter
    def base_lrs(self, base_lrs: Sequence[Any]) -> None:
        groups = self.optimizer.param_groups
        try:
            given = [*base_lrs]
        except TypeError:
            came = f"base_lrs={shown(base_lrs)} of type {type(base_lrs).__name__}"
            raise TypeError(f"Expected base_lrs to be a list of learning rates, but got {came}") from None
        _check_number_of_groups(given, groups)
        checked = [_initial_lr(f"base_lrs[{index}]", base_lr) for index, base_lr in enumerate(given)]
        # Nothing else in this class writes `initial_lr`.
        for group, base_lr in zip(groups, checked):
            group["initial_lr"] = base_lr
        self._base_lrs, self._in_use, self._groups = checked, [*checked], [*groups]

    # The position.

    def _here(self) -> Arc:
        """The arc that holds at the current position."""
        arc = self._arc
        if arc is None or not arc.start <= self.last_epoch < arc.stop:
            arc = self._arc = self.schedule.arc_at(max(0, self.last_epoch))
        return arc

    cycle_index = property(lambda self: self._here().cycle.index, doc="The index of the current cycle, counted from 0.")
    T_i = property(lambda self: self._here().cycle.length, doc="The length of the current cycle, in steps.")

    @property
    def T_cur(self) -> float:
        """Steps since the current cycle started: negative in a prefix warmup, ``T_i`` and more after the last cycle."""
        return max(0, self.last_epoch) - self._here().cycle.start + self._fraction

    @property
    def at_cycle_end(self) -> bool:
        """True after the ``step()`` that ends a cycle: evaluate and save then.

        The update that was just made was the cycle's last one, close to the minimum. What the optimizer holds now, and
        what ``get_last_lr()`` returns, is for the next update: the first learning rate of the next cycle, which is its
        peak unless the cycle has a warmup.
        """
        arc = self._here()
        # A restart ends the cycle before; after the last cycle there is none.
        return self.last_epoch in (arc.start, arc.fall_start + arc.fall) and not self._fraction

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
        if (self.last_epoch + 1 if epoch is None else epoch) > self._warns_after:
            self._warn_of_passed_end()
        self._update_lr(epoch)
        self._step_count += 1
        if self.verbose and self._here() != before and self.cycle_index > 0:
            peaks = [self.schedule.peak_lr(self.cycle_index, base_lr) for base_lr in self.base_lrs]
            print(f"Step {self.last_epoch}: restart, cycle {self.cycle_index} of {self.T_i} steps with peak {peaks}")

    def _warn_if_optimizer_has_not_stepped(self) -> None:
        # The marks that LRScheduler leaves on an optimizer whose step it watches:
        # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/lr_scheduler.py#L154
        if hasattr(self.optimizer.step, "_wrapped_by_lr_sched") and not getattr(self.optimizer, "_opt_called", False):
            message = "You called `lr_scheduler.step()` before `optimizer.step()`: the first learning rate is skipped."
            warnings.warn(f"{message} Call `optimizer.step()` first, then `lr_scheduler.step()`.", stacklevel=3)

    def _warn_of_passed_end(self) -> None:
        # The steps to warn after are all that there are where the restarts never end, and once it was said.
        if self._warns_after == MOST_STEPS:
            raise ValueError(f"Expected steps up to {MOST_STEPS}, but got one more")
        self._warns_after = MOST_STEPS  # once
        message = "Training continues after the end of the schedule at step %d: the learning rate stays at its minimum."
        logger.warning(f"{message} To add cycles, use scheduler.schedule.extend(...).", self.schedule.end)

    # The learning rates. Other code may write into the optimizer; this scheduler writes `lr` in `_update_lr` only.

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each parameter group at the current position, from the schedule.

        A subclass may override it; what it returns is what ``step()`` writes.
        """
        arc, base_lrs = self._here(), self._base_lrs
        of_arc, of_base_lrs, floors_and_spans = self._floors_and_spans
        if of_arc is not arc or of_base_lrs != base_lrs:
            of_base_lrs = [*base_lrs]  # base_lrs can change in place
            floors_and_spans = [arc.floor_and_span(base_lr) for base_lr in of_base_lrs]
            self._floors_and_spans = arc, of_base_lrs, floors_and_spans
        of_floor, of_span = arc.fractions_at(self.last_epoch + self._fraction)
        lrs = []
        for floor, span in floors_and_spans:  # a comprehension would cost as much as five groups
            lrs.append(of_floor * floor + of_span * span)
        return lrs

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each parameter group at the position of the last ``step()``, as plain floats.

        Where that ``step()`` ended a cycle, this is the first learning rate of the next one, for the next update. The
        update that was just made was the cycle's last one, close to the minimum.
        """
        return self._last_lr.copy()

    def _update_lr(self, epoch: float | None = None) -> None:
        """Take a position, by default the next step, and write the learning rates of all groups that there are now.

        SequentialLR calls it in place of `step` when the turn of a scheduler begins.
        """
        groups = self.optimizer.param_groups
        try:
            # Groups that are equal in everything, parameters included, may change places unnoticed.
            is_known = groups == self._groups and self._base_lrs == self._in_use
        except Exception:  # what was put there cannot be compared, as arrays and tensors of several numbers
            is_known = False
        if not is_known:  # the same number of groups: by position, as in torch
            self.base_lrs = self._base_lrs if len(groups) == len(self._base_lrs) else self._base_lrs_of(groups)
        self._moves = True
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch += 1
        else:
            self.last_epoch, self._fraction = math.floor(epoch or 0), (epoch or 0) % 1
        lrs = self.get_lr()
        with_tensors = False
        for group, lr in zip(groups, lrs):
            held = group["lr"]
            if held.__class__ is float or not isinstance(held, Tensor):  # a float is recognized much faster
                group["lr"] = lr
            else:
                with_tensors = True
        if with_tensors:
            _fill_tensors(groups, lrs, self._base_lrs)
        self._last_lr, self._moves = lrs, False

    def _of_known(
        self, groups: list[dict[str, Any]], values: Sequence[float], in_order: list[dict[str, Any]] | None = None
    ) -> list[float | None]:
        """For each group its one of `values`, which are of the groups of the last step; None for one that was added.

        A group is known by its dict; or by its list of parameters, which it keeps where a state is loaded.
        """
        known: dict[int, float] = {}
        for group, value in zip(self._groups if in_order is None else in_order, values):
            known[id(group)] = known[id(group["params"])] = value
        return [known.get(id(group), known.get(id(group["params"]))) for group in groups]

    def _base_lrs_of(self, groups: list[dict[str, Any]]) -> list[float]:
        """The initial learning rates where groups were added or removed: known groups keep those that are in use."""
        in_order = None
        # The copy of the list in use has the same floats, until one is changed in place.
        if any(base_lr is not used for base_lr, used in zip(self._base_lrs, self._in_use or ())):  # changed in place
            # By position, as the groups lie now: they may have been reordered since the last step.
            here = [group for group, lr in zip(groups, self._of_known(groups, self._last_lr)) if lr is not None]
            in_order = here if len(here) == len(self._base_lrs) else None
        known = self._of_known(groups, self._base_lrs, in_order)
        of_tensors = {
            id(group["lr"]): base_lr
            for group, base_lr in reversed([*zip(groups, known)])  # of several groups, that of the first
            if base_lr is not None and isinstance(group["lr"], Tensor)
        }
        base_lrs = []
        for index, (group, base_lr) in enumerate(zip(groups, known)):
            if base_lr is None and "initial_lr" not in group:
                base_lr = of_tensors.get(id(group["lr"]))
                if base_lr is None and len(groups) < len(self._groups):
                    expected = f"param_groups[{index}] to have its initial_lr, where groups were removed"
                    raise ValueError(f"Expected {expected}, but got {len(groups)} of {len(self._groups)} groups")
            base_lrs.append(_group_lr(index, group) if base_lr is None else base_lr)
        return base_lrs

    def _is_in_charge(self) -> bool:
        """Whether the groups hold the learning rates that this scheduler wrote last, so that it may write there."""
        groups, lrs = self.optimizer.param_groups, self._last_lr
        if self.last_epoch < 0 or len(self._groups) != len(lrs):  # the latter where base_lrs wait for the next step
            return False
        written = lrs if len(groups) == len(lrs) else self._of_known(groups, lrs)
        return all(_holds(group, lr) for group, lr in zip(groups, written) if lr is not None)

    def _join_added_groups(self) -> None:
        """Let groups that were added join at the current position.

        Groups that are missing are no concern here: DeepSpeed steps its optimizer with one group at a time.
        """
        if len(self.optimizer.param_groups) > len(self._base_lrs) and self._is_in_charge():
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

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the initial learning rates and the schedule: plain numbers, strings, lists and dicts.

        A `LambdaLR` (the schedules of transformers) and torch's `CosineAnnealingWarmRestarts` load it as well, so that
        a run can change back to one. Nothing is written into the optimizer. You may call it in another thread while
        this one steps: what it returns belongs to one position.
        """
        for _ in range(1000):  # a lock would make each step a fifth slower
            last_lr, state = self._last_lr, self._state()
            if not self._moves and self._last_lr is last_lr:
                break
            time.sleep(0)  # another thread is stepping
        return state

    def _state(self) -> dict[str, Any]:
        groups = self.optimizer.param_groups
        # Values that were set wait for the next step: they must not be written when the state is loaded.
        in_charge = self._is_in_charge() and self._last_lr == self.get_lr()
        base_lrs, last_lr = self._base_lrs, self._last_lr
        if len(groups) != len(base_lrs):
            base_lrs = self._base_lrs_of(groups)
            last_lr = [self._here().lr_at(self.last_epoch + self._fraction, base_lr) for base_lr in base_lrs]
        # SequentialLR takes one step back in a scheduler that waits, and two in one within two sequences:
        # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/lr_scheduler.py#L1184
        saved = SavedState(
            last_epoch=max(-1, self.last_epoch),
            fraction=self._fraction,
            step_count=self._step_count,
            base_lrs=base_lrs,
            in_charge=in_charge,
            schedule=self.schedule,
        )
        # These are for torch's CosineAnnealingWarmRestarts.
        return saved.to_dict() | {"T_cur": self.T_cur, "T_i": self.T_i, "_last_lr": [*last_lr]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position and the initial learning rates, and write the learning rates of that position.

        If the saved scheduler was not in charge of its optimizer when it was saved, for example because you had set a
        learning rate by hand, no `lr` is written until the next ``step()``.

        The schedule stays the one that this scheduler was constructed with, as with the schedules of transformers.
        Where it changes the learning rate of steps already taken, a warning of the logger `hf_warmcos` lists the
        arguments that differ. Other warnings say so where this scheduler was given another initial learning rate than
        the saved one, which is used, and where the saved position lies after the end of this schedule.

        Args:
            state_dict (`dict`): What `state_dict()` of this class, of torch's `CosineAnnealingWarmRestarts` or of a
                `LambdaLR` (the schedules of transformers) returned.

        Raises:
            TypeError, ValueError: If it is not such a state, or one of another number of parameter groups. Nothing
                is changed then.
        """
        saved, groups = read_state(state_dict), self.optimizer.param_groups
        _check_number_of_groups(saved.base_lrs, groups)
        given = self._base_lrs if len(self._base_lrs) == len(groups) else self._base_lrs_of(groups)
        if differences := saved.differences_from(self.schedule):
            message = "The saved schedule differs from this run's before step %d: %s. This run's schedule is used."
            logger.warning(message, saved.last_epoch, "; ".join(differences))
        if not all(math.isclose(*both, rel_tol=1e-6) for both in zip(given, saved.base_lrs)):  # float32 has 7 digits
            message = (
                "This run was given the initial learning rates %s, but continues with the saved ones, %s. "
                "To use others, set scheduler.base_lrs after loading."
            )
            logger.warning(message, shown(sorted({*given})), shown(sorted({*saved.base_lrs})))
        self.base_lrs = saved.base_lrs
        self.last_epoch, self._fraction, self._step_count = saved.last_epoch, saved.fraction, saved.step_count
        if self.last_epoch > self._warns_after:
            self._warn_of_passed_end()
        self._last_lr = self.get_lr()
        if saved.in_charge and saved.last_epoch >= 0:
            self._update_lr(saved.last_epoch + saved.fraction)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule}, last_epoch={self.last_epoch})"


def _check_number_of_groups(base_lrs: list[Any], groups: list[dict[str, Any]]) -> None:
    if len(base_lrs) != len(groups):
        came = f"{len(base_lrs)}: {shown(base_lrs)}"
        raise ValueError(f"Expected base_lrs of {len(groups)} parameter groups, but got {came}")


def _holds(group: dict[str, Any], lr: float) -> bool:
    """Whether a group has this learning rate, in the precision in which it has one."""
    held = group["lr"]
    return bool(held == (torch.tensor(lr, dtype=held.dtype) if isinstance(held, Tensor) else lr))


def _fill_tensors(groups: list[dict[str, Any]], lrs: list[float], base_lrs: list[float]) -> None:
    """Write learning rates into the tensors of groups, where an optimizer that is compiled or captured reads them.

    A group that holds the tensor of another one with other learning rates gets a tensor of its own.
    """
    filled: dict[int, tuple[float, float]] = {}
    on_devices = []
    for group, lr, base_lr in zip(groups, lrs, base_lrs):
        held = group["lr"]
        if not isinstance(held, Tensor):
            continue
        if id(held) in filled:
            if filled[id(held)] == (lr, base_lr):
                continue
            held = group["lr"] = held.clone()
        filled[id(held)] = lr, base_lr
        if held.is_cpu:
            held.fill_(lr)
        else:
            on_devices.append((held, lr))
    if on_devices:
        # Two launches for all of them. The learning rates travel as arguments: nothing waits for the device.
        tensors, values = zip(*on_devices)
        torch._foreach_zero_(tensors)
        torch._foreach_add_(tensors, values)


def _group_lr(index: int, group: dict[str, Any]) -> float:
    """The initial learning rate of a parameter group: `initial_lr`, or else `lr`, both checked."""
    name, held = f"param_groups[{index}]['lr']", group.get("lr")
    lr = _initial_lr(name, held)
    if isinstance(held, Tensor) and held.dtype in (torch.bfloat16, torch.float16):
        # 1 - lr * weight_decay is 1 in this precision, for all usual values. Seen with torch 2.13.
        message = f"{name} is a tensor of {held.dtype}: torch's AdamW loses its weight decay. Use one of torch.float32."
        warnings.warn(message, UserWarning, stacklevel=4)
    return _initial_lr(f"param_groups[{index}]['initial_lr']", group["initial_lr"]) if "initial_lr" in group else lr


def _initial_lr(name: str, lr: Any) -> float:
    """A learning rate to begin with, checked: a number, or a tensor of one."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.is_floating_point() or lr.is_inference() or lr.requires_grad or lr.is_meta:
            expected = f"{name} to be one float, without a gradient, outside of inference mode, and not on meta"
            raise ValueError(f"Expected {expected}, but got {shown(lr)}")
        lr = lr.item()
    return learning_rate(name, lr, (">=", 0))


@cache
def _keep_out_of_compilation() -> None:
    # As torch does with its own schedulers: what is looked at here changes with each step, and a compiled function that
    # calls step(), or an optimizer's step that calls the hook, would be compiled anew for each. It costs nothing else
    # if a torch to come does it in another way.
    # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_dynamo/trace_rules.py#L3742
    with suppress(ImportError, AttributeError):
        from torch._dynamo import trace_rules

        for module in ("checks", "cycles", "schedule", "scheduler"):
            trace_rules.add(f"{__package__}.{module}")
