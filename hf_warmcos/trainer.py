"""A transformers Trainer with this schedule."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType, Trainer, TrainerCallback

from hf_warmcos.arguments import check_arguments, first_number_of_steps
from hf_warmcos.callbacks import check_evaluation_set, check_scheduler
from hf_warmcos.checkpoints import complete_checkpoint
from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.scheduler import CosineRestartLR

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import TrainingArguments

logger = logging.getLogger("hf_warmcos")


class WarmCosTrainerMixin:
    """Give a `Trainer` class this schedule: `class MyTrainer(WarmCosTrainerMixin, SFTTrainer): ...`.

    Set the schedule in `TrainingArguments`: `warmup_steps` (a number of steps, or a fraction of all steps) and
    `lr_scheduler_kwargs`, a dict or its JSON. The keys of `lr_scheduler_kwargs` are arguments of
    [`get_cosine_restarts_with_decay_and_warmup_schedule`]: `num_cycles`, `T_mult`, `decay`, `min_lr`, `min_lr_rate`,
    `T_0`, `cycles`, `warmup_mode`, `warmup_lr_rate` and `stable_ratio`. The Trainer supplies the number of steps, and
    `num_cycles` cycles are fitted into them.

    Leave out `lr_scheduler_type`. A warning says so if it is neither the default nor `"cosine_with_restarts"`. While
    the trainer trains and writes its model card, the arguments have `"cosine_with_restarts"`, so that logs and model
    cards name this schedule. If you pass a scheduler with `optimizers`, pass its optimizer, too: the trainer uses that
    scheduler, and a warning says so if `lr_scheduler_kwargs` are given.

    `resume_from_checkpoint=True` resumes from the newest complete checkpoint. A run that was killed while it saved may
    leave an incomplete one: it is skipped, and a warning of the logger `hf_warmcos` names it.

    Layer-wise optimizers (such as `optim="galore_adamw_layerwise"`) get the schedule for each parameter. A Trainer does
    not save the state of such an optimizer: after resuming, its moments start from zero.

    Raises:
        TypeError: When a class is defined that has the mixin after the trainer. At construction, if
            `lr_scheduler_kwargs` is not a dict or has an unknown key.
        ValueError: At construction, if a value in `lr_scheduler_kwargs` is out of its range. At the start of training,
            if the cycles do not fit, if the checkpoint to resume from is incomplete, if another scheduler would train
            (a `"scheduler"` section in DeepSpeed's configuration, a `create_scheduler` of a subclass), if a scheduler
            that was passed has another optimizer than the trainer, or if there is a [`CycleEndCallback`] that evaluates
            but no evaluation set.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    >>> class MyTrainer(WarmCosTrainerMixin, Trainer):
    ...     pass
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> args = TrainingArguments(
    ...     output_dir=tempfile.mkdtemp(),
    ...     max_steps=800,
    ...     warmup_steps=100,
    ...     lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8},
    ... )
    >>> trainer = MyTrainer(model, args)
    >>> trainer.create_optimizer_and_scheduler(num_training_steps=800)
    >>> trainer.lr_scheduler.schedule.restarts(800)
    [200, 400]

    ```
    """

    args: TrainingArguments
    optimizer: Any
    lr_scheduler: Any
    eval_dataset: Any
    callback_handler: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bases = cls.__mro__
        if Trainer in bases and bases.index(Trainer) < bases.index(WarmCosTrainerMixin):
            raise TypeError(
                f"Expected WarmCosTrainerMixin before the trainer in the bases of {cls.__name__}: "
                f"`class {cls.__name__}(WarmCosTrainerMixin, Trainer)`. After it, the mixin has no effect."
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if self.lr_scheduler is not None:
            if given := self.args.lr_scheduler_kwargs:
                message = f"{name} ignores lr_scheduler_kwargs={given!r}: it was given a scheduler and uses that one."
                warnings.warn(message, UserWarning, stacklevel=2)
            return
        self._scheduler_arguments()
        # A value that is the default of the config's class looks as if nobody had given it.
        given, default = (SchedulerType(of.lr_scheduler_type) for of in (self.args, type(self.args)))
        if given not in (default, SchedulerType.COSINE_WITH_RESTARTS):
            warnings.warn(
                f"{name} ignores lr_scheduler_type={given.value!r} and uses cosine annealing with warm restarts. Leave "
                "lr_scheduler_type out, or use a plain Trainer.",
                UserWarning,
                stacklevel=2,
            )

    def train(self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does; `resume_from_checkpoint=True` takes the newest complete checkpoint."""
        if resume_from_checkpoint:
            resume_from_checkpoint = complete_checkpoint(resume_from_checkpoint, self.args)
        check_evaluation_set(self)
        with self._named_schedule(), self._checked_scheduler():
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Write the model card, as `Trainer.create_model_card` does."""
        with self._named_schedule():
            return super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create the scheduler of this schedule, unless the trainer already has a scheduler.

        Args:
            num_training_steps (`int`): The number of optimizer updates of the training.
            optimizer (`torch.optim.Optimizer`, *optional*): The optimizer; defaults to the trainer's.

        Returns:
            `torch.optim.lr_scheduler.LRScheduler`: The trainer's scheduler.
        """
        if self.lr_scheduler is None:
            kwargs = self._scheduler_arguments()  # again: they may have been changed after construction
            # A warmup given as a fraction stays what it was when a run is continued.
            warmup_of = first_number_of_steps(num_training_steps, kwargs.get("extend_from"))
            self.lr_scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
                self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=self.args.get_warmup_steps(warmup_of),
                num_training_steps=num_training_steps,
                **kwargs,
            )
            self._created_lr_scheduler = True  # so that a second Trainer.train creates a new one
        return self.lr_scheduler

    @contextmanager
    def _named_schedule(self) -> Iterator[None]:
        """Let the arguments name this schedule while they are logged and written; then restore the user's value."""
        given = self.args.lr_scheduler_type
        if self.lr_scheduler is None or self._created_lr_scheduler:
            self._scheduler_arguments()
            self.args.lr_scheduler_type = SchedulerType.COSINE_WITH_RESTARTS
        try:
            yield
        finally:
            self.args.lr_scheduler_type = given

    @contextmanager
    def _checked_scheduler(self) -> Iterator[None]:
        """Check before the first update which scheduler is in use: before other callbacks see it."""
        callbacks = self.callback_handler.callbacks
        check = _SchedulerCheck(type(self).__name__, None if self._created_lr_scheduler else self.lr_scheduler)
        callbacks.insert(0, check)
        try:
            yield
        finally:
            callbacks.remove(check)

    def _scheduler_arguments(self) -> dict[str, Any]:
        """`lr_scheduler_kwargs` as a dict, checked."""
        return _checked_scheduler_kwargs(self.args.lr_scheduler_kwargs)


class _SchedulerCheck(TrainerCallback):
    """Checks before the first update that the schedule that was asked for is in use, and says where it begins."""

    def __init__(self, trainer: str, passed: Any) -> None:
        self.trainer = trainer
        self.passed = passed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lr_scheduler = kwargs["lr_scheduler"]
        check_scheduler(args, kwargs["optimizer"], lr_scheduler)
        is_passed = self.passed is not None and lr_scheduler is self.passed
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if not (is_passed or isinstance(scheduler, CosineRestartLR)):
            raise ValueError(
                f"Expected {self.trainer} to use the scheduler that it creates, but a {type(scheduler).__name__} is in "
                "use. Remove what creates it, such as a create_scheduler of the class, or pass it and its optimizer: "
                "optimizers=(optimizer, scheduler)."
            )
        if is_passed and state.global_step == 0 and scheduler.last_epoch > 0:
            logger.warning(
                "Training begins at step %d of the scheduler that was passed: nothing sets it back for another "
                "training or for another attempt of auto_find_batch_size. To begin at step 0, pass a new one.",
                scheduler.last_epoch,
            )
        if state.global_step >= state.max_steps:
            logger.warning(
                "Nothing is left to train: the checkpoint to resume from has %d steps, and this training %d. With "
                "num_train_epochs, a larger batch or more gradient_accumulation_steps make fewer steps.",
                *(state.global_step, state.max_steps),
            )


def _checked_scheduler_kwargs(lr_scheduler_kwargs: dict[str, Any] | str | None) -> dict[str, Any]:
    kwargs: Any = lr_scheduler_kwargs or {}
    with suppress(json.JSONDecodeError):
        kwargs = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
    if not isinstance(kwargs, dict):
        raise TypeError(f"Expected lr_scheduler_kwargs to be a dict or a JSON object, but got {lr_scheduler_kwargs!r}")
    try:
        check_arguments(**kwargs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"lr_scheduler_kwargs={kwargs!r}: {error}") from error
    return kwargs


class WarmCosTrainer(WarmCosTrainerMixin, Trainer):
    """A `transformers.Trainer` with cosine annealing and warm restarts.

    It takes the arguments of `Trainer`. See [`WarmCosTrainerMixin`] for those of the schedule, and for other trainers.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> args = TrainingArguments(
    ...     output_dir=tempfile.mkdtemp(),
    ...     max_steps=14,
    ...     lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8},
    ... )
    >>> trainer = WarmCosTrainer(model, args, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}] * 8)
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> trainer.lr_scheduler.at_cycle_end
    True

    ```
    """
