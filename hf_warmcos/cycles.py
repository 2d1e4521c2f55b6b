"""Where cycles lie: exact arithmetic on steps, without floating point and without rates.

Two kinds of cycles answer the same three questions: where does cycle k start (`start`), which cycle is at a step
(`index_at`), and how many are there (`count`). Steps are counted here from the start of cycle 0.
"""

from __future__ import annotations

import decimal
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

from hf_warmcos.checks import MOST_STEPS

# Wide enough to hold exactly every sum of a geometric series that can lie halfway between two whole steps, so that
# the rounding of a restart is never decided by the error of the arithmetic. Sums beyond its range become infinite.
_EXACT = decimal.Context(
    prec=200, rounding=decimal.ROUND_HALF_EVEN, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[]
)


class Cycle(NamedTuple):
    """One cosine from its peak to the minimum.

    Attributes:
        index: Which cycle it is, counted from 0.
        start: The step at which it starts.
        length: How many steps it has.
    """

    index: int  # type: ignore[assignment]  # the field shadows tuple.index, which nobody asks a cycle for
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
    >>> cycles = GeometricCycles(T_0=10, T_mult=2)
    >>> cycles.start(3), cycles.index_at(69), cycles.index_at(70)
    (70, 2, 3)

    ```
    """

    def __init__(self, T_0: int | float, T_mult: int | float = 1, count: int | None = None) -> None:
        self.T_0, self.T_mult, self.count = T_0, T_mult, count
        self._exact_T_0 = T_0 if isinstance(T_0, int) else Fraction(T_0)

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        if self.T_mult == 1:
            return round(self._exact_T_0 * index)
        steps = _EXACT.multiply(decimal.Decimal(self.T_0), geometric_sum(self.T_mult, index))
        return round(min(steps, decimal.Decimal(2 * MOST_STEPS**2)))

    def index_at(self, step: int | float) -> int:
        """The cycle that a step >= 0 lies in; of a step after the last cycle, the last."""
        if self.T_mult == 1:
            # The last k with T_0 * k <= step + 1/2, unless this one was halfway and rounded up.
            index = (2 * int(step) + 1) // (2 * self._exact_T_0)
            index -= self.start(index) > step
            return index if self.count is None else min(index, self.count - 1)
        return min(first_index(lambda index: self.start(index + 1) > step, self._indices), self._indices[-1])

    @property
    def _indices(self) -> range:
        return range(MOST_STEPS if self.count is None else self.count)

    def first_shorter_than(self, least: int) -> int | None:
        """The first cycle of fewer steps than `least` >= 1, or None where there is none."""
        if self.start(1) < least:
            return 0

        def is_short(index: int) -> bool:
            return self.T_0 * self.T_mult**index < least

        # Before rounding, the lengths grow or shrink throughout. Those that are short enough to matter are rounded to
        # `least` steps or fewer, so that all of them have `least` exactly as long as their sum says so.
        indices = self._indices
        if self.T_mult < 1:
            indices = range(first_index(is_short, indices), indices.stop)
        else:
            indices = range(first_index(lambda index: not is_short(index), indices))
        before = self.start(indices.start)

        def has_lost_a_step(index: int) -> bool:
            return self.start(index + 1) - before < (index + 1 - indices.start) * least

        index = first_index(has_lost_a_step, indices)
        return index if index in indices else None


class ListedCycles:
    """Cycles of the given lengths, in whole steps.

    ```python
    >>> cycles = ListedCycles([10, 20, 5])
    >>> cycles.start(2), cycles.index_at(29), cycles.index_at(30), cycles.index_at(1000)
    (30, 1, 2, 2)

    ```
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.count = len(lengths)
        self._starts = list(accumulate(lengths, initial=0))

    def start(self, index: int) -> int:
        """The steps of all cycles before `index`."""
        return self._starts[index]

    def index_at(self, step: int | float) -> int:
        """The cycle that a step >= 0 lies in; of a step after the last cycle, the last."""
        return min(bisect_right(self._starts, step), self.count) - 1

    def first_shorter_than(self, least: int) -> int | None:
        """The first cycle of fewer steps than `least`, or None where there is none."""
        lengths = (after - start for start, after in pairwise(self._starts))
        return next((index for index, length in enumerate(lengths) if length < least), None)


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


def geometric_sum(T_mult: int | float, count: int) -> decimal.Decimal:
    """The sum of ``T_mult**k`` over k = 0 … count - 1, for T_mult other than 1, to 200 digits."""
    ratio = decimal.Decimal(T_mult)
    return _EXACT.divide(_EXACT.subtract(_EXACT.power(ratio, count), 1), _EXACT.subtract(ratio, 1))
