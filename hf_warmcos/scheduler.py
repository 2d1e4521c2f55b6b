"""The schedule on a torch optimizer."""

from __future__ import annotations

import math
import warnings
import weakref
from dataclasses import asdict
from functools import cache
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_warmcos._checks import real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule


class CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(LRScheduler):
    r"""Cosine annealing with warm restarts, whose peak decays at each restart, after one linear warmup.

    At step t in cycle k, which starts at :math:`s_k` and has :math:`T_k` steps (see [`CosineRestartSchedule`]):

    .. math::
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi (t - s_k) / T_k)}{2}\right)

    With ``decay=1`` and ``warmup_steps=0`` every rate equals that of
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` to the last bit. Call ``step()`` after each
    ``optimizer.step()``: a step is one optimizer update.

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

    Attributes:
        schedule ([`CosineRestartSchedule`]): The schedule as a pure function of the step.
        base_lrs (`list[float]`): The rate that each parameter group was given.

    Raises:
        TypeError, ValueError: If an argument is of the wrong type or out of its range; the message names it. The
            optimizer is then as it was.
        KeyError: If `last_epoch` is not -1 and a parameter group has no `initial_lr`, as in torch.

    Example:

    ```python
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=4, warmup_steps=2, decay=0.5)
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

    Source: SGDR, https://arxiv.org/abs/1608.03983. Name, arguments and meaning as in
    https://github.com/qu-gg/pytorch-cosine-annealing-with-decay-and-initial-warmup, without its off-by-one.
    """

    base_lrs: list[float]  # type: ignore[assignment]
    last_epoch: int

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
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Expected optimizer to be a torch Optimizer, but got a {type(optimizer).__name__}")
        if not isinstance(verbose, bool):
            raise TypeError(
                f"Expected verbose to be a bool, but got verbose={verbose!r} of type {type(verbose).__name__}"
            )
        self.schedule = CosineRestartSchedule(
            T_0=T_0,
            T_mult=T_mult,
            decay=decay,
            warmup_steps=warmup_steps,
            warmup_mode=warmup_mode,
            num_cycles=num_cycles,
            warmup_lr_rate=warmup_lr_rate,
        )
        self.eta_min = real_number("eta_min", eta_min, (">=", 0))
        self.eta_min_rate = eta_min_rate
        if eta_min_rate is not None:
            self.eta_min_rate = real_number("eta_min_rate", eta_min_rate, (">=", 0), ("<=", 1))
            if eta_min != 0:
                raise ValueError(f"Expected one of eta_min and eta_min_rate, but got {eta_min=} and {eta_min_rate=}")
        super().__init__(optimizer, whole_number("last_epoch", last_epoch, (">=", -1)))
        self.verbose = verbose  # after the base class, whose older releases have a deprecated attribute of this name
        self._place_added_groups()

    def _initial_step(self) -> None:
        # Called by the base class, whose base_lrs are tensors where the rates are: the last time that they are read.
        self.base_lrs = [float(base_lr) for base_lr in self.base_lrs]
        self._move_to(self.last_epoch + 1, 0.0, step_count=1)

    def _place_added_groups(self) -> None:
        """Make parameter groups that are added from now on start at the schedule's current position."""
        scheduler_ref, add_param_group = weakref.ref(self), self.optimizer.add_param_group

        def add_param_group_at_current_position(param_group: dict[str, Any]) -> None:
            add_param_group(param_group)
            scheduler = scheduler_ref()
            if scheduler is not None:
                scheduler._move_to(scheduler.last_epoch, scheduler._fraction, scheduler._step_count)

        self.optimizer.add_param_group = add_param_group_at_current_position  # type: ignore[method-assign]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._place_added_groups()  # a copy of an optimizer has only its groups and its state

    @property
    def _step_count(self) -> int:
        """Calls of ``step()``, the constructor's included, as torch counts them and Accelerate raises them."""
        return self.last_epoch + self._steps_beyond_position

    @_step_count.setter
    def _step_count(self, value: int) -> None:
        # Kept relative to the position, so that a step to the next position counts by itself.
        self._steps_beyond_position = value - self.last_epoch

    @property
    def _position(self) -> float:
        return self.last_epoch + self._fraction if self._fraction else self.last_epoch

    @property
    def cycle(self) -> int:
        """The index of the current cycle, counted from 0."""
        return self._stretch.cycle.index

    @property
    def T_i(self) -> int:
        """The length of the current cycle, in steps."""
        return self._stretch.cycle.length

    @property
    def T_cur(self) -> float:
        """Steps since the current cycle started: negative in a prefix warmup, ``T_i`` and more after the last cycle."""
        return self.last_epoch - self._stretch.cycle.start + self._fraction

    @property
    def at_cycle_end(self) -> bool:
        """True after the ``step()`` that follows a cycle's last optimizer step: the moment to evaluate and to save."""
        cycle = self._stretch.cycle
        return not self._fraction and (
            self.last_epoch == cycle.start > self.schedule.origin or self.last_epoch == cycle.end
        )

    def step(self, epoch: float | None = None) -> None:
        """Move to the next step, or to step ``epoch``, and set the rate of each parameter group.

        Args:
            epoch (`float`, *optional*): The step to move to, >= 0, whole or fractional, forwards or backwards.

        Raises:
            TypeError, ValueError: If `epoch` is not a number >= 0.
        """
        if self._has_tensor_rates:
            return _step_outside_of_compilation()(self, epoch)
        step = self.last_epoch + 1
        groups, first, past, warmup_past, length, bounds = self._constants
        if epoch is not None or not first <= step < past or groups is not self.optimizer.param_groups:
            return self._step_anywhere(epoch)
        self.last_epoch = step
        if step >= warmup_past:
            share = (1 + cos(pi * (step - first) / length)) / 2
        elif self._stretch.shape == "rise":
            share = self.schedule._rise(step - first)
        else:
            warm = self.schedule._rise(step)
            share = (1 + cos(pi * (step - first) / length)) / 2
            for group, floor, span in bounds:
                group["lr"] = warm * (floor + span * share)
            return None
        for group, floor, span in bounds:
            group["lr"] = floor + span * share
        return None

    def _step_anywhere(self, epoch: float | None) -> None:
        """What ``step()`` does where the constants of the last step do not hold: at a restart, in a jump."""
        whole, fraction = self.last_epoch + 1, self._fraction
        if epoch is not None:
            epoch = real_number("epoch", epoch, (">=", 0))
            whole = math.floor(epoch)
            fraction = epoch - whole
        elif self._step_count == 1:
            self._warn_if_optimizer_has_not_stepped()
        cycle_before = self.cycle
        self._move_to(whole, fraction, self._step_count + 1)
        cycle = self._stretch.cycle
        if self.verbose and cycle.index not in (0, cycle_before):
            peaks = [
                self.schedule.peak_lr(cycle.index, base_lr, eta_min)
                for base_lr, eta_min in zip(self.base_lrs, self.eta_mins)
            ]
            print(f"Step {self.last_epoch}: restart, cycle {cycle.index} of {cycle.length} steps with peak {peaks}")

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

    def _move_to(self, whole: int, fraction: float, step_count: int) -> None:
        """Take the position ``whole + fraction``, with every parameter group that the optimizer has now."""
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            group.setdefault("initial_lr", float(group["lr"]))  # not the tensor itself, which is filled with each rate
            self.base_lrs.append(float(group["initial_lr"]))
        self.last_epoch, self._fraction = whole, fraction
        self._step_count = step_count
        schedule = self.schedule
        self._stretch = stretch = schedule._stretch_at(self._position)
        bounds = [
            (group, *schedule._floor_and_span(stretch, base_lr, eta_min))
            for group, base_lr, eta_min in zip(groups, self.base_lrs, self.eta_mins)
        ]
        self._has_tensor_rates = any(isinstance(group["lr"], Tensor) for group in groups)
        warmup_past = stretch.past if stretch.shape == "rise" else schedule._overlap
        # The first step and a fractional position take the long way: the constants then hold for no step at all.
        past = stretch.first if fraction or step_count == 1 else stretch.past
        self._constants = (groups, stretch.first, past, warmup_past, stretch.past - stretch.first, bounds)
        self._set_rates()

    @property
    def eta_mins(self) -> list[float]:
        """The rate of each parameter group at the end of each cycle."""
        if self.eta_min_rate is None:
            return [self.eta_min] * len(self.base_lrs)
        return [base_lr * self.eta_min_rate for base_lr in self.base_lrs]

    def _set_rates(self) -> None:
        for (group, _, _), rate in zip(self._constants[-1], self.get_lr()):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each parameter group at the current position, from the schedule."""
        schedule, stretch = self.schedule, self._stretch
        share = schedule._share(stretch, self.last_epoch - stretch.first + self._fraction, cos)
        warm = schedule._rise(self._position) if self.last_epoch < schedule._overlap else 1.0
        return [warm * (floor + span * share) for _, floor, span in self._constants[-1]]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each parameter group that the last ``step()`` set, as plain floats, in rates per step."""
        return self.get_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the base rates and the schedule, as plain numbers, strings, lists and dicts."""
        return {
            "last_epoch": self.last_epoch,
            "fraction": self._fraction,
            "base_lrs": list(self.base_lrs),
            "_step_count": self._step_count,
            "schedule": asdict(self.schedule) | {"eta_min": self.eta_min, "eta_min_rate": self.eta_min_rate},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position and the base rates, and leave the optimizer at the rate of that position.

        The schedule stays the one that this scheduler was constructed with, as with the schedules of transformers;
        a warning names each difference from the saved one.

        Args:
            state_dict (`dict`): What `state_dict()` of this class, of torch's `CosineAnnealingWarmRestarts` or of a
                `LambdaLR` (the schedules of transformers) returned.

        Raises:
            TypeError, ValueError: If it is not such a state, or one of another number of parameter groups. Nothing
                is changed then.
        """
        missing = [key for key in ("last_epoch", "base_lrs") if key not in state_dict]
        if missing:
            raise ValueError(f"Expected a scheduler state with last_epoch and base_lrs, but got keys {[*state_dict]}")
        last_epoch = whole_number("last_epoch", state_dict["last_epoch"], (">=", 0))
        # torch's CosineAnnealingWarmRestarts keeps the fraction of a fractional step in T_cur alone.
        fraction = real_number(
            "fraction", state_dict.get("fraction", state_dict.get("T_cur", 0) % 1), (">=", 0), ("<", 1)
        )
        base_lrs = [
            float(real_number("base_lrs", base_lr.item() if isinstance(base_lr, Tensor) else base_lr))
            for base_lr in state_dict["base_lrs"]
        ]
        groups = self.optimizer.param_groups
        if len(base_lrs) != len(groups):
            raise ValueError(
                f"Expected base_lrs of {len(groups)} parameter groups, but got {len(base_lrs)}: {base_lrs}"
            )
        differences = self._differences_from(state_dict)
        if differences:
            warnings.warn(
                f"The saved schedule differs from this one, which holds: {'; '.join(differences)}",
                UserWarning,
                stacklevel=2,
            )
        for group, base_lr in zip(groups, base_lrs):
            group["initial_lr"] = base_lr
        self.base_lrs = base_lrs
        self._move_to(last_epoch, fraction, state_dict.get("_step_count", last_epoch + 1))

    def _differences_from(self, state_dict: dict[str, Any]) -> list[str]:
        here = self.state_dict()["schedule"]
        if "schedule" in state_dict:
            saved = state_dict["schedule"]
        elif "T_0" in state_dict:  # torch's CosineAnnealingWarmRestarts: no decay, no warmup, no end
            saved = CosineRestartSchedule(state_dict["T_0"], state_dict["T_mult"])
            saved = asdict(saved) | {"eta_min": state_dict["eta_min"], "eta_min_rate": None}
        else:
            return []
        names = [
            name for name in here if here["warmup_steps"] or saved.get("warmup_steps") or name not in _WARMUP_DETAILS
        ]
        return [f"{name} was {saved.get(name)}, is {here[name]}" for name in names if saved.get(name) != here[name]]


_WARMUP_DETAILS = ("warmup_mode", "warmup_lr_rate")


@cache
def _step_outside_of_compilation() -> Any:
    # A compiled function that calls step() would otherwise be compiled anew for each position.
    return torch.compiler.disable(CosineAnnealingWarmRestartsWithDecayAndLinearWarmup._step_anywhere)
