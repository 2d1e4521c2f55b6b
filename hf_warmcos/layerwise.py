"""Layer-wise optimizers (GaLore, APOLLO), which have an optimizer of their own for each parameter."""

from __future__ import annotations

from torch.optim import Optimizer


class LayerWiseGroups(Optimizer):
    """The parameter groups of several optimizers, for one scheduler. The optimizers step by themselves."""

    _opt_called = True  # so that no scheduler warns that it stepped before the optimizer

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})


def with_all_groups(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer, or the groups of all its own optimizers if it is a layer-wise one of transformers.

    That one, `LayerWiseDummyOptimizer`, has a parameter that nothing trains. It may be inside Accelerate's wrapper.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    own_optimizers = getattr(inner, "optimizer_dict", None)
    return LayerWiseGroups(*own_optimizers.values()) if own_optimizers else optimizer
