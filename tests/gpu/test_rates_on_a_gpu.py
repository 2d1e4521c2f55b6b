"""Rates on a device: the schedule's, set with few launches and without waiting, in compiled and captured steps too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from hf_warmcos import CosineRestartLR, CosineRestartSchedule

BASE_LRS = (0.1, 0.02, 0.003)
SCHEDULE = CosineRestartSchedule(T_0=20, decay=0.7, warmup_steps=5, stable_ratio=0.2, eta_min=1e-4)
NUM_STEPS = 70  # three restarts


def float_rate(base_lr: float, device: torch.device) -> float:
    return base_lr


def float32_rate(base_lr: float, device: torch.device) -> torch.Tensor:
    return torch.tensor(base_lr, device=device)


def float64_rate(base_lr: float, device: torch.device) -> torch.Tensor:
    return torch.tensor(base_lr, device=device, dtype=torch.float64)


def rate_on_the_cpu(base_lr: float, device: torch.device) -> torch.Tensor:
    return torch.tensor(base_lr)


RATES = [float_rate, float32_rate, float64_rate, rate_on_the_cpu]


def make_optimizer(device: torch.device, rates: list[Any], **arguments: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    groups = [{"params": [torch.nn.Parameter(torch.randn(5, 7).to(device))], "lr": lr} for lr in rates]
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    return torch.optim.AdamW(groups, **arguments)


def as_kept(rate: float, lr: Any) -> float:
    """A rate as the parameter group keeps it: a float, or a tensor of its precision."""
    return torch.tensor(rate, dtype=lr.dtype).item() if isinstance(lr, torch.Tensor) else rate


def assert_rates(optimizer: torch.optim.Optimizer, step: int, base_lrs: tuple[float, ...]) -> None:
    for group, base_lr in zip(optimizer.param_groups, base_lrs):
        assert float(group["lr"]) == as_kept(SCHEDULE.lr_at(step, base_lr), group["lr"])


def kept_base_lrs(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """The base rates, of which a float32 does not keep every bit."""
    return tuple(float(group["lr"]) for group in optimizer.param_groups)


@pytest.mark.parametrize("rate", RATES)
def test_the_rates_on_the_device_are_those_of_the_schedule(device, rate):
    optimizer = make_optimizer(device, [rate(base_lr, device) for base_lr in BASE_LRS], foreach=False)
    base_lrs, held = kept_base_lrs(optimizer), [group["lr"] for group in optimizer.param_groups]
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    for step in range(NUM_STEPS):
        assert_rates(optimizer, step, base_lrs)
        optimizer.step()
        scheduler.step()
    for group, before in zip(optimizer.param_groups, held):
        if isinstance(before, torch.Tensor):
            assert group["lr"] is before


def test_one_tensor_for_all_groups_and_floats_beside_tensors_have_their_rates(device):
    shared = torch.tensor(0.1, device=device, dtype=torch.float64)
    optimizer = make_optimizer(device, [shared, 0.02, shared, torch.tensor(0.003, device=device)], foreach=False)
    base_lrs = kept_base_lrs(optimizer)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    for step in range(NUM_STEPS):
        assert_rates(optimizer, step, base_lrs)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[2]["lr"] is shared


@pytest.mark.parametrize("rate", RATES)
def test_a_saved_state_brings_the_rates_back(device, rate):
    optimizers = [
        make_optimizer(device, [rate(base_lr, device) for base_lr in BASE_LRS], foreach=False) for _ in range(2)
    ]
    base_lrs = kept_base_lrs(optimizers[0])
    first, second = (CosineRestartLR(optimizer, SCHEDULE) for optimizer in optimizers)
    optimizers[0].step()
    for _ in range(33):
        first.step()
    second.load_state_dict(first.state_dict())
    assert_rates(optimizers[1], 33, base_lrs)
    optimizers[1].step()
    second.step()
    assert_rates(optimizers[1], 34, base_lrs)


def test_a_compiled_step_is_not_compiled_again_and_uses_each_rate(device):
    """On the CPU without a compiler for C++; on a GPU as it comes."""
    torch._dynamo.reset()
    counters.clear()
    on_gpu = device.type == "cuda"
    optimizers = [
        make_optimizer(device, [float32_rate(base_lr, device) for base_lr in BASE_LRS], capturable=on_gpu)
        for _ in range(2)
    ]
    schedulers = [CosineRestartLR(optimizer, SCHEDULE) for optimizer in optimizers]
    backend = "inductor" if device.type == "cuda" else "eager"
    steps = [torch.compile(optimizers[0].step, backend=backend), optimizers[1].step]
    graphs = []
    for _ in range(NUM_STEPS):
        for step, scheduler in zip(steps, schedulers):
            step()
            scheduler.step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[2] >= 1
    for compiled, eager in zip(*(optimizer.param_groups for optimizer in optimizers)):
        torch.testing.assert_close(compiled["params"][0], eager["params"][0], rtol=1e-3, atol=1e-4)


def test_a_step_waits_for_nothing(cuda):
    optimizer = make_optimizer(cuda, [float32_rate(base_lr, cuda) for base_lr in BASE_LRS], capturable=True)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    optimizer.step()
    scheduler.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            float(optimizer.param_groups[0]["lr"])  # what is not to happen is seen here
        for _ in range(NUM_STEPS):
            scheduler.step()
        scheduler.step(7.5)
        scheduler.get_last_lr()
        scheduler.load_state_dict(scheduler.state_dict())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches_of(call: Any) -> int:
    """The kernels that a call launches, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)


@pytest.mark.parametrize(("num_groups", "most"), [(1, 4), (100, 4), (1000, 40)])
def test_a_step_launches_at_most_four_kernels_for_a_hundred_groups(cuda, num_groups, most):
    optimizer = make_optimizer(cuda, [float32_rate(0.1, cuda) for _ in range(num_groups)], capturable=True)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    optimizer.step()
    for _ in range(30):  # beyond the warmup and the first restart
        scheduler.step()
    assert 1 <= launches_of(scheduler.step) <= most


def test_groups_that_share_a_tensor_are_filled_with_the_launches_of_one(cuda):
    launches = []
    for num_groups in (1, 1000):
        optimizer = make_optimizer(cuda, [float32_rate(0.1, cuda)] * num_groups, capturable=True)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.step()
        for _ in range(30):
            scheduler.step()
        launches.append(launches_of(scheduler.step))
    assert launches[0] == launches[1] >= 1


def test_a_captured_graph_sees_each_new_rate(cuda):
    """AdamW's step as a CUDA graph, beside a twin whose steps are not captured."""
    optimizers = [
        make_optimizer(cuda, [float32_rate(base_lr, cuda) for base_lr in BASE_LRS], capturable=True) for _ in range(2)
    ]
    schedulers = [CosineRestartLR(optimizer, SCHEDULE) for optimizer in optimizers]
    captured, eager = optimizers
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):  # as a capture wants it, its warmup is on a stream of its own
        for _ in range(3):
            captured.step()
    torch.cuda.current_stream().wait_stream(side_stream)
    for _ in range(3):
        eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # recorded, not done
    for _ in range(NUM_STEPS):
        graph.replay()
        eager.step()
        for scheduler in schedulers:
            scheduler.step()
        for group, other in zip(captured.param_groups, eager.param_groups):
            torch.testing.assert_close(group["params"][0], other["params"][0])
    start = make_optimizer(cuda, list(BASE_LRS)).param_groups
    for group, before in zip(captured.param_groups, start):
        assert not torch.equal(group["params"][0], before["params"][0])
