"""The checkpoints in an output folder: which ones are whole, and which ones are the cycle ends of one run."""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_warmcos.saved_state import read_state
from hf_warmcos.schedule import CosineRestartSchedule

logger = logging.getLogger("hf_warmcos")

TRAINER_STATE = "trainer_state.json"
"""What a Trainer writes last into a checkpoint."""


def trainer_checkpoints(output_dir: str | PathLike[str]) -> list[Path]:
    """Return the checkpoints that a Trainer has in its output folder, the newest (by their steps) first."""
    steps = {
        folder: int(match[1])
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)) and folder.is_dir()
    }
    return sorted(steps, key=lambda folder: steps[folder], reverse=True)


def find_torn_file(checkpoint: Path, required: Iterable[str] = ()) -> Path | None:
    """Return a file of the checkpoint that is missing or was not written to its end; None where all are whole.

    Weights in safetensors, what `torch.save` writes and JSON show by themselves whether their end is there, and the
    index of weights in several files names these. Other files are taken as they are.

    Args:
        checkpoint (`Path`): The folder of the checkpoint.
        required (`Iterable[str]`, *optional*): The names of files that have to be there.
    """
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    unfinished = (path for path in paths if path.name == _UNFINISHED or not _is_whole(path))
    missing = (path for path in [*(checkpoint / name for name in required), *_shards(checkpoint)] if not path.exists())
    return next(unfinished, None) or next(missing, None)


# What transformers keeps in a checkpoint while it writes it because of a SIGTERM (`enable_jit_checkpoint`).
_UNFINISHED = "checkpoint-is-incomplete.txt"


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the lengths in the header with the file's
                pass
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix in (".pt", ".pth", ".bin"):
            with path.open("rb") as file:
                start = file.read(2)
            if b"PK".startswith(start):  # torch.save writes a zip archive, whose directory is at its end
                zipfile.ZipFile(path).close()
    except (SafetensorError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _shards(checkpoint: Path) -> set[Path]:
    """The files among which the weights are divided."""
    indices = [_read_json(path) for path in checkpoint.glob("*.index.json")]
    return {checkpoint / name for index in indices for name in dict(index.get("weight_map", {})).values()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_cycle_end_checkpoints(output_dir: str | PathLike[str]) -> list[Path]:
    """Return the checkpoints of a training run that were saved at the ends of its cycles, in their order.

    They are among the folders in `output_dir` that are named by a word and a number (`checkpoint-500`, `cycle_3`).
    [`CycleEndCallback`] marks the checkpoints of its run. Where there are marks, the run is the one that saved last,
    and its cycle ends are those that its newest checkpoint has behind it: neither those of an earlier run in the same
    folder nor those of an attempt that `auto_find_batch_size` gave up. Where there are none (a Trainer without the
    callback, Accelerate), they are the checkpoints whose saved scheduler (`scheduler.pt`, `scheduler.bin`) was at the
    end of a cycle.

    What was passed over, and what the run has saved that is no longer there, is said in a warning of the logger
    `hf_warmcos`.

    Args:
        output_dir (`str` or `PathLike`): The output folder of the run.

    Returns:
        `list[Path]`: The folders, by their step.

    Raises:
        ValueError: If there are none, or if without marks there is no telling which of them belong to one run: two have
            the same step, or different schedules.
    """
    folders = [path for path in sorted(Path(output_dir).iterdir()) if re.fullmatch(r"[^\W\d_]+[-_]\d+", path.name)]
    torn, marked, unmarked = [], [], []
    for folder in folders:
        required = [TRAINER_STATE] if (folder / "scheduler.pt").exists() else []
        if (torn_file := find_torn_file(folder, required)) is not None:
            torn.append(torn_file)
        elif (mark := _mark(folder)) is not None:
            marked.append(mark)
        elif (cycle_end := _cycle_end(folder)) is not None:
            unmarked.append(cycle_end)
    if torn:
        logger.warning("Passed over checkpoints that were not written to their end: %s.", _listed(torn))
    members = _of_newest_run(marked) if marked else _of_only_run(unmarked)
    if not members:
        raise ValueError(
            f"Expected checkpoints of cycle ends in output_dir={str(output_dir)!r}, but found none among "
            f"{len(folders)} checkpoints. CycleEndCallback saves them. Checkpoints with neither its mark nor the state "
            "of their scheduler have to be listed."
        )
    cycle_ends = [mark.folder for mark in marked if mark.step in mark.cycle_ends] + [end.folder for end in unmarked]
    if others := [folder for folder in cycle_ends if folder not in members.values()]:
        logger.warning("Passed over cycle ends of other runs or attempts: %s.", _listed(others))
    return [members[step] for step in sorted(members)]


class _Mark(NamedTuple):
    """What CycleEndCallback left in a checkpoint."""

    folder: Path
    step: int
    run: str
    saved_at: float
    cycle_ends: list[int]
    saves_all: bool


def _mark(folder: Path) -> _Mark | None:
    state = _read_json(folder / TRAINER_STATE)
    for saved in (state.get("stateful_callbacks") or {}).values():
        callback = saved[-1] if isinstance(saved, list) else saved  # a list where there are several of one class
        mark, step = callback.get("attributes", {}), state["global_step"]
        # A copy under another name is not a second checkpoint.
        if "cycle_ends" in mark and folder.name == f"{PREFIX_CHECKPOINT_DIR}-{step}":
            return _Mark(folder, step, mark["run"], mark["saved_at"], mark["cycle_ends"], callback["args"]["save"])
    return None


def _of_newest_run(marked: list[_Mark]) -> dict[int, Path]:
    newest = max(marked, key=lambda mark: mark.saved_at)
    ends = {mark.step: mark.folder for mark in marked if mark.run == newest.run and mark.step in newest.cycle_ends}
    missing = [step for step in newest.cycle_ends if step not in ends]
    if newest.saves_all and missing:
        logger.warning(
            "The run saved cycle ends at the steps %s whose checkpoints are missing or not whole. save_total_limit "
            "deletes checkpoints of cycle ends, too.",
            _listed(missing),
        )
    return ends


class _CycleEnd(NamedTuple):
    """A checkpoint without a mark whose scheduler was at the end of a cycle."""

    folder: Path
    step: int
    schedule: CosineRestartSchedule


def _cycle_end(folder: Path) -> _CycleEnd | None:
    for name in ("scheduler.pt", "scheduler.bin"):
        try:
            saved = read_state(torch.load(folder / name, weights_only=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError):
            continue  # there is none, or it is something else
        step, schedule = saved.last_epoch, saved.schedule
        if schedule is not None and step > 0 and not saved.fraction and schedule.cycle_at(step - 1).end == step:
            return _CycleEnd(folder, step, schedule)
    return None


def _of_only_run(unmarked: list[_CycleEnd]) -> dict[int, Path]:
    ends: dict[int, Path] = {}
    for end in unmarked:
        if end.step in ends or end.schedule != unmarked[0].schedule:
            raise ValueError(
                f"Expected checkpoints of one run, but {ends.get(end.step, unmarked[0].folder)} and {end.folder} have "
                f"{'the same step' if end.step in ends else 'different schedules'}. List the checkpoints that belong "
                "together in place of their folder."
            )
        ends[end.step] = end.folder
    return ends


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(map(str, things))
