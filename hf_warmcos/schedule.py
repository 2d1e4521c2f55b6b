"""The schedule: the rate as a pure function of the step. No torch, no optimizer, no I/O.

Cosine annealing with warm restarts (SGDR, Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983) whose peak decays
at each restart, after one linear warmup.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import pi
from typing import TYPE_CHECKING, Any

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.cycles import Cycle, GeometricCycles, ListedCycles, geometric_sum

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

_MOST_LISTED = 10**6  # cycles; each takes memory where they are listed
WARMUP_MODES = ("overlap", "prefix", "every_cycle")


@dataclass
class Segment:
    """Steps ``start <= step < stop`` over which the rate follows one formula, as a share of the way to the peak.

    Its fields may be arrays: one segment for each of an array of steps.

    Attributes:
        start: The first step.
        length: How many steps it has; infinite after the last cycle.
        cycle: The index of the cycle that it belongs to.
        evaluated: The fields by which the segments of one schedule differ in their shares.
    """

    start: Any
    length: Any
    cycle: int = 0

    @property
    def stop(self) -> float:
        """The step after the last one."""
        return self.start + self.length


@dataclass
class Rise(Segment):
    """A linear rise from `first` to 1; `from_zero`, from a share of the peak, and else of the way up to it."""

    first: float = 0.0
    from_zero: bool = False
    evaluated = ("start", "length")

    def share(self, step: Any, cos: Callable[[Any], Any] = math.cos) -> Any:
        return self.first + (1 - self.first) * ((step - self.start) / self.length)


@dataclass
class Flat(Segment):
    """A constant share: 1 on the plateau, 0 after the last cycle."""

    level: float = 1.0
    from_zero = False
    evaluated = ("level",)

    def share(self, step: Any, cos: Callable[[Any], Any] = math.cos) -> Any:
        return self.level


@dataclass
class Cosine(Segment):
    """Half a cosine, from 1 to 0."""

    from_zero = False
    evaluated = ("start", "length")

    def share(self, step: Any, cos: Callable[[Any], Any] = math.cos) -> Any:
        return (1 + cos(pi * (step - self.start) / self.length)) / 2


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
    - ``"prefix"``: cycles start at step W; before it the rate is ``peak_0 * (r + (1 - r) * t / W)``.
    - ``"every_cycle"``: the first W steps of each cycle rise linearly to its peak,
      ``eta_min + (peak_k - eta_min) * (r + (1 - r) * tau / W)``, and the cosine takes the other ``T_k - W``.

    With a plateau, the rate of a cycle stays at its peak for :math:`h_k` steps after the cycle's own warmup (of w = W
    steps under ``"every_cycle"``, and w = 0 otherwise), and the cosine takes the rest:

    .. math::
        h_k = \min(\mathrm{round}(stable\_ratio \cdot (T_k - w)), T_k - w - 1)

    Listed cycles take the place of the first two formulas: `cycles` gives each length :math:`T_k`, and the share of
    ``base_lr`` that stands for :math:`decay^k`.

    Restarts lie on whole steps, by exact arithmetic. A step is one optimizer update. Steps are counted up to 2**63 - 1,
    as in torch's and numpy's integers.

    Args:
        T_0 (`float`, *optional*): Length of the first cycle, in steps; at least one step. It need not be whole.
        T_mult (`float`, *optional*, defaults to 1): Factor on the length at each restart, > 0. Below 1 the cycles
            grow shorter, and `num_cycles` has to say where they end.
        decay (`float`, *optional*, defaults to 1.0): Factor on the peak at each restart, 0 < decay <= 1.
        warmup_steps (`int`, *optional*, defaults to 0): Length W of the warmup, in steps.
        warmup_mode (`str`, *optional*, defaults to `"overlap"`): `"overlap"`, `"prefix"` or `"every_cycle"`.
        num_cycles (`int`, *optional*): The number of cycles, after which the rate stays at `eta_min`. Without it
            the restarts never end.
        warmup_lr_rate (`float`, *optional*, defaults to 0.0): Share of the rate at which the warmup starts,
            0 <= warmup_lr_rate <= 1.
        stable_ratio (`float`, *optional*, defaults to 0.0): Share of each cycle's steps, its own warmup aside, at which
            the rate stays at the peak before it anneals, 0 <= stable_ratio < 1.
        cycles (`list`, *optional*): The cycles one by one, in place of `T_0`, `T_mult`, `num_cycles` and `decay`: for
            each its steps, or a pair of its steps and the share of the base rate at which it peaks (> 0). After the
            last one the rate stays at `eta_min`.

    Raises:
        TypeError: If an argument is not a number (or, for `warmup_mode`, not a string; for `cycles`, not a list of
            numbers and pairs).
        ValueError: If an argument is out of its range, if both or none of `T_0` and `cycles` are given, if a cycle
            would have no step, or if the warmup is longer than training or than a cycle that has to hold it.

    Example:

    ```python
    >>> schedule = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5)
    >>> [schedule.lr_at(step, base_lr=0.1) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    >>> schedule.cycle_at(12)
    Cycle(index=1, start=10, length=20)
    >>> schedule = CosineRestartSchedule(cycles=[10, [20, 0.25]], stable_ratio=0.5)
    >>> [round(schedule.lr_at(step), 3) for step in (0, 5, 9, 10, 20, 30)]
    [1.0, 1.0, 0.095, 0.25, 0.25, 0.0]

    ```

    Source: SGDR, https://arxiv.org/abs/1608.03983; `T_0`, `T_mult` and `eta_min` as in
    `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`; the decaying peak under one warmup as in
    https://github.com/qu-gg/pytorch-cosine-annealing-with-decay-and-initial-warmup; the plateau as in WSD-S (Wen et
    al. 2024, https://arxiv.org/abs/2410.05192), with a cosine for its decay.
    """

    T_0: float | None = None
    T_mult: float = 1
    decay: float = 1.0
    warmup_steps: int = 0
    warmup_mode: str = "overlap"
    num_cycles: int | None = None
    warmup_lr_rate: float = 0.0
    stable_ratio: float = 0.0
    cycles: Sequence[int | Sequence[float]] | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "T_mult": real_number("T_mult", self.T_mult, (">", 0), ("<=", MOST_STEPS)),
            "decay": real_number("decay", self.decay, (">", 0), ("<=", 1)),
            "warmup_steps": whole_number("warmup_steps", self.warmup_steps, (">=", 0), ("<=", MOST_STEPS)),
            "warmup_lr_rate": real_number("warmup_lr_rate", self.warmup_lr_rate, (">=", 0), ("<=", 1)),
            "stable_ratio": real_number("stable_ratio", self.stable_ratio, (">=", 0), ("<", 1)),
        }
        if self.num_cycles is not None:
            checked["num_cycles"] = whole_number("num_cycles", self.num_cycles, (">=", 1), ("<=", MOST_STEPS))
        if self.cycles is not None:
            replaced = {"T_0": None, "T_mult": 1, "decay": 1, "num_cycles": None}
            given = {name: value for name, value in vars(self).items() if name in replaced and value != replaced[name]}
            if given:
                raise ValueError(
                    f"Expected cycles in place of {', '.join(given)}, but got cycles={self.cycles!r} and "
                    + ", ".join(f"{name}={value}" for name, value in given.items())
                )
            checked["cycles"] = _listed(self.cycles)
        elif self.T_0 is None:
            raise ValueError("Expected one of T_0 and cycles, but got T_0=None and cycles=None")
        else:
            checked["T_0"] = real_number("T_0", self.T_0, (">", 0), ("<=", MOST_STEPS))
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

    def _check_lengths(self) -> None:
        """Check that each cycle has a step, under "every_cycle" one more than its warmup, and that the warmup ends."""
        index = self._cycles.first_shorter_than(1)
        if index is not None:
            raise ValueError(
                f"Expected T_0 and T_mult that give each cycle at least one step, but got T_0={self.T_0} and "
                f"T_mult={self.T_mult}, which give cycle {index} none"
            )
        index = self._cycles.first_shorter_than(1 + self._own_warmup)
        if index is not None:
            raise ValueError(
                f"Expected warmup_steps < {self.cycle(index).length}, the steps of cycle {index}, which has to hold "
                f"the warmup, but got warmup_steps={self.warmup_steps}"
            )
        if self.end is not None and self.warmup_steps > self.end:
            raise ValueError(
                f"Expected warmup_steps <= {self.end}, the steps of all {self._cycles.count} cycles, "
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
        stable_ratio: float = 0.0,
    ) -> Self:
        r"""Fit whole cycles into a budget: the last one ends exactly at `num_training_steps`.

        With N for the budget (what remains after the warmup, under `"prefix"`):

        .. math::
            T_0 = N \frac{T_{mult} - 1}{T_{mult}^{num\_cycles} - 1}
            \quad\text{or}\quad N / num\_cycles \text{ where } T_{mult} = 1

        Where a `"prefix"` warmup takes the whole budget, training only warms up: one cycle of one step then lies after
        its end.

        Args:
            num_training_steps (`int`): The budget, in steps: optimizer updates.
            num_cycles (`int`, *optional*, defaults to 1): How many cycles to fit.
            T_mult, decay, warmup_steps, warmup_mode, warmup_lr_rate, stable_ratio: As in the class; `warmup_mode`
                defaults to `"prefix"` here.

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
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">=", 1), ("<=", MOST_STEPS))
        num_cycles = whole_number("num_cycles", num_cycles, (">=", 1), ("<=", MOST_STEPS))
        warmup_steps = whole_number("warmup_steps", warmup_steps, (">=", 0))
        T_mult = real_number("T_mult", T_mult, (">", 0), ("<=", MOST_STEPS))
        if warmup_steps > num_training_steps:
            raise ValueError(
                f"Expected warmup_steps <= num_training_steps={num_training_steps}, but got warmup_steps={warmup_steps}"
            )
        budget = num_training_steps - (warmup_steps if warmup_mode == "prefix" else 0)
        only_warmup = budget == 0
        if only_warmup:
            budget = num_cycles = 1
        if num_cycles > budget:
            raise ValueError(
                f"Expected num_cycles <= {budget}, the steps that there are for cycles, but got num_cycles={num_cycles}"
            )
        whole_cycles = num_cycles if T_mult == 1 else geometric_sum(T_mult, num_cycles)
        exact_T_0 = decimal.Decimal(budget) / decimal.Decimal(whole_cycles)
        T_0 = int(exact_T_0) if int(exact_T_0) == exact_T_0 else float(exact_T_0)
        if GeometricCycles(T_0, T_mult, num_cycles).first_shorter_than(1) is not None:
            raise ValueError(
                f"Expected num_cycles and T_mult that leave each cycle one of the {budget} steps that there are for "
                f"cycles, but got {num_cycles=} and {T_mult=}"
            )
        schedule = cls(T_0, T_mult, decay, warmup_steps, warmup_mode, num_cycles, warmup_lr_rate, stable_ratio)
        if schedule.end != num_training_steps + only_warmup:
            raise ValueError(
                f"Expected a num_training_steps whose T_0 a float can hold, but got {num_training_steps=}, for which "
                f"T_0={exact_T_0} was rounded to {T_0}"
            )
        return schedule

    def extend(
        self,
        num_training_steps: int,
        num_cycles: int = 1,
        *,
        T_mult: float | None = None,
        decay: float | None = None,
        peak: float | None = None,
    ) -> Self:
        r"""Append cycles, for a run that goes on: the schedule stays as it is up to its `end`.

        The new cycles are fitted into the steps from `end` to `num_training_steps`, as in `fit`. With p for the share
        of the base rate at which the last cycle so far peaks, the new ones peak at

        .. math::
            p \cdot decay, \; p \cdot decay^2, \; \dots \quad\text{or}\quad peak, \; peak \cdot decay, \; \dots

        Args:
            num_training_steps (`int`): The step at which the last new cycle ends, > `end`.
            num_cycles (`int`, *optional*, defaults to 1): How many cycles to append.
            T_mult (`float`, *optional*): Factor on the length of a new cycle at each restart among them. By default
                the schedule's own, which is 1 where cycles are listed.
            decay (`float`, *optional*): Factor on the peak at each new restart, 0 < decay <= 1, likewise.
            peak (`float`, *optional*): Share of the base rate at which the first new cycle peaks, > 0.

        Returns:
            [`CosineRestartSchedule`]: The longer schedule, whose `cycles` are listed.

        Raises:
            TypeError, ValueError: If the restarts never end, if an argument is out of its range, or if the cycles do
                not fit.

        Example:

        ```python
        >>> schedule = CosineRestartSchedule.fit(1000, num_cycles=2, warmup_steps=100)
        >>> longer = schedule.extend(3000, num_cycles=2, decay=0.5)
        >>> longer.cycles
        ((450, 1), (450, 1), (1000, 0.5), (1000, 0.25))
        >>> bool((longer.curve(1000) == schedule.curve(1000)).all())
        True

        ```
        """
        end, count = self.end, self._cycles.count
        if end is None or count is None:
            raise ValueError(f"Expected cycles that end, to append others to, but got num_cycles={self.num_cycles}")
        if count > _MOST_LISTED:
            raise ValueError(f"Expected at most {_MOST_LISTED} cycles to append others to, but got num_cycles={count}")
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">", end), ("<=", MOST_STEPS))
        added = self.fit(
            num_training_steps - end,
            num_cycles,
            T_mult=self.T_mult if T_mult is None else T_mult,
            decay=self.decay if decay is None else decay,
        )
        first = self.peak_lr(count - 1) * added.decay if peak is None else real_number("peak", peak, (">", 0))
        past = [(self.cycle(index).length, self.peak_lr(index)) for index in range(count)]
        new = [(added.cycle(index).length, added.peak_lr(index, first)) for index in range(num_cycles)]
        return replace(self, T_0=None, T_mult=1, decay=1.0, num_cycles=None, cycles=[*past, *new])

    @cached_property
    def _cycles(self) -> GeometricCycles | ListedCycles:
        if self.cycles is None:
            assert self.T_0 is not None
            return GeometricCycles(self.T_0, self.T_mult, self.num_cycles)
        return ListedCycles([length for length, _ in self.cycles])  # type: ignore[misc]

    @cached_property
    def _own_warmup(self) -> int:
        """The steps of each cycle's own warmup."""
        return self.warmup_steps if self.warmup_mode == "every_cycle" else 0

    @cached_property
    def origin(self) -> int:
        """The step at which cycle 0 starts."""
        return self.warmup_steps if self.warmup_mode == "prefix" else 0

    @cached_property
    def end(self) -> int | None:
        """The step at which the last cycle ends, or None where that is beyond all steps: where restarts never end."""
        count = self._cycles.count
        steps = None if count is None else self._cycles.start(count)
        return None if steps is None or self.origin + steps > MOST_STEPS else self.origin + steps

    def cycle(self, index: int) -> Cycle:
        """Return a cycle by its index.

        Args:
            index (`int`): Which cycle, counted from 0.

        Raises:
            TypeError, ValueError: If `index` is not a whole number >= 0, or if there are not so many cycles.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=10, T_mult=2, warmup_steps=5, warmup_mode="prefix").cycle(2)
        Cycle(index=2, start=35, length=40)

        ```
        """
        most = MOST_STEPS if self._cycles.count is None else self._cycles.count
        index = whole_number("index", index, (">=", 0), ("<", most))
        cycle = self._cycle(index)
        if cycle.start - self.origin > MOST_STEPS:
            raise ValueError(f"Expected an index whose cycle starts within 2**63 - 1 steps, but got index={index}")
        return cycle

    def _cycle(self, index: int) -> Cycle:
        start, after = self._cycles.start(index), self._cycles.start(index + 1)
        return Cycle(index, self.origin + start, after - start)

    def cycle_at(self, step: float) -> Cycle:
        """Return the cycle that a step lies in, by exact arithmetic.

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
        return self._cycle_at(real_number("step", step, (">=", 0), ("<=", MOST_STEPS)))

    def _cycle_at(self, step: int | float) -> Cycle:
        return self._cycle(self._cycles.index_at(max(0, step - self.origin)))

    def peak_lr(self, index: int, base_lr: float = 1.0, eta_min: float = 0.0) -> float:
        """Return the highest rate that cycle `index` aims at: `base_lr * decay**index`, but no lower than `eta_min`.

        ```python
        >>> CosineRestartSchedule(T_0=10, decay=0.5).peak_lr(3, base_lr=0.8)
        0.1
        >>> CosineRestartSchedule(cycles=[10, [20, 0.25]]).peak_lr(1, base_lr=0.8)
        0.2

        ```
        """
        return self._peak_lr(self.cycle(index).index, base_lr, eta_min)

    def _peak_lr(self, index: int, base_lr: float, eta_min: float) -> float:
        share = self.decay**index if self.cycles is None else self.cycles[index][1]  # type: ignore[index]
        return max(base_lr * share, min(base_lr, eta_min))

    def segment_at(self, step: float) -> Rise | Flat | Cosine:
        """The segment that a step >= 0 lies in: the formula that the rate follows there, an "overlap" warmup aside."""
        cycle = self._cycle_at(step)
        if step < cycle.start:
            return Rise(0, cycle.start, cycle.index, self.warmup_lr_rate, from_zero=True)
        if step >= cycle.end:
            return Flat(cycle.end, math.inf, cycle.index, level=0.0)
        rising = self._own_warmup
        stable = min(round(self.stable_ratio * (cycle.length - rising)), cycle.length - rising - 1)
        if step < cycle.start + rising:
            return Rise(cycle.start, rising, cycle.index, self.warmup_lr_rate)
        if step < cycle.start + rising + stable:
            return Flat(cycle.start + rising, stable, cycle.index)
        return Cosine(cycle.start + rising + stable, cycle.length - rising - stable, cycle.index)

    def floor_and_span(self, segment: Rise | Flat | Cosine, base_lr: float, eta_min: float) -> tuple[float, float]:
        """The rate where a segment's share is 0, and how far the peak of its cycle lies above it."""
        floor = 0.0 if segment.from_zero else eta_min
        return floor, self._peak_lr(segment.cycle, base_lr, eta_min) - floor

    @cached_property
    def overlap(self) -> Rise | None:
        """The warmup that scales the rates under it, where there is one."""
        if self.warmup_mode != "overlap" or not self.warmup_steps:
            return None
        return Rise(0, self.warmup_steps, first=self.warmup_lr_rate)

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
        base_lr, eta_min = float(real_number("base_lr", base_lr)), float(real_number("eta_min", eta_min))
        step = real_number("step", step, (">=", 0), ("<=", MOST_STEPS))
        segment = self.segment_at(step)
        floor, span = self.floor_and_span(segment, base_lr, eta_min)
        warm = self.overlap.share(step) if self.overlap and step < self.overlap.stop else 1.0
        return warm * floor + span * (warm * segment.share(step))

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

        base_lr, eta_min = float(real_number("base_lr", base_lr)), float(real_number("eta_min", eta_min))
        if not isinstance(steps, range) and not np.ndim(steps):
            steps = range(whole_number("steps", steps, (">=", 0), ("<=", MOST_STEPS)))
        positions = np.arange(steps.start, steps.stop, steps.step) if isinstance(steps, range) else np.asarray(steps)
        are_too_large = positions.dtype.kind == "O" and all(isinstance(step, int) for step in positions.flat)
        if positions.size and positions.dtype.kind not in "iuf" and not are_too_large:
            raise TypeError(
                f"Expected steps to be an int or an array of numbers, but got an array of {positions.dtype}"
            )
        if not np.all((positions >= 0) & (positions <= MOST_STEPS)):
            raise ValueError(f"Expected 0 <= steps <= {MOST_STEPS}, but got steps={steps}")
        flat = positions.ravel().astype(np.float64 if positions.dtype.kind == "f" else np.int64, copy=False)
        order = slice(None) if np.all(flat[:-1] <= flat[1:]) else np.argsort(flat)
        ascending = flat[order]
        # Part by part, in memory that is still at hand: the system gives large arrays anew, page by page.
        parts = [ascending[first : first + 2**14] for first in range(0, len(ascending), 2**14)]
        rates = np.empty(flat.shape)
        rates[order] = np.concatenate([self._rates_at(part, base_lr, eta_min) for part in parts] or [flat])
        return rates.reshape(positions.shape)

    def _rates_at(self, ascending: np.ndarray, base_lr: float, eta_min: float) -> np.ndarray:
        import numpy as np

        segments, counts = self._segments_of(ascending)
        bounds = np.array([self.floor_and_span(segment, base_lr, eta_min) for segment in segments])
        floors, spans = (np.repeat(bound, counts) for bound in bounds.T)
        shares = _shares(segments, counts, ascending)
        if self.overlap:
            warm = np.minimum(1, self.overlap.share(ascending))
            floors, shares = warm * floors, warm * shares
        return floors + spans * shares

    def _segments_of(self, ascending: np.ndarray) -> tuple[list[Any], list[int]]:
        """The segments that any of the steps lie in, and how many of the steps lie in each."""
        segments: list[Any] = []
        ends = [0]
        while ends[-1] < len(ascending):
            segment = self.segment_at(ascending[ends[-1]].item())
            segments.append(segment)
            stop = segment.stop
            ends.append(int(ascending.searchsorted(stop)) if stop <= MOST_STEPS else len(ascending))
        return segments, [after - before for before, after in pairwise(ends)]

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
        num_steps = whole_number("num_steps", num_steps, (">=", 0), ("<=", MOST_STEPS))
        last = self._cycle_at(max(0, num_steps - 1)).index
        return [self.origin + self._cycles.start(index) for index in range(1, last + 1)]


def _shares(segments: list[Any], counts: list[int], steps: np.ndarray) -> np.ndarray:
    """The shares of ascending steps, of which each segment holds so many: one evaluation for all segments of a kind."""
    import numpy as np

    shares = np.empty(steps.shape)
    for kind in {type(segment) for segment in segments}:
        chosen = [segment for segment in segments if type(segment) is kind]
        is_kind = np.array([type(segment) is kind for segment in segments])
        here = slice(None) if len(chosen) == len(segments) else np.repeat(is_kind, counts)
        columns = {
            # A length is only divided by, and may be more than an integer of numpy's holds.
            name: np.array([getattr(segment, name) for segment in chosen], np.float64 if name == "length" else None)
            for name in kind.evaluated
        }
        repeats = np.array(counts)[is_kind]
        segment = replace(chosen[0], **{name: np.repeat(column, repeats) for name, column in columns.items()})
        shares[here] = segment.share(steps[here], np.cos)
    return shares


def _listed(cycles: Any) -> tuple[tuple[int, float], ...]:
    """Listed cycles as pairs of their steps and the share of the base rate at which they peak, checked."""
    if isinstance(cycles, (str, bytes)) or not isinstance(cycles, Sequence):
        raise TypeError(
            f"Expected cycles to be a list of steps, or of pairs of steps and the share of the base rate, but got "
            f"cycles={cycles!r} of type {type(cycles).__name__}"
        )
    if not cycles:
        raise ValueError(f"Expected cycles to list at least one cycle, but got cycles={cycles!r}")
    pairs = []
    for index, cycle in enumerate(cycles):
        pair = cycle if isinstance(cycle, Sequence) and not isinstance(cycle, str) else (cycle, 1)
        if len(pair) != 2:
            raise ValueError(
                f"Expected cycles[{index}] to be its steps, or its steps and its share of the base rate, but got "
                f"cycles[{index}]={cycle!r}"
            )
        steps = whole_number(f"cycles[{index}]", pair[0], (">=", 1), ("<=", MOST_STEPS))
        pairs.append((steps, real_number(f"the share of cycles[{index}]", pair[1], (">", 0))))
    return tuple(pairs)
