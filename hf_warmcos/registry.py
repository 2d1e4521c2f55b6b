"""The schedule by its name, in the tables of schedules of transformers and of diffusers."""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
import warnings
from contextlib import ExitStack, suppress
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from hf_warmcos.arguments import check_arguments

NAME = "cosine_with_restarts"

# Each has a table TYPE_TO_SCHEDULER_FUNCTION, with members of its own SchedulerType as keys.
_MODULES = ("transformers.optimization", "diffusers.optimization")

# Where a registration gives the first, it replaces what the tool passes for the others.
_IN_PLACE_OF = {name: {"cycles"} for name in ("num_cycles", "T_mult", "decay")}
_IN_PLACE_OF |= {"T_0": {"num_cycles", "cycles"}, "cycles": {"num_cycles", "T_0", "T_mult", "decay"}}
_IN_PLACE_OF |= {"min_lr": {"min_lr_rate"}, "min_lr_rate": {"min_lr"}}

_LENGTHS = ("num_cycles", "T_0", "cycles")
_lock = threading.RLock()
_registrations: dict[ExitStack, dict[str, Any]] = {}  # with their arguments, the latest last
_replaced: dict[ModuleType, Any] = {}  # what was in the module's table


def register(**arguments: Any) -> ExitStack:
    """Make the name `"cosine_with_restarts"` mean this schedule everywhere in the process.

    That is every plain `Trainer`, every tool that has one inside, every call of `get_scheduler` of transformers and of
    diffusers, imported already or later. What the tool passes goes to
    [`get_cosine_restarts_with_decay_and_warmup_schedule`]. With the arguments of the built-in schedule alone, the
    learning rates are those of the built-in one, except that restarts are rounded to whole steps.

    The arguments given here replace those that the tool passes: diffusers passes `num_cycles=1` where nobody asked for
    it, and many scripts have no way to pass `T_mult`. Where `T_0` or `cycles` is given, the tool's `num_cycles` is not
    used.

    Of several registrations, the latest one is used, with its arguments alone.

    Args:
        arguments (*optional*): Those of [`get_cosine_restarts_with_decay_and_warmup_schedule`], without `optimizer`,
            `num_warmup_steps`, `num_training_steps` and `last_epoch`, which the tool supplies.

    Returns:
        `contextlib.ExitStack`: Use it in a `with` statement, whose end takes back what this call did, or call its
        `close()`. Otherwise the registration holds until [`unregister`].

    Raises:
        TypeError, ValueError: If an argument is unknown, of the wrong type or out of its range. Nothing is registered
            then.

    Example:

    ```python
    >>> import torch
    >>> from transformers import get_scheduler
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    >>> with register(num_cycles=3, T_mult=2, stable_ratio=0.8):
    ...     scheduler = get_scheduler("cosine_with_restarts", optimizer, 100, 1500)
    >>> scheduler.schedule.restarts(1500)
    [300, 700]

    ```

    Source: `TYPE_TO_SCHEDULER_FUNCTION` of `transformers.optimization` and of `diffusers.optimization`, the tables that
    their `get_scheduler` read.
    """
    check_arguments(**arguments)
    registration = ExitStack()
    registration.callback(_end, registration)
    with _lock:
        if _finder not in sys.meta_path:
            sys.meta_path.insert(sys.meta_path.index(PathFinder), _finder)
    _registrations[registration] = {name: value for name, value in arguments.items() if value is not None}
    # Not from sys.modules: a module that another thread is importing has no table yet, and import_module waits for it.
    _update_tables(*[import_module(name) for name in _MODULES if name in sys.modules])
    return registration


def unregister() -> None:
    """Give `"cosine_with_restarts"` back the meaning that it had before [`register`], however often that was called.

    Does nothing where it was not registered. What someone else has put in its place since then stays.

    Example:

    ```python
    >>> from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    >>> before = dict(TYPE_TO_SCHEDULER_FUNCTION)
    >>> registration = register(num_cycles=3, T_mult=2, stable_ratio=0.8)
    >>> TYPE_TO_SCHEDULER_FUNCTION == before
    False
    >>> unregister()
    >>> TYPE_TO_SCHEDULER_FUNCTION == before
    True

    ```
    """
    for registration in list(_registrations):
        registration.close()


def _end(registration: ExitStack) -> None:
    _registrations.pop(registration, None)
    if not _registrations:
        _update_tables(*_replaced)
        with suppress(ValueError):
            sys.meta_path.remove(_finder)


def _registered_schedule(*passed_by_position: Any, **passed_by_name: Any) -> Any:
    """The function in the tables: the factory, with what the tool passes and the latest registration's arguments."""
    # Here and not above: this module is imported before scripts that are yet to say how torch is to be imported.
    from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule as factory

    with suppress(KeyError, OSError):  # below `hf-warmcos run`: the folder that says that no schedule was asked for
        os.rmdir(os.environ["HF_WARMCOS_UNUSED"])
    given = [{}, *_registrations.values()][-1]
    passed = inspect.signature(factory).bind_partial(*passed_by_position, **passed_by_name).arguments
    replaced = set().union(*(_IN_PLACE_OF.get(name, ()) for name in given))
    arguments = {name: value for name, value in passed.items() if name not in replaced} | given
    lengths = {name: arguments[name] for name in _LENGTHS if arguments.get(name) is not None}
    # diffusers passes num_cycles=1 where nobody asked for it.
    if lengths in ({}, {"num_cycles": 1}) and "num_cycles" not in given:
        warnings.warn(
            "The schedule is one cosine without a restart: give num_cycles, T_0 or cycles to register or to "
            "hf-warmcos run, or num_cycles=1 if you mean it.",
            UserWarning,
            stacklevel=2,
        )
    return factory(**arguments)


def _update_tables(*modules: ModuleType) -> None:
    """Enter the schedule if there is a registration, and put back what was there before if there is none."""
    with _lock:
        for module in modules:
            table, key = module.TYPE_TO_SCHEDULER_FUNCTION, module.SchedulerType(NAME)
            if _registrations and table[key] is not _registered_schedule:
                _replaced[module], table[key] = table[key], _registered_schedule
            elif not _registrations and table[key] is _registered_schedule:
                table[key] = _replaced[module]


def _add_callback(trainer: ModuleType) -> None:
    """Give each Trainer a callback at cycle ends, where `hf-warmcos run --at_cycle_ends` asks for it."""
    if "HF_WARMCOS_AT_CYCLE_ENDS" in os.environ:
        from hf_warmcos.callbacks import add_to_each_trainer

        add_to_each_trainer(trainer, os.environ["HF_WARMCOS_AT_CYCLE_ENDS"].split(","))


_AT_IMPORT = {**dict.fromkeys(_MODULES, _update_tables), "transformers.trainer": _add_callback}


class _UpdateAtImport:
    """A finder that finds the modules with the tables as Python does, and updates the table once they are imported.

    So `register` imports nothing itself: neither a library that the process never needs, nor one before a script has
    set the environment variables that this library reads when it is imported.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        spec = PathFinder.find_spec(name, path, target) if name in _AT_IMPORT else None
        if spec is not None and spec.loader is not None:
            execute, update = spec.loader.exec_module, _AT_IMPORT[name]
            spec.loader.exec_module = lambda module: (execute(module), update(module))  # type: ignore
        return spec


_finder: Any = _UpdateAtImport()  # in sys.meta_path while there is a registration
if "HF_WARMCOS_REGISTER" in os.environ:  # set by `hf-warmcos run`; what a script registers later holds over it
    register(**json.loads(os.environ["HF_WARMCOS_REGISTER"]))
