"""Where cycles lie and how high they peak: exact arithmetic on whole steps.

Two kinds of cycles, geometric and listed, answer the same questions: at which step does cycle k start (`start`), what
is its peak (`peak`), which cycle is at a step (`index_at`), and how many are there (`count`)? Steps are counted here
from the start of cycle 0.
"""

from __future__ import annotations

import decimal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from hf_warmcos.checks import MOST_STEPS

# Wide enough to hold exactly every sum that can lie halfway between two whole steps, so that the arithmetic's own error
# never decides how a restart is rounded. Sums beyond its range become infinite.
EXACT = decimal.Context(prec=200, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])


class Cycle(NamedTuple):
    """One cosine from its peak to the minimum.

    Attributes:
        index: Which cycle it is, counted from 0.
        start: The step at which it starts.
        length: How many steps it has.
    """

    index: int  # type: ignore[assignment]  # the field hides tuple.index, which no cycle needs
    start: int
    length: int

    @property
    def end(self) -> int:
        """The step after the cycle's last one: where the next cycle starts."""
        return self.start + self.length


class GeometricCycles:
    """Cycles of `T_0` steps, each `T_mult` times as long as the one before.

    ``start(k) = round(T_0 * (T_mult**k - 1) / (T_mult - 1))``, or ``round(T_0 * k)`` where T_mult is 1. Starts beyond
    the steps that can be counted are given as some step beyond them.

    ```python
    >>> cycles = GeometricCycles(T_0=10, T_mult=2, decay=0.5)
    >>> cycles.start(3), cycles.peak(3), cycles.index_at(69), cycles.index_at(70)
    (70, 0.125, 2, 3)

    ```
    """

    def __init__(self, T_0: float, T_mult: float = 1, count: int | None = None, decay: float = 1) -> None:
        self.T_0, self.T_mult, self.count, self.decay = T_0, T_mult, count, decay
        self._indices = range(MOST_STEPS if count is None else count)
        self._exact_T_0 = T_0 if isinstance(T_0, int) else Fraction(T_0)

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        if self.T_mult == 1:  # the same by faster arithmetic
            return round(self._exact_T_0 * index)
        steps = EXACT.multiply(decimal.Decimal(self.T_0), geometric_sum(self.T_mult, index))
        return round(min(steps, decimal.Decimal(2 * MOST_STEPS**2)))

    def peak(self, index: int) -> float:
        """The fraction of the initial learning rate at which a cycle peaks."""
        return self.decay**index

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
    """Cycles of the given lengths and peaks.

    ```python
    >>> cycles = ListedCycles([(10, 1), (20, 0.5), (5, 1)])
    >>> cycles.start(2), cycles.peak(1), cycles.index_at(29), cycles.index_at(30), cycles.index_at(1000)
    (30, 0.5, 1, 2, 2)

    ```
    """

    def __init__(self, lengths_and_peaks: Sequence[tuple[int, float]]) -> None:
        self.count, self._lengths_and_peaks = len(lengths_and_peaks), lengths_and_peaks
        self._starts = [*accumulate((length for length, _ in lengths_and_peaks), initial=0)]

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        return self._starts[index]

    def peak(self, index: int) -> float:
        """The fraction of the initial learning rate at which a cycle peaks."""
        return self._lengths_and_peaks[index][1]

    def index_at(self, step: float) -> int:
        """The cycle that a step >= 0 lies in; for a step after the last cycle, the last one."""
        return min(bisect_right(self._starts, step), self.count) - 1

    def first_shorter_than(self, least: int) -> int | None:
        """The first cycle of fewer steps than `least`, or None where there is none."""
        return next((index for index, (length, _) in enumerate(self._lengths_and_peaks) if length < least), None)


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
