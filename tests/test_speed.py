"""What keeps a step cheap and is not a matter of time: no recompilation, no read-back, no heavy import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler

BASE_LRS, ETA_MIN = (0.1, 0.02), 1e-3
NUM_STEPS, T_0 = 120, 20  # five restarts


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_adamw(**arguments):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(3))], "lr": torch.tensor(base_lr, dtype=torch.float64)}
        for base_lr in BASE_LRS
    ]
    return torch.optim.AdamW(groups, **arguments)


def set_gradients(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)


def rates_of(optimizer):
    return [group["lr"].item() for group in optimizer.param_groups]


def compiled_graphs(training_step, backend, optimizer, check=lambda step: None):
    """Run a compiled function for all steps; return how many graphs and frames there were after the first and last."""
    compiled, after_each_step = torch.compile(training_step, backend=backend), []
    for step in range(1, NUM_STEPS + 1):
        set_gradients(optimizer)
        compiled()
        check(step)
        after_each_step.append((counters["stats"]["unique_graphs"], counters["frames"]["total"]))
    return after_each_step[0], after_each_step[-1]


@pytest.mark.parametrize("arguments", [{"foreach": False}, {"capturable": False}], ids=str)
@pytest.mark.parametrize("compiled_scheduler", [False, True])
def test_compiled_steps_with_tensor_rates_are_never_compiled_again(arguments, compiled_scheduler):
    constant = make_adamw(**arguments)
    counter = CompileCounter()
    first, last = compiled_graphs(lambda: constant.step(), counter, constant)
    assert first == last
    graphs_of_constant_rates = counter.frame_count

    torch._dynamo.reset()
    counters.clear()
    optimizer, counter = make_adamw(**arguments), CompileCounter()
    scheduler = Scheduler(optimizer, T_0, decay=0.7, warmup_steps=5, eta_min=ETA_MIN)

    def training_step():
        optimizer.step()
        if compiled_scheduler:
            scheduler.step()

    def check(step):
        if not compiled_scheduler:
            scheduler.step()
        assert scheduler.last_epoch == step
        assert rates_of(optimizer) == [scheduler.schedule.lr_at(step, base_lr, ETA_MIN) for base_lr in BASE_LRS]

    first, last = compiled_graphs(training_step, counter, optimizer, check)
    assert first == last
    assert counter.frame_count == graphs_of_constant_rates
    assert scheduler.cycle == 6


def test_what_is_compiled_trains_as_what_is_not():
    parameters = []
    for compiler in (torch.compile, lambda function, **_: function):
        torch._dynamo.reset()
        optimizer = make_adamw()
        scheduler = Scheduler(optimizer, T_0, decay=0.7, warmup_steps=5, eta_min=ETA_MIN)

        def training_step(optimizer=optimizer, scheduler=scheduler):
            optimizer.step()
            scheduler.step()

        compiled = compiler(training_step, backend="eager")
        for _ in range(NUM_STEPS):
            set_gradients(optimizer)
            compiled()
        parameters.append([group["params"][0].detach() for group in optimizer.param_groups])
    # Eager AdamW computes with the rate as a float, compiled AdamW with the tensor.
    torch.testing.assert_close(*parameters, rtol=1e-4, atol=0)


class ReadBacks(TorchDispatchMode):
    """Counts what reads a tensor's value back to Python, for which a device would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func.overloadpacket)
        return func(*args, **(kwargs or {}))

    @property
    def count(self):
        return sum(op in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero) for op in self.operations)


def test_a_step_with_tensor_rates_fills_them_and_reads_nothing_back():
    optimizer = make_adamw()
    scheduler = Scheduler(optimizer, T_0, decay=0.7, warmup_steps=5, eta_min=ETA_MIN)
    optimizer.step()
    with ReadBacks() as read_backs:
        optimizer.param_groups[0]["lr"].item()
    assert read_backs.count == 1
    with ReadBacks() as read_backs:
        for _ in range(NUM_STEPS):
            scheduler.step()
        scheduler.step(7.5)
        scheduler.get_last_lr()
        scheduler.load_state_dict(scheduler.state_dict())
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1})
        assert read_backs.count == 0
    assert read_backs.operations.count(torch.ops.aten.fill_) >= 2 * NUM_STEPS


def test_a_step_with_tensor_rates_works_where_there_are_no_values_to_read():
    optimizer = make_adamw()
    scheduler = Scheduler(optimizer, T_0, eta_min=ETA_MIN)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].to("meta")
    optimizer.step = lambda: None
    for _ in range(NUM_STEPS):
        scheduler.step()
    assert scheduler.get_last_lr() == [scheduler.schedule.lr_at(NUM_STEPS, base_lr, ETA_MIN) for base_lr in BASE_LRS]


def test_the_import_loads_torch_and_nothing_heavier():
    program = """
import sys, torch
before = set(sys.modules)
import hf_warmcos
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added = set(run.stdout.split())
    assert "hf_warmcos" in added
    assert added.isdisjoint({"transformers", "accelerate", "datasets", "matplotlib", "tqdm", "pandas", "numpy"})
