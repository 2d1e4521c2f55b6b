"""The schedule by its name, in tools that look schedules up in a table: transformers' and diffusers'."""

from __future__ import annotations

import inspect
import mmap
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from hf_warmcos.arguments import check_arguments

if TYPE_CHECKING:
    from hf_warmcos.scheduler import CosineRestartLR

NAME = "cosine_with_restarts"

# Each has a table TYPE_TO_SCHEDULER_FUNCTION, with members of its own SchedulerType as keys.
_MODULES = ("transformers.optimization", "diffusers.optimization")

# What says one thing in two ways: where the first is given, the others are not taken from the tool.
_IN_PLACE_OF = {
    "T_0": ("num_cycles", "cycles"),
    "cycles": ("num_cycles", "T_0", "T_mult", "decay"),
    "min_lr": ("min_lr_rate",),
    "min_lr_rate": ("min_lr",),
}

_lock = threading.RLock()
_registrations: list[Registration] = []
_replaced: list[tuple[dict[Any, Any], Any, Any]] = []  # tables, keys, and what was there


def register(**arguments: Any) -> Registration:
    """Make the name `"cosine_with_restarts"` mean this schedule everywhere in the process.

    That is every plain `Trainer`, every tool that has one inside, every call of `get_scheduler` of transformers and of
    diffusers, imported already or later. What the tool passes goes to
    [`get_cosine_restarts_with_decay_and_warmup_schedule`]; without `decay`, `T_mult` and the like the rates are those
    of the built-in schedule.

    The arguments given here hold, whatever the tool passes: diffusers passes `num_cycles=1` without being asked, and
    many scripts have no way to pass `decay`. Where `T_0` or `cycles` is given, the tool's `num_cycles` is not used.

    Of several registrations the latest holds, with its arguments alone.

    Args:
        arguments (*optional*): Those of [`get_cosine_restarts_with_decay_and_warmup_schedule`], without `optimizer`,
            `num_warmup_steps`, `num_training_steps` and `last_epoch`, which are the tool's to say.

    Returns:
        [`Registration`], a context manager for use in a `with` statement: its end takes back what this call did.
        Without `with` the registration holds until [`unregister`].

    Raises:
        TypeError, ValueError: If an argument is unknown, of the wrong type or out of its range. Nothing is registered
            then.

    Example:

    ```python
    >>> import torch
    >>> from transformers import get_scheduler
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    >>> with register(decay=0.75):
    ...     scheduler = get_scheduler(
    ...         "cosine_with_restarts", optimizer, 100, 1100, scheduler_specific_kwargs={"num_cycles": 4}
    ...     )
    >>> scheduler.schedule.decay
    0.75

    ```

    Source: `TYPE_TO_SCHEDULER_FUNCTION` of `transformers.optimization` and of `diffusers.optimization`, the tables that
    their `get_scheduler` read.
    """
    check_arguments(**arguments)
    registration = Registration({name: value for name, value in arguments.items() if value is not None})
    with _lock:
        _registrations.append(registration)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
    for name in _MODULES:
        if name in sys.modules:
            # Not from sys.modules: one that another thread is importing has no table yet, and is waited for.
            _enter_into_table(import_module(name))
    return registration


def unregister() -> None:
    """Give `"cosine_with_restarts"` back the meaning that it had before [`register`], however often that was called.

    Does nothing where it was not registered. What someone else has put in its place since then stays.

    Example:

    ```python
    >>> from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    >>> before = dict(TYPE_TO_SCHEDULER_FUNCTION)
    >>> registration = register(num_cycles=4, decay=0.75)
    >>> TYPE_TO_SCHEDULER_FUNCTION == before
    False
    >>> unregister()
    >>> TYPE_TO_SCHEDULER_FUNCTION == before
    True

    ```
    """
    with _lock:
        for registration in list(_registrations):
            registration.end()


class Registration(AbstractContextManager["Registration"]):
    """What [`register`] returns: a context manager, whose end takes the registration back.

    Attributes:
        arguments (`dict`): The arguments that hold.
        used (`bool`): Whether a schedule was asked for by the registered name so far, in this process or in one that
            was forked from it.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self._used = mmap.mmap(-1, 1)  # memory that forked processes share

    @property
    def used(self) -> bool:
        return self._used[0] == 1

    def note_use(self) -> None:
        self._used[0] = 1

    def end(self) -> None:
        """Take the registration back; the one before it holds again, or else what was there before all of them."""
        with _lock:
            if self in _registrations:
                _registrations.remove(self)
            if not _registrations:
                _leave_tables()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _registered_schedule(*passed_by_position: Any, **passed_by_name: Any) -> CosineRestartLR:
    """The function in the tables: the factory, with what the tool passes and the latest registration's arguments."""
    # Here and not above: this module is imported before scripts that are yet to say how torch is to be imported.
    from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule

    with _lock:
        held = dict(_registrations[-1].arguments) if _registrations else {}
        for registration in _registrations:
            registration.note_use()
    passed = inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).bind_partial(
        *passed_by_position, **passed_by_name
    )
    not_taken = {other for name in held for other in _IN_PLACE_OF.get(name, ())}
    taken = {name: value for name, value in passed.arguments.items() if name not in not_taken}
    return get_cosine_restarts_with_decay_and_warmup_schedule(**{**taken, **held})


def _enter_into_table(module: ModuleType) -> None:
    with _lock:
        table, key = module.TYPE_TO_SCHEDULER_FUNCTION, module.SchedulerType(NAME)
        if _registrations and table[key] is not _registered_schedule:
            _replaced.append((table, key, table[key]))
            table[key] = _registered_schedule


def _leave_tables() -> None:
    while _replaced:
        table, key, replaced = _replaced.pop()
        if table[key] is _registered_schedule:
            table[key] = replaced
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _EnterIntoTableAtImport(MetaPathFinder):
    """Finds the modules with the tables as Python does, and enters the schedule once they are imported.

    So `register` imports nothing itself: neither a library that the process never needs, nor one before a script has
    set the environment variables that it reads when it is imported.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _MODULES else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                _enter_into_table(module)

            spec.loader.exec_module = execute_and_enter  # type: ignore[method-assign]
        return spec


_finder = _EnterIntoTableAtImport()
