"""What a scheduler's `state_dict` says, read and checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule


@dataclass(frozen=True)
class SavedState:
    """A scheduler's state.

    Attributes:
        last_epoch: The position; negative in a scheduler that waited for its turn.
        fraction: What a fractional position has beyond `last_epoch`.
        step_count: Calls of `step()`, the constructor's included.
        base_lrs: The rate that each parameter group was given.
        in_charge: Whether the optimizer had the scheduler's own rates. Only this project's states say so; of others it
            is supposed.
        schedule: The schedule, or None where the state was saved by a scheduler of another kind.
        eta_min, eta_min_rate: The rate at the end of each cycle, or its share of each base rate.
    """

    last_epoch: int
    fraction: float
    step_count: int
    base_lrs: list[float]
    in_charge: bool = True
    schedule: CosineRestartSchedule | None = None
    eta_min: float = 0.0
    eta_min_rate: float | None = None


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
        raise ValueError(f"Expected a scheduler state with last_epoch and base_lrs, but got keys {[*state_dict]}")
    last_epoch = whole_number("last_epoch", state_dict["last_epoch"], (">=", -1), ("<=", MOST_STEPS))
    base_lrs = state_dict["base_lrs"]
    if isinstance(base_lrs, str) or not isinstance(base_lrs, Sequence):
        raise TypeError(f"Expected base_lrs to be a list of rates, but got base_lrs={base_lrs!r}")
    # A LambdaLR that goes on from a state of this project carries along what it does not know.
    if state_dict.get("saved_at", last_epoch) != last_epoch:
        state_dict = {name: value for name, value in state_dict.items() if name not in _OF_THIS_PROJECT}
    in_charge = state_dict.get("in_charge", True)
    if not isinstance(in_charge, bool):
        raise TypeError(f"Expected in_charge to be a bool, but got in_charge={in_charge!r}")
    return SavedState(
        last_epoch,
        # torch's CosineAnnealingWarmRestarts keeps the fraction of a fractional step in T_cur alone.
        real_number("fraction", state_dict.get("fraction", _fraction_of(state_dict)), (">=", 0), ("<", 1)),
        whole_number("_step_count", state_dict.get("_step_count", last_epoch + 1), (">=", 0)),
        [
            float(real_number("base_lrs", base_lr.item() if isinstance(base_lr, Tensor) else base_lr, (">=", 0)))
            for base_lr in base_lrs
        ],
        in_charge,
        **_schedule_of(state_dict),
    )


_OF_THIS_PROJECT = ("fraction", "in_charge", "schedule")


def _fraction_of(state_dict: Mapping[str, Any]) -> float:
    return real_number("T_cur", state_dict.get("T_cur", 0)) % 1


def _schedule_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    if "schedule" in state_dict:
        arguments = state_dict["schedule"]
        if not isinstance(arguments, Mapping):
            raise TypeError(f"Expected schedule to be a dict, but got schedule={arguments!r}")
    elif "T_0" in state_dict:  # torch's CosineAnnealingWarmRestarts: no decay, no warmup, no end
        arguments = {name: state_dict.get(name) for name in ("T_0", "T_mult", "eta_min")}
    else:
        return {}
    known = [field.name for field in fields(CosineRestartSchedule)]
    unknown = {*arguments} - {*known, "eta_min", "eta_min_rate"}
    if unknown:
        raise ValueError(f"Expected schedule to have arguments among {', '.join(known)}, but got {sorted(unknown)}")
    try:
        schedule = CosineRestartSchedule(**{name: arguments[name] for name in known if name in arguments})
        eta_min = real_number("eta_min", arguments.get("eta_min", 0.0), (">=", 0))
        eta_min_rate = arguments.get("eta_min_rate")
        if eta_min_rate is not None:
            eta_min_rate = real_number("eta_min_rate", eta_min_rate, (">=", 0), ("<=", 1))
    except (TypeError, ValueError) as error:
        raise type(error)(f"Expected the schedule of a scheduler state, but got {dict(arguments)}: {error}") from error
    return {"schedule": schedule, "eta_min": eta_min, "eta_min_rate": eta_min_rate}
