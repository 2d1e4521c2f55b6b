"""What keeps a step cheap and is not a matter of time: no recompilation, no read-back, no heavy import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from optimizers import rates_of
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils._python_dispatch import TorchDispatchMode

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

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
        assert rates_of(optimizer) == [scheduler.schedule.lr_at(step, base_lr) for base_lr in BASE_LRS]

    first, last = compiled_graphs(training_step, counter, optimizer, check)
    assert first == last
    assert counter.frame_count == graphs_of_constant_rates
    assert scheduler.cycle_index == 6


class SetByHand:
    """The rates without a scheduler, and so without a hook on the optimizer."""

    def __init__(self, optimizer, schedule):
        self.optimizer, self.schedule, self.last_epoch = optimizer, schedule, 0
        self.base_lrs = (*BASE_LRS, BASE_LRS[0])  # of those that there are, and of one that is added

    @torch.compiler.disable
    def step(self):
        self.last_epoch += 1
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs):
            rate = self.schedule.lr_at(self.last_epoch, base_lr)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def make_optimizer_with(rates):
    shared = torch.tensor(0.1, dtype=torch.float64)
    makers = {"floats": float, "tensors": lambda lr: torch.tensor(lr, dtype=torch.float64), "shared": lambda _: shared}
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": makers[rates](base_lr)} for base_lr in BASE_LRS]
    return torch.optim.AdamW(groups)


def compilations(make_scheduler, rates, whole_step, add_group_at=None):
    """Compile the optimizer's step alone, or a whole training step with the scheduler's: graphs, and frames by step."""
    torch._dynamo.reset()
    counters.clear()
    optimizer, counter, frames = make_optimizer_with(rates), CompileCounter(), []
    scheduler = make_scheduler(optimizer)

    def training_step():
        optimizer.step()
        if whole_step:
            scheduler.step()

    compiled = torch.compile(training_step, backend=counter)
    for step in range(3 * T_0):
        if step == add_group_at:
            optimizer.add_param_group(make_optimizer_with(rates).param_groups[0])
        set_gradients(optimizer)
        compiled()
        if not whole_step:
            scheduler.step()
        frames.append(counters["frames"]["total"])
    assert scheduler.last_epoch == 3 * T_0
    return counter.frame_count, frames, scheduler


@pytest.mark.parametrize("whole_step", [False, True], ids=["optimizer step", "whole step"])
@pytest.mark.parametrize("rates", ["floats", "tensors", "shared"])
def test_a_compiled_training_step_has_no_more_graphs_and_frames_than_with_torchs_scheduler(rates, whole_step):
    torch_graphs, torch_frames, theirs = compilations(
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0), rates, whole_step
    )
    graphs, frames, ours = compilations(lambda optimizer: Scheduler(optimizer, T_0), rates, whole_step)
    assert graphs <= torch_graphs
    assert frames[-1] - frames[0] <= torch_frames[-1] - torch_frames[0]
    assert rates_of(ours.optimizer) == rates_of(theirs.optimizer)


@pytest.mark.parametrize("whole_step", [False, True], ids=["optimizer step", "whole step"])
@pytest.mark.parametrize("rates", ["floats", "tensors"])
def test_what_lets_added_groups_join_leaves_no_graph_of_its_own(rates, whole_step):
    schedule = CosineRestartSchedule(T_0, decay=0.7, warmup_steps=5)
    graphs_by_hand, *_ = compilations(
        lambda optimizer: SetByHand(optimizer, schedule), rates, whole_step, add_group_at=T_0
    )
    graphs, frames, scheduler = compilations(
        lambda optimizer: CosineRestartLR(optimizer, schedule), rates, whole_step, add_group_at=T_0
    )
    assert graphs <= graphs_by_hand
    assert frames[T_0 - 1] == frames[2]
    assert frames[-1] == frames[T_0 + 2]
    assert rates_of(scheduler.optimizer) == [schedule.lr_at(3 * T_0, base_lr) for base_lr in (*BASE_LRS, BASE_LRS[0])]


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
    assert scheduler.get_last_lr() == [scheduler.schedule.lr_at(NUM_STEPS, base_lr) for base_lr in BASE_LRS]


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
