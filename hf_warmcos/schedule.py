"""The mathematics of the schedule: no torch, no optimizer, no I/O.

A schedule is a pure function of the step. It is cosine annealing with warm restarts (SGDR, Loshchilov & Hutter 2017,
https://arxiv.org/abs/1608.03983) whose peak decays at each restart, after one linear warmup.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmcos._checks import real_number, whole_number

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

WARMUP_MODES = ("overlap", "prefix", "every_cycle")

# Wide enough to hold exactly every sum of a geometric series that can lie halfway between two whole steps, so that
# the rounding of a restart is never decided by the error of the arithmetic.
_EXACT = decimal.Context(prec=200, rounding=decimal.ROUND_HALF_EVEN, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


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


class Stretch(NamedTuple):
    """Steps ``first <= step < past`` over which the rate follows one formula: a linear rise, a cosine or a constant.

    Stretches are whole cycles, but for a warmup that lies before its cosine and for the hold after the last cycle.
    """

    first: int
    past: float
    shape: str
    cycle: Cycle


def _geometric_sum(T_mult: int | float, cycles: int) -> decimal.Decimal:
    """The sum of ``T_mult**k`` over k = 0 … cycles - 1, for T_mult other than 1."""
    ratio = decimal.Decimal(T_mult)
    grown = _EXACT.subtract(_EXACT.power(ratio, cycles), 1)
    return _EXACT.divide(grown, _EXACT.subtract(ratio, 1))


def _steps_before(T_0: int | float, T_mult: int | float, index: int) -> int:
    """The steps of all cycles before ``index``: ``round(T_0 * (T_mult**index - 1) / (T_mult - 1))``, exactly."""
    if isinstance(T_0, int) and isinstance(T_mult, int):
        return T_0 * index if T_mult == 1 else T_0 * (T_mult**index - 1) // (T_mult - 1)
    return _rounded_steps_before(T_0, T_mult, index)


@lru_cache(maxsize=4096)
def _rounded_steps_before(T_0: int | float, T_mult: int | float, index: int) -> int:
    if T_mult == 1:
        return round(Fraction(T_0) * index)
    return round(_EXACT.multiply(decimal.Decimal(T_0), _geometric_sum(T_mult, index)))


@dataclass(frozen=True)
class CosineRestartSchedule:
    r"""Cosine annealing with warm restarts, a decaying peak and one linear warmup, as a pure function of the step.

    For a step t, warmup length W and :math:`\tau = t - s_k` in cycle k:

    .. math::
        s_k &= \mathrm{round}\left(T_0 \frac{T_{mult}^k - 1}{T_{mult} - 1}\right), \quad T_k = s_{k+1} - s_k \\
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \left(\eta_{min} + (peak_k - \eta_{min}) \frac{1 + \cos(\pi \tau / T_k)}{2}\right)

    With r for ``warmup_lr_rate``, the warmup lies by ``warmup_mode``:

    - ``"overlap"``: cycles start at step 0 and ``warm(t) = r + (1 - r) * min(1, t / W)`` scales the cosine under it.
    - ``"prefix"``: cycles start at step W; before it the rate is ``base_lr * (r + (1 - r) * t / W)``.
    - ``"every_cycle"``: the first W steps of each cycle rise linearly to its peak,
      ``eta_min + (peak_k - eta_min) * (r + (1 - r) * tau / W)``, and the cosine takes the other ``T_k - W``.

    Restarts lie on whole steps, by exact arithmetic. A step is one optimizer update.

    Args:
        T_0 (`float`): Length of the first cycle, in steps; at least one step. It need not be whole.
        T_mult (`float`, *optional*, defaults to 1): Factor on the length at each restart, > 0. Below 1 the cycles
            grow shorter, and `num_cycles` has to say where they end.
        decay (`float`, *optional*, defaults to 1.0): Factor on the peak at each restart, 0 < decay <= 1.
        warmup_steps (`int`, *optional*, defaults to 0): Length W of the warmup, in steps.
        warmup_mode (`str`, *optional*, defaults to `"overlap"`): `"overlap"`, `"prefix"` or `"every_cycle"`.
        num_cycles (`int`, *optional*): The number of cycles, after which the rate stays at `eta_min`. Without it
            the restarts never end.
        warmup_lr_rate (`float`, *optional*, defaults to 0.0): Share of the rate at which the warmup starts,
            0 <= warmup_lr_rate <= 1.

    Raises:
        TypeError: If an argument is not a number (or, for `warmup_mode`, not a string).
        ValueError: If an argument is out of its range, if a cycle would have no step, or if the warmup is longer
            than training or than a cycle that has to hold it.

    Example:

    ```python
    >>> schedule = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5)
    >>> [schedule.lr_at(step, base_lr=0.1) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    >>> schedule.cycle_at(12)
    Cycle(index=1, start=10, length=20)

    ```

    Source: SGDR, https://arxiv.org/abs/1608.03983; `T_0`, `T_mult` and `eta_min` as in
    `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`; the decaying peak under one warmup as in
    https://github.com/qu-gg/pytorch-cosine-annealing-with-decay-and-initial-warmup.
    """

    T_0: float
    T_mult: float = 1
    decay: float = 1.0
    warmup_steps: int = 0
    warmup_mode: str = "overlap"
    num_cycles: int | None = None
    warmup_lr_rate: float = 0.0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "T_0": real_number("T_0", self.T_0, (">", 0)),
            "T_mult": real_number("T_mult", self.T_mult, (">", 0)),
            "decay": real_number("decay", self.decay, (">", 0), ("<=", 1)),
            "warmup_steps": whole_number("warmup_steps", self.warmup_steps, (">=", 0)),
            "warmup_lr_rate": real_number("warmup_lr_rate", self.warmup_lr_rate, (">=", 0), ("<=", 1)),
        }
        if self.num_cycles is not None:
            checked["num_cycles"] = whole_number("num_cycles", self.num_cycles, (">=", 1))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.warmup_mode, str):
            raise TypeError(
                f"Expected warmup_mode to be a string, but got warmup_mode={self.warmup_mode!r} "
                f"of type {type(self.warmup_mode).__name__}"
            )
        if self.warmup_mode not in WARMUP_MODES:
            raise ValueError(
                f"Expected warmup_mode to be one of {', '.join(WARMUP_MODES)}, but got warmup_mode={self.warmup_mode!r}"
            )
        if self.T_mult < 1 and self.num_cycles is None:
            raise ValueError(f"Expected num_cycles with T_mult < 1, but got T_mult={self.T_mult} and num_cycles=None")
        self._check_lengths()
        if self.end is not None and self.warmup_steps > self.end:
            raise ValueError(
                f"Expected warmup_steps <= {self.end}, the steps of all {self.num_cycles} cycles, "
                f"but got warmup_steps={self.warmup_steps}"
            )

    def _check_lengths(self) -> None:
        """Check that each cycle has a step, and under "every_cycle" one more than the warmup that it holds."""
        least = 1 + (self.warmup_steps if self.warmup_mode == "every_cycle" else 0)
        indices: Iterator[int] = count() if self.num_cycles is None else iter(range(self.num_cycles))
        if self.T_mult < 1:
            assert self.num_cycles is not None
            indices = reversed(range(self.num_cycles))
        # From the shortest cycle on, until the length before rounding is enough: from there all cycles are.
        for index in indices:
            if self.T_0 * self.T_mult**index >= least:
                return
            length = self._cycle(index).length
            if length < 1:
                raise ValueError(
                    f"Expected T_0 and T_mult that give each cycle at least one step, but got T_0={self.T_0} and "
                    f"T_mult={self.T_mult}, which give cycle {index} none"
                )
            if length < least:
                raise ValueError(
                    f"Expected warmup_steps < {length}, the steps of cycle {index}, which has to hold the warmup, "
                    f"but got warmup_steps={self.warmup_steps}"
                )

    @classmethod
    def fit(
        cls,
        num_training_steps: int,
        num_cycles: int = 1,
        *,
        T_mult: float = 1,
        decay: float = 1.0,
        warmup_steps: int = 0,
        warmup_mode: str = "prefix",
        warmup_lr_rate: float = 0.0,
    ) -> Self:
        r"""Fit whole cycles into a budget: the last one ends exactly at `num_training_steps`.

        With N for the budget (what remains after the warmup, under `"prefix"`):

        .. math::
            T_0 = N \frac{T_{mult} - 1}{T_{mult}^{num\_cycles} - 1}
            \quad\text{or}\quad N / num\_cycles \text{ where } T_{mult} = 1

        Args:
            num_training_steps (`int`): The budget, in steps: optimizer updates.
            num_cycles (`int`, *optional*, defaults to 1): How many cycles to fit.
            T_mult, decay, warmup_steps, warmup_mode, warmup_lr_rate: As in the class; `warmup_mode` defaults to
                `"prefix"` here.

        Returns:
            [`CosineRestartSchedule`]: The schedule whose `end` is `num_training_steps`.

        Raises:
            TypeError, ValueError: As in the class, and if the cycles do not fit into the budget.

        Example:

        ```python
        >>> CosineRestartSchedule.fit(110, num_cycles=4, warmup_steps=10).restarts(110)
        [35, 60, 85]
        >>> CosineRestartSchedule.fit(70, num_cycles=3, T_mult=2).T_0
        10

        ```

        Source: the cycles of `transformers.get_cosine_with_hard_restarts_schedule_with_warmup`, with the lengths of
        SGDR.
        """
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">=", 1))
        num_cycles = whole_number("num_cycles", num_cycles, (">=", 1))
        warmup_steps = whole_number("warmup_steps", warmup_steps, (">=", 0))
        T_mult = real_number("T_mult", T_mult, (">", 0))
        if warmup_steps > num_training_steps:
            raise ValueError(
                f"Expected warmup_steps <= num_training_steps={num_training_steps}, but got warmup_steps={warmup_steps}"
            )
        budget = num_training_steps - (warmup_steps if warmup_mode == "prefix" else 0)
        if num_cycles > budget:
            raise ValueError(
                f"Expected num_cycles <= {budget}, the steps that there are for cycles, but got num_cycles={num_cycles}"
            )
        whole_cycles = num_cycles if T_mult == 1 else _geometric_sum(T_mult, num_cycles)
        T_0 = _EXACT.divide(decimal.Decimal(budget), decimal.Decimal(whole_cycles))
        schedule = cls(
            T_0=int(T_0) if int(T_0) == T_0 else float(T_0),
            T_mult=T_mult,
            decay=decay,
            warmup_steps=warmup_steps,
            warmup_mode=warmup_mode,
            num_cycles=num_cycles,
            warmup_lr_rate=warmup_lr_rate,
        )
        if schedule.end != num_training_steps:
            raise ValueError(
                f"Expected a num_training_steps whose T_0 a float can hold, but got {num_training_steps=}, for which "
                f"T_0={T_0} was rounded to {float(T_0)}"
            )
        return schedule

    @property
    def origin(self) -> int:
        """The step at which cycle 0 starts."""
        return self.warmup_steps if self.warmup_mode == "prefix" else 0

    @property
    def end(self) -> int | None:
        """The step at which the last cycle ends, or None where the restarts never end."""
        if self.num_cycles is None:
            return None
        return self.origin + _steps_before(self.T_0, self.T_mult, self.num_cycles)

    def _cycle(self, index: int) -> Cycle:
        before = _steps_before(self.T_0, self.T_mult, index)
        return Cycle(index, self.origin + before, _steps_before(self.T_0, self.T_mult, index + 1) - before)

    def cycle_at(self, step: float) -> Cycle:
        """Return the cycle that a step lies in, by exact arithmetic and at the same cost near and far.

        A step of a `"prefix"` warmup belongs to cycle 0, which starts later; a step after the last cycle to the
        last cycle, which ended earlier.

        Args:
            step (`float`): The step, >= 0, whole or fractional.

        Raises:
            TypeError, ValueError: If `step` is not a number >= 0.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=1, T_mult=3).cycle_at(121)
        Cycle(index=5, start=121, length=243)

        ```
        """
        if type(step) is not int or step < 0:
            step = real_number("step", step, (">=", 0))
        steps = step - self.origin
        if steps <= 0:
            return self._cycle(0)
        end = self.end
        if end is not None and step >= end:
            assert self.num_cycles is not None
            return self._cycle(self.num_cycles - 1)
        # The logarithm only guesses; the exact starts of the cycles decide.
        if self.T_mult == 1:
            index = int(steps // self.T_0)
        else:
            growth = self.T_mult - 1
            index = int(math.log1p(max(steps / self.T_0 * growth, -0.9999999999999999)) / math.log1p(growth))
        if self.num_cycles is not None:
            index = min(index, self.num_cycles - 1)
        while _steps_before(self.T_0, self.T_mult, index) > steps:
            index -= 1
        while _steps_before(self.T_0, self.T_mult, index + 1) <= steps:
            index += 1
        return self._cycle(index)

    def peak_lr(self, index: int, base_lr: float = 1.0, eta_min: float = 0.0) -> float:
        """Return the highest rate that cycle `index` aims at: `base_lr * decay**index`, but no lower than `eta_min`.

        ```python
        >>> CosineRestartSchedule(T_0=10, decay=0.5).peak_lr(3, base_lr=0.8)
        0.1

        ```
        """
        return max(base_lr * self.decay**index, min(base_lr, eta_min))

    def _stretch_at(self, step: float) -> Stretch:
        """The stretch that a step >= 0 lies in."""
        if step < self.origin:
            return Stretch(0, self.origin, "rise", self._cycle(0))
        cycle = self.cycle_at(step)
        if step >= cycle.end:
            return Stretch(cycle.end, math.inf, "hold", cycle)
        if self.warmup_mode != "every_cycle":
            return Stretch(cycle.start, cycle.end, "cosine", cycle)
        peak = cycle.start + self.warmup_steps
        if step < peak:
            return Stretch(cycle.start, peak, "rise", cycle)
        return Stretch(peak, cycle.end, "cosine", cycle)

    def _floor_and_span(self, stretch: Stretch, base_lr: float, eta_min: float) -> tuple[float, float]:
        """The lowest rate of a stretch, and how far the highest lies above it."""
        if stretch.first < self.origin:
            return 0.0, base_lr
        if stretch.shape == "hold":
            return eta_min, 0.0
        return eta_min, self.peak_lr(stretch.cycle.index, base_lr, eta_min) - eta_min

    def _rise(self, steps: Any) -> Any:
        """The share of the rate at so many steps into a warmup, for a number or an array of them."""
        return self.warmup_lr_rate + (1 - self.warmup_lr_rate) * (steps / self.warmup_steps)

    def _share(self, stretch: Stretch, steps: Any, cos: Callable[[Any], Any]) -> Any:
        """The share of its span that the rate has, so many steps into a stretch, for a number or an array of them."""
        if stretch.shape == "rise":
            return self._rise(steps)
        return (1 + cos(math.pi * steps / float(stretch.past - stretch.first))) / 2

    @property
    def _overlap(self) -> int:
        """The first steps whose rate an "overlap" warmup scales."""
        return self.warmup_steps if self.warmup_mode == "overlap" else 0

    def lr_at(self, step: float, base_lr: float = 1.0, eta_min: float = 0.0) -> float:
        """Return the learning rate at a step, by the formula of the class.

        Args:
            step (`float`): The step, >= 0, whole or fractional. Step t is the rate of the update after t updates.
            base_lr (`float`, *optional*, defaults to 1.0): The rate that the optimizer was given.
            eta_min (`float`, *optional*, defaults to 0.0): The rate at the end of each cycle.

        Raises:
            TypeError, ValueError: If an argument is not a number or `step` is negative.

        Example:

        ```python
        >>> schedule = CosineRestartSchedule(T_0=100, decay=0.75, warmup_steps=10)
        >>> schedule.lr_at(0), schedule.lr_at(50, base_lr=2.0), schedule.lr_at(100)
        (0.0, 1.0, 0.75)

        ```
        """
        base_lr, eta_min = real_number("base_lr", base_lr), real_number("eta_min", eta_min)
        step = real_number("step", step, (">=", 0))
        stretch = self._stretch_at(step)
        floor, span = self._floor_and_span(stretch, base_lr, eta_min)
        rate = floor + span * self._share(stretch, step - stretch.first, math.cos)
        return self._rise(step) * rate if step < self._overlap else rate

    def curve(self, steps: Any, base_lr: float = 1.0, eta_min: float = 0.0) -> np.ndarray:
        """Return the learning rate at many steps at once: `lr_at`, vectorised.

        Args:
            steps (`int`, `range` or array of `float`): A number of steps n, for the steps 0 … n - 1, or the steps
                themselves, in any order.
            base_lr, eta_min (`float`): As in `lr_at`.

        Returns:
            `np.ndarray`: The rates, of the shape of the steps.

        Raises:
            TypeError, ValueError: If an argument is not a number (or array of numbers) or a step is negative.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=2, decay=0.5).curve(5, base_lr=8.0).tolist()
        [8.0, 4.0, 4.0, 2.0, 2.0]

        ```
        """
        import numpy as np

        base_lr, eta_min = real_number("base_lr", base_lr), real_number("eta_min", eta_min)
        if not isinstance(steps, range) and not np.ndim(steps):
            steps = range(whole_number("steps", steps, (">=", 0)))
        if isinstance(steps, range):
            if steps and min(steps[0], steps[-1]) < 0:
                raise ValueError(f"Expected steps >= 0, but got steps={steps}")
            if steps.step < 0:
                return self.curve(steps[::-1], base_lr, eta_min)[::-1]
            positions = np.arange(steps.start, steps.stop, steps.step)
            return self._sorted_curve(positions, base_lr, eta_min, gapless=steps.step == 1)
        positions = np.asarray(steps)
        if positions.size and positions.dtype.kind not in "iuf":
            raise TypeError(
                f"Expected steps to be an int or an array of numbers, but got an array of {positions.dtype}"
            )
        flat = positions.ravel().astype(np.float64 if positions.dtype.kind == "f" else np.int64, copy=False)
        if not np.all((flat >= 0) & np.isfinite(flat)):
            raise ValueError(f"Expected steps >= 0, but got steps={steps}")
        order = np.argsort(flat)
        rates = np.empty(flat.shape)
        rates[order] = self._sorted_curve(flat[order], base_lr, eta_min)
        return rates.reshape(positions.shape)

    def _sorted_curve(self, steps: np.ndarray, base_lr: float, eta_min: float, gapless: bool = False) -> np.ndarray:
        import numpy as np

        rates = np.empty(steps.shape)
        first = 0
        repeats = gapless and self.T_mult == 1 and isinstance(self.T_0, int) and len(steps) >= self.T_0
        # Each stretch is one slice: its constants are computed once, its cosine in one call. Where one cosine repeats,
        # all of its cycles are one slice.
        while first < len(steps):
            stretch = self._stretch_at(steps[first].item())
            if repeats and stretch.shape == "cosine" and self.warmup_mode != "every_cycle":
                past = len(steps) if self.end is None else int(np.searchsorted(steps, self.end))
                rates[first:past] = self._repeated_cosine(stretch, steps[first].item(), past - first, base_lr, eta_min)
            else:
                past = int(np.searchsorted(steps, stretch.past))
                floor, span = self._floor_and_span(stretch, base_lr, eta_min)
                rates[first:past] = floor + span * self._share(stretch, steps[first:past] - stretch.first, np.cos)
            first = past
        if self._overlap:
            overlap = slice(int(np.searchsorted(steps, self._overlap)))
            rates[overlap] *= self._rise(steps[overlap])
        return rates

    def _repeated_cosine(
        self, stretch: Stretch, first: int, num_steps: int, base_lr: float, eta_min: float
    ) -> np.ndarray:
        """The rates of steps in a row from `first` in `stretch` on, over cycles of its length: a cosine per peak."""
        import numpy as np

        length, skipped = stretch.cycle.length, first - stretch.first
        indices = range(stretch.cycle.index, stretch.cycle.index + (skipped + num_steps - 1) // length + 1)
        spans = np.array([self.peak_lr(index, base_lr, eta_min) - eta_min for index in indices])
        rates = eta_min + spans[:, np.newaxis] * self._share(stretch, np.arange(length), np.cos)
        return rates.ravel()[skipped : skipped + num_steps]

    def restarts(self, num_steps: int) -> list[int]:
        """Return the restarts among the first `num_steps` steps: the first step of each cycle but cycle 0.

        Args:
            num_steps (`int`): How many steps to look at, >= 0.

        Raises:
            TypeError, ValueError: If `num_steps` is not a whole number >= 0.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=10, T_mult=2).restarts(100)
        [10, 30, 70]

        ```
        """
        num_steps = whole_number("num_steps", num_steps, (">=", 0))
        found = []
        for index in count(1) if self.num_cycles is None else range(1, self.num_cycles):
            start = self._cycle(index).start
            if start >= num_steps:
                break
            found.append(start)
        return found

    def _repr_png_(self) -> bytes | None:
        """The schedule's picture in a notebook; without matplotlib nothing, and the notebook shows the plain repr."""
        try:
            from hf_warmcos.plotting import schedule_png

            return schedule_png(self)
        except ImportError:
            return None
