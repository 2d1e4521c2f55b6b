"""The checkpoints in an output folder: which are complete, which to resume from, which are the cycle ends of a run."""

from __future__ import annotations

import json
import logging
import math
import pickle
import pickletools
import re
import zipfile
from collections import deque
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open

from hf_warmcos.saved_state import read_state

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("hf_warmcos")

TRAINER_STATE = "trainer_state.json"  # what a Trainer writes last into a checkpoint
SCHEDULER_STATES = ("scheduler.pt", "scheduler.bin")  # of a Trainer, of Accelerate
PICKLES = (".pt", ".pth", ".pkl", ".bin")  # what torch.save writes
# As transformers and PEFT name the configuration and the weights of a model, or the index of divided weights.
CONFIGURATIONS = ["config.json", "adapter_config.json"]
SUFFIXES = ("safetensors", "bin", "safetensors.index.json", "bin.index.json")
WEIGHTS = [f"{prefix}model.{suffix}" for prefix in ("", "pytorch_", "adapter_") for suffix in SUFFIXES]


def trainer_checkpoints(output_dir: str | PathLike[str]) -> list[Path]:
    """Return the checkpoints that a Trainer has saved in its output folder, the newest (by step) first."""
    folders = [path for path in Path(output_dir).glob("*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(filter(Path.is_dir, folders), key=lambda folder: int(folder.name.split("-")[1]), reverse=True)


def find_incomplete_file(checkpoint: str | PathLike[str], process_index: int | None = None) -> Path | None:
    """Return a file of a checkpoint that is missing or cannot be read to its end; None if the checkpoint is complete.

    It takes checkpoints of a `Trainer` (`trainer.save_checkpoint` and the folders `checkpoint-N`), and of Accelerate
    (`accelerator.save_state`).

    - Files in safetensors, files of `torch.save`, pickles and JSON files show whether they were written to the end. Of
      other files, such as texts, this cannot be known.
    - The index of divided weights names its files.
    - A Trainer writes `trainer_state.json` last. Accelerate writes the random states last.
    - Each process saves its random state. One that is missing would change dropout after resuming, without a word.

    Args:
        checkpoint (`str` or `PathLike`): The folder of the checkpoint.
        process_index (`int`, *optional*): The process that is going to resume from it, as in
            `accelerator.process_index`: its random state must be there if one of a later process is there. Without it,
            any random state is enough.

    Returns:
        `Path` or `None`: The first such file.

    Example:

    ```python
    >>> import tempfile
    >>> import torch
    >>> from accelerate import Accelerator
    >>> accelerator = Accelerator()
    >>> model = accelerator.prepare(torch.nn.Linear(2, 1))
    >>> folder = accelerator.save_state(tempfile.mkdtemp())
    >>> find_incomplete_file(folder)
    >>> _ = (folder / "model.safetensors").write_bytes(b"half of it")
    >>> find_incomplete_file(folder).name
    'model.safetensors'

    ```
    """
    checkpoint = Path(checkpoint)
    for path in filter(Path.is_file, sorted(checkpoint.rglob("*"))):
        # The first name is there while transformers saves because of a SIGTERM:
        # https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/trainer_jit_checkpoint.py#L59
        if path.name == "checkpoint-is-incomplete.txt" or not _is_complete(path, path.parent == checkpoint):
            return path
    required = [] if _is_of_accelerate(checkpoint) else [TRAINER_STATE]
    for index in checkpoint.glob("*model.*.index.json"):
        try:
            required += json.loads(index.read_bytes()).get("weight_map", {}).values()
        except AttributeError:  # it is no object
            return index
    required += _needed_random_state(checkpoint, process_index)
    return next((checkpoint / name for name in required if not (checkpoint / name).is_file()), None)


def complete_checkpoint(resume_from_checkpoint: str | PathLike[str] | bool, args: TrainingArguments) -> str:
    """Return the checkpoint to resume from, after a check that it is complete; for True, the newest complete one."""
    if isinstance(resume_from_checkpoint, bool):
        folder = _newest_complete_checkpoint(args)
    else:
        folder = Path(resume_from_checkpoint)
        file = find_incomplete_file(folder, args.process_index)
        if file is not None:
            raise ValueError(
                f"Expected resume_from_checkpoint to be a complete checkpoint, but {file} is missing or incomplete. "
                "resume_from_checkpoint=True takes the newest complete one."
            )
    # A Trainer loads the first two only together. With DeepSpeed both are in the third.
    # https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/trainer.py#L3894
    scheduler, optimizer, both = (any(folder.glob(of)) for of in ("scheduler.pt", "*optimizer*", "global_step*"))
    if not (both or (scheduler and optimizer)):
        message = "%s has no optimizer or scheduler state (save_only_model?): the schedule starts again at step 0"
        logger.warning(message, folder)
    return str(folder)


def _newest_complete_checkpoint(args: TrainingArguments) -> Path:
    folders = trainer_checkpoints(args.output_dir or "")
    # Each node may have an output folder of its own, and all processes must resume from the same step.
    files = gather_object([(folder.name, find_incomplete_file(folder, args.process_index)) for folder in folders])
    incomplete: list[str] = []
    for folder in folders:
        found_by = [file for name, file in files if name == folder.name]
        file = next(filter(None, found_by), None)
        if file is None and len(found_by) == args.world_size:
            if incomplete:
                logger.warning("Resume from %s. Skipped incomplete checkpoints: %s.", folder, "; ".join(incomplete))
            return folder
        incomplete.append(f"{file or f'on another node {folder}'} is missing or incomplete")
    found = "; ".join(incomplete) or "there is none"
    raise ValueError(
        f"Expected a complete checkpoint in {args.output_dir!r} for resume_from_checkpoint=True, but {found}. Start "
        "without resume_from_checkpoint, or pass the path of a complete one."
    )


def _is_complete(path: Path, in_checkpoint: bool) -> bool:
    """Whether a file was written to the end, as far as files of its kind show it."""
    try:
        if path.suffix == ".safetensors":
            safe_open(path, framework="pt")  # compares the lengths in the header with the size of the file
        elif path.suffix == ".json":
            content = path.read_bytes()
            json.JSONDecoder().raw_decode(content.decode(json.detect_encoding(content)).lstrip())  # or JSON lines
        elif path.suffix in PICKLES:
            with path.open("rb") as file:
                start = file.read(2)
                if b"PK".startswith(start):  # torch.save writes a zip archive, whose directory is at its end
                    return zipfile.is_zipfile(file)
                if start[:1] != pickle.PROTO:  # below the checkpoint's own folder, .bin may be anything
                    return path.suffix == ".bin" and not in_checkpoint
                file.seek(0)
                deque(pickletools.genops(file), maxlen=0)  # reads, but runs nothing
    except (SafetensorError, ValueError, RecursionError):
        return False
    return True


def _is_of_accelerate(checkpoint: Path) -> bool:
    return (checkpoint / SCHEDULER_STATES[1]).exists() or any(checkpoint.glob("random_states_*.pkl"))


def _needed_random_state(checkpoint: Path, process_index: int | None) -> list[str]:
    """The random state that must be there, if any. On several nodes, each may have the files of its own processes."""
    if _is_of_accelerate(checkpoint):
        of_one, of_each, last = "random_states_0.pkl", "random_states_{}.pkl", 0
    else:  # a Trainer numbers them from two processes on, and saves none with save_only_model
        of_one, of_each, last = "rng_state.pth", "rng_state_{}.pth", 1
    found = [int(path.stem.rpartition("_")[2]) for path in checkpoint.glob(of_each.format("[0-9]*"))]
    if not found:
        return [of_one] if any((checkpoint / name).exists() for name in SCHEDULER_STATES) else []
    is_needed = process_index is not None and process_index <= max(last, *found)
    return [of_each.format(process_index)] if is_needed else []


class _Checkpoint(NamedTuple):
    folder: Path
    step: int
    run: Any  # the mark of CycleEndCallback, or else the schedule
    cycle_ends: list[int]  # those that its run had reached; without a mark its own step
    saved_at: float  # 0 without a mark


def find_cycle_end_checkpoints(output_dir: str | PathLike[str]) -> list[Path]:
    """Return the checkpoints that one training run saved at its cycle ends, in the order of their steps.

    It looks at the folders in `output_dir` whose names are a word and a number (`checkpoint-500`, `cycle_3`).

    - [`CycleEndCallback`] marks the checkpoints of its run. If there are marks, the result is of the run that saved
      last: not of an earlier run in the same folder, nor of an attempt that `auto_find_batch_size` abandoned.
    - Without marks (a Trainer without the callback, or Accelerate), the result is the checkpoints whose saved scheduler
      (`scheduler.pt`, `scheduler.bin`) was at the end of a cycle. A Trainer's last checkpoint is one, too, where only
      updates that mixed precision skipped keep the last cycle from its end.

    A warning of the logger `hf_warmcos` names what was skipped (incomplete checkpoints, those of other runs) and the
    cycle ends that the run saved and that are no longer there. A checkpoint that is deleted meanwhile is skipped.

    Args:
        output_dir (`str` or `PathLike`): The output folder of the run.

    Returns:
        `list[Path]`: The folders of the checkpoints.

    Raises:
        ValueError: If there are none. Also if there are no marks and the checkpoints cannot belong to one run, because
            two have the same step or different schedules.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_warmcos import CosineRestartLR, CosineRestartSchedule
    >>> accelerator, model = Accelerator(), torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=2, num_cycles=2))
    >>> model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    >>> output_dir = Path(tempfile.mkdtemp())
    >>> for update in range(1, 5):
    ...     optimizer.step()
    ...     scheduler.step()
    ...     folder = accelerator.save_state(output_dir / f"update_{update}")
    >>> [path.name for path in find_cycle_end_checkpoints(output_dir)]
    ['update_2', 'update_4']

    ```
    """
    states = [path for name in (TRAINER_STATE, *SCHEDULER_STATES) for path in Path(output_dir).glob(f"*/{name}")]
    folders = sorted({path.parent for path in states if re.fullmatch(r"[^\W\d_]+[-_]\d+", path.parent.name)})
    # Not every model has these. Where one checkpoint has them and another has not, they are missing.
    kinds = (CONFIGURATIONS, WEIGHTS)
    having = {of[0]: [folder for folder in folders if any((folder / name).exists() for name in of)] for of in kinds}
    found, skipped = [], []
    for folder in folders:
        with suppress(FileNotFoundError):  # deleted meanwhile: a training with save_total_limit is running
            incomplete = find_incomplete_file(folder)
            missing = (folder / name for name, others in having.items() if others and folder not in others)
            incomplete = incomplete or next(missing, None)
            found += _read(folder) if incomplete is None else []
            skipped += [] if incomplete is None else [f"{incomplete} is missing or incomplete"]
    newest = max(found, key=lambda of: of.saved_at, default=_Checkpoint(Path(), 0, None, [], 0))
    own = {of.step: of.folder for of in found if of.run == newest.run}
    if newest.saved_at:
        own = {step: own[step] for step in newest.cycle_ends if step in own}
        skipped += [f"the checkpoint of step {step} is missing" for step in newest.cycle_ends if step not in own]
    elif len(own) < len(found):
        listed = ", ".join(str(of.folder) for of in found)
        raise ValueError(f"Expected checkpoints of one run, but {listed} have the same step or different schedules")
    others = [of.folder for of in found if of.step in of.cycle_ends and of.folder not in own.values()]
    skipped += [f"{folder} is of another run or of an abandoned attempt" for folder in others]
    if skipped:
        logger.warning("Not among the checkpoints of cycle ends in %s: %s.", output_dir, "; ".join(skipped))
    if not own:
        raise ValueError(f"Expected checkpoints of cycle ends, which CycleEndCallback saves, but {output_dir} has none")
    return [own[step] for step in sorted(own)]


def _read(folder: Path) -> list[_Checkpoint]:
    """What the checkpoint says of its run; an empty list where it is neither marked nor a cycle end."""
    state = json.loads((folder / TRAINER_STATE).read_bytes()) if (folder / TRAINER_STATE).exists() else {}
    for callback in (state.get("stateful_callbacks") or {}).values():
        mark = (callback[-1] if isinstance(callback, list) else callback).get("attributes", {})
        # A copy with another name is not a second checkpoint.
        if "cycle_ends" in mark and folder.name == f"checkpoint-{state['global_step']}":
            return [_Checkpoint(folder, state["global_step"], mark["run"], mark["cycle_ends"], mark["saved_at"])]
    for path in (folder / name for name in SCHEDULER_STATES if (folder / name).exists()):
        try:
            saved = read_state(torch.load(path, weights_only=True))
        except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError):
            continue  # the state of another scheduler
        step, schedule = 0 if saved.fraction else saved.last_epoch, saved.schedule
        # A Trainer counts attempts, the schedule updates: after the last attempt they differ by the skipped updates.
        is_last = state.get("global_step", 0) >= state.get("max_steps", math.inf)
        reached = max(step, state["global_step"]) if is_last else step
        if schedule is not None and step > 0 and step <= schedule.cycle_at(step - 1).end <= reached:
            return [_Checkpoint(folder, step, schedule, [step], 0)]
    return []
