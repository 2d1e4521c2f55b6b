"""The learning rates that a run logged, compared with a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import chain, pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmcos.checks import whole_number
from hf_warmcos.logs import read_log
from hf_warmcos.schedule import CosineRestartSchedule

if TYPE_CHECKING:
    import numpy as np

MOST_LOGGING_STEPS = 1000  # are tried where a log does not say how many steps lie between its entries
MOST_SKIPPED = 10_000  # updates


class PastRun(NamedTuple):
    """The learning rates that a run logged.

    Attributes:
        path: The file they come from; with several parameter groups, also the group's name in it.
        steps: The steps at which they were logged, in ascending order. Where the log has none, 1, 2, 3, …
        rates: The learning rate logged at each.
        max_steps: How many steps the run was planned to have, if the log says so.
        multiples: The learning rates of the parameter groups that are equal up to a factor, as multiples of `rates`.
        counts: If the steps may be no updates: how many logging intervals each entry is from the start, by the order of
            the entries; then, if the log has epochs but no steps, the same by those.
        has_steps: Whether the log has steps.
        logging_steps: How many steps lie between two entries, if the caller knows.
    """

    path: str
    steps: list[int]
    rates: list[float]
    max_steps: int | None = None
    multiples: Sequence[float] = (1.0,)
    counts: Sequence[Sequence[float]] = ()
    has_steps: bool = True
    logging_steps: int | None = None

    @classmethod
    def read(cls, path: str, logging_steps: int | None = None) -> list[PastRun]:
        """Read what a Trainer, an experiment tracker or a training loop logged.

        A log has a column (in JSON, a key) whose name ends in `learning_rate` or `lr`, or is `Value`, or one that
        Lightning names, as `lr-AdamW`. Of several that count steps, `global_step` and `current_steps` come before
        `step`. Entries without a learning rate, such as those of evaluations, are left out.

        Args:
            path (`str`): An output folder or a checkpoint; a `trainer_state.json`; a log as CSV, JSON or JSON lines;
                what a Trainer printed; an event file of TensorBoard or a folder of them, if it is installed.
            logging_steps (`int`, *optional*): How many steps lie between two entries, for a log that has no steps or
                that numbers its entries instead.

        Returns:
            `list[PastRun]`: The run, once for each parameter group. Groups that are equal up to a factor are one.

        Raises:
            OSError, TypeError, ValueError: If the file cannot be read or logs no learning rate, which a message with
                the name of the file says, or if `logging_steps` is not a whole number above 0.
        """
        if logging_steps is not None:
            logging_steps = whole_number("logging_steps", logging_steps, (">=", 1))
        file, columns = read_log(path)
        runs: dict[str, PastRun] = {}
        for column in columns:
            order = [*range(1, len(column.rates) + 1)]
            steps = order if column.steps is None else column.steps
            for name, run in runs.items():
                multiple = _multiple(column.rates, run.rates) if steps == run.steps else None
                if multiple is not None:
                    runs[name] = run._replace(multiples=[*run.multiples, multiple])
                    break
            else:
                # A tracker numbers the calls of log() from 0. The first may be an evaluation.
                counts = [] if column.counts_updates or steps[0] > 1 else [order, *_intervals(column.epochs)]
                has_steps = column.steps is not None
                new = cls(str(file), steps, column.rates, column.max_steps, [1.0], counts, has_steps, logging_steps)
                runs[column.name] = new
        if len(runs) == 1:
            return [*runs.values()]
        return [run._replace(path=f"{file}, {name}") for name, run in runs.items()]

    def compare(self, schedule: CosineRestartSchedule, base_lr: float = 1.0) -> Comparison:
        """Compare each logged learning rate with the schedule's.

        A log does not say everything about its steps. Of the ways to read them, the first counts with which all
        learning rates are the schedule's, else the one that agrees with the schedule for longest:

        - Update n uses the learning rate of step n - 1, and a Trainer logs it as step n. Up to transformers 4.50, in
          loops that log after `scheduler.step()`, and with Lightning, step n has the learning rate of step n.
        - If the log has no steps, or steps that may number the calls of a tracker's `log()`, evaluations included, the
          entries are `logging_steps` apart. Where it is not given, it is 1, or else what the learning rates say.
        - Some updates were skipped, as mixed precision does. The schedule does not count them.

        What a log was rounded to is no difference.

        Args:
            schedule ([`CosineRestartSchedule`]): The schedule.
            base_lr (`float`, *optional*): As in [`CosineRestartSchedule.lr_at`].

        Returns:
            [`Comparison`]: The schedule's learning rate beside each logged one.

        Example:

        ```python
        >>> run = PastRun("metrics.jsonl", steps=[1, 2, 3], rates=[0.8, 0.4, 0.8])
        >>> run.compare(CosineRestartSchedule(T_0=2, decay=0.5), base_lr=0.8).first_difference
        2

        ```
        """
        import numpy as np

        rates, slack = np.array(self.rates), _slack(self.rates)
        some = np.unique(np.linspace(0, rates.size - 1, 16).astype(int))  # tell most readings that do not fit

        def planned(reading: _Reading, entries: Any = slice(None)) -> np.ndarray:
            return schedule.curve(reading.positions[entries], base_lr)

        def agreeing(reading: _Reading, factor: float = 1.0, entries: Any = slice(None), rounded: int = 1) -> int:
            """How many of the entries, from the first on, are the schedule's learning rate times this factor."""
            difference = np.abs(rates[entries] - planned(reading, entries) * factor)
            differing = np.flatnonzero(difference > rounded * slack[entries] + 1e-9 * base_lr * factor)
            return int(differing[0]) if differing.size else difference.size

        def fits(reading: _Reading, factor: float, rounded: int = 1) -> bool:
            """Whether all do, with a factor that was computed from how many rounded learning rates."""
            parts = (some, slice(None))
            return all(agreeing(reading, factor, each, rounded) == rates[each].size for each in parts)

        def result(reading: _Reading, factor: float | None, group: float = 1.0) -> Comparison:
            lists = (rates / group).tolist(), planned(reading).tolist()
            return Comparison(self, reading, *lists, base_lr, factor, agreeing(reading, group))

        end = MOST_LOGGING_STEPS if schedule.end is None else schedule.end // max(1, rates.size - 1)
        # Two learning rates are those of some steps of most schedules.
        most_logging_steps = max(1, min(MOST_LOGGING_STEPS, end)) if np.unique(rates).size > 2 else 1
        groups = [1 / multiple for multiple in self.multiples if multiple > 0]
        for reading in self._readings(most_logging_steps):
            for group in groups:
                if fits(reading, group):
                    return result(reading, 1.0, group)
        for reading in self._readings(1):
            for group in groups:
                rate_at = partial(schedule.lr_at, base_lr=base_lr)
                late = reading.after_skips(rates / group, slack / group + 1e-9 * base_lr, rate_at)
                if late is not None:
                    return result(late, 1.0, group)
        for reading in self._readings(most_logging_steps):
            factor = rates.max() / (planned(reading).max() or np.inf)
            # A single learning rate is any other times some factor.
            if factor > 0 and fits(reading, factor, 2) and len({*planned(reading).tolist()} - {0.0}) > 1:
                return result(reading, float(factor))
        return result(max(self._readings(1), key=agreeing), None)

    def _readings(self, most_logging_steps: int) -> Iterator[_Reading]:
        """Yield each way to read the steps, the plainest first."""
        import numpy as np

        def reading(steps: Any, late: int, every: int | None = None) -> Iterator[_Reading]:
            rounded = np.rint(steps).astype(np.int64)
            if rounded[0] >= late:
                yield _Reading(rounded, late, rounded - late, every)

        if self.has_steps:
            yield from chain(reading(self.steps, 1), reading(self.steps, 0))
        # Calls of log() are one apart but for the evaluations. Where they are not, an entry may come from many steps.
        least = 1 if 2 * np.count_nonzero(np.diff(self.steps) == 1) >= len(self.steps) - 1 else 2
        for every in [self.logging_steps] if self.logging_steps else range(least, most_logging_steps + 1):
            # A scheduler that steps too often must not pass for rare logging: without the user's word for it, the
            # learning rates have to be those of a Trainer's log.
            lates = (1, 0, every) if self.logging_steps else (1, 0) if every == 1 else (1,)
            for count, late in product(self.counts, lates):
                yield from reading(np.array(count) * every, late, every)


class _Reading(NamedTuple):
    """One way to read the steps of a log.

    Attributes:
        steps: The step of each entry.
        late: How many steps of the schedule the learning rate of an entry is behind.
        positions: The step of the schedule that the learning rate of each entry belongs to.
        every: How many steps are taken to lie between two entries; None where the log's own steps count.
        skipped: How many updates were skipped before each entry.
    """

    steps: np.ndarray
    late: int
    positions: np.ndarray
    every: int | None = None
    skipped: Sequence[int] = ()

    def after_skips(self, rates: np.ndarray, slack: np.ndarray, lr_at: Callable[[int], float]) -> _Reading | None:
        """The same with the fewest skipped updates that explain all learning rates; None if nothing does.

        Mixed precision skips few: a third of the intervals and half of the updates at most. A scheduler that steps at
        every second update, or another length of the cycles, is no skipping. The last one must show: no step beside
        its own may have the learning rate of some entry after it.
        """
        skipped, before, found, shows = 0, 0, [0], False
        for position, rate, allowed in zip(self.positions.tolist(), rates.tolist(), slack.tolist()):
            most = min(skipped + position - before, MOST_SKIPPED, position)
            count = next((n for n in range(skipped, most + 1) if abs(rate - lr_at(position - n)) <= allowed), None)
            if count is None:
                return None
            beside = (max(0, position - count - 1), position - count + 1)
            shows = (shows and count == skipped) or all(abs(rate - lr_at(each)) > allowed for each in beside)
            skipped, before = count, position
            found.append(count)
        intervals = sum(count > previous for previous, count in pairwise(found))
        if not shows or 3 * intervals > len(found) - 1 or 2 * skipped >= before - 1:
            return None
        return self._replace(positions=self.positions - found[1:], skipped=found[1:])


class Comparison(NamedTuple):
    """A past run beside a schedule.

    Attributes:
        run: The run.
        reading: How its steps were read.
        logged: The logged learning rates.
        planned: The schedule's learning rates.
        base_lr: The initial learning rate that the schedule was evaluated for.
        factor: The factor from the schedule to the logged learning rates: 1.0 where all are the same, None where none
            is.
        first_difference: The index of the first logged learning rate that is not the schedule's; their number where all
            are.
    """

    run: PastRun
    reading: _Reading
    logged: list[float]
    planned: list[float]
    base_lr: float
    factor: float | None
    first_difference: int

    @property
    def positions(self) -> list[int]:
        """The step of the schedule that each logged learning rate belongs to."""
        return self.reading.positions.tolist()

    @property
    def verdict(self) -> str:
        """Whether the logged learning rates are the schedule's, or the first step at which they differ."""
        steps, positions = self.reading.steps, self.positions
        if self.factor is None:
            index = self.first_difference
            where = f"logged step {steps[index]} (step {positions[index]} of the schedule)"
            what = f"logged {self.logged[index]}, planned {self.planned[index]}"
            return f"{self.run.path}: differs from the schedule at {where}: {what}{self._advice}"
        groups = f" of {len(self.run.multiples)} parameter groups" * (len(self.run.multiples) > 1)
        rates = f"{len(steps)} logged learning rates{groups} (steps {steps[0]} to {steps[-1]}"
        rates += "; step k has the learning rate after k updates)" if self.reading.late == 0 else ")"
        verdict = f"{self.run.path}: all {rates} match the schedule"
        if self.factor != 1:
            verdict += f" times {self.factor:.6g}: did you mean --lr {self.base_lr * self.factor:.6g}?"
        if self.reading.skipped:
            verdict += f", with {self._skips}"
        return verdict if self.reading.every is None else f"{verdict} ({self._numbering})"

    @property
    def _skips(self) -> str:
        """How many updates were skipped, and where the log shows it."""
        counts = [0, *self.reading.skipped]
        steps = [step for step, before, count in zip(self.reading.steps, counts, counts[1:]) if count > before]
        shown = ", ".join(map(str, steps[:5])) + ", …" * (len(steps) > 5)
        return f"{counts[-1]} skipped update{'s' * (counts[-1] > 1)}, as in mixed precision (seen at step {shown})"

    @property
    def _numbering(self) -> str:
        own = "number the calls of log(), not the updates" if self.run.has_steps else "are not in the log"
        every = "each step" if self.reading.every == 1 else f"every {self.reading.every} steps"
        return f"the steps {own}; read as one entry at {every}"

    @property
    def _advice(self) -> str:
        """What to do if the steps of the log are no steps."""
        if not self.run.has_steps:
            return f" ({self._numbering}; --logging_steps says otherwise)"
        if not self.run.counts or all(after - before == 1 for before, after in pairwise(self.run.steps)):
            return ""
        return (
            ". If the steps of the log number the calls of log(), evaluations included, export the column global_step "
            "with the learning rates, or give --logging_steps"
        )


def _slack(rates: Sequence[float]) -> np.ndarray:
    """How far each learning rate may be from the true one: a log is rounded to some digits or decimal places.

    Four significant digits are the fewest that a Trainer prints, and eight decimal places the fewest of ms-swift. What
    has more may still be in single precision.
    """
    import numpy as np

    numbers = [Decimal(repr(rate)).normalize().as_tuple() for rate in rates]
    digits = max(4, *(len(number.digits) for number in numbers))
    places = max(8, *(-int(number.exponent) for number in numbers))
    values = np.abs(np.array(rates))
    last_digit = 10.0 ** (np.floor(np.log10(values, where=values > 0, out=np.zeros(values.shape))) - digits + 1)
    return np.maximum(np.maximum(last_digit * (values > 0), 10.0**-places) * 0.5001, 1e-6 * values)


def _multiple(rates: Sequence[float], of: Sequence[float]) -> float | None:
    """The factor from some learning rates to others, None if there is none."""
    import numpy as np

    if not any(of):
        return None if any(rates) else 1.0
    factor = max(rates) / max(of)
    allowed = _slack(rates) + _slack(of) * factor
    return factor if (np.abs(np.array(rates) - np.array(of) * factor) <= 2 * allowed).all() else None


def _intervals(epochs: Sequence[float] | None) -> list[list[float]]:
    """How many logging intervals each epoch is from the start, if they ascend."""
    import numpy as np

    gaps = np.diff(epochs or [])
    return [(np.array(epochs) / np.median(gaps)).tolist()] if gaps.size and (gaps > 0).all() else []
