"""The schedule in transformers' Trainer."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import SchedulerType, Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer, LayerWiseDummyScheduler

from hf_warmcos.arguments import check_arguments
from hf_warmcos.callbacks import CycleEndCallback
from hf_warmcos.checkpoints import TRAINER_STATE, find_torn_file, trainer_checkpoints
from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import TrainingArguments

logger = logging.getLogger("hf_warmcos")


class WarmCosTrainerMixin:
    """Give a `Trainer` class this schedule: `class MyTrainer(WarmCosTrainerMixin, SFTTrainer): ...`.

    The schedule's arguments are the ones that Trainer users have: `warmup_steps` (a number of steps, or a share of
    them) and `lr_scheduler_kwargs`, a dict or its JSON, with the arguments of
    [`get_cosine_restarts_with_decay_and_warmup_schedule`]: `num_cycles` and `decay`, but also `T_0`, `T_mult`,
    `min_lr`, `min_lr_rate`, `warmup_mode`, `warmup_lr_rate`, `stable_ratio` and `cycles`. Cycles are fitted into the
    number of optimizer updates that training will have.

    `lr_scheduler_type` can be left out; any other than `"cosine_with_restarts"` and the default gives a warning. It is
    `"cosine_with_restarts"` while the trainer trains and while it writes its model card, so that logs and cards name
    the schedule that ran. A scheduler that is passed in through `optimizers` is used instead of this one.

    A run that was killed while it saved has left a checkpoint that is not whole. `resume_from_checkpoint=True` takes
    the newest one that is, and says in a warning of the logger `hf_warmcos` which ones it passed over.

    Raises:
        TypeError: At the definition of a class that has the mixin after the trainer. At construction, if
            `lr_scheduler_kwargs` is not a dict, or has a key that the schedule does not know.
        ValueError: At construction, if a value in `lr_scheduler_kwargs` is out of its range. At the start of training,
            if the cycles do not fit, if the checkpoint to resume from is not whole, or if there is a
            [`CycleEndCallback`] that evaluates and no evaluation set.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    >>> class MyTrainer(WarmCosTrainerMixin, Trainer):
    ...     pass
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> args = TrainingArguments(
    ...     output_dir=tempfile.mkdtemp(),
    ...     max_steps=1100,
    ...     warmup_steps=100,
    ...     lr_scheduler_kwargs={"num_cycles": 4, "decay": 0.75},
    ... )
    >>> trainer = MyTrainer(model, args)
    >>> trainer.create_optimizer_and_scheduler(num_training_steps=1100)
    >>> trainer.lr_scheduler.schedule.restarts(1100)
    [350, 600, 850]

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
                f"Expected WarmCosTrainerMixin before the trainer in the bases of {cls.__name__}, as in "
                f"`class {cls.__name__}(WarmCosTrainerMixin, Trainer)`: after it, the trainer's own schedule runs."
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.lr_scheduler is None:
            self._check_scheduler_arguments()

    def train(self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does; `resume_from_checkpoint=True` resumes from the newest whole checkpoint."""
        if resume_from_checkpoint:
            resume_from_checkpoint = _whole_checkpoint(resume_from_checkpoint, self.args)
        self._check_evaluation_set()
        with self._named_schedule():
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Write the model card, as `Trainer.create_model_card` does."""
        with self._named_schedule():
            return super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create this schedule, unless the trainer has a scheduler.

        Args:
            num_training_steps (`int`): The number of optimizer updates that training will have.
            optimizer (`torch.optim.Optimizer`, *optional*): The optimizer; the trainer's own one if not given.

        Returns:
            `torch.optim.lr_scheduler.LRScheduler`: The trainer's scheduler.
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = _create_scheduler(
                self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                # Once more, since they may have been changed after construction.
                **self._check_scheduler_arguments(),
            )
            self._created_lr_scheduler = True  # so that Trainer.train creates another one for another training
        return self.lr_scheduler

    @contextmanager
    def _named_schedule(self) -> Iterator[None]:
        """Have the arguments, which are the user's own, name the schedule for as long as they are reported."""
        given = self.args.lr_scheduler_type
        if self.lr_scheduler is None or self._created_lr_scheduler:
            self._check_scheduler_arguments()
            self.args.lr_scheduler_type = SchedulerType.COSINE_WITH_RESTARTS
        try:
            yield
        finally:
            self.args.lr_scheduler_type = given

    def _check_scheduler_arguments(self) -> dict[str, Any]:
        """Return `lr_scheduler_kwargs` as a dict."""
        scheduler_type = SchedulerType(self.args.lr_scheduler_type)
        # The default cannot be told from a "linear" that the user wrote.
        if scheduler_type not in (SchedulerType.LINEAR, SchedulerType.COSINE_WITH_RESTARTS):
            warnings.warn(
                f"{type(self).__name__} uses cosine annealing with warm restarts in place of "
                f"lr_scheduler_type={scheduler_type.value!r}. Leave lr_scheduler_type out, or use a plain Trainer.",
                UserWarning,
                stacklevel=3,
            )
        return _checked_scheduler_kwargs(self.args.lr_scheduler_kwargs)

    def _check_evaluation_set(self) -> None:
        callbacks = self.callback_handler.callbacks
        if self.eval_dataset is None and any(isinstance(cb, CycleEndCallback) and cb.evaluate for cb in callbacks):
            try:
                self.get_eval_dataloader()  # type: ignore[attr-defined]  # which a trainer may have overridden
            except ValueError as error:
                raise ValueError(
                    "Expected an evaluation set for CycleEndCallback(evaluate=True), but the trainer has "
                    "eval_dataset=None. Give it an eval_dataset, or use CycleEndCallback(evaluate=False)."
                ) from error


def _create_scheduler(optimizer: Any, **arguments: Any) -> LRScheduler:
    if not isinstance(optimizer, LayerWiseDummyOptimizer):
        return get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **arguments)
    # Each parameter has an optimizer of its own, which steps when its gradient is there.
    schedulers = {
        parameter: get_cosine_restarts_with_decay_and_warmup_schedule(own_optimizer, **arguments)
        for parameter, own_optimizer in optimizer.optimizer_dict.items()
    }
    for parameter in schedulers:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: schedulers[parameter].step())
    return LayerWiseDummyScheduler(optimizer_dict=optimizer.optimizer_dict, lr=optimizer.defaults["lr"])


def _whole_checkpoint(resume_from_checkpoint: str | PathLike[str] | bool, args: TrainingArguments) -> str:
    """The checkpoint to resume from, which was written to its end; the newest one for True."""
    if not isinstance(resume_from_checkpoint, bool):
        folder = Path(resume_from_checkpoint)
        torn_file = find_torn_file(folder, [TRAINER_STATE]) if folder.is_dir() else None
        if torn_file is not None:
            raise ValueError(
                f"Expected resume_from_checkpoint to be a whole checkpoint, but {torn_file} is missing or was not "
                "written to its end. resume_from_checkpoint=True takes the newest one that is whole."
            )
        return str(folder)
    torn_files = {
        folder: find_torn_file(folder, [TRAINER_STATE]) for folder in trainer_checkpoints(args.output_dir or "")
    }
    # Each node may have an output folder of its own, and all processes have to resume from the same step.
    found = Counter(gather_object([folder.name for folder, torn_file in torn_files.items() if torn_file is None]))
    for folder, torn_file in torn_files.items():
        if found[folder.name] == args.world_size:
            return str(folder)
        logger.warning(
            "Passed over %s: %s is missing or was not written to its end.",
            folder,
            torn_file or "a file of another node",
        )
    raise ValueError(
        f"Expected a whole checkpoint in output_dir={args.output_dir!r} for resume_from_checkpoint=True, but found "
        f"none among {len(torn_files)} checkpoints"
    )


def _checked_scheduler_kwargs(lr_scheduler_kwargs: dict[str, Any] | str | None) -> dict[str, Any]:
    expected = "Expected lr_scheduler_kwargs to be a dict or a JSON object"
    kwargs: Any = lr_scheduler_kwargs or {}
    if isinstance(kwargs, str):
        try:
            kwargs = json.loads(kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"{expected}, but got {lr_scheduler_kwargs!r}: {error}") from error
    if not isinstance(kwargs, dict):
        raise TypeError(f"{expected}, but got {lr_scheduler_kwargs!r} of type {type(kwargs).__name__}")
    try:
        check_arguments(**kwargs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Expected lr_scheduler_kwargs of the schedule, but got {kwargs!r}: {error}") from error
    return kwargs


class WarmCosTrainer(WarmCosTrainerMixin, Trainer):
    """A `transformers.Trainer` with cosine annealing, warm restarts and a decaying peak.

    It takes what `Trainer` takes. See [`WarmCosTrainerMixin`] for the schedule's arguments, and for other trainers.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    >>> args = TrainingArguments(
    ...     output_dir=tempfile.mkdtemp(), max_steps=12, lr_scheduler_kwargs={"num_cycles": 4, "decay": 0.75}
    ... )
    >>> trainer = WarmCosTrainer(model, args, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}] * 8)
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {...}
    >>> trainer.lr_scheduler.at_cycle_end
    True

    ```
    """
