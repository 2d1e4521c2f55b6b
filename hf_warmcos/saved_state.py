"""What a scheduler's `state_dict` says: written, read and checked, and compared with another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from torch import Tensor

from hf_warmcos.checks import MOST_STEPS, learning_rate, real_number, shown, whole_number
from hf_warmcos.cycles import ListedCycle
from hf_warmcos.schedule import CosineRestartSchedule

_MOST_ARCS_TO_COMPARE = 5_000  # more would take seconds


@dataclass(frozen=True)
class SavedState:
    """A scheduler's state.

    Attributes:
        last_epoch: The position; negative in a scheduler that waited for its turn.
        fraction: What a fractional position has beyond `last_epoch`.
        step_count: Calls of `step()`, including the constructor's.
        base_lrs: The initial learning rate of each parameter group.
        in_charge: Whether the optimizer had the scheduler's own learning rates. Only this project's states say so; for
            others it is assumed.
        schedule: The schedule, or None where the state was saved by a scheduler of another kind.
    """

    last_epoch: int
    fraction: float
    step_count: int
    base_lrs: list[float]
    in_charge: bool = True
    schedule: CosineRestartSchedule | None = None

    def to_dict(self) -> dict[str, Any]:
        """The state as plain numbers, strings, lists and dicts. A `LambdaLR` loads it, too."""
        return {
            "last_epoch": self.last_epoch,
            "fraction": self.fraction,
            "base_lrs": [*self.base_lrs],
            "_step_count": self.step_count,
            "in_charge": self.in_charge,
            "schedule": plain(self.schedule),
            # A LambdaLR that loads this state saves these entries again: where saved_at differs from last_epoch by
            # then, the other entries of this project are out of date. It also needs its own lr_lambdas:
            # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/lr_scheduler.py#L430
            "saved_at": self.last_epoch,
            "lr_lambdas": [None] * len(self.base_lrs),
        }

    def differences_from(self, schedule: CosineRestartSchedule) -> list[str]:
        """What differs in a schedule from the saved one, where it changes the learning rate of a step already taken.

        The arcs of both schedules are compared one by one, up to the saved position or to the first that differs.
        """
        if self.schedule is None or self.schedule == schedule:
            return []
        step: float = 0
        for _ in range(_MOST_ARCS_TO_COMPARE):
            if step >= self.last_epoch:
                break
            arcs = self.schedule.arc_at(step), schedule.arc_at(step)
            stop = min(self.last_epoch, *(arc.stop for arc in arcs))
            telling = {step, (step + stop) // 2, stop - 1}.union(*(arc.corners for arc in arcs))
            telling = {at + side for at in telling for side in (-1, 0, 1) if step <= at + side < stop}
            for at, base_lr in product(telling, {*self.base_lrs}):
                if not math.isclose(*(arc.lr_at(at, base_lr) for arc in arcs), rel_tol=1e-9):
                    return self._arguments_that_differ(schedule)
            step = stop
        return []

    def _arguments_that_differ(self, schedule: CosineRestartSchedule) -> list[str]:
        assert self.schedule is not None
        pairs = [(name, was, getattr(schedule, name)) for name, was in vars_of(self.schedule).items()]
        if None not in (self.schedule.end, schedule.end):  # nobody may have set the T_0 that was fitted into it
            pairs.insert(0, ("the end of the schedule", self.schedule.end, schedule.end))
        return [f"{name} was {shown(was)}, is {shown(value)}" for name, was, value in pairs if was != value]


def vars_of(schedule: CosineRestartSchedule) -> dict[str, Any]:
    """The arguments of a schedule."""
    return {field.name: getattr(schedule, field.name) for field in fields(schedule)}


def plain(schedule: CosineRestartSchedule | None) -> dict[str, Any]:
    """The arguments of a schedule as plain numbers, strings, lists and dicts.

    ```python
    >>> plain(CosineRestartSchedule(cycles=[10, {"steps": 20, "warmup_steps": 5}]))["cycles"]
    [[10, 1], {'steps': 20, 'peak': 1, 'warmup_steps': 5, 'stable_ratio': 0}]

    ```
    """
    assert schedule is not None
    arguments = vars_of(schedule)
    if schedule.cycles is not None:
        arguments["cycles"] = [
            cycle._asdict() if isinstance(cycle, ListedCycle) else [*cycle]  # type: ignore[misc]
            for cycle in schedule.cycles
        ]
    return arguments


def read_state(state_dict: Any) -> SavedState:
    """Read the state of one of this project's schedulers, or of another that counts the same steps: torch's
    `CosineAnnealingWarmRestarts`, or a `LambdaLR` (the schedules of transformers).

    Args:
        state_dict (`dict`): The state.

    Returns:
        [`SavedState`]: What it says, checked.

    Raises:
        TypeError, ValueError: If it is not such a state; the message names the entry.

    Example:

    ```python
    >>> read_state({"last_epoch": 7, "base_lrs": [0.1]}).step_count
    8

    ```
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected a scheduler state to be a dict, but got a {type(state_dict).__name__}")
    if not {"last_epoch", "base_lrs"} <= {*state_dict}:
        raise ValueError(
            f"Expected a scheduler state with last_epoch and base_lrs, but got keys {shown([*state_dict])}"
        )
    last_epoch = whole_number("last_epoch", state_dict["last_epoch"], (">=", -1), ("<=", MOST_STEPS))
    base_lrs = state_dict["base_lrs"]
    if isinstance(base_lrs, str) or not isinstance(base_lrs, Sequence):
        raise TypeError(f"Expected base_lrs to be a list of learning rates, but got base_lrs={shown(base_lrs)}")
    if whole_number("saved_at", state_dict.get("saved_at", last_epoch)) != last_epoch:
        state_dict = {
            key: state_dict[key] for key in state_dict if key not in ("fraction", "T_cur", "in_charge", "schedule")
        }
    base_lrs = [lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 and not lr.is_meta else lr for lr in base_lrs]
    in_charge = state_dict.get("in_charge", True)
    if not isinstance(in_charge, bool):
        raise TypeError(f"Expected in_charge to be a bool, but got in_charge={shown(in_charge)}")
    # torch's CosineAnnealingWarmRestarts keeps the fraction of a fractional step in T_cur alone:
    # https://github.com/pytorch/pytorch/blob/v2.13.0/torch/optim/lr_scheduler.py#L2252
    fraction = state_dict.get("fraction", real_number("T_cur", state_dict.get("T_cur", 0)) % 1)
    return SavedState(
        last_epoch=last_epoch,
        fraction=real_number("fraction", fraction, (">=", 0), ("<", 1)),
        step_count=whole_number("_step_count", state_dict.get("_step_count", last_epoch + 1), (">=", 0)),
        base_lrs=[learning_rate("base_lrs", base_lr, (">=", 0)) for base_lr in base_lrs],
        in_charge=in_charge,
        schedule=_schedule_of(state_dict),
    )


def _schedule_of(state_dict: Mapping[str, Any]) -> CosineRestartSchedule | None:
    if "schedule" in state_dict:
        arguments = state_dict["schedule"]
        if not isinstance(arguments, Mapping):
            raise TypeError(f"Expected schedule to be a dict, but got schedule={shown(arguments)}")
    elif "T_0" in state_dict:  # torch's CosineAnnealingWarmRestarts: no decay, no warmup, no end
        arguments = {name: state_dict.get(name) for name in ("T_0", "T_mult", "eta_min")}
    else:
        return None
    try:
        return CosineRestartSchedule(**arguments)
    except (TypeError, ValueError) as error:
        came = f"{shown(dict(arguments))}: {error}"
        raise type(error)(f"Expected the schedule of a scheduler state, but got {came}") from error
