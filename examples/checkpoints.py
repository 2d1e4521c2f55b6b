"""Checkpoints that a kill or a full disk cannot spoil, and that load on another number of processes.

A checkpoint is a folder `step_N` with the state after N updates. It is written under another name and renamed when it
is whole, so each folder with such a name can be loaded, at whatever moment the run was killed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils.data import Sampler

METRICS = "metrics.jsonl"
STATE = "training_state.json"


@dataclass
class TrainingState:
    """The state of a run, aside from weights, optimizer, scheduler and random numbers.

    Attributes:
        completed_steps: The updates done.
        max_train_steps: The updates of the whole run.
        epoch: The current pass over the training data, counted from 0.
        samples_seen: The samples of this pass that were trained on, on all processes together.
        data: A fingerprint of the training data.
        schedule: The arguments of the schedule.
        evaluations: The held-out results so far on these data, the first before any update on them.
    """

    completed_steps: int = 0
    max_train_steps: int = 0
    epoch: int = 0
    samples_seen: int = 0
    data: str | None = None
    schedule: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class ResumableSampler(Sampler[int]):
    """The samples of the current epoch in random order, without those that were seen.

    The order depends on the seed and the epoch alone, so any number of processes can continue it.
    """

    def __init__(self, num_samples: int, seed: int, state: TrainingState) -> None:
        self.num_samples, self.seed, self.state = num_samples, seed, state

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.state.epoch)
        return iter(torch.randperm(self.num_samples, generator=generator)[self.state.samples_seen :].tolist())

    def __len__(self) -> int:
        return self.num_samples - self.state.samples_seen


def list_all(output_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    folders = [path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step_")))


def find(output_dir: Path) -> tuple[Path | None, TrainingState]:
    """Return the newest checkpoint and its state. Without a checkpoint, return None and the state of a new run."""
    checkpoints = list_all(output_dir)
    if not checkpoints:
        return None, TrainingState()
    try:
        return checkpoints[-1], TrainingState(**json.loads((checkpoints[-1] / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"Expected {checkpoints[-1]} to be a checkpoint of this script, but got {error!r}") from None


def prepare_output_dir(output_dir: Path, checkpoint: Path | None) -> FileLock:
    """Return a lock that other runs respect, and make `metrics.jsonl` end where training begins."""
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=0)  # the operating system releases it when this process ends, in whatever way
    except Timeout:
        raise OSError(f"Another process is training in {output_dir}: let it end, or pick another folder") from None
    for leftover in output_dir.glob(".step_*.incomplete"):
        shutil.rmtree(leftover)
    (output_dir / METRICS).write_bytes(b"" if checkpoint is None else (checkpoint / METRICS).read_bytes())
    return lock


def make_portable(accelerator: Accelerator) -> None:
    """Save the weights under their names in one process, so that any number of processes can load them."""

    def before_saving(models: list[Any], weights: list[Any], folder: str) -> None:
        for state_dict in weights:
            consume_prefix_in_state_dict_if_present(state_dict, "module.")

    def before_loading(models: list[Any], folder: str) -> None:
        models[:] = map(accelerator.unwrap_model, models)

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


def load(accelerator: Accelerator, folder: Path) -> None:
    """Load weights, optimizer, scheduler and random numbers."""
    try:
        accelerator.load_state(str(folder))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected {folder} to fit this model and optimizer, but loading failed: {reason}") from error
    accelerator.step = 0  # checkpoints lie between updates, also if gradient_accumulation_steps changed


def save(accelerator: Accelerator, state: TrainingState, output_dir: Path, save_total_limit: int | None) -> None:
    """Write the checkpoint of this update, on all processes together. Raise an OSError if that fails on one of them."""
    folder = output_dir / f"step_{state.completed_steps}"
    incomplete = output_dir / f".{folder.name}.incomplete"
    error = None
    try:
        accelerator.save_state(str(incomplete))
        if accelerator.is_main_process:
            shutil.copyfile(output_dir / METRICS, incomplete / METRICS)
            (incomplete / STATE).write_text(json.dumps(asdict(state), indent=1))
    except (OSError, RuntimeError, SafetensorError) as caught:
        error = f"{' '.join(str(caught).split())} ({shutil.disk_usage(output_dir).free:,} bytes are free on the disk)"
    errors = [error for error in gather_object([error]) if error is not None]  # waits for all processes
    if errors:
        if accelerator.is_main_process:
            shutil.rmtree(incomplete, ignore_errors=True)
        before = list_all(output_dir)
        where = before[-1] if before else "the beginning"
        raise OSError(f"Could not save {folder}: {errors[0]}. The same command continues from {where}.")
    if accelerator.is_main_process:
        incomplete.rename(folder)
        for old in list_all(output_dir)[: -save_total_limit if save_total_limit else 0]:
            # A kill must not leave half a checkpoint under the name of a whole one.
            shutil.rmtree(old.rename(output_dir / f".{old.name}.incomplete"))
