"""Evaluate and save at cycle ends, where the learning rate is lowest."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from functools import wraps
from types import ModuleType
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_warmcos.factory import with_all_groups
from hf_warmcos.scheduler import CosineRestartLR

logger = logging.getLogger("hf_warmcos")


class _StepsUntilSaved(str):
    """A `save_strategy` that is `"steps"` to the Trainer; pickled (`training_args.bin`), it is the given one."""

    given: SaveStrategy | str

    def __reduce__(self) -> tuple[Any, ...]:
        return SaveStrategy, (self.given,)


class CycleEndCallback(TrainerCallback, ExportableState):
    """Evaluates and saves at each cycle end, in addition to `eval_strategy` and `save_strategy`.

    To do so at cycle ends only, set `eval_strategy="no"` and `save_strategy="no"`. `load_best_model_at_end=True` works
    with these too, and loads the best cycle end. A step at which both a cycle and an epoch end is evaluated and saved
    once. If the cycles are fitted into the training, the last cycle ends at the last step. The learning rate that is
    logged there is that of the update before, the lowest of its cycle; the optimizer holds the next peak.

    Mixed precision skips an update whose gradients overflow. The schedule does not count it, but the Trainer does: the
    training then ends a few steps before the last cycle does. At the last step of the training, the last cycle counts
    as ended where only skipped updates keep it from its end. The logger `hf_warmcos` says how many were skipped.

    The callback marks the checkpoints of its run (in `trainer_state.json`), so that [`find_cycle_end_checkpoints`] can
    tell them from those of other runs in the same folder. `save_total_limit` also deletes checkpoints of cycle ends; at
    the start of training, a warning of the logger `hf_warmcos` says so.

    Args:
        evaluate (`bool`, *optional*, defaults to `True`): Whether to evaluate at each cycle end.
        save (`bool`, *optional*, defaults to `True`): Whether to save a checkpoint at each cycle end.

    Attributes:
        run (`str`): The mark of the run. A resumed run keeps it.
        cycle_ends (`list[int]`): The Trainer's steps at which a cycle of the run has ended.
        skipped_updates (`int`): The updates that mixed precision has skipped in the run.

    Raises:
        TypeError: At the start of training, if the trainer's scheduler has no cycles.
        ValueError: At the start of training, if DeepSpeed's configuration brings another scheduler, or if the scheduler
            has another optimizer than the trainer.
        ValueError: When the trainer is created, if it also has an `EarlyStoppingCallback` and `eval_strategy` is
            `"no"`. At the start of training, if `evaluate` is true and a [`WarmCosTrainer`] has no evaluation set (any
            other trainer raises it at the first cycle end).

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
    >>> from hf_warmcos import WarmCosTrainer
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> output_dir = tempfile.mkdtemp()
    >>> args = TrainingArguments(
    ...     output_dir,
    ...     max_steps=14,
    ...     lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8},
    ...     save_strategy="no",
    ...     report_to=[],
    ... )
    >>> dataset = [{"input_ids": [1, 2], "labels": [1, 2]}] * 8
    >>> trainer = WarmCosTrainer(model, args, train_dataset=dataset, callbacks=[CycleEndCallback(evaluate=False)])
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> sorted(path.name for path in Path(output_dir).iterdir())
    ['checkpoint-14', 'checkpoint-2', 'checkpoint-6']

    ```
    """

    def __init__(self, evaluate: bool = True, save: bool = True) -> None:
        self.evaluate = evaluate
        self.save = save
        self.run = uuid.uuid4().hex
        self.cycle_ends: list[int] = []
        self.skipped_updates = 0
        self._position = 0  # the schedule's step after the last update
        self._ended_at: int | None = None  # the schedule's step at which the cycle that ended last ends

    def state(self) -> dict[str, Any]:
        """Return what a Trainer saves of the callback in a checkpoint."""
        return {
            "args": {"evaluate": self.evaluate, "save": self.save},
            "attributes": {
                "run": self.run,
                "cycle_ends": [*self.cycle_ends],
                "skipped_updates": self.skipped_updates,
                "saved_at": time.time(),
            },
        }

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        no_evaluation = args.eval_strategy == IntervalStrategy.NO
        if no_evaluation and EarlyStoppingCallback.__name__ in (state.stateful_callbacks or ()):
            raise ValueError(
                'Expected eval_strategy="steps" or "epoch" for EarlyStoppingCallback, but got eval_strategy="no". To '
                'evaluate at cycle ends only, set eval_strategy="steps" and eval_steps to a number above max_steps.'
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _restore_save_strategy(args)  # if an error or Ctrl-C ended a training with these arguments while it saved
        check_scheduler(args, kwargs["optimizer"], kwargs["lr_scheduler"])
        scheduler = _scheduler_with_cycles(kwargs["lr_scheduler"])
        self._continue_run(state, scheduler)
        limit = args.save_total_limit
        if self.save and limit is not None and limit > 0:
            cycle = scheduler.schedule.cycle_at(state.max_steps - 1)
            num_cycle_ends = cycle.index + (cycle.end == state.max_steps)
            if num_cycle_ends > limit or args.save_strategy != SaveStrategy.NO:
                logger.warning(
                    "save_total_limit=%d deletes older checkpoints, also those of cycle ends. This training will have "
                    "%d cycle ends. To keep all their checkpoints, leave save_total_limit out.",
                    limit,
                    num_cycle_ends,
                )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        scheduler = _scheduler_with_cycles(kwargs["lr_scheduler"])
        self.skipped_updates += scheduler.last_epoch == self._position
        self._position = scheduler.last_epoch
        end = self._end_of_cycle(scheduler, at_last_attempt=state.global_step >= state.max_steps)
        if end is None or end == self._ended_at:  # still at the end of the cycle before if the update was skipped
            return
        if end > scheduler.last_epoch and state.is_world_process_zero:
            logger.warning(
                "Mixed precision skipped %d of the %d updates: the schedule is at step %d, and its last cycle, which "
                "would end at step %d, counts as ended.",
                *(self.skipped_updates, state.global_step, scheduler.last_epoch, end),
            )
        self._ended_at = end
        self.cycle_ends.append(state.global_step)
        if self.evaluate:
            control.should_evaluate = True
        if self.save:
            control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        saves_cycle_end = self.save and control.should_save and self.cycle_ends[-1:] == [state.global_step]
        given: Any = args.save_strategy
        if saves_cycle_end and args.metric_for_best_model is not None and given in (SaveStrategy.NO, SaveStrategy.BEST):
            # For this one checkpoint: with "no" the Trainer does not record which checkpoint is the best one, and with
            # "best" it saves no other. Not before the evaluation, which an error or Ctrl-C may end.
            # https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/trainer.py#L3463 and #L2281
            args.save_strategy = _StepsUntilSaved("steps")
            args.save_strategy.given = given

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # If a cycle ended at this step, it was evaluated and saved there: not again for the strategy "epoch". To
        # EarlyStoppingCallback a second evaluation would be one without improvement.
        if self.cycle_ends[-1:] == [state.global_step]:
            control.should_evaluate = control.should_evaluate and not self.evaluate
            # After an evaluation save again: only then does the checkpoint record whether it is the best.
            control.should_save = control.should_save and (control.should_evaluate or not self.save)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _restore_save_strategy(args)

    def _continue_run(self, state: TrainerState, scheduler: CosineRestartLR) -> None:
        """Keep the mark of the checkpoint that training resumes from, or create a new one."""
        states: Any = state.stateful_callbacks
        name = type(self).__name__
        saved = states.get(name) if state.global_step > 0 else None
        saved = saved[-1] if isinstance(saved, list) else saved  # a list if there are several callbacks of one class
        mark: dict[str, Any] = saved["attributes"] if saved else {"run": uuid.uuid4().hex, "cycle_ends": []}
        self.run, self.cycle_ends = mark["run"], [*mark["cycle_ends"]]
        self._position = scheduler.last_epoch
        # Without a mark: what the schedule is behind, unless it starts anew (save_only_model).
        behind = state.global_step - self._position if self._position > 0 else 0
        self.skipped_updates = mark.get("skipped_updates", max(0, behind))
        self._ended_at = self._end_of_cycle(scheduler, at_last_attempt=state.global_step in self.cycle_ends)
        # A Trainer expects it there, also if the checkpoint was saved without this callback.
        states.setdefault(name, self.state())

    def _end_of_cycle(self, scheduler: CosineRestartLR, at_last_attempt: bool) -> int | None:
        """The schedule's step at which a cycle ends here, or at the last attempt would without skipped updates."""
        if scheduler.at_cycle_end:
            return scheduler.last_epoch
        end = scheduler.schedule.cycle_at(scheduler.last_epoch).end
        reached = scheduler.last_epoch + self.skipped_updates
        return end if at_last_attempt and scheduler.last_epoch < end <= reached else None


def _restore_save_strategy(args: TrainingArguments) -> None:
    args.save_strategy = getattr(args.save_strategy, "given", args.save_strategy)


def add_to_each_trainer(module: ModuleType, what: Collection[str]) -> None:
    """Give each Trainer of the process a [`CycleEndCallback`] when it trains, as if its author had added it.

    A trainer that has one keeps its own. Before the training starts, the evaluation set is checked. Not by way of
    `DEFAULT_CALLBACKS`, which tools replace (ms-swift 4.6.0).

    Args:
        module (`module`): `transformers.trainer`.
        what (collection of `str`): `"evaluate"`, `"save"` or both.
    """
    train = module.Trainer.train

    @wraps(train)
    def train_with_callback(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress(KeyError, OSError):  # below `hf-warmcos run`: the folder that says that no Trainer trained
            os.rmdir(os.environ["HF_WARMCOS_UNUSED"] + "-trainer")
        if not any(isinstance(callback, CycleEndCallback) for callback in trainer.callback_handler.callbacks):
            callback = CycleEndCallback(evaluate="evaluate" in what, save="save" in what)
            callback.on_init_end(trainer.args, trainer.state, trainer.control)
            trainer.add_callback(callback)
        check_evaluation_set(trainer)
        return train(trainer, *args, **kwargs)

    module.Trainer.train = train_with_callback


def check_evaluation_set(trainer: Any) -> None:
    """Check that a trainer that evaluates at cycle ends has an evaluation set.

    Raises:
        ValueError: If it has none.
    """
    callbacks = trainer.callback_handler.callbacks
    if trainer.eval_dataset is None and any(isinstance(cb, CycleEndCallback) and cb.evaluate for cb in callbacks):
        try:
            trainer.get_eval_dataloader()  # a trainer may have overridden it
        except ValueError as error:
            raise ValueError(
                "Expected an evaluation set for CycleEndCallback, but the trainer has eval_dataset=None. Pass an "
                "eval_dataset, or use CycleEndCallback(evaluate=False), or hf-warmcos run --at_cycle_ends save."
            ) from error


def check_scheduler(args: TrainingArguments, optimizer: Any, lr_scheduler: Any) -> None:
    """Check that a trainer's scheduler is not DeepSpeed's, and that it writes the learning rates of its optimizer.

    Args:
        args (`TrainingArguments`): The trainer's arguments.
        optimizer (`torch.optim.Optimizer`): The trainer's optimizer, which may be in a wrapper.
        lr_scheduler (`LRScheduler`): The trainer's scheduler, which may be in a wrapper.

    Raises:
        ValueError: If DeepSpeed's configuration has a `"scheduler"` section, whose scheduler replaces the trainer's
            (`deepspeed_optim_sched` of `transformers.integrations.deepspeed`). If the scheduler's optimizer shares no
            parameter group with the trainer's: `optimizers=(None, scheduler)`, where the Trainer creates another one.
    """
    scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
    section = (getattr(getattr(args, "deepspeed_plugin", None), "deepspeed_config", None) or {}).get("scheduler")
    if section and not isinstance(scheduler, CosineRestartLR):
        file = args.deepspeed if isinstance(args.deepspeed, str) else os.getenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        raise ValueError(
            f'Expected no "scheduler" section in DeepSpeed\'s configuration{f" {file}" if file else ""}, but got '
            f"{section}: its {type(scheduler).__name__} would replace the schedule that was asked for. Remove the "
            "section."
        )
    # The parameters of a layer-wise optimizer have optimizers of their own:
    # https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/trainer_optimizer.py#L164
    own = [id(group) for group in with_all_groups(optimizer).param_groups]
    scheduled = getattr(scheduler, "optimizer", optimizer)
    if scheduled is not optimizer and not any(id(group) in own for group in scheduled.param_groups):
        raise ValueError(
            f"Expected a scheduler of the trainer's optimizer, but the optimizer of the {type(scheduler).__name__} "
            "shares no parameter group with it: the schedule would have no effect. Pass both: "
            "optimizers=(optimizer, scheduler)."
        )


def _scheduler_with_cycles(lr_scheduler: Any) -> CosineRestartLR:
    """Return the scheduler with the cycles: the given one, or the one inside Accelerate's or DeepSpeed's wrapper."""
    scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if not isinstance(scheduler, CosineRestartLR):
        raise TypeError(
            "Expected a scheduler with cycles for CycleEndCallback, but the trainer's scheduler is a "
            f"{type(scheduler).__name__}. Use WarmCosTrainer, or hf_warmcos.register() with "
            'lr_scheduler_type="cosine_with_restarts".'
        )
    return scheduler
