"""The learning rates that a run logged, compared with a schedule."""

from __future__ import annotations

import csv
import json
from itertools import chain
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule

# The JSON that TensorBoard exports is a list of lists of these values; its CSV has them as columns.
_OF_TENSORBOARD = ("Wall time", "Step", "Value")


class PastRun(NamedTuple):
    """The learning rates that a run logged.

    Attributes:
        path: The file they come from.
        steps: The steps at which they were logged, in ascending order.
        rates: The learning rate logged at each.
        max_steps: How many steps the run was planned to have, if it is a Trainer's and its state says so.
    """

    path: str
    steps: list[int]
    rates: list[float]
    max_steps: int | None = None

    @classmethod
    def read(cls, path: str) -> PastRun:
        """Read what a Trainer, TensorBoard, Weights & Biases or a training loop logged.

        A log has one column (in JSON, a key) whose name ends in `step` and one whose name ends in `learning_rate` or
        `lr`, or is `Value`. Of several, `global_step`, `learning_rate` and `lr` count. Entries without a learning rate,
        such as those of evaluations, are left out.

        Args:
            path (`str`): A checkpoint's folder, a `trainer_state.json`, or a log: a dumped `log_history`, JSON lines,
                or a file that TensorBoard or Weights & Biases exported.

        Raises:
            OSError, ValueError: If the file cannot be read or logs no learning rate. The message names the file.
        """
        file = Path(path, "trainer_state.json") if Path(path).is_dir() else Path(path)
        try:
            entries, max_steps = _entries(file.read_text(encoding="utf-8-sig"))
            names = [*dict.fromkeys(chain.from_iterable(entries))]
            rate, step = _column(names, "learning_rate", "lr", "Value"), _column(names, "global_step", "step", "Step")
            logged = {
                whole_number(step, _number(entry, step), (">=", 0), ("<=", MOST_STEPS)): _number(entry, rate)
                for entry in entries
                if entry.get(rate) not in (None, "")
            }
            if not logged:
                raise ValueError(f"no {rate} is logged")
        except (ValueError, TypeError, RecursionError, csv.Error) as error:  # bytes that are no text: a ValueError
            expected = "a trainer_state.json, or a log as CSV, JSON or JSON lines"
            raise ValueError(f"Expected {file} to be {expected}: {error}") from error
        return cls(str(file), sorted(logged), [logged[step] for step in sorted(logged)], max_steps)

    def compare(self, schedule: CosineRestartSchedule, base_lr: float = 1.0) -> Comparison:
        """Compare each logged learning rate with the schedule's.

        Update n uses the learning rate of step n - 1, and today's Trainer logs it as step n. Up to transformers 4.50,
        and in loops that log after `scheduler.step()`, step n has the learning rate of step n. A log does not say which
        it is, so the reading counts that agrees with the schedule for longer.

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
        found = []
        for late in (1, 0):
            if (positions := [step - late for step in self.steps])[0] >= 0:
                planned = schedule.curve(positions, base_lr).tolist()
                found.append(Comparison(self.path, self.steps, positions, self.rates, planned, base_lr))
        return max(found, key=lambda comparison: (comparison.factor is not None, comparison.first_difference))


class Comparison(NamedTuple):
    """A past run beside a schedule.

    Attributes:
        path: The file that the run comes from.
        steps: The steps at which it logged.
        positions: The step of the schedule that each logged learning rate belongs to.
        logged: The logged learning rates.
        planned: The schedule's learning rates.
        base_lr: The initial learning rate that the schedule was evaluated for.
    """

    path: str
    steps: list[int]
    positions: list[int]
    logged: list[float]
    planned: list[float]
    base_lr: float

    def _agreeing(self, factor: float) -> int:
        """How many logged learning rates, from the first on, are the schedule's times this factor."""
        # Logs may hold learning rates in single precision, or printed with six digits.
        tolerance = {"rel_tol": 1e-5, "abs_tol": 1e-9 * self.base_lr * factor}
        pairs = enumerate(zip(self.logged, self.planned))
        return next((n for n, (rate, own) in pairs if not isclose(rate, own * factor, **tolerance)), len(self.logged))

    @property
    def first_difference(self) -> int:
        """The index of the first logged learning rate that is not the schedule's; their number where all are."""
        return self._agreeing(1.0)

    @property
    def factor(self) -> float | None:
        """The factor from the schedule to the logged learning rates: 1.0 where all are the same, None where none is."""
        factors = [1.0]
        if len({*self.planned} - {0.0}) > 1:  # a single learning rate is any other times some factor
            factors.append(max(self.logged) / max(self.planned))
        return next((each for each in factors if each > 0 and self._agreeing(each) == len(self.logged)), None)

    @property
    def verdict(self) -> str:
        """Whether the logged learning rates are the schedule's, or the first step at which they differ."""
        if self.factor is None:
            index = self.first_difference
            where = f"logged step {self.steps[index]} (step {self.positions[index]} of the schedule)"
            what = f"logged {self.logged[index]}, planned {self.planned[index]}"
            return f"{self.path}: differs from the schedule at {where}: {what}"
        verdict = f"{self.path}: all {len(self.steps)} logged learning rates (steps {self.steps[0]} to {self.steps[-1]}"
        verdict += ", logged after scheduler.step()" * (self.positions == self.steps) + ") match the schedule"
        if self.factor == 1:
            return verdict
        return f"{verdict} times {self.factor:.6g}: did you mean --lr {self.base_lr * self.factor:.6g}?"


def _entries(text: str) -> tuple[list[dict[str, Any]], Any]:
    """What a file logs, entry by entry, and the `max_steps` of a Trainer's state."""
    if not text.lstrip().startswith(("{", "[")):
        return list(csv.DictReader(text.splitlines(), restkey="")), None
    try:
        state = json.loads(text)
    except ValueError:
        state = json.loads("[" + ",\n".join(line.strip() or "null" for line in text.splitlines()) + "]")
    state = state if isinstance(state, dict) else {"log_history": state}
    entries = state.get("log_history", [state])
    entries = [dict(zip(_OF_TENSORBOARD, entry)) if isinstance(entry, list) else entry for entry in entries]
    return [entry for entry in entries if isinstance(entry, dict)], state.get("max_steps")


def _column(names: list[str], *endings: str) -> str:
    """The column that is called like the first of the endings, or the only one that ends so; else, of the next."""
    for ending in endings:
        found = [name for name in names if name == ending] or [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return found[0]
    raise ValueError(f"expected one column whose name ends in {' or '.join(endings)}")


def _number(entry: dict[str, Any], name: str) -> float:
    try:
        return real_number(name, float(entry[name]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"expected {name} to be a finite number, but got {entry.get(name)!r}") from None
