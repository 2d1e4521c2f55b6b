"""What several test modules share."""

from __future__ import annotations

import os

import pytest
import torch

# Nothing here needs the Hub, and no test may wait for it.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def make_optimizer():
    """A function that makes a real optimizer with one parameter group per rate."""

    def make(*rates: float | torch.Tensor, optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)]
        return optimizer_class(groups)

    return make
