"""The schedule: the learning rate as a function of the step. No torch, no optimizer, no I/O.

A step lies in one cycle, and each cycle has one `Arc`. The learning rate of a parameter group at a step is::

    of_floor, of_span = arc.fractions_at(step)  # the same for all parameter groups
    floor, span = arc.floor_and_span(base_lr)  # the same for all steps of the cycle
    learning_rate = of_floor * floor + of_span * span

`lr_at` and `curve` compute it so, and so does the scheduler, which keeps what stays the same. No other formula in the
package makes a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice, pairwise
from math import pi
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_warmcos.checks import MOST_STEPS, argument, learning_rate, minimum, real_number, shown, whole_number
from hf_warmcos.cycles import (
    EXACT,
    Cycle,
    GeometricCycles,
    ListedCycle,
    ListedCycles,
    Shape,
    check_number,
    geometric_sum,
    read_cycles,
)

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

WARMUP_MODES = ("overlap", "prefix", "every_cycle")
Cycles: TypeAlias = Sequence[int | Sequence[float] | Mapping[str, float]]  # listed, as the argument `cycles`


def _clip(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


@dataclass(frozen=True, slots=True)
class Arc:
    r"""The learning rate through one cycle: a linear rise, a plateau at the peak, half a cosine down to the minimum.

    The floor is the learning rate at the end of the cycle, and the span is how far above it the cycle peaks. With
    :math:`clip(x) = \min(\max(x, 0), 1)`:

    .. math::
        risen(t) &= clip((t - rise\_start) / rise) \\
        fall(t) &= (1 + \cos(\pi \, clip((t - fall\_start) / fall))) / 2 \\
        lr(t) &= (f + (1 - f) \, risen(t)) \cdot floor + (r + (1 - r) \, risen(t)) \cdot fall(t) \cdot span

    where f is `floor_from` and r is `span_from`. The warmup of ``"overlap"`` and ``"prefix"`` starts at step 0, and f
    and r are `warmup_lr_rate`. A cycle's own warmup starts with the cycle, and f is 1. The arcs of a schedule follow
    one another without a gap: the first one also holds before its cycle, and the last one after it.

    Attributes:
        cycle: The cycle.
        peak: The fraction of the initial learning rate at which it peaks.
        start, stop: The steps ``start <= step < stop`` at which the arc holds, from minus to plus infinity.
        rise_start, rise: Where the warmup starts, and its steps; `rise` is 0 in a cycle that the warmup does not reach.
        floor_from, span_from: The fractions of the floor and of the span at which the warmup starts; 1 where it leaves
            them alone.
        fall_start, fall: Where the cosine starts, and its steps.
        eta_min, eta_min_rate: The floor, as a learning rate and as a fraction of the initial one; one of them is 0.

    Example:

    ```python
    >>> arc = CosineRestartSchedule(T_0=10, T_mult=2, stable_ratio=0.5).arc_at(12)
    >>> arc.start, arc.fall_start, arc.fall, arc.stop
    (10, 20, 10, 30)
    >>> [arc.fractions_at(step) for step in (10, 20, 25)]
    [(1.0, 1.0), (1.0, 1.0), (1.0, 0.5)]

    ```
    """

    cycle: Cycle
    peak: float
    start: float
    stop: float
    rise_start: int
    rise: int
    floor_from: float
    span_from: float
    fall_start: int
    fall: int
    eta_min: float
    eta_min_rate: float

    def fractions_at(self, step: Any, cos: Callable = math.cos, clip: Callable | None = None) -> tuple[Any, Any]:
        """The fractions of the floor and of the span that make the learning rate at a step.

        For arrays, as in [`CosineRestartSchedule.curve`], pass numpy's `cos` and `clip`.
        """
        fallen, fall = step - self.fall_start, self.fall
        if clip:
            fallen = clip(fallen, 0, fall)
        elif fallen < 0:  # on the plateau, or before it
            fallen = 0
        elif fallen > fall:
            fallen = fall
        of_span = (1 + cos(pi * fallen / fall)) / 2
        if not clip and (not self.rise or step >= self.rise_start + self.rise):  # most steps
            return 1.0, of_span
        risen = (clip or _clip)(step - self.rise_start, 0, self.rise) / self.rise
        return (
            self.floor_from + (1 - self.floor_from) * risen,
            (self.span_from + (1 - self.span_from) * risen) * of_span,
        )

    def floor_and_span(self, base_lr: float) -> tuple[float, float]:
        """The learning rate at the end of the cycle, and how far above it the cycle peaks: 0 where the decay would take
        the peak below it, and negative only where the initial learning rate is below it."""
        floor = self.eta_min + base_lr * self.eta_min_rate
        return floor, max(base_lr * self.peak, min(base_lr, floor)) - floor

    def lr_at(self, step: float, base_lr: float) -> float:
        """The learning rate at a step of this arc."""
        of_floor, of_span = self.fractions_at(step)
        floor, span = self.floor_and_span(base_lr)
        return of_floor * floor + of_span * span

    @property
    def corners(self) -> set[float]:
        """The steps at which one part of the formula ends and another begins, infinite ones aside."""
        parts = {self.start, self.stop, self.rise_start + self.rise, self.fall_start, self.fall_start + self.fall}
        return {step for step in parts if self.start <= step <= self.stop and math.isfinite(step)}


@dataclass(frozen=True)
class CosineRestartSchedule:
    r"""Cosine annealing with warm restarts, a decaying peak and one linear warmup, as a function of the step.

    Cycle k starts :math:`\mathrm{round}(T_0 (T_{mult}^k - 1) / (T_{mult} - 1))` steps after the start of cycle 0
    (:math:`\mathrm{round}(T_0 k)` where `T_mult` is 1). In a cycle of :math:`T_k` steps, after w steps of a warmup of
    its own, the learning rate stays at the peak for :math:`h_k` steps, and the cosine takes the rest. At step t, which
    is step :math:`\tau` of its cycle:

    .. math::
        h_k &= \min(\mathrm{round}(stable\_ratio \cdot (T_k - w)), T_k - w - 1) \\
        peak_k &= \max(base\_lr \cdot decay^k, \min(base\_lr, \eta_{min})) \\
        lr(t) &= warm(t) \cdot \left(\eta_{min} + (peak_k - \eta_{min})
            \frac{1 + \cos(\pi \max(0, \tau - w - h_k) / (T_k - w - h_k))}{2}\right)

    `warmup_mode` says where the warmup of W steps lies. With r for `warmup_lr_rate`:

    - ``"overlap"``: cycle 0 starts at step 0, and ``warm(t) = r + (1 - r) * min(1, t / W)`` scales the cosine under it.
    - ``"prefix"``: cycle 0 starts at step W; before it the learning rate is ``peak_0 * (r + (1 - r) * t / W)``.
    - ``"every_cycle"``: w = W; over these steps the learning rate of each cycle rises linearly to its peak,
      ``eta_min + (peak_k - eta_min) * (r + (1 - r) * tau / w)``.

    Everywhere else w is 0 and warm(t) is 1. Listed `cycles` give each length :math:`T_k` and the fraction of
    ``base_lr`` that stands for :math:`decay^k`, and, where a cycle is to differ from the schedule, its w (over which it
    rises as under ``"every_cycle"``) and its `stable_ratio`.

    The minimum :math:`\eta_{min}` is `eta_min`, or ``base_lr * eta_min_rate``.

    Restarts lie on whole steps, by exact arithmetic. A step is one optimizer update. Steps are counted up to 2**63 - 1,
    as in torch's and numpy's integers.

    Args:
        T_0 (`float`, *optional*): Length of the first cycle, in steps; at least one step. It need not be whole.
        T_mult (`float`, *optional*, defaults to 1): Factor on the length at each restart, > 0. Below 1 the cycles
            get shorter, and `num_cycles` has to say where they end.
        decay (`float`, *optional*, defaults to 1.0): Factor on the peak at each restart, 0 < decay <= 1.
        warmup_steps (`int`, *optional*, defaults to 0): Length W of the warmup, in steps.
        warmup_mode (`str`, *optional*, defaults to `"overlap"`): `"overlap"`, `"prefix"` or `"every_cycle"`.
        num_cycles (`int`, *optional*): The number of cycles, after which the learning rate stays at `eta_min`. Without
            it the restarts never end.
        warmup_lr_rate (`float`, *optional*, defaults to 0.0): Fraction of the learning rate at which the warmup starts,
            0 <= warmup_lr_rate <= 1.
        stable_ratio (`float`, *optional*, defaults to 0.0): Fraction of each cycle's steps, its own warmup aside, at
            which the learning rate stays at the peak before it anneals, 0 <= stable_ratio < 1.
        cycles (`list`, *optional*): The cycles one by one, in place of `T_0`, `T_mult`, `num_cycles` and `decay`: for
            each its steps, a pair of its steps and its peak, or a dict of `"steps"` and any of `"peak"`, the fraction
            of the initial learning rate at which it peaks (> 0, by default 1), `"warmup_steps"`, the steps at its start
            that rise from the minimum to its peak (by default those of the schedule under `"every_cycle"`, otherwise
            0), and `"stable_ratio"` (by default that of the schedule). After the last one the learning rate stays at
            the minimum. The attribute holds pairs, and a tuple of all four for a cycle with a shape of its own.
        eta_min (`float`, *optional*, defaults to 0.0): The minimum: the learning rate at the end of each cycle, >= 0.
        eta_min_rate (`float`, *optional*): In place of `eta_min`: the minimum as a fraction of the initial learning
            rate, between 0 and 1.

    Raises:
        TypeError: If an argument is not a number (or, for `cycles`, not such a list).
        ValueError: If an argument is out of its range, if both or none of `T_0` and `cycles` are given, if both
            `eta_min` and `eta_min_rate` are, if a cycle would have no step, if the warmup is longer than training or
            than a cycle that has to hold it, or if it reaches a cycle with a warmup of its own.

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
    >>> schedule = CosineRestartSchedule(cycles=[10, {"steps": 20, "peak": 0.5, "warmup_steps": 4}], eta_min_rate=0.1)
    >>> [round(schedule.lr_at(step), 3) for step in (0, 10, 12, 14, 30)]
    [1.0, 0.1, 0.3, 0.5, 0.1]

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
    cycles: Cycles | None = None
    eta_min: float = 0.0
    eta_min_rate: float | None = None

    def __post_init__(self) -> None:
        optional = [name for name in ("T_0", "num_cycles") if getattr(self, name) is not None]
        names = ["T_mult", "decay", "warmup_steps", "warmup_lr_rate", "stable_ratio", *optional]
        checked = {name: argument(name, getattr(self, name)) for name in names}
        checked["eta_min"], checked["eta_min_rate"] = minimum(self.eta_min, self.eta_min_rate)
        if not isinstance(self.warmup_mode, str) or self.warmup_mode not in WARMUP_MODES:
            known, came = ", ".join(WARMUP_MODES), shown(self.warmup_mode)
            raise ValueError(f"Expected warmup_mode to be one of {known}, but got warmup_mode={came}")
        if self.cycles is not None:
            for name, default in {"T_0": None, "T_mult": 1, "decay": 1, "num_cycles": None}.items():
                if (value := checked.get(name)) != default:
                    came = f"cycles={shown(self.cycles)} and {name}={value}"
                    raise ValueError(f"Expected cycles in place of {name}, but got {came}")
            own = checked["warmup_steps"] if self.warmup_mode == "every_cycle" else 0
            listed = read_cycles(self.cycles, Shape(1, own, checked["stable_ratio"]))
            checked["cycles"] = tuple(
                cycle[:2] if cycle[2:] == (own, checked["stable_ratio"]) else cycle for cycle in listed
            )
        elif self.T_0 is None:
            raise ValueError("Expected one of T_0 and cycles, but got T_0=None and cycles=None")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.T_mult < 1 and self.num_cycles is None:
            raise ValueError(f"Expected num_cycles with T_mult < 1, but got T_mult={self.T_mult} and num_cycles=None")
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Check that each cycle has a step beside its warmup, and that the warmup ends."""
        cycles = self._sequence
        if isinstance(cycles, GeometricCycles):
            if (index := cycles.first_shorter_than(1)) is not None:
                came = f"T_0={self.T_0} and T_mult={self.T_mult}, which give cycle {index} none"
                raise ValueError(f"Expected T_0 and T_mult that give each cycle at least one step, but got {came}")
            if (index := cycles.first_shorter_than(1 + cycles.warmup_steps)) is not None:
                length = cycles.start(index + 1) - cycles.start(index)
                limit = f"{length}, the steps of cycle {index}, which has to hold the warmup"
                raise ValueError(f"Expected warmup_steps < {limit}, but got warmup_steps={self.warmup_steps}")
        elif self.warmup_steps:
            for index in range(cycles.count):
                if not self._warmup_reaches(index, self.origin + cycles.start(index)):
                    break
                if own := cycles.shape(index).warmup_steps:
                    limit = f"0, because the warmup of {self.warmup_steps} steps reaches this cycle"
                    of = f'cycles[{index}]["warmup_steps"]'
                    raise ValueError(f"Expected {of} to be {limit}, but got {of}={own}")
        if self.end is not None and self.warmup_steps > self.end:
            limit = f"{self.end}, the steps of all {cycles.count} cycles"
            raise ValueError(f"Expected warmup_steps <= {limit}, but got warmup_steps={self.warmup_steps}")

    # Where the cycles lie.

    @cached_property
    def _sequence(self) -> GeometricCycles | ListedCycles:
        own = Shape(1, self.warmup_steps if self.warmup_mode == "every_cycle" else 0, self.stable_ratio)
        if self.cycles is None:
            assert self.T_0 is not None
            return GeometricCycles(self.T_0, self.T_mult, self.num_cycles, self.decay, *own[1:])
        return ListedCycles([ListedCycle(*cycle, *own[len(cycle) - 1 :]) for cycle in self.cycles])  # type: ignore

    def _warmup_reaches(self, index: int, start: int) -> bool:
        """Whether the schedule's one warmup reaches a cycle that starts there."""
        return self.warmup_mode != "every_cycle" and (index == 0 or start < self.warmup_steps)

    @cached_property
    def origin(self) -> int:
        """The step at which cycle 0 starts."""
        return self.warmup_steps if self.warmup_mode == "prefix" else 0

    @cached_property
    def end(self) -> int | None:
        """The step at which the last cycle ends, or None where that is beyond all steps: where restarts never end."""
        count = self._sequence.count
        end = None if count is None else self.origin + self._sequence.start(count)
        return None if end is None or end > MOST_STEPS else end

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
        last = self._sequence.index_at(MOST_STEPS)
        return next(self._arcs(whole_number("index", index, (">=", 0), ("<=", last)))).cycle

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
        return self.arc_at(step).cycle

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
        last = self.cycle_at(max(0, num_steps - 1)).index
        return [self.origin + start for start in islice(self._sequence.starts(1), last)]

    # What the learning rate is there.

    def arc_at(self, step: float) -> Arc:
        """Return the arc that holds at a step.

        Args:
            step (`float`): The step, >= 0, whole or fractional.

        Raises:
            TypeError, ValueError: If `step` is not a number >= 0.

        Example:

        ```python
        >>> arc = CosineRestartSchedule(T_0=10, decay=0.5, num_cycles=2).arc_at(15)
        >>> arc.cycle, arc.peak, arc.start, arc.stop
        (Cycle(index=1, start=10, length=10), 0.5, 10, inf)

        ```
        """
        return next(self._arcs(self._index_at(real_number("step", step, (">=", 0), ("<=", MOST_STEPS)))))

    def _index_at(self, step: float) -> int:
        return self._sequence.index_at(max(0, step - self.origin))

    def _arcs(self, index: int) -> Iterator[Arc]:
        """The arcs of a cycle and of those after it."""
        cycles = self._sequence
        for each, (start, after) in zip(count(index), pairwise(cycles.starts(index))):
            cycle = Cycle(each, self.origin + start, after - start)
            peak, own, stable_ratio = cycles.shape(each)
            stable = min(round(stable_ratio * (cycle.length - own)), cycle.length - own - 1)
            rise = own or (self.warmup_steps if self._warmup_reaches(each, cycle.start) else 0)
            yield Arc(
                cycle,
                peak=peak,
                start=cycle.start if each else -math.inf,
                stop=math.inf if each + 1 == cycles.count else cycle.end,
                rise_start=cycle.start if own else 0,
                rise=rise,
                floor_from=self.warmup_lr_rate if rise and not own else 1.0,
                span_from=self.warmup_lr_rate if rise else 1.0,
                # A later fall begins at no step that can be counted; this one fits into numpy's integers.
                fall_start=min(cycle.start + own + stable, MOST_STEPS),
                fall=cycle.length - own - stable,
                eta_min=self.eta_min,
                eta_min_rate=self.eta_min_rate or 0.0,
            )

    def minimum(self, base_lr: float = 1.0) -> float:
        """Return the learning rate at the end of each cycle: `eta_min`, or `base_lr * eta_min_rate`.

        Args:
            base_lr (`float`, *optional*, defaults to 1.0): The initial learning rate: the optimizer's `lr`.

        Raises:
            TypeError, ValueError: If `base_lr` is not a number.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=10, eta_min_rate=0.1).minimum(base_lr=0.5)
        0.05

        ```
        """
        return self.arc_at(0).floor_and_span(learning_rate("base_lr", base_lr))[0]

    def peak_lr(self, index: int, base_lr: float = 1.0) -> float:
        """Return the highest learning rate that a cycle aims at: `base_lr * decay**index`, but not below the minimum.
        If `base_lr` is below the minimum, it is `base_lr`.

        Args:
            index (`int`): Which cycle, counted from 0.
            base_lr (`float`, *optional*, defaults to 1.0): The initial learning rate: the optimizer's `lr`.

        Raises:
            TypeError, ValueError: If an argument is not a number, or if there is no such cycle.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=10, decay=0.5).peak_lr(3, base_lr=0.8)
        0.1
        >>> CosineRestartSchedule(cycles=[10, [20, 0.25]]).peak_lr(1, base_lr=0.8)
        0.2

        ```
        """
        return sum(self.arc_at(self.cycle(index).start).floor_and_span(learning_rate("base_lr", base_lr)))

    def lr_at(self, step: float, base_lr: float = 1.0) -> float:
        """Return the learning rate at a step, by the formula of the class.

        Args:
            step (`float`): The step, >= 0, whole or fractional. Update k, counted from 1, uses that of step k - 1.
            base_lr (`float`, *optional*, defaults to 1.0): The initial learning rate: the optimizer's `lr`.

        Raises:
            TypeError, ValueError: If an argument is not a number or `step` is negative.

        Example:

        ```python
        >>> schedule = CosineRestartSchedule(T_0=100, decay=0.75, warmup_steps=10)
        >>> schedule.lr_at(0), schedule.lr_at(50, base_lr=2.0), schedule.lr_at(100)
        (0.0, 1.0, 0.75)

        ```
        """
        return self.arc_at(step).lr_at(real_number("step", step), learning_rate("base_lr", base_lr))

    def curve(self, steps: Any, base_lr: float = 1.0) -> np.ndarray:
        """Return the learning rate at many steps at once: `lr_at`, vectorised.

        Args:
            steps (`int`, `range` or array of `float`): A number of steps n, for the steps 0 … n - 1, or the steps
                themselves, in any order.
            base_lr (`float`, *optional*, defaults to 1.0): As in `lr_at`.

        Returns:
            `np.ndarray`: The learning rates, in the shape of the steps.

        Raises:
            TypeError, ValueError: If an argument is not a number (or array of numbers) or a step is negative.

        Example:

        ```python
        >>> CosineRestartSchedule(T_0=2, decay=0.5).curve(5, base_lr=8.0).tolist()
        [8.0, 4.0, 4.0, 2.0, 2.0]

        ```
        """
        import numpy as np

        base_lr, positions = learning_rate("base_lr", base_lr), _checked_steps(steps)
        lrs = np.empty(positions.shape)
        if positions.dtype.kind == "f":  # whole steps are exact as integers, fractional ones as floats
            for some, kind in ((positions % 1 == 0, np.int64), (positions % 1 != 0, np.float64)):
                lrs[some] = self._lrs_at(positions[some].astype(kind), base_lr)
        else:
            lrs[...] = self._lrs_at(positions.ravel(), base_lr).reshape(positions.shape)
        return lrs

    def _lrs_at(self, steps: np.ndarray, base_lr: float) -> np.ndarray:
        """The learning rate at each of the steps, of a one-dimensional array."""
        import numpy as np

        if not len(steps):
            return np.empty(0)
        order = np.argsort(steps, kind="stable")
        ascending, begins, parts = steps[order], [], []
        arcs: Iterator[Arc] = iter(())
        begin = 0
        while begin < len(ascending):
            step = ascending[begin].item()
            arc = next(arcs, None)  # the next one, where no cycle lies between
            if arc is None or step >= arc.stop:
                arc = next(arcs := self._arcs(self._index_at(step)))
            begins.append(begin)
            steps_of_arc = arc.rise_start, max(1, arc.rise), arc.fall_start
            parts.append((*steps_of_arc, arc.fall, arc.floor_from, arc.span_from, *arc.floor_and_span(base_lr)))
            begin = int(ascending.searchsorted(arc.stop)) if arc.stop <= MOST_STEPS else len(ascending)
        counts = np.diff([*begins, len(ascending)])
        kinds = [np.int64] * 3 + [np.float64] * 5  # a cycle can be longer than numpy's integers
        of_each: Any = [  # what is the same in all arcs stays one number
            kind(part[0]) if len({*part}) == 1 else np.repeat(np.array(part, kind), counts)
            for part, kind in zip(zip(*parts), kinds)
        ]
        rise_start, rise, fall_start, fall, floor_from, span_from, floor, span = of_each
        falls, froms = {"fall_start": fall_start, "fall": fall}, {"floor_from": floor_from, "span_from": span_from}
        all_arcs: Any = replace(arc, rise_start=rise_start, rise=rise, **falls, **froms)  # type: ignore[type-var]
        of_floor, of_span = all_arcs.fractions_at(ascending, np.cos, np.clip)
        lrs = np.empty(len(steps))
        lrs[order] = of_floor * floor + of_span * span
        return lrs

    # How many steps there are.

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
        eta_min: float = 0.0,
        eta_min_rate: float | None = None,
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
            T_mult, decay, warmup_steps, warmup_mode, warmup_lr_rate, stable_ratio, eta_min, eta_min_rate: As in the
                class; but `warmup_mode` defaults to `"prefix"` here, as in the factory.

        Returns:
            [`CosineRestartSchedule`]: The schedule. Its `end` is `num_training_steps`, or one step later where training
            only warms up.

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
        num_training_steps = argument("steps", num_training_steps, "num_training_steps")
        num_cycles, T_mult = argument("num_cycles", num_cycles), argument("T_mult", T_mult)
        warmup_steps = whole_number("warmup_steps", warmup_steps, (">=", 0), ("<=", num_training_steps))
        # Any other mode is checked in the class.
        budget = num_training_steps - (warmup_steps if isinstance(warmup_mode, str) and warmup_mode == "prefix" else 0)
        if only_warms_up := budget == 0:
            budget = num_cycles = 1
        exact_T_0 = EXACT.divide(budget, geometric_sum(T_mult, num_cycles))
        T_0 = int(exact_T_0) if exact_T_0 == int(exact_T_0) else float(exact_T_0)
        if GeometricCycles(T_0, T_mult, num_cycles).first_shorter_than(1) is not None:
            each = f"each cycle at least one of the {budget} steps that are left for cycles"
            raise ValueError(f"Expected num_cycles and T_mult that give {each}, but got {num_cycles=} and {T_mult=}")
        schedule = cls(
            T_0=T_0,
            T_mult=T_mult,
            decay=decay,
            warmup_steps=warmup_steps,
            warmup_mode=warmup_mode,
            num_cycles=num_cycles,
            warmup_lr_rate=warmup_lr_rate,
            stable_ratio=stable_ratio,
            eta_min=eta_min,
            eta_min_rate=eta_min_rate,
        )
        if schedule.end != num_training_steps + only_warms_up:
            came = f"{num_training_steps=}, for which T_0={exact_T_0:.28g} was rounded to {T_0}"
            raise ValueError(f"Expected a num_training_steps whose T_0 a float can hold, but got {came}")
        return schedule

    def extend(
        self,
        num_training_steps: int,
        num_cycles: int = 1,
        *,
        T_mult: float | None = None,
        decay: float | None = None,
        peak: float | None = None,
        warmup_steps: int | None = None,
        stable_ratio: float | None = None,
    ) -> Self:
        r"""Append cycles, to continue training: the schedule stays as it is up to its `end`.

        The new cycles are fitted into the steps from `end` to `num_training_steps`, as in `fit`. With p for the
        fraction of the initial learning rate at which the last cycle so far peaks, the new ones peak at

        .. math::
            p \cdot decay, \; p \cdot decay^2, \; \dots \quad\text{or}\quad peak, \; peak \cdot decay, \; \dots

        Args:
            num_training_steps (`int`): The step at which the last new cycle ends, > `end`.
            num_cycles (`int`, *optional*, defaults to 1): How many cycles to append.
            T_mult (`float`, *optional*): Factor on the length of a new cycle at each restart among them. By default
                the schedule's own, which is 1 where cycles are listed.
            decay (`float`, *optional*): Factor on the peak at each new restart, 0 < decay <= 1, likewise.
            peak (`float`, *optional*): Fraction of the initial learning rate at which the first new cycle peaks, > 0.
            warmup_steps (`int`, *optional*): The steps at the start of each new cycle that rise from the minimum to its
                peak. By default 0, and under `"every_cycle"` the schedule's.
            stable_ratio (`float`, *optional*): `stable_ratio` of the new cycles. By default the schedule's.

        Returns:
            [`CosineRestartSchedule`]: The longer schedule, whose `cycles` are listed.

        Raises:
            TypeError, ValueError: If the restarts never end, if an argument is out of its range, if the cycles do not
                fit, or if there would be more than 100,000 of them.

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
        end, number = self.end, self._sequence.count
        if end is None or number is None:
            raise ValueError(f"Expected cycles that end, to append others to, but got num_cycles={self.num_cycles}")
        T_mult, decay = (self.T_mult if T_mult is None else T_mult), (self.decay if decay is None else decay)
        num_training_steps = whole_number("num_training_steps", num_training_steps, (">", end), ("<=", MOST_STEPS))
        num_cycles = argument("num_cycles", num_cycles)
        check_number(number + num_cycles, f"num_cycles={number} + {num_cycles}")
        past: Any = self.cycles or self._pairs(self._sequence, 1.0)
        added = self.fit(num_training_steps - end, num_cycles, T_mult=T_mult, decay=decay)
        peak = past[-1][1] * added.decay if peak is None else argument("peak", peak)
        shape = {"warmup_steps": warmup_steps, "stable_ratio": stable_ratio}
        own = {name: argument(name, value) for name, value in shape.items() if value is not None}
        new = [{"steps": steps, "peak": of_peak, **own} for steps, of_peak in self._pairs(added._sequence, peak)]
        return replace(self, T_0=None, T_mult=1, decay=1.0, num_cycles=None, cycles=[*past, *new])

    @staticmethod
    def _pairs(cycles: Any, first_peak: float) -> list[tuple[int, float]]:
        """The steps of all cycles, and their peaks times a factor."""
        lengths = [after - start for start, after in islice(pairwise(cycles.starts(0)), cycles.count)]
        return [(length, first_peak * cycles.shape(index).peak) for index, length in enumerate(lengths)]


def _checked_steps(steps: Any) -> np.ndarray:
    """An array of steps, of 64-bit integers or floats."""
    import numpy as np

    try:
        given = steps if isinstance(steps, range) else np.asarray(steps)
    except (TypeError, ValueError, RuntimeError):  # nothing that numpy can make an array of
        given = np.array([None])
    if not isinstance(given, range) and not given.ndim:
        given = range(whole_number("steps", steps, (">=", 0), ("<=", MOST_STEPS)))
    positions = np.arange(given.start, given.stop, given.step) if isinstance(given, range) else given
    kind = positions.dtype.kind
    if positions.size and (kind not in "iuf" or not np.all((positions >= 0) & (positions <= MOST_STEPS))):
        raise ValueError(f"Expected steps to be numbers from 0 to {MOST_STEPS}, but got steps={shown(steps)}")
    if kind == "f":  # as a float the limit is rounded up, which would not fit into an integer
        return np.minimum(positions.astype(np.float64), np.nextafter(2.0**63, 0))
    return positions.astype(np.int64, copy=False)
