"""Evaluation and checkpoints where cycles end: the moments at which the rate is lowest."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from hf_warmcos.scheduler import CosineRestartLR

logger = logging.getLogger("hf_warmcos")


class CycleEndCallback(TrainerCallback, ExportableState):
    """Evaluate and save at the end of each cycle, whatever the evaluation and save strategies do besides.

    With `eval_strategy="no"` and `save_strategy="no"` it is the ends of the cycles and nothing else. Where a cycle and
    an epoch end at the same step, that step is evaluated and saved once. Both also go with
    `load_best_model_at_end=True`, which then picks the best cycle end. The last cycle end of a schedule that was fitted
    into training is its last step.

    It marks the checkpoints of its run (in `trainer_state.json`), by which [`find_cycle_end_checkpoints`] tells them
    from those of other runs in the same folder. `save_total_limit` knows nothing of cycles, and deletes the checkpoints
    of their ends with all others; a warning of the logger `hf_warmcos` says so at the start of training.

    Args:
        evaluate (`bool`, *optional*, defaults to `True`): Evaluate at the end of each cycle.
        save (`bool`, *optional*, defaults to `True`): Save a checkpoint at the end of each cycle.

    Attributes:
        run (`str`): The name by which the checkpoints of the run are marked. A run that is resumed keeps it.
        cycle_ends (`list[int]`): The steps at which cycles have ended so far.

    Raises:
        TypeError: At the start of training, if the trainer's scheduler has no cycles.
        ValueError: At the start of training, if `evaluate` is true and a [`WarmCosTrainer`] has no evaluation set. (Any
            other trainer says so at the first cycle end.)

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
    >>> from hf_warmcos import WarmCosTrainer
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> output_dir = tempfile.mkdtemp()
    >>> args = TrainingArguments(
    ...     output_dir, max_steps=12, lr_scheduler_kwargs={"num_cycles": 3}, save_strategy="no", report_to=[]
    ... )
    >>> dataset = [{"input_ids": [1, 2], "labels": [1, 2]}] * 8
    >>> trainer = WarmCosTrainer(
    ...     model, args, train_dataset=dataset, callbacks=[CycleEndCallback(evaluate=False)]
    ... )
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> sorted(path.name for path in Path(output_dir).iterdir())
    ['checkpoint-12', 'checkpoint-4', 'checkpoint-8']

    ```
    """

    def __init__(self, evaluate: bool = True, save: bool = True) -> None:
        self.evaluate = evaluate
        self.save = save
        self.run = uuid.uuid4().hex
        self.cycle_ends: list[int] = []
        self._last_cycle_end: int | None = None
        self._save_strategy: SaveStrategy | str | None = None

    def state(self) -> dict[str, Any]:
        """What a Trainer keeps of it in a checkpoint."""
        return {
            "args": {"evaluate": self.evaluate, "save": self.save},
            "attributes": {"run": self.run, "cycle_ends": [*self.cycle_ends], "saved_at": time.time()},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_cycle_end = None
        self._give_back_save_strategy(args)  # after a training that an error or Ctrl-C ended in its evaluation
        scheduler = _cycles_of(kwargs["lr_scheduler"])
        self._continue_run(state)
        limit = args.save_total_limit
        if self.save and limit is not None and limit > 0:
            cycle = scheduler.schedule.cycle_at(state.max_steps - 1)
            num_cycle_ends = cycle.index + (cycle.end == state.max_steps)
            if num_cycle_ends > limit or args.save_strategy != SaveStrategy.NO:
                logger.warning(
                    "save_total_limit=%d keeps the newest checkpoints, whether cycles ended there or not, and deletes "
                    "those of earlier cycle ends, of which this training will have %d. Leave save_total_limit out to "
                    "keep them all, as for a SnapshotEnsemble.",
                    limit,
                    num_cycle_ends,
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        scheduler = _cycles_of(kwargs["lr_scheduler"])
        # An update that the gradient scaler skipped leaves the scheduler at the cycle end where it was.
        if not scheduler.at_cycle_end or scheduler.last_epoch == self._last_cycle_end:
            return control
        self._last_cycle_end = scheduler.last_epoch
        self.cycle_ends.append(state.global_step)
        if self.evaluate:
            control.should_evaluate = True
        if self.save:
            control.should_save = True
            if args.metric_for_best_model is not None and args.save_strategy in (SaveStrategy.NO, SaveStrategy.BEST):
                # For this one checkpoint: with "no" the Trainer does not note which checkpoint is the best one, and
                # with "best" it drops all others.
                self._save_strategy, args.save_strategy = args.save_strategy, SaveStrategy.STEPS
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # What the strategy "epoch" asks for now has been done where a cycle ended at the same step. A second evaluation
        # would be one without improvement to EarlyStoppingCallback.
        if self.cycle_ends[-1:] == [state.global_step]:
            control.should_evaluate = control.should_evaluate and not self.evaluate
            # A checkpoint after an evaluation is another one than that before it: it knows whether it is the best.
            control.should_save = control.should_save and (control.should_evaluate or not self.save)
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._give_back_save_strategy(args) and args.should_save:
            # The arguments are part of the checkpoint, and are to be those that the user gave. In a search each trial
            # has a folder of its own, where its best checkpoint is, too.
            best = state.best_model_checkpoint
            folder = Path(best).parent if best else Path(args.output_dir or "")
            arguments = folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / TRAINING_ARGS_NAME
            if arguments.exists():
                torch.save(args, arguments)

    def _continue_run(self, state: TrainerState) -> None:
        """Take over the mark of the checkpoint that training goes on from, or begin a run of its own."""
        states: Any = state.stateful_callbacks
        name = type(self).__name__
        saved = states.get(name) if state.global_step > 0 else None
        if isinstance(saved, list):  # of several callbacks of one class
            saved = saved[-1]
        self.run = uuid.uuid4().hex if saved is None else saved["attributes"]["run"]
        self.cycle_ends = [] if saved is None else [*saved["attributes"]["cycle_ends"]]
        # A Trainer counts on finding it there, and the checkpoint may be one of a training without this callback.
        states.setdefault(name, self.state())

    def _give_back_save_strategy(self, args: TrainingArguments) -> bool:
        """Return whether it had been changed."""
        if self._save_strategy is None:
            return False
        args.save_strategy, self._save_strategy = self._save_strategy, None
        return True


def _cycles_of(lr_scheduler: Any) -> CosineRestartLR:
    """The scheduler that has the cycles: the given one, or the one inside Accelerate's or DeepSpeed's wrapper."""
    scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if not isinstance(scheduler, CosineRestartLR):
        raise TypeError(
            "Expected a scheduler with cycles for CycleEndCallback, but the trainer's scheduler is a "
            f"{type(scheduler).__name__}. Use WarmCosTrainer, or hf_warmcos.register() with "
            'lr_scheduler_type="cosine_with_restarts".'
        )
    return scheduler
