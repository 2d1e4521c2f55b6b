"""What shows a schedule before training, for pictures, tables and the command line. Nothing here draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmcos.arguments import doubts, first_number_of_steps, schedule_from_arguments
from hf_warmcos.checks import MOST_STEPS, learning_rate
from hf_warmcos.schedule import Arc, CosineRestartSchedule

if TYPE_CHECKING:
    import numpy as np

YSCALES = ("linear", "log")
CYCLES_WITHOUT_END = 5  # how many cycles to show of a schedule whose restarts never end
_MOST_POINTS = 4_000


class Plan(NamedTuple):
    """A schedule to be shown.

    Attributes:
        schedule: The schedule.
        num_steps: How many of its steps to show.
        base_lr: The initial learning rate.
        doubts: What the user hardly meant: messages.
    """

    schedule: CosineRestartSchedule
    num_steps: int
    base_lr: float
    doubts: list[str]


def plan(arguments: Mapping[str, Any], base_lr: float = 1.0) -> Plan:
    """Return the schedule of the factory's arguments, and what of it to show.

    Args:
        arguments (`dict`): Arguments of [`get_cosine_restarts_with_decay_and_warmup_schedule`], without the optimizer.
            A `num_warmup_steps` below 1 is a fraction of `num_training_steps`, as in `TrainingArguments`.
        base_lr (`float`, *optional*, defaults to 1.0): The initial learning rate.

    Raises:
        TypeError, ValueError: As in the factory.

    ```python
    >>> plan({"num_training_steps": 100, "num_warmup_steps": 0.1, "num_cycles": 3}).schedule.warmup_steps
    10

    ```
    """
    given = {"num_warmup_steps": 0, **arguments}
    num_training_steps = given.get("num_training_steps")
    if num_training_steps is not None and 0 < given["num_warmup_steps"] < 1:
        first = first_number_of_steps(num_training_steps, given.get("extend_from"))
        given["num_warmup_steps"] = math.ceil(given["num_warmup_steps"] * first)
    base_lr = learning_rate("lr", base_lr, (">=", 0))
    schedule = schedule_from_arguments(**given)
    num_steps = int(num_training_steps or default_num_steps(schedule))
    return Plan(schedule, num_steps, base_lr, doubts(schedule, num_steps, [base_lr]))


class CycleRow(NamedTuple):
    """A row of the table.

    Attributes:
        cycle: The cycle's index.
        start: The step at which it starts.
        length: How many steps it has.
        peak_lr: The learning rate at its peak.
        end_lr: The learning rate of its last step.
    """

    cycle: int
    start: int
    length: int
    peak_lr: float
    end_lr: float


def cycle_table(schedule: CosineRestartSchedule, num_steps: int, base_lr: float = 1.0) -> Iterator[CycleRow]:
    """Yield a row for each cycle that the first `num_steps` steps reach, and for cycle 0 at least.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_steps (`int`): How many steps to look at.
        base_lr (`float`, *optional*): As in [`CosineRestartSchedule.lr_at`].

    Yields:
        [`CycleRow`]: The cycle, its start and length in steps, its peak and the learning rate of its last step.

    Example:

    ```python
    >>> [*cycle_table(CosineRestartSchedule(T_0=2, decay=0.5), 3)][1]
    CycleRow(cycle=1, start=2, length=2, peak_lr=0.5, end_lr=0.25)

    ```
    """
    for index in range(schedule.cycle_at(num_steps - 1).index + 1):
        cycle = schedule.cycle(index)
        end_lr = schedule.lr_at(min(cycle.end - 1, MOST_STEPS), base_lr)
        yield CycleRow(*cycle, schedule.peak_lr(index, base_lr), end_lr)


def number_text(number: float) -> str:
    """A number as people write it: three digits, and a short power of ten where it is small or large.

    ```python
    >>> [number_text(number) for number in (0, 5e-5, 0.0123, 0.75, 300, 12_500, 2e9)]
    ['0', '5e-5', '0.0123', '0.75', '300', '12,500', '2e9']

    ```
    """
    if number and not 0.00995 <= abs(number) < 1e7:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def round_ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 to `most`, about as many as `count`: multiples of 1, 2 or 5 times a power of ten.

    ```python
    >>> round_ticks(0.0003, 3), round_ticks(10_000, 6)
    ([0.0, 0.0001, 0.0002, 0.0003], [0.0, 2000.0, 4000.0, 6000.0, 8000.0, 10000.0])

    ```
    """
    betweens = (float(f"{factor}e{power}") for power in range(-300, 300) for factor in (1, 2, 5))
    between = next(each for each in betweens if each * max(1, count) >= most * (1 - 1e-9))
    return [float(f"{index * between:.12g}") for index in range(int(most / between * (1 + 1e-9)) + 1)]


def default_num_steps(schedule: CosineRestartSchedule) -> int:
    """The steps that show a whole schedule: to its end, or five cycles where the restarts never end.

    ```python
    >>> default_num_steps(CosineRestartSchedule(T_0=10)), default_num_steps(CosineRestartSchedule(T_0=10, num_cycles=2))
    (50, 20)

    ```
    """
    step = 0
    for _ in range(CYCLES_WITHOUT_END):
        step = int(min(schedule.arc_at(step).stop, MOST_STEPS))
    return schedule.end or step


def arcs(schedule: CosineRestartSchedule, num_steps: int, most: int) -> list[Arc]:
    """The arcs of the cycles in the first `num_steps` steps; none where there are more than `most` of them.

    ```python
    >>> schedule = CosineRestartSchedule(T_0=50)
    >>> [arc.stop for arc in arcs(schedule, 120, most=3)], arcs(schedule, 120, most=2)
    ([50, 100, 150], [])

    ```
    """
    if schedule.cycle_at(num_steps - 1).index >= most:
        return []
    return [schedule.arc_at(step) for step in (0, *schedule.restarts(num_steps))]


def sample_steps(schedule: CosineRestartSchedule, num_steps: int, most: int = _MOST_POINTS) -> np.ndarray:
    """The steps, among the first `num_steps`, that a picture needs: all, or evenly spread ones and every corner.

    Where there are too many cycles for that, the corners of those are kept that evenly spread steps lie in. The curve
    then fills the space between its peaks and its minimum.

    ```python
    >>> sample_steps(CosineRestartSchedule(T_0=50, warmup_steps=7), 100, most=8).tolist()
    [0, 6, 7, 14, 28, 42, 49, 50, 56, 70, 84, 99]

    ```
    """
    import numpy as np

    if num_steps <= most:
        return np.arange(num_steps)
    spread = [index * (num_steps - 1) // (most - 1) for index in range(most)]
    known = arcs(schedule, num_steps, most // 4) or map(schedule.arc_at, spread[::4])
    kept = {step for arc in known for corner in arc.corners for step in (corner - 1, corner) if 0 <= step < num_steps}
    return np.array(sorted(kept.union(spread)))


def highest_of_each(some_arcs: Sequence[Arc], steps: np.ndarray, rates: np.ndarray) -> list[int]:
    """The index of the highest learning rate in each arc: its peak, or less where an "overlap" warmup scales it down.

    ```python
    >>> import numpy as np
    >>> schedule, steps = CosineRestartSchedule(T_0=5, warmup_steps=3), np.arange(10)
    >>> highest_of_each(arcs(schedule, 10, most=9), steps, schedule.curve(steps))
    [2, 5]

    ```
    """
    import numpy as np

    firsts = np.searchsorted(steps, [max(0, arc.start) for arc in some_arcs])
    return [int(first + np.argmax(part)) for first, part in zip(firsts, np.split(rates, firsts[1:]))]


def lowest_on_log_scale(top: float, minimum: float) -> float:
    """Where a log scale up to `top` starts: at the minimum, or at 1e-4 of `top` where the minimum is 0.

    ```python
    >>> lowest_on_log_scale(0.5, minimum=0.01), lowest_on_log_scale(0.5, minimum=0)
    (0.01, 5e-05)

    ```
    """
    return minimum if 0 < minimum < top else top / 10_000
