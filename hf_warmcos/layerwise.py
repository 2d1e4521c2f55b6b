"""Layer-wise optimizers (GaLore, APOLLO): each parameter has an optimizer, which steps in a hook of its gradient."""

from __future__ import annotations

from torch.optim import Optimizer


class LayerWiseGroups(Optimizer):
    """The parameter groups of several optimizers, for one scheduler. The optimizers step by themselves."""

    _opt_called = True  # so that no scheduler warns that it stepped before the optimizer

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})


def with_all_groups(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer, or the groups of all its own optimizers if it is a layer-wise one of transformers.

    Such an optimizer (`LayerWiseDummyOptimizer`) has one group itself, with a parameter that nobody trains. The Trainer
    may hand it over in Accelerate's wrapper.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    own_optimizers = getattr(inner, "optimizer_dict", None)
    return LayerWiseGroups(*own_optimizers.values()) if isinstance(own_optimizers, dict) else optimizer
