"""Small real optimizers for the tests of schedulers, and the learning rates that their updates use."""

from __future__ import annotations

import io
from typing import Any

import torch

# Arguments of each kind, with each way to warm up.
SETTINGS = [
    {"T_0": 10},
    {"T_0": 10, "decay": 0.75, "warmup_steps": 25},
    {"T_0": 5, "T_mult": 2, "decay": 0.5, "warmup_steps": 3, "warmup_mode": "every_cycle", "eta_min": 0.001},
    {"T_0": 7, "T_mult": 1.5, "decay": 0.9, "warmup_steps": 4, "warmup_mode": "prefix", "num_cycles": 3},
    {"T_0": 8, "warmup_steps": 12, "warmup_lr_rate": 0.1, "eta_min_rate": 0.2, "num_cycles": 2},
    {"T_0": 20, "T_mult": 0.5, "num_cycles": 3, "warmup_steps": 4, "warmup_mode": "every_cycle"},
]


def parameter_group(lr: Any = 0.1) -> dict[str, Any]:
    """A parameter group with one parameter, as optimizers take it."""
    return {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr}


def make_optimizer(*lrs: Any, optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD) -> torch.optim.Optimizer:
    """An optimizer with one parameter group per learning rate."""
    return optimizer_class([parameter_group(lr) for lr in lrs or (0.1,)])


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate that each parameter group holds."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int = 1) -> list[list[float]]:
    """Train for some updates; return the learning rates that they used, those of added groups included."""
    used = []
    for _ in range(steps):
        optimizer.step()
        used.append(rates_of(optimizer))
        scheduler.step()
    return used


def torch_saved_and_loaded(state: Any) -> Any:
    """A state as a checkpoint holds it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
