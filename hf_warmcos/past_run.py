"""The rates that a run logged, held against a schedule."""

from __future__ import annotations

import json
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule


class PastRun(NamedTuple):
    """The learning rates that a past run logged.

    Attributes:
        path: The file they come from.
        steps: The steps at which they were logged, each the number of updates done by then, in ascending order.
        rates: The rate logged at each.
        is_trainer_state: Whether a Trainer logged them.
    """

    path: str
    steps: list[int]
    rates: list[float]
    is_trainer_state: bool

    @classmethod
    def read(cls, path: str) -> PastRun:
        """Read a Trainer's `trainer_state.json`, or JSON lines with `step` and `learning_rate`.

        Args:
            path (`str`): The file. Entries without a `learning_rate`, such as those of evaluations, are left out.

        Raises:
            OSError, ValueError: If it cannot be read, or logs no learning rate; the message names the file.
        """
        try:
            entries, is_trainer_state = _entries(Path(path).read_text(encoding="utf-8"))
            logged = {
                whole_number("step", entry.get("step"), (">=", 1), ("<=", MOST_STEPS)): float(
                    real_number("learning_rate", entry["learning_rate"])
                )
                for entry in entries
                if isinstance(entry, dict) and entry.get("learning_rate") is not None
            }
            if not logged:
                raise ValueError("no learning_rate is logged")
        except (ValueError, TypeError) as error:  # undecodable bytes too
            raise ValueError(
                f"Expected {path} to be a Trainer's trainer_state.json, or JSON lines with step and learning_rate: "
                f"{error}"
            ) from error
        steps = sorted(logged)
        return cls(path, steps, [logged[step] for step in steps], is_trainer_state)

    def compare(self, schedule: CosineRestartSchedule, base_lr: float = 1.0, eta_min: float = 0.0) -> Comparison:
        """Find the first logged rate that is not the schedule's.

        Update n uses the rate of step n - 1, and today's Trainer logs it. Up to transformers 4.48 it logged after the
        scheduler's step, so the rate of step n. A trainer_state.json does not say which version wrote it, so the
        schedule decides: the reading that agrees with it for longer.

        Args:
            schedule ([`CosineRestartSchedule`]): The schedule.
            base_lr, eta_min (`float`, *optional*): As in [`CosineRestartSchedule.lr_at`].

        Returns:
            [`Comparison`]: What the schedule has for each logged rate, and where they part.

        Example:

        ```python
        >>> run = PastRun("metrics.jsonl", steps=[1, 2, 3], rates=[0.8, 0.4, 0.8], is_trainer_state=False)
        >>> run.compare(CosineRestartSchedule(T_0=2, decay=0.5), base_lr=0.8).first_difference
        2

        ```
        """
        readings = [[step - 1 for step in self.steps], self.steps][: 1 + self.is_trainer_state]
        comparisons = [
            Comparison(self, positions, schedule.curve(positions, base_lr, eta_min).tolist(), base_lr)
            for positions in readings
        ]
        return max(comparisons, key=lambda found: (found.factor is not None, found.first_difference))


class Comparison(NamedTuple):
    """A past run beside a schedule.

    Attributes:
        past_run: The run.
        positions: The step of the schedule that each logged rate belongs to.
        planned: The schedule's rate at each.
        base_lr: The rate that the schedule was evaluated for.
    """

    past_run: PastRun
    positions: list[int]
    planned: list[float]
    base_lr: float

    @property
    def logged(self) -> list[float]:
        """The logged rates."""
        return self.past_run.rates

    @property
    def first_difference(self) -> int:
        """The index of the first rate that is not the schedule's; the number of rates where all are."""
        pairs = zip(self.logged, self.planned)
        return next((index for index, pair in enumerate(pairs) if not self._agree(*pair)), len(self.logged))

    @property
    def factor(self) -> float | None:
        """By what all logged rates are the schedule's, times; None where they are not, or are too few to say so."""
        if self.first_difference == len(self.logged):
            return 1.0
        highest = max(self.planned)
        factor = self.logged[self.planned.index(highest)] / highest if highest else 0.0
        # A single rate is any other times some factor.
        if factor <= 0 or len({*self.planned} - {0.0}) < 2:
            return None
        return factor if all(map(self._agree, [rate / factor for rate in self.logged], self.planned)) else None

    def _agree(self, logged: float, planned: float) -> bool:
        # Logs may hold rates in single precision, or printed with six digits.
        return isclose(logged, planned, rel_tol=1e-5, abs_tol=1e-9 * self.base_lr)

    @property
    def verdict(self) -> str:
        """Whether the logged rates are the schedule's, or the first step at which they part, in a sentence."""
        path, steps, count = self.past_run.path, self.past_run.steps, len(self.logged)
        index, factor = self.first_difference, self.factor
        everything = f"all {count} logged rates (steps {steps[0]} to {steps[-1]}) are the schedule's"
        if index == count:
            return f"{path}: {everything}"
        if factor is not None:
            lr = f"{self.base_lr * factor:.6g}"
            return f"{path}: {everything} times {factor:.6g}: --lr {lr} was probably " + (
                "forgotten" if self.base_lr == 1 else f"meant, not --lr {self.base_lr}"
            )
        return (
            f"{path}: parts from the schedule at logged step {steps[index]} (step {self.positions[index]} of the "
            f"schedule): logged {self.logged[index]}, planned {self.planned[index]}"
        )


def _entries(text: str) -> tuple[list[Any], bool]:
    """What a file logs, entry by entry, and whether a Trainer did."""
    try:
        state = json.loads(text)
    except ValueError:
        state = None
    if isinstance(state, dict) and "log_history" in state:
        if not isinstance(state["log_history"], list):
            raise TypeError(f"Expected log_history to be a list, but got log_history={state['log_history']!r}")
        return state["log_history"], True
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entries.append(json.loads(line.strip() or "null"))
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
    return entries, False
