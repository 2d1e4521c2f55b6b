"""Cosine annealing with warm restarts, a decaying peak and one linear warmup, for PyTorch, Transformers, Accelerate.

Importing this package loads torch and nothing heavier. The Trainer door, the callbacks, the snapshots and the pictures
load what they stand on at their first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hf_warmcos.distributed import count_optimizer_steps
from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.schedule import CosineRestartSchedule, Cycle
from hf_warmcos.scheduler import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup

if TYPE_CHECKING:
    from hf_warmcos.callbacks import CycleEndCallback
    from hf_warmcos.plotting import plot_schedule
    from hf_warmcos.snapshots import SnapshotEnsemble
    from hf_warmcos.trainer import WarmCosTrainer, WarmCosTrainerMixin, register, unregister

__version__ = version("hf_warmcos")

_LOADED_AT_FIRST_USE = {
    "CycleEndCallback": "callbacks",
    "SnapshotEnsemble": "snapshots",
    "WarmCosTrainer": "trainer",
    "WarmCosTrainerMixin": "trainer",
    "plot_schedule": "plotting",
    "register": "trainer",
    "unregister": "trainer",
}

__all__ = [
    "CosineAnnealingWarmRestartsWithDecayAndLinearWarmup",
    "CosineRestartSchedule",
    "Cycle",
    "CycleEndCallback",
    "SnapshotEnsemble",
    "WarmCosTrainer",
    "WarmCosTrainerMixin",
    "count_optimizer_steps",
    "get_cosine_restarts_with_decay_and_warmup_schedule",
    "plot_schedule",
    "register",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _LOADED_AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hf_warmcos.{_LOADED_AT_FIRST_USE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
