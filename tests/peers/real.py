"""The real classes: for each section of the table of names, a function with the arguments of its formula.

Modules are loaded without the `__init__` of their packages where this imports more than schedulers need (torchvision).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from .mappings import LR, stepped, torch_restarts, transformers_restarts, transformers_wsd

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def module(name: str, *bare: str, **names: Any) -> Any:
    """Load a module; of the packages in `bare` only the folder, with some names in the last of them."""
    for package in bare:
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            sys.modules[package] = types.ModuleType(package)
            vars(sys.modules[package]).update(__spec__=spec, __path__=[*spec.submodule_search_locations])
    if bare:
        vars(sys.modules[bare[-1]]).update(names)
    return importlib.import_module(name)


def optimizer_with(lr: float) -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def pytorch_optimizer(
    steps: int, max_lr: float = LR, min_lr: float = 1e-4, gamma: float = 1.0, **arguments: Any
) -> Any:
    of = module("pytorch_optimizer.lr_scheduler.cosine_anealing", "pytorch_optimizer", "pytorch_optimizer.lr_scheduler")
    arguments |= {"max_lr": max_lr, "min_lr": min_lr, "gamma": gamma}
    return stepped(lambda optimizer: of.CosineAnnealingWarmupRestarts(optimizer, **arguments), steps, LR)


def pytorch_scheduler(steps: int, max_lr: float = LR, min_lr: float = 1e-4, **arguments: Any) -> Any:
    from pytorch_scheduler.scheduler.cosine_annealing import CosineAnnealingWarmupRestarts as Scheduler

    arguments |= {"max_lr": max_lr, "min_lr": min_lr}
    return stepped(lambda optimizer: Scheduler(optimizer, **arguments), steps, LR)


def torch_cosine_annealing(steps: int, **arguments: Any) -> Any:
    from torch_cosine_annealing import CosineAnnealingWithWarmRestarts

    return stepped(lambda optimizer: CosineAnnealingWithWarmRestarts(optimizer, **arguments), steps, LR)


def timm(steps: int, **arguments: Any) -> Any:
    scheduler_class = module("timm.scheduler.cosine_lr", "timm").CosineLRScheduler
    optimizer = optimizer_with(LR)
    scheduler = scheduler_class(optimizer, t_in_epochs=False, **arguments)
    rates = []
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    return rates


def mmengine(steps: int, **arguments: Any) -> Any:
    from mmengine.optim.scheduler import CosineRestartLR

    return stepped(lambda optimizer: CosineRestartLR(optimizer, by_epoch=False, **arguments), steps, LR)


def optax(steps: int, cosine_kwargs: Any) -> Any:
    from optax import sgdr_schedule

    return [float(sgdr_schedule(cosine_kwargs)(step)) for step in range(steps)]


def keras(steps: int, initial_learning_rate: float = LR, **arguments: Any) -> Any:
    """In float64: with float32, the default, the learning rates have float32's precision."""
    import keras
    import torch

    keras.config.set_floatx("float64")
    schedule = keras.optimizers.schedules.CosineDecayRestarts(
        torch.tensor(initial_learning_rate, dtype=torch.float64), **arguments
    )
    return [float(schedule(step)) for step in range(steps)]


def ignite(steps: int, **arguments: Any) -> Any:
    from ignite.handlers import CosineAnnealingScheduler

    optimizer = optimizer_with(LR)
    scheduler = CosineAnnealingScheduler(optimizer, "lr", **arguments)
    rates = []
    for _ in range(steps):
        scheduler(None)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def composer(steps: int, t_0: int, **arguments: Any) -> Any:
    strings = module("composer.utils.string_enum", "composer", "composer.utils")
    module("composer.utils.string_enum", "composer.utils", StringEnum=strings.StringEnum)
    time = module("composer.core.time", "composer.core")
    module("composer.core.time", "composer.core", State=object, Time=time.Time, TimeUnit=time.TimeUnit)
    schedule = module("composer.optim.scheduler", "composer.optim").CosineAnnealingWarmRestartsScheduler

    def factor(step: int) -> float:
        timestamp = types.SimpleNamespace(get=lambda unit: time.Time(step, unit))
        state = types.SimpleNamespace(timestamp=timestamp, max_duration=time.Time(steps, "ba"), dataloader_len=None)
        return schedule(f"{t_0}ba", **arguments)(state)

    return [LR * factor(step) for step in range(steps)]


def paddle(steps: int, learning_rate: float = LR, **arguments: Any) -> Any:
    from paddle.optimizer.lr import CosineAnnealingWarmRestarts

    scheduler = CosineAnnealingWarmRestarts(learning_rate, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(scheduler())
        scheduler.step()
    return rates


def fairseq2(steps: int, **arguments: Any) -> Any:
    scheduler_class = module("fairseq2.optim.lr_schedulers.cosine_annealing", "fairseq2").CosineAnnealingLR
    return stepped(lambda optimizer: scheduler_class(optimizer, **arguments), steps, LR)


def olmo_core(steps: int, warmup: int = 0, **arguments: Any) -> Any:
    scheduler = module("olmo_core.optim.scheduler").WSDS(warmup=warmup, **arguments)
    return [scheduler.get_lr(LR, step, steps) for step in range(steps)]


REAL = {
    "torch `CosineAnnealingWarmRestarts`": torch_restarts,
    "transformers `get_cosine_with_hard_restarts_schedule_with_warmup`": transformers_restarts,
    "transformers `get_wsd_schedule`": transformers_wsd,
    "katsura-jp and pytorch_optimizer `CosineAnnealingWarmupRestarts`": pytorch_optimizer,
    "pytorch-scheduler `CosineAnnealingWarmupRestarts`": pytorch_scheduler,
    "torch-cosine-annealing `CosineAnnealingWithWarmRestarts`": torch_cosine_annealing,
    "timm `CosineLRScheduler`": timm,
    "MMEngine `CosineRestartLR`": mmengine,
    "optax `sgdr_schedule`": optax,
    "keras `CosineDecayRestarts`": keras,
    "ignite `CosineAnnealingScheduler`": ignite,
    "composer `CosineAnnealingWarmRestartsScheduler`": composer,
    "paddle `CosineAnnealingWarmRestarts`": paddle,
    "fairseq2 `CosineAnnealingLR`": fairseq2,
    "OLMo-core `WSDS`": olmo_core,
}
