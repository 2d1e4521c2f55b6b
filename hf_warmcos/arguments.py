"""The factory's arguments become a schedule: without an optimizer, for whoever takes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule


def schedule_from_arguments(
    num_warmup_steps: int,
    num_training_steps: int | None = None,
    num_cycles: int | None = None,
    decay: float = 1.0,
    T_0: float | None = None,
    T_mult: float = 1,
    warmup_mode: str = "prefix",
    warmup_lr_rate: float = 0.0,
    stable_ratio: float = 0.0,
    cycles: Sequence[int | Sequence[float]] | None = None,
) -> CosineRestartSchedule:
    """Return the schedule that the factory's arguments describe.

    One of three says how long cycles are: `T_0`, `cycles`, or `num_training_steps` with `num_cycles` fitted into it.

    Args:
        num_warmup_steps, num_training_steps, num_cycles, decay, T_0, T_mult, warmup_mode, warmup_lr_rate, stable_ratio,
            cycles: As in [`get_cosine_restarts_with_decay_and_warmup_schedule`].

    Returns:
        [`CosineRestartSchedule`]: The schedule.

    Raises:
        TypeError, ValueError: As in the factory.

    Example:

    ```python
    >>> schedule_from_arguments(10, 110, num_cycles=4).restarts(110)
    [35, 60, 85]
    >>> schedule_from_arguments(10, cycles=[50, [100, 0.5]]).end
    160

    ```
    """
    num_warmup_steps = whole_number("num_warmup_steps", num_warmup_steps, (">=", 0), ("<=", MOST_STEPS))
    if num_training_steps is not None:
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">=", 1), ("<=", MOST_STEPS))
        if num_warmup_steps > num_training_steps:
            raise ValueError(f"Expected num_warmup_steps <= {num_training_steps=}, but got {num_warmup_steps=}")
    shape: dict[str, Any] = {
        "T_mult": T_mult,
        "decay": decay,
        "warmup_steps": num_warmup_steps,
        "warmup_mode": warmup_mode,
        "warmup_lr_rate": warmup_lr_rate,
        "stable_ratio": stable_ratio,
    }
    if T_0 is not None or cycles is not None:
        return CosineRestartSchedule(T_0=T_0, num_cycles=num_cycles, cycles=cycles, **shape)
    if num_training_steps is None:
        raise ValueError(
            "Expected one of T_0, cycles and num_training_steps, but got T_0=None, cycles=None and "
            "num_training_steps=None"
        )
    return CosineRestartSchedule.fit(num_training_steps, 1 if num_cycles is None else num_cycles, **shape)


def eta_min_from_arguments(min_lr: float | None = None, min_lr_rate: float | None = None) -> dict[str, float | None]:
    """Return the minimum that `min_lr` or `min_lr_rate` says, as a scheduler's `eta_min` and `eta_min_rate`.

    Raises:
        TypeError, ValueError: If both are given, or one is out of its range.

    ```python
    >>> eta_min_from_arguments(min_lr_rate=0.1)
    {'eta_min': 0.0, 'eta_min_rate': 0.1}

    ```
    """
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(f"Expected only one of min_lr and min_lr_rate, but got {min_lr=} and {min_lr_rate=}")
    if min_lr_rate is not None:
        return {"eta_min": 0.0, "eta_min_rate": real_number("min_lr_rate", min_lr_rate, (">=", 0), ("<=", 1))}
    return {"eta_min": 0.0 if min_lr is None else real_number("min_lr", min_lr, (">=", 0)), "eta_min_rate": None}


# The factory's arguments, but for the optimizer and the position. The first two are the training script's to say.
ARGUMENTS = (
    *inspect.signature(schedule_from_arguments).parameters,
    *inspect.signature(eta_min_from_arguments).parameters,
)


def check_arguments(**arguments: Any) -> None:
    """Check the factory's arguments before there are an optimizer, a warmup and a number of training steps.

    Args:
        **arguments: Arguments of [`get_cosine_restarts_with_decay_and_warmup_schedule`] other than `optimizer`,
            `num_warmup_steps`, `num_training_steps` and `last_epoch`.

    Raises:
        TypeError: If a name is not among them, or a value is of the wrong type.
        ValueError: If a value is out of its range. That the cycles fit into the training is not known here.

    Example:

    ```python
    >>> check_arguments(num_cycles=4, decay=0.75)
    >>> check_arguments(decay=2)
    Traceback (most recent call last):
    ValueError: Expected decay <= 1, but got decay=2

    ```
    """
    known = ARGUMENTS[2:]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise TypeError(
            f"Expected arguments of the schedule, which are {', '.join(known)}, but got {', '.join(map(repr, unknown))}"
        )
    minimum = {name: arguments.pop(name) for name in ("min_lr", "min_lr_rate") if name in arguments}
    eta_min_from_arguments(**minimum)
    if arguments.get("T_0") is None and arguments.get("cycles") is None:
        # Cycles that will be fitted into a training of unknown length: one that is long enough for any.
        arguments |= {"T_0": 2**60, "num_cycles": 1 if arguments.get("num_cycles") is None else arguments["num_cycles"]}
    schedule_from_arguments(0, **arguments)


def misfit(
    schedule: CosineRestartSchedule,
    num_training_steps: int,
    base_lrs: Iterable[float] = (1.0,),
    eta_mins: Iterable[float] = (0.0,),
) -> str | None:
    """Say how a schedule does not fit the training, or None: training ends inside a cycle, or after the last one.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_training_steps (`int`): The steps of the training.
        base_lrs, eta_mins (iterables of `float`): The rate and the minimum of each parameter group.

    Example:

    ```python
    >>> misfit(CosineRestartSchedule(T_0=300), 900)
    >>> misfit(CosineRestartSchedule(T_0=250, num_cycles=1), 1100).split(". ")[1]
    'num_cycles=4 in place of T_0 would fill the training with whole cycles.'

    ```
    """
    if num_training_steps <= schedule.origin:
        return None
    cycle = schedule.cycle_at(num_training_steps)
    if num_training_steps in (cycle.start, cycle.end):
        return None
    if num_training_steps > cycle.end:
        how = (
            f"The learning rate stays at its minimum from step {cycle.end} on, for the last "
            f"{num_training_steps - cycle.end} of {num_training_steps=}."
        )
    else:
        rates = (schedule.lr_at(num_training_steps, *bounds) for bounds in zip(base_lrs, eta_mins))
        how = (
            f"Training ends inside a cycle: {num_training_steps=} is step {num_training_steps - cycle.start} of the "
            f"{cycle.length} steps of cycle {cycle.index}, at a learning rate of "
            f"{', '.join(f'{rate:.6g}' for rate in rates)}."
        )
    num_cycles = _num_cycles_that_fill(num_training_steps, schedule)
    if num_cycles is None:
        return how
    return f"{how} num_cycles={num_cycles} in place of T_0 would fill the training with whole cycles."


def _num_cycles_that_fill(num_training_steps: int, schedule: CosineRestartSchedule) -> int | None:
    """The number of whole cycles whose fitted T_0 is nearest to the schedule's, if there are any."""
    if schedule.T_0 is None or schedule.T_mult < 1:
        return None
    index = replace(schedule, num_cycles=None).cycle_at(num_training_steps).index
    shape = {name: getattr(schedule, name) for name in ("T_mult", "warmup_steps", "warmup_mode", "stable_ratio")}
    distances = {}
    for num_cycles in (index, index + 1):
        try:
            fitted = CosineRestartSchedule.fit(num_training_steps, num_cycles, **shape)
        except ValueError:
            continue
        assert fitted.T_0 is not None
        distances[num_cycles] = abs(fitted.T_0 - schedule.T_0)
    return min(distances, key=distances.__getitem__, default=None)
