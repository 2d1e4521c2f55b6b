"""Cosine annealing with warm restarts, a decaying peak and one linear warmup, for PyTorch, Transformers, Accelerate.

Every public name loads at its first use, with what it stands on: the schedule loads no torch, the scheduler no
transformers, and nothing loads matplotlib before a picture is drawn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker sees; a test holds it against the table below
    from hf_warmcos.callbacks import CycleEndCallback
    from hf_warmcos.checkpoints import find_cycle_end_checkpoints, find_incomplete_file
    from hf_warmcos.cycles import Cycle
    from hf_warmcos.distributed import count_optimizer_steps
    from hf_warmcos.factory import (
        CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
        get_cosine_restarts_with_decay_and_warmup_schedule,
    )
    from hf_warmcos.plotting import plot_schedule
    from hf_warmcos.registry import register, unregister
    from hf_warmcos.schedule import CosineRestartSchedule
    from hf_warmcos.scheduler import CosineRestartLR
    from hf_warmcos.trainer import WarmCosTrainer, WarmCosTrainerMixin

__version__ = "0.2.0.dev0"

_MODULES = {
    "CosineRestartSchedule": "schedule",
    "Cycle": "cycles",
    "CosineRestartLR": "scheduler",
    "CosineAnnealingWarmRestartsWithDecayAndLinearWarmup": "factory",
    "get_cosine_restarts_with_decay_and_warmup_schedule": "factory",
    "count_optimizer_steps": "distributed",
    "register": "registry",
    "unregister": "registry",
    "WarmCosTrainer": "trainer",
    "WarmCosTrainerMixin": "trainer",
    "CycleEndCallback": "callbacks",
    "find_cycle_end_checkpoints": "checkpoints",
    "find_incomplete_file": "checkpoints",
    "plot_schedule": "plotting",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext hf_warmcos`: notebooks show a schedule as its picture."""
    import_module(f"{__name__}.plotting").load_ipython_extension(ipython)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
