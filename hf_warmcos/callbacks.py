"""Evaluation and checkpoints where cycles end: the moments at which the rate is lowest."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_warmcos.scheduler import CosineRestartLR


class CycleEndCallback(TrainerCallback):
    """Evaluate and save at the end of each cycle, whatever the evaluation and save strategies do besides.

    With `eval_strategy="no"` and `save_strategy="no"` it is the ends of the cycles and nothing else. Both also go with
    `load_best_model_at_end=True`, which then picks the best cycle end. The last cycle end of a schedule that was fitted
    into training is its last step.

    Args:
        evaluate (`bool`, *optional*, defaults to `True`): Evaluate at the end of each cycle.
        save (`bool`, *optional*, defaults to `True`): Save a checkpoint at the end of each cycle.

    Raises:
        TypeError: At the start of training, if the trainer's scheduler has no cycles.
        ValueError: At the start of training, if `evaluate` is true and the trainer has no evaluation set.

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
        self._last_cycle_end: int | None = None
        self._save_strategy: SaveStrategy | str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_cycle_end = None
        self._give_back_save_strategy(args)  # after a training that an error or Ctrl-C ended in its evaluation
        _cycles_of(kwargs["lr_scheduler"])
        if self.evaluate:
            _check_evaluation_set()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        scheduler = _cycles_of(kwargs["lr_scheduler"])
        # An update that the gradient scaler skipped leaves the scheduler at the cycle end where it was.
        if not scheduler.at_cycle_end or scheduler.last_epoch == self._last_cycle_end:
            return control
        self._last_cycle_end = scheduler.last_epoch
        if self.evaluate:
            control.should_evaluate = True
        if self.save:
            control.should_save = True
            if args.save_strategy in (SaveStrategy.NO, SaveStrategy.BEST):
                # For this one checkpoint: with "no" the Trainer does not note which checkpoint is the best one, and
                # with "best" it drops all others.
                self._save_strategy, args.save_strategy = args.save_strategy, SaveStrategy.STEPS
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._give_back_save_strategy(args)

    def _give_back_save_strategy(self, args: TrainingArguments) -> None:
        if self._save_strategy is not None:
            args.save_strategy, self._save_strategy = self._save_strategy, None


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


def _check_evaluation_set() -> None:
    # A Trainer gives its callbacks no reference to itself, and would say that the evaluation set is missing only when
    # the first cycle has been trained. It calls on_train_begin, though.
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back
    if frame is None or frame.f_locals["self"].eval_dataset is not None:
        return
    try:
        frame.f_locals["self"].get_eval_dataloader()
    except ValueError as error:
        raise ValueError(
            "Expected an evaluation set for CycleEndCallback(evaluate=True), but the trainer has eval_dataset=None. "
            "Give it an eval_dataset, or use CycleEndCallback(evaluate=False)."
        ) from error
