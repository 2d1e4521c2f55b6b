"""Checkpoints of a training run that a kill, a full disk or another number of processes cannot spoil.

A checkpoint is a folder that `accelerator.save_state` fills, with two files beside: a copy of `metrics.jsonl` up to
that update, and `checkpoint.json`, which holds the position of the run and lists every file with its size and hash. It
is written under another name, brought to the disk, and renamed last: a folder named step_N, epoch_N or cycle_N is
whole, whenever the kill came.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME, gather_object
from processes import on_main_process
from safetensors import SafetensorError, safe_open
from torch.utils.data import Sampler

CHECKPOINT_NAME = re.compile(r"(step|epoch|cycle)_\d+(_step_\d+)?")
MANIFEST = "checkpoint.json"
METRICS = "metrics.jsonl"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not what its folder says."""


@dataclass
class TrainingState:
    """Where a run stands: all of it that is neither weights, nor optimizer, nor schedule, nor random numbers.

    Attributes:
        max_train_steps: The updates that the run has in all.
        completed_steps: The updates done. One that mixed precision skipped is none.
        epoch: The pass over the training data that the next sample belongs to, counted from 0.
        samples_seen: The samples of that pass that went into updates, over all processes.
        evaluations: Held-out results so far on the data at hand, the first before an update on them.
        schedule: The arguments of the schedule.
        data: What tells the training data at hand from others.
    """

    max_train_steps: int = 0
    completed_steps: int = 0
    epoch: int = 0
    samples_seen: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    schedule: dict[str, Any] | None = None
    data: str | None = None

    def take_data(self, data: str) -> bool:
        """Note what is trained on from here on, and return whether the run has trained on something else before.

        Other data begin with their first sample, and with a held-out loss of their own.
        """
        is_other = self.data not in (None, data)
        if is_other:
            self.epoch += self.samples_seen > 0
            self.samples_seen = 0
            self.evaluations = []
        self.data = data
        return is_other


class ResumableSampler(Sampler[int]):
    """The samples of the current epoch in random order, without those that the run has seen.

    The order depends on the seed and the epoch alone, so it goes on where it stopped on any number of processes.
    """

    def __init__(self, num_samples: int, seed: int, state: TrainingState) -> None:
        self.num_samples, self.seed, self.state = num_samples, seed, state

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.state.epoch)
        return iter(torch.randperm(self.num_samples, generator=generator)[self.state.samples_seen :].tolist())

    def __len__(self) -> int:
        return self.num_samples - self.state.samples_seen


def keep_checkpoints_portable(accelerator: Accelerator) -> None:
    """Store the weights without the wrapper that several processes put around the model.

    A checkpoint of two processes then loads in one, and the other way round.
    """

    def unwrap_on_save(models: list[Any], weights: list[Any], folder: str) -> None:
        for state_dict in weights:
            for name in list(state_dict):
                state_dict[name.removeprefix("module.")] = state_dict.pop(name)

    def unwrap_on_load(models: list[Any], folder: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    accelerator.register_save_state_pre_hook(unwrap_on_save)
    accelerator.register_load_state_pre_hook(unwrap_on_load)


def save_checkpoint(
    accelerator: Accelerator, state: TrainingState, output_dir: Path, name: str, save_total_limit: int | None = None
) -> None:
    """Write the checkpoint `output_dir/name`, on every process together, and keep the newest `save_total_limit`.

    A name that an earlier checkpoint has, such as that of a cycle 3 before the cycles were changed, gets the step
    added.

    Raises:
        CheckpointError: If it could not be written, such as where the disk is full. What was there before is untouched.
    """
    incomplete = output_dir / f".{name}.incomplete"
    error = None
    try:
        on_main_process(accelerator, _make_empty, incomplete)
        accelerator.save_state(str(incomplete))
    except (OSError, RuntimeError, SafetensorError) as caught:
        error = " ".join(str(caught).split())
    errors = [error for error in gather_object([error]) if error is not None]
    try:
        if errors:
            raise CheckpointError(errors[0])
        on_main_process(accelerator, _complete, incomplete, output_dir / name, state)
    except (OSError, CheckpointError) as caught:
        free = shutil.disk_usage(output_dir).free
        if accelerator.is_main_process:
            shutil.rmtree(incomplete, ignore_errors=True)
        previous = on_main_process(accelerator, _newest_whole, output_dir, lambda _: None)
        advice = "There is no checkpoint before it."
        if previous is not None:
            advice = f"{previous[0]} before it is whole: --resume_from_checkpoint latest goes on from there."
        raise CheckpointError(
            f"Could not save {output_dir / name}, with {free:,} bytes free on the disk: {caught}. {advice}"
        ) from caught
    if save_total_limit is not None:
        on_main_process(accelerator, _delete_oldest, output_dir, save_total_limit)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _complete(incomplete: Path, final: Path, state: TrainingState) -> None:
    if final.exists():
        taken, final = final, final.with_name(f"{final.name}_step_{state.completed_steps}")
        print(f"{taken} was saved before: this checkpoint is {final.name}")
    shutil.copyfile(final.parent / METRICS, incomplete / METRICS)
    files = sorted(path for path in incomplete.rglob("*") if path.is_file())
    manifest = {
        "state": asdict(state),
        "files": {
            str(path.relative_to(incomplete)): {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files
        },
    }
    (incomplete / MANIFEST).write_text(json.dumps(manifest, indent=1))
    folders = {path.parent for path in files}
    for path in [*files, incomplete / MANIFEST, *sorted(folders, reverse=True)]:
        _bring_to_disk(path)
    incomplete.rename(final)
    _bring_to_disk(final.parent)


def _delete_oldest(output_dir: Path, save_total_limit: int) -> None:
    for folder in _newest_first(output_dir, lambda _: None)[save_total_limit:]:
        # Under another name first: a kill must not leave half of it under a name that says that it is whole.
        doomed = folder.with_name(f".{folder.name}.incomplete")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(folder: Path) -> TrainingState:
    """Return the position that a checkpoint holds, once every file is what was written.

    Raises:
        CheckpointError: If the folder is no checkpoint or not whole; the message names the file.
    """
    state, files = _read_manifest(folder)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"Expected the checkpoint {folder} to be whole, but {path} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"Expected {path} to have {expected['bytes']} bytes, but it has {size}")
        if _hash(path) != expected["sha256"]:
            raise CheckpointError(f"Expected {path} to be as it was saved, but its content has changed")
    return state


def _read_manifest(folder: Path) -> tuple[TrainingState, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        return TrainingState(**manifest["state"]), manifest["files"]
    except FileNotFoundError:
        raise CheckpointError(f"Expected {folder} to be a checkpoint of this script, but there is no {path}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"Expected {path} to describe a checkpoint, but reading it failed: {error!r}") from None


def _newest_first(output_dir: Path, report: Callable[[str], None]) -> list[Path]:
    found = []
    for folder in output_dir.glob("*_*"):
        if folder.is_dir() and CHECKPOINT_NAME.fullmatch(folder.name):
            try:
                found.append((_read_manifest(folder)[0].completed_steps, folder.stat().st_mtime, folder))
            except CheckpointError as error:
                report(str(error))
    return [folder for _, _, folder in sorted(found, reverse=True)]


def _newest_whole(output_dir: Path, report: Callable[[str], None]) -> tuple[Path, TrainingState] | None:
    for folder in _newest_first(output_dir, report):
        try:
            return folder, read_checkpoint(folder)
        except CheckpointError as error:
            report(str(error))
    return None


def find_checkpoint(resume_from_checkpoint: str | None, output_dir: Path) -> tuple[Path | None, TrainingState]:
    """Return the checkpoint to go on from with its position: none, with that of a new run, where there is none.

    Args:
        resume_from_checkpoint: The folder of a checkpoint, or "latest": the one in `output_dir` with the most updates
            that is whole. A line is printed for each newer one that is not. None begins a new run.

    Raises:
        CheckpointError: If the folder is no checkpoint or not whole; the message names the file.
    """
    if resume_from_checkpoint is None:
        return None, TrainingState()
    if resume_from_checkpoint == "latest":
        newest = _newest_whole(output_dir, lambda error: print(f"Passing over a checkpoint: {error}"))
        if newest is None:
            print(f"No checkpoint in {output_dir} yet: starting from the beginning")
            return None, TrainingState()
        folder, state = newest
    else:
        folder = Path(resume_from_checkpoint)
        state = read_checkpoint(folder)
    print(f"Resuming from {folder} after update {state.completed_steps}")
    return folder, state


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Load weights, optimizer, schedule and random numbers, on every process together.

    Raises:
        CheckpointError: If it is the checkpoint of another model or optimizer; the message names the file.
    """
    weights = folder / SAFE_WEIGHTS_NAME
    if weights.exists():
        model = accelerator.unwrap_model(accelerator._models[0])
        with safe_open(weights, framework="pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, tensor in model.state_dict().items():
            if name in saved and saved[name] != tuple(tensor.shape):
                raise CheckpointError(
                    f"Expected {weights} to fit the model, but {name} has shape {saved[name]} in it and "
                    f"{tuple(tensor.shape)} in the model"
                )
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"Expected {folder} to fit this model and optimizer, but: {error}") from error
    accelerator.step = 0  # a checkpoint lies between two updates, whatever --gradient_accumulation_steps was and is


def begin_run_at(completed_steps: int, checkpoint: Path | None, output_dir: Path) -> None:
    """Make `output_dir` what it was at that update: `metrics.jsonl` ends there, and no later checkpoint is in the way.

    A later checkpoint belongs to a run that this one does not continue. It is renamed, since "latest" must not take it
    and nobody asked to delete it. What a kill left of unfinished ones is deleted.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    for leftover in output_dir.glob(".*.incomplete"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
    beginning = output_dir / f".{METRICS}.incomplete"
    beginning.write_bytes(b"" if checkpoint is None else (checkpoint / METRICS).read_bytes())
    _bring_to_disk(beginning)
    beginning.replace(output_dir / METRICS)
    for folder in [path for path in output_dir.glob("*_*") if CHECKPOINT_NAME.fullmatch(path.name)]:
        try:
            later = _read_manifest(folder)[0].completed_steps > completed_steps
        except CheckpointError:
            later = True
        if later:
            _set_aside(folder)


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.set_aside")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    print(f"{folder} is not of this run's past: renamed to {aside.name}")
