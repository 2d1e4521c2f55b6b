"""Where cycles lie and what each is like: exact arithmetic on whole steps.

Two kinds of cycles, geometric and listed, answer the same questions: at which step does cycle k start (`start`), what
is its shape (`shape`), which cycle is at a step (`index_at`), and how many are there (`count`)? Steps are counted here
from the start of cycle 0.
"""

from __future__ import annotations

import decimal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, count, islice
from typing import Any, NamedTuple

from hf_warmcos.checks import MOST_STEPS, argument, shown

# Wide enough to hold exactly every sum that can lie halfway between two whole steps, so that the arithmetic's own error
# never decides how a restart is rounded. Sums beyond its range become infinite.
EXACT = decimal.Context(prec=200, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
MOST_LISTED = 10**5  # cycles that can be listed; more would take seconds


class Cycle(NamedTuple):
    """One cosine from its peak to the minimum.

    Attributes:
        index: Which cycle it is, counted from 0.
        start: The step at which it starts.
        length: How many steps it has.

    Example:

    ```python
    >>> from hf_warmcos import CosineRestartSchedule
    >>> cycle = CosineRestartSchedule(T_0=10, T_mult=2).cycle(1)
    >>> cycle, cycle.end
    (Cycle(index=1, start=10, length=20), 30)

    ```
    """

    index: int  # type: ignore[assignment]  # the field hides tuple.index, which no cycle needs
    start: int
    length: int

    @property
    def end(self) -> int:
        """The step after the cycle's last one: where the next cycle starts."""
        return self.start + self.length


class Shape(NamedTuple):
    """What a cycle is like, its place and its length aside.

    Attributes:
        peak: The fraction of the initial learning rate at which it peaks.
        warmup_steps: Its own warmup: the steps at its start that rise from the minimum to its peak.
        stable_ratio: The fraction of its other steps at which the learning rate stays at the peak.
    """

    peak: float
    warmup_steps: int
    stable_ratio: float


class ListedCycle(NamedTuple):
    """A listed cycle with a shape of its own: its steps, and as in [`Shape`]."""

    steps: int
    peak: float
    warmup_steps: int
    stable_ratio: float


class GeometricCycles:
    """Cycles of `T_0` steps, each `T_mult` times as long as the one before.

    ``start(k) = round(T_0 * (T_mult**k - 1) / (T_mult - 1))``, or ``round(T_0 * k)`` where T_mult is 1. Starts beyond
    the steps that can be counted are given as some step beyond them.

    ```python
    >>> cycles = GeometricCycles(T_0=10, T_mult=2, decay=0.5)
    >>> cycles.start(3), cycles.shape(3).peak, cycles.index_at(69), cycles.index_at(70)
    (70, 0.125, 2, 3)

    ```
    """

    def __init__(
        self,
        T_0: float,
        T_mult: float = 1,
        count: int | None = None,
        decay: float = 1,
        warmup_steps: int = 0,
        stable_ratio: float = 0.0,
    ) -> None:
        self.T_0, self.T_mult, self.count, self.decay = T_0, T_mult, count, decay
        self.warmup_steps, self.stable_ratio = warmup_steps, stable_ratio
        self._indices = range(MOST_STEPS if count is None else count)
        self._exact_T_0 = T_0 if isinstance(T_0, int) else Fraction(T_0)

    def starts(self, index: int) -> Iterator[int]:
        """The steps of all cycles before `index`, before `index + 1`, and so on."""
        if self.T_mult == 1:  # the same by faster arithmetic
            yield from (round(self._exact_T_0 * each) for each in count(index))
        T_0, T_mult, most = decimal.Decimal(self.T_0), decimal.Decimal(self.T_mult), decimal.Decimal(2 * MOST_STEPS**2)
        total = geometric_sum(self.T_mult, index)
        while True:
            yield round(min(EXACT.multiply(T_0, total), most))
            total = EXACT.fma(total, T_mult, 1)

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        return next(self.starts(index))

    def shape(self, index: int) -> Shape:
        """What a cycle is like."""
        return Shape(self.decay**index, self.warmup_steps, self.stable_ratio)

    def index_at(self, step: float) -> int:
        """The cycle that a step >= 0 lies in; for a step after the last cycle, the last one."""
        index = first_index(lambda index: self.start(index + 1) > step, self._indices)
        return index if self.count is None else min(index, self.count - 1)

    def first_shorter_than(self, least: int) -> int | None:
        """The first cycle of fewer steps than `least` >= 1, or None where there is none."""

        if self.start(1) < least:
            return 0
        # Before rounding, the lengths grow or shrink throughout, so that those below `least` lie together. Each of them
        # is rounded to `least` steps at most: one of them has fewer where their sum is smaller than it would be.
        shrinks = self.T_mult < 1
        turn = first_index(lambda index: (self.T_0 * self.T_mult**index < least) == shrinks, self._indices)
        indices = self._indices[turn:] if shrinks else self._indices[:turn]
        first, before = indices.start, self.start(indices.start)
        index = first_index(lambda index: self.start(index + 1) - before < (index + 1 - first) * least, indices)
        return index if index in indices else None


class ListedCycles:
    """Cycles one by one.

    ```python
    >>> cycles = ListedCycles([ListedCycle(10, 1, 0, 0.5), ListedCycle(20, 0.5, 3, 0.0), ListedCycle(5, 1, 0, 0.5)])
    >>> cycles.start(2), cycles.shape(1), cycles.index_at(29), cycles.index_at(30), cycles.index_at(1000)
    (30, Shape(peak=0.5, warmup_steps=3, stable_ratio=0.0), 1, 2, 2)

    ```
    """

    def __init__(self, cycles: Sequence[ListedCycle]) -> None:
        self.count, self._cycles = len(cycles), cycles
        self._starts = [*accumulate((cycle.steps for cycle in cycles), initial=0)]

    def starts(self, index: int) -> Iterator[int]:
        """The steps of all cycles before `index`, before `index + 1`, and so on."""
        return islice(self._starts, index, None)

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        return self._starts[index]

    def shape(self, index: int) -> Shape:
        """What a cycle is like."""
        return Shape(*self._cycles[index][1:])

    def index_at(self, step: float) -> int:
        """The cycle that a step >= 0 lies in; for a step after the last cycle, the last one."""
        return min(bisect_right(self._starts, step), self.count) - 1


def read_cycles(cycles: Any, default: Shape) -> list[ListedCycle]:
    """Read listed cycles: each a number of steps, a pair of steps and peak, or a mapping with any of the four names.

    Args:
        cycles: The list.
        default: The shape of a cycle that says none of its own.

    Raises:
        TypeError, ValueError: If it is no such list. The message names the cycle, as in `cycles[2]["warmup_steps"]`.

    ```python
    >>> read_cycles([[20, 0.5], {"steps": 40, "stable_ratio": 0.9}], default=Shape(1, 0, 0.0))[1]
    ListedCycle(steps=40, peak=1, warmup_steps=0, stable_ratio=0.9)

    ```
    """
    if isinstance(cycles, (str, bytes)) or not isinstance(cycles, Sequence):
        expected = (
            "cycles to be a list of steps, of pairs of steps and the fraction at which a cycle peaks, or of dicts"
        )
        raise TypeError(f"Expected {expected}, but got cycles={shown(cycles)} of type {type(cycles).__name__}")
    if not cycles:
        raise ValueError(f"Expected cycles to list at least one cycle, but got cycles={shown(cycles)}")
    check_number(len(cycles), f"{len(cycles)}")
    return [_read_cycle(index, cycle, default) for index, cycle in enumerate(cycles)]


def check_number(number: int, came: str) -> None:
    """Check how many cycles are listed: more would take seconds."""
    if number > MOST_LISTED:
        raise ValueError(f"Expected at most {MOST_LISTED} cycles in all, but got {came}")


def _read_cycle(index: int, cycle: Any, default: Shape) -> ListedCycle:
    of = f"cycles[{index}]"
    if isinstance(cycle, (Mapping, ListedCycle)):
        given = dict(cycle if isinstance(cycle, Mapping) else cycle._asdict())
        name_of = f'{of}["%s"]'
    else:
        pair = cycle if isinstance(cycle, Sequence) and not isinstance(cycle, (str, bytes)) else (cycle, 1)
        given = dict(zip(("steps", "peak"), pair)) if len(pair) == 2 else {}
        name_of = f"the %s of {of}"
    if unknown := [key for key in given if key not in ListedCycle._fields]:
        known = ", ".join(map(repr, ListedCycle._fields))
        raise ValueError(f"Expected the keys of {of} to be among {known}, but got {of}[{shown(unknown[0])}]")
    if "steps" not in given:
        expected = f"{of} to be its steps, its steps and the fraction at which it peaks, or a dict with 'steps'"
        raise ValueError(f"Expected {expected}, but got {of}={shown(cycle)}")
    names = {key: of if key == "steps" and not isinstance(cycle, Mapping) else name_of % key for key in given}
    checked = {key: argument(key, value, names[key]) for key, value in given.items()}
    read = ListedCycle(**(default._asdict() | checked))
    if read.warmup_steps >= read.steps:
        name = names.get("warmup_steps", "warmup_steps")
        limit = f"{read.steps}, the steps of cycle {index}, which has to hold the warmup"
        raise ValueError(f"Expected {name} < {limit}, but got {name}={read.warmup_steps}")
    return read


def first_index(holds: Callable[[int], bool], indices: range) -> int:
    """The first of `indices` from which on `holds` is true, or their end: an upper bound is doubled, then bisected.

    ```python
    >>> first_index(lambda index: index**2 > 1000, range(10**18))
    32

    ```
    """
    bound = 1
    while bound < len(indices) and not holds(indices[bound - 1]):
        bound *= 2
    return indices.start + bisect_left(indices[:bound], True, key=holds)


def geometric_sum(T_mult: float, count: int) -> decimal.Decimal:
    """The sum of ``T_mult**k`` over k = 0 … count - 1, to 200 digits."""
    if T_mult == 1:
        return decimal.Decimal(count)
    ratio = decimal.Decimal(T_mult)
    return EXACT.divide(EXACT.subtract(EXACT.power(ratio, count), 1), EXACT.subtract(ratio, 1))
