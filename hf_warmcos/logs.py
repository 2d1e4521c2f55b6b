"""The learning rates in what a run left behind, read as its tool writes them."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number

_Entries: TypeAlias = list[dict[str, Any]]

# How columns are called. The first that a log has counts: by itself, or else after other words ("train/learning_rate").
# Lightning names the optimizer and the parameter group: "lr-AdamW", "lr-AdamW/pg1".
RATES = (r"learning[-_ ]?rate", "lr", r"lr-\w+(-\d+)?(/\S+)?", r"(learning_rate|lr)(/\S+|_?\d+)", "value")
NO_RATES = "-momentum", "-weight_decay"  # which Lightning appends to the name of a learning rate
UPDATES = ("global_step", "current_steps")  # these count updates
STEPS = (*UPDATES, "step")  # may also count the calls of a tool's log(), evaluations included
EPOCHS = ("epoch",)
OF_TENSORBOARD = ("Wall time", "Step", "Value")  # its JSON is a list of such lists
OF_MLFLOW = ("timestamp", "value", "global_step")  # the first columns of a metric's file, which has no header


class Column(NamedTuple):
    """The learning rates of one parameter group.

    Attributes:
        name: What the log calls it.
        rates: The learning rates, in the order of their steps.
        steps: The step of each, or None where the log has no steps.
        counts_updates: Whether the steps are known to count updates.
        epochs: The epoch of each, where the log has epochs but no steps.
        max_steps: How many steps the run was planned to have, where the log says so.
    """

    name: str
    rates: list[float]
    steps: list[int] | None
    counts_updates: bool
    epochs: list[float] | None
    max_steps: int | None


def read_log(path: str) -> tuple[Path, list[Column]]:
    """Return the file or folder that was read and the learning rates in it, those of each parameter group.

    Args:
        path (`str`): As in [`PastRun.read`].

    Raises:
        OSError, ValueError: If the file cannot be read or logs no learning rate. The message names the file.
    """
    file = _find(Path(path))
    try:
        if file.is_dir() or "tfevents" in file.name:
            entries, max_steps = _read_events(file), None
        else:
            entries, max_steps = _parse(file.read_text(encoding="utf-8-sig"))
        return file, list(_columns(entries, max_steps))
    except (ValueError, TypeError, RecursionError, csv.Error) as error:  # bytes that are no text: a ValueError
        expected = "a trainer_state.json, an event file of TensorBoard, or a log as CSV, JSON or text"
        raise ValueError(f"Expected {file} to be {expected}: {error}") from error


# Which file.


def _find(path: Path) -> Path:
    """The file to read, or a folder of event files. A checkpoint has a Trainer's state, and so may an output folder."""
    state = path / "trainer_state.json"
    if not path.is_dir() or state.exists():
        return state if path.is_dir() else path
    from hf_warmcos.checkpoints import find_incomplete_file, trainer_checkpoints  # loads torch

    for checkpoint in trainer_checkpoints(path):
        if find_incomplete_file(checkpoint) is None:
            return checkpoint / state.name
    return path if any(path.rglob("*tfevents*")) else state


# Formats.


def _parse(text: str) -> tuple[_Entries, Any]:
    """What a file logs, entry by entry, and the `max_steps` of a Trainer's state."""
    if text.lstrip().startswith(("{", "[")):
        with suppress(json.JSONDecodeError):
            return _from_json(json.loads(text))
    entries = [entry for line in text.splitlines() for entry in _dicts(line)]
    return entries or _from_table([line for line in text.splitlines() if line.strip()]), None


def _from_json(state: Any) -> tuple[_Entries, Any]:
    """One JSON value: a Trainer's state, a metric of Trackio, a list of entries, or one entry."""
    state = state if isinstance(state, dict) else {"log_history": state}
    entries = state.get("log_history", state.get("values", [state]))
    entries = [dict(zip(OF_TENSORBOARD, entry)) if isinstance(entry, list) else entry for entry in entries]
    entries = [entry for entry in entries if isinstance(entry, dict)]
    if "metric" in state:
        entries = [{state["metric"] if name == "value" else name: entry[name] for name in entry} for entry in entries]
    return entries, state.get("max_steps")


def _dicts(line: str) -> Iterator[dict[str, Any]]:
    """The entries in a line: JSON, or what a Trainer prints, even beside a progress bar."""
    try:
        found = [json.loads(line)]
    except json.JSONDecodeError:
        found = []
        for text in re.findall(r"\{[^{}]*\}", line):
            with suppress(ValueError, SyntaxError):  # other braces
                found.append(ast.literal_eval(re.sub(r"(?<=: )-?(nan|inf)\b", r"'\g<0>'", text)))
    for entry in found:
        if isinstance(entry, dict) and all(isinstance(name, str) for name in entry):
            with suppress(KeyError, AttributeError, ValueError):
                entry["current_steps"], entry["total_steps"] = entry["global_step/max_steps"].split("/")  # of ms-swift
            yield entry


def _from_table(lines: list[str]) -> _Entries:
    """A table with a header, or a metric's file of MLflow."""
    delimiter = next((each for each in "\t,; " if lines and each in lines[0]), ",")
    is_of_mlflow = delimiter == " " and re.fullmatch(r"\d+ \S+ \d+( .*)?", lines[0])
    names = OF_MLFLOW if is_of_mlflow else None
    return list(csv.DictReader(lines, names, restkey="", delimiter=delimiter))


def _read_events(path: Path) -> _Entries:
    """The learning rates in an event file of TensorBoard, or in those of a folder."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ModuleNotFoundError as error:
        raise ValueError("reading it needs tensorboard: pip install tensorboard") from error
    runs: dict[Path, _Entries] = {}
    for file in sorted(path.rglob("*tfevents*")) if path.is_dir() else [path]:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if _matching([value.tag], RATES):
                    entry = {"global_step": event.step, value.tag: make_ndarray(value.tensor).item()}
                    runs.setdefault(file.parent, []).append(entry)
    if len(runs) > 1:
        raise ValueError(f"it holds several runs, expected one of {', '.join(map(str, runs))}")
    return next(iter(runs.values()), [])


# Columns.


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that are the first of the patterns that any name is; or that end so, after another word."""
    names = [name for name in names if not name.endswith(NO_RATES)]
    for pattern in patterns:
        for form in (pattern, rf".*[\W_]{pattern}"):
            if found := [name for name in names if re.fullmatch(form, name, re.IGNORECASE)]:
                return found
    return []


def _columns(entries: _Entries, max_steps: Any) -> Iterator[Column]:
    names = [*dict.fromkeys(chain.from_iterable(entries))]
    rates, steps, epochs = (_matching(names, of) for of in (RATES, STEPS, EPOCHS))
    if not rates:
        raise ValueError("expected a column of learning rates, whose name ends in learning_rate or lr, or is Value")
    if len(steps) > 1:
        raise ValueError(f"expected one column of steps, but got {', '.join(steps)}")
    for rate in rates:
        logged = [entry for entry in entries if entry.get(rate) not in (None, "")]
        if not logged:
            raise ValueError(f"no {rate} is logged")
        values = [_number(entry[rate], rate) for entry in logged]
        if not steps:
            epoch = [_number(entry.get(epochs[0]), epochs[0]) for entry in logged] if epochs else None
            yield Column(rate, values, None, False, epoch, max_steps)
            continue
        step = steps[0]
        at = (whole_number(step, _number(entry.get(step), step), (">=", 0), ("<=", MOST_STEPS)) for entry in logged)
        of_step = dict(sorted(dict(zip(at, values)).items()))  # of a step logged twice, the later learning rate
        counts_updates = bool(_matching(steps, UPDATES))
        if max_steps is None and "total_steps" in names:
            max_steps = _number(logged[-1].get("total_steps"), "total_steps")
        yield Column(rate, [*of_step.values()], [*of_step], counts_updates, None, max_steps)


def _number(value: Any, name: str) -> float:
    try:
        return real_number(name, float(value))
    except (TypeError, ValueError):
        raise ValueError(f"expected {name} to be a finite number, but got {value!r}") from None
