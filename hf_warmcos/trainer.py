"""The schedule in transformers' Trainer, and in every tool that hides one."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType, Trainer

from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.registry import register

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import TrainingArguments


class WarmCosTrainerMixin:
    """Give a `Trainer` class this schedule: `class MyTrainer(WarmCosTrainerMixin, SFTTrainer): ...`.

    The schedule's arguments are the ones that Trainer users have: `warmup_steps` (a number of steps, or a share of
    them) and `lr_scheduler_kwargs`, a dict or its JSON, with the arguments of
    [`get_cosine_restarts_with_decay_and_warmup_schedule`]: `num_cycles` and `decay`, but also `T_0`, `T_mult`,
    `min_lr`, `min_lr_rate`, `warmup_mode` and `warmup_lr_rate`. Cycles are fitted into the number of optimizer updates
    that training will have.

    `lr_scheduler_type` can be left out. In the trainer's own `args`, a shallow copy of those given, it is
    `"cosine_with_restarts"`, so that logs and model cards name the schedule that ran; any other type than that and
    the default gives a warning. A scheduler that is passed in through `optimizers` is used instead of this one.

    Raises:
        TypeError: At construction, if `lr_scheduler_kwargs` is not a dict.
        ValueError: At construction, if `lr_scheduler_kwargs` has a key that the schedule does not know. At the start of
            training, if a value is out of its range or if the cycles do not fit.

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
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args = copy.copy(self.args)
        if self.lr_scheduler is None:
            self._check_scheduler_arguments()

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create this schedule, unless the trainer has a scheduler.

        Args:
            num_training_steps (`int`): The number of optimizer updates that training will have.
            optimizer (`torch.optim.Optimizer`, *optional*): The optimizer; the trainer's own one if not given.

        Returns:
            `torch.optim.lr_scheduler.LRScheduler`: The trainer's scheduler.
        """
        if self.lr_scheduler is None:
            # Once more, since a hyperparameter search sets them after construction.
            self._check_scheduler_arguments()
        with register():
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def _check_scheduler_arguments(self) -> None:
        scheduler_type = SchedulerType(self.args.lr_scheduler_type)
        # The default cannot be told from a "linear" that the user wrote.
        if scheduler_type not in (SchedulerType.LINEAR, SchedulerType.COSINE_WITH_RESTARTS):
            warnings.warn(
                f"{type(self).__name__} uses cosine annealing with warm restarts in place of "
                f"lr_scheduler_type={scheduler_type.value!r}. Leave lr_scheduler_type out, or use a plain Trainer.",
                UserWarning,
                stacklevel=3,
            )
        self.args.lr_scheduler_kwargs = _checked_scheduler_kwargs(self.args.lr_scheduler_kwargs)
        self.args.lr_scheduler_type = SchedulerType.COSINE_WITH_RESTARTS


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
    parameters = inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters
    known = [name for name in parameters if name not in _SET_BY_TRAINER]
    unknown = [name for name in kwargs if name not in known]
    if unknown:
        raise ValueError(
            f"Expected the keys of lr_scheduler_kwargs to be among {', '.join(known)}, but got "
            f"{', '.join(map(repr, unknown))}"
        )
    return kwargs


_SET_BY_TRAINER = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")


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
