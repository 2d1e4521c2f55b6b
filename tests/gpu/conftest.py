"""Where there is no GPU, what needs one is skipped, here and nowhere else; what does not runs on the CPU as well."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here: torch.cuda.is_available() is false")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture
def fresh_accelerate():
    """Accelerate's record of the processes and of mixed precision is one for all that runs in a process."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()
