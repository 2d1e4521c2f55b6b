"""The factory's arguments become a schedule, without an optimizer: for all modules that take them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from hf_warmcos.checks import MOST_STEPS, minimum, whole_number
from hf_warmcos.cycles import GeometricCycles
from hf_warmcos.names import SET_BY_THE_TRAINING, meaning_of
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

    The lengths of the cycles come from `T_0`, from `cycles`, or from `num_training_steps`, into which `num_cycles`
    cycles are fitted.

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
        came = "T_0=None, cycles=None and num_training_steps=None"
        raise ValueError(f"Expected one of T_0, cycles and num_training_steps, but got {came}")
    if num_cycles is None and (decay != 1 or T_mult != 1):
        raise ValueError(f"Expected num_cycles with decay or T_mult, but got num_cycles=None, {decay=} and {T_mult=}")
    return CosineRestartSchedule.fit(num_training_steps, 1 if num_cycles is None else num_cycles, **shape)


def eta_min_from_arguments(min_lr: float | None = None, min_lr_rate: float | None = None) -> dict[str, float | None]:
    """Return `min_lr` or `min_lr_rate`, whichever is given, as a scheduler's `eta_min` and `eta_min_rate`.

    Raises:
        TypeError, ValueError: If both are given, or one is out of its range.

    ```python
    >>> eta_min_from_arguments(min_lr_rate=0.1)
    {'eta_min': 0.0, 'eta_min_rate': 0.1}

    ```
    """
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(f"Expected only one of min_lr and min_lr_rate, but got {min_lr=} and {min_lr_rate=}")
    checked = minimum(0.0 if min_lr is None else min_lr, min_lr_rate, "min_lr", "min_lr_rate")
    return dict(zip(("eta_min", "eta_min_rate"), checked))


# The factory's arguments, except the optimizer and the position. A training script itself passes the first two.
ARGUMENTS = (
    *inspect.signature(schedule_from_arguments).parameters,
    *inspect.signature(eta_min_from_arguments).parameters,
)


def with_hints(unknown: Iterable[str], known: Sequence[str]) -> str:
    """The names of unknown arguments, each with what it is here: by the table of names, or by its spelling.

    ```python
    >>> with_hints(["gamma", "num_cycle", "power"], ARGUMENTS)
    "'gamma' (did you mean 'decay'?), 'num_cycle' (did you mean 'num_cycles'?), 'power'"
    >>> with_hints(["warmup_lr_init"], ARGUMENTS)
    "'warmup_lr_init' (here: warmup_lr_rate, as a fraction of the initial learning rate)"

    ```
    """
    return ", ".join(repr(name) + _hint(name, known) for name in unknown)


def _hint(name: str, known: Sequence[str]) -> str:
    meant = (meaning_of(name) or "").replace("`", "") or next((of for of in known if _is_misspelled(name, of)), None)
    if meant is None:
        return ""
    argument = meant.partition(",")[0]
    if argument not in known and argument in SET_BY_THE_TRAINING:
        return f" ({SET_BY_THE_TRAINING[argument]})"
    return f" (did you mean {meant!r}?)" if meant in known else f" (here: {meant})"


def _is_misspelled(name: str, known: str) -> bool:
    """Whether each word of a name is nearly one of the known name: `num_cycle` is, `warmup_ratio` is another quantity.

    ```python
    >>> _is_misspelled("num_cycle", "num_cycles"), _is_misspelled("warmup_ratio", "warmup_lr_rate")
    (True, False)

    ```
    """
    if name.replace("_", "").lower() == known.replace("_", "").lower():
        return True
    words, known_words = name.lower().split("_"), known.lower().split("_")
    return len(words) == len(known_words) and all(
        difflib.SequenceMatcher(None, *pair).ratio() >= 0.65 for pair in zip(words, known_words)
    )


def check_arguments(**arguments: Any) -> None:
    """Check the factory's arguments before there are an optimizer, a warmup and a number of training steps.

    Args:
        **arguments: Arguments of [`get_cosine_restarts_with_decay_and_warmup_schedule`] other than `optimizer`,
            `num_warmup_steps`, `num_training_steps` and `last_epoch`.

    Raises:
        TypeError: If a name is not among them, or a value is of the wrong type.
        ValueError: If a value is out of its range. Whether the cycles fit into the training is not checked here.

    Example:

    ```python
    >>> check_arguments(num_cycles=3, T_mult=2)
    >>> check_arguments(decay=2)
    Traceback (most recent call last):
    ValueError: Expected decay <= 1, but got decay=2

    ```
    """
    known = ARGUMENTS[2:]
    if unknown := [name for name in arguments if name not in known]:
        came = with_hints(unknown, known)
        raise TypeError(f"Expected arguments of the schedule, which are {', '.join(known)}, but got {came}")
    of_minimum = {name: arguments.pop(name) for name in ("min_lr", "min_lr_rate") if name in arguments}
    eta_min_from_arguments(**of_minimum)
    if arguments.get("T_0") is None and arguments.get("cycles") is None:
        # Cycles that will be fitted into a training of unknown length: checked in one that is long enough for any.
        arguments |= {"T_0": 2**60, "num_cycles": 1 if arguments.get("num_cycles") is None else arguments["num_cycles"]}
    schedule_from_arguments(0, **arguments)


def misfit(
    schedule: CosineRestartSchedule,
    num_training_steps: int,
    base_lrs: Iterable[float] = (1.0,),
    eta_mins: Iterable[float] = (0.0,),
) -> str | None:
    """Return a message where training ends inside a cycle or after the last one, and None where it ends with a cycle.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_training_steps (`int`): The steps of the training.
        base_lrs, eta_mins (iterables of `float`): The initial learning rate and the minimum of each parameter group.

    Example:

    ```python
    >>> misfit(CosineRestartSchedule(T_0=300), 900)
    >>> misfit(CosineRestartSchedule(T_0=250, num_cycles=1), 1100).split(". ")[1]
    'Use num_cycles=4 in place of T_0 to end training with a whole cycle.'

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
    return f"{how} Use num_cycles={num_cycles} in place of T_0 to end training with a whole cycle."


def _num_cycles_that_fill(num_training_steps: int, schedule: CosineRestartSchedule) -> int | None:
    """The number of whole cycles whose fitted T_0 is nearest to the schedule's, if there are any."""
    if schedule.T_0 is None or schedule.T_mult < 1:
        return None
    index = GeometricCycles(schedule.T_0, schedule.T_mult).index_at(num_training_steps - schedule.origin)
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
