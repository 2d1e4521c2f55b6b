"""Small real optimizers for the tests of schedulers, and the learning rates that their updates use."""

from __future__ import annotations

from typing import Any

import torch


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
