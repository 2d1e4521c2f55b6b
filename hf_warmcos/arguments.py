"""The factory's arguments become a schedule, without an optimizer: for all modules that take them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from hf_warmcos.checks import MOST_STEPS, argument, minimum, real_number, shown, whole_number
from hf_warmcos.cycles import GeometricCycles
from hf_warmcos.names import SET_BY_THE_TRAINING, meaning_of
from hf_warmcos.schedule import CosineRestartSchedule, Cycles


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
    cycles: Cycles | None = None,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    extend_from: int | Sequence[int] | None = None,
    extend_peak: float | Sequence[float] = 1.0,
) -> CosineRestartSchedule:
    """Return the schedule that the factory's arguments describe.

    The lengths of the cycles come from `T_0`, from `cycles`, or from `num_training_steps`, into which `num_cycles`
    cycles are fitted.

    Args:
        num_warmup_steps, num_training_steps, num_cycles, decay, T_0, T_mult, warmup_mode, warmup_lr_rate, stable_ratio,
            cycles, min_lr, min_lr_rate, extend_from, extend_peak: As in
            [`get_cosine_restarts_with_decay_and_warmup_schedule`].

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
    >>> schedule_from_arguments(10, 200, num_cycles=4, extend_from=110, extend_peak=0.5).cycles[-2:]
    ((25, 1), (90, 0.5))

    ```
    """
    num_warmup_steps = argument("warmup_steps", num_warmup_steps, "num_warmup_steps")
    if num_training_steps is not None:
        num_training_steps = argument("steps", num_training_steps, "num_training_steps")
    ends, peaks = _extensions(extend_from, extend_peak)
    if ends and (num_training_steps is None or num_training_steps <= ends[-1]):
        raise ValueError(f"Expected num_training_steps > extend_from={ends[-1]}, but got {num_training_steps=}")
    first_end, *later_ends = *ends, num_training_steps
    if first_end is not None and num_warmup_steps > first_end:
        limit = f"{num_training_steps=}" if not ends else f"extend_from={first_end}"
        raise ValueError(f"Expected num_warmup_steps <= {limit}, but got {num_warmup_steps=}")
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(f"Expected only one of min_lr and min_lr_rate, but got {min_lr=} and {min_lr_rate=}")
    eta_min, eta_min_rate = minimum(0.0 if min_lr is None else min_lr, min_lr_rate, "min_lr", "min_lr_rate")
    shape: dict[str, Any] = {
        "T_mult": T_mult,
        "decay": decay,
        "warmup_steps": num_warmup_steps,
        "warmup_mode": warmup_mode,
        "warmup_lr_rate": warmup_lr_rate,
        "stable_ratio": stable_ratio,
        "eta_min": eta_min,
        "eta_min_rate": eta_min_rate,
    }
    if T_0 is not None or cycles is not None:
        schedule = CosineRestartSchedule(T_0=T_0, num_cycles=num_cycles, cycles=cycles, **shape)
    elif first_end is None:
        came = "T_0=None, cycles=None and num_training_steps=None"
        raise ValueError(f"Expected one of T_0, cycles and num_training_steps, but got {came}")
    elif num_cycles is None and not _is_one(decay, T_mult):
        came = f"num_cycles=None, decay={shown(decay)} and T_mult={shown(T_mult)}"
        raise ValueError(f"Expected num_cycles with decay or T_mult, but got {came}")
    else:
        schedule = CosineRestartSchedule.fit(first_end, 1 if num_cycles is None else num_cycles, **shape)
    if ends and schedule.end is None:
        came = f"T_0={schedule.T_0} and extend_from={ends[0]}: leave extend_from out"
        raise ValueError(f"Expected cycles that end with extend_from; those of T_0 never end, but got {came}")
    if ends and schedule.end != ends[0]:
        came = f"extend_from={ends[0]}"
        raise ValueError(f"Expected extend_from to be {schedule.end}, where the cycles end, but got {came}")
    for end, peak in zip(later_ends, peaks):
        assert end is not None
        schedule = schedule.extend(end, peak=peak)
    return schedule


def first_number_of_steps(num_training_steps: int, extend_from: int | Sequence[int] | None = None) -> int:
    """Return how many steps a run was planned for at first, which a warmup given as a fraction refers to.

    ```python
    >>> first_number_of_steps(300), first_number_of_steps(300, extend_from=[100, 200])
    (300, 100)

    ```
    """
    return [*_extensions(extend_from, 1.0)[0], num_training_steps][0]


def _extensions(extend_from: Any, extend_peak: Any) -> tuple[list[int], list[float]]:
    """At which steps the run ended before, and for each the peak of the cycle that continues it."""
    given = [] if extend_from is None else extend_from
    several = isinstance(given, Sequence) and not isinstance(given, str)
    ends: list[int] = []
    for index, end in enumerate(given if several else [given]):
        name = f"extend_from[{index}]" if several else "extend_from"
        ends.append(whole_number(name, end, (">", ends[-1] if ends else 0), ("<=", MOST_STEPS)))
    listed = isinstance(extend_peak, Sequence) and not isinstance(extend_peak, str)
    peaks = [*extend_peak] if listed else [extend_peak] * max(1, len(ends))
    if listed and len(peaks) != len(ends):
        came = f"extend_peak={shown(extend_peak)}"
        raise ValueError(
            f"Expected extend_peak to be one number or {len(ends)}, one for each extend_from, but got {came}"
        )
    peaks = [argument("peak", peak, "extend_peak") for peak in peaks]
    if not ends and peaks not in ([], [1]):
        raise ValueError(f"Expected extend_peak only with extend_from, but got extend_peak={shown(extend_peak)}")
    return ends, peaks


def _is_one(*factors: Any) -> bool:
    return all(real_number("decay and T_mult", factor) == 1 for factor in factors)


# The factory's arguments, except the optimizer and the position. A training script itself passes the first two.
ARGUMENTS = (*inspect.signature(schedule_from_arguments).parameters,)


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
    from difflib import SequenceMatcher  # only a wrong name needs it

    words, known_words = name.lower().split("_"), known.lower().split("_")
    return len(words) == len(known_words) and all(
        SequenceMatcher(None, *pair).ratio() >= 0.65 for pair in zip(words, known_words)
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
    extend_from, extend_peak = arguments.pop("extend_from", None), arguments.pop("extend_peak", 1.0)
    ends, _ = _extensions(extend_from, extend_peak)
    if ends and arguments.get("T_0") is not None and arguments.get("num_cycles") is None:
        schedule_from_arguments(0, MOST_STEPS, **arguments, extend_from=extend_from, extend_peak=extend_peak)
    if arguments.get("T_0") is None and arguments.get("cycles") is None:
        # Cycles that will be fitted into a training of unknown length: checked in one that is long enough for any.
        arguments |= {"T_0": 2**60, "num_cycles": 1 if arguments.get("num_cycles") is None else arguments["num_cycles"]}
    schedule_from_arguments(0, **arguments)


def doubts(
    schedule: CosineRestartSchedule, num_training_steps: int | None, base_lrs: Sequence[float] = (1.0,)
) -> list[str]:
    """Return what the user of a schedule hardly meant: one message each.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_training_steps (`int` or `None`): The steps of the training, if they are known.
        base_lrs (sequence of `float`): The initial learning rate of each parameter group.

    Example:

    ```python
    >>> doubts(CosineRestartSchedule(T_0=10, eta_min=0.1), 20, base_lrs=[0.01])
    ['The minimum 0.1 is above the initial learning rate 0.01: the learning rate rises to it in each cycle.']

    ```
    """
    found = [] if num_training_steps is None else [misfit(schedule, num_training_steps, base_lrs)]
    if base_lrs and not any(base_lrs):
        found.append("The initial learning rate is 0 in each parameter group, so that the learning rate stays 0.")
    for base_lr in dict.fromkeys(base_lrs):
        if 0 < base_lr < schedule.minimum(base_lr):
            found.append(
                f"The minimum {schedule.minimum(base_lr):g} is above the initial learning rate {base_lr:g}: the "
                "learning rate rises to it in each cycle."
            )
    return [doubt for doubt in found if doubt is not None]


def misfit(schedule: CosineRestartSchedule, num_training_steps: int, base_lrs: Sequence[float] = (1.0,)) -> str | None:
    """Return a message where training ends inside a cycle or after the last one, and None where it ends with a cycle.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_training_steps (`int`): The steps of the training.
        base_lrs (sequence of `float`): The initial learning rate of each parameter group.

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
        rates = (schedule.lr_at(num_training_steps, base_lr) for base_lr in base_lrs)
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
