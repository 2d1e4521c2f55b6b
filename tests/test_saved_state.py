"""What a scheduler's state says: `hf_warmcos.saved_state`."""

from __future__ import annotations

import pytest
import torch
from optimizers import make_optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from transformers import get_linear_schedule_with_warmup
from work import at_most

from hf_warmcos import CosineRestartLR, CosineRestartSchedule
from hf_warmcos.saved_state import read_state


def test_a_state_of_this_projects_schedulers_says_all_of_it():
    schedule = CosineRestartSchedule(cycles=[10, [20, 0.5]], stable_ratio=0.25, eta_min_rate=0.1)
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, schedule)
    optimizer.step()
    scheduler.step(7.25)
    state = read_state(scheduler.state_dict())
    assert (state.last_epoch, state.fraction, state.step_count, state.base_lrs) == (7, 0.25, 2, [0.1])
    assert (state.schedule, state.in_charge) == (schedule, True)


def test_a_state_of_torchs_warm_restarts_says_its_schedule():
    optimizer = make_optimizer(torch.tensor(0.5))
    torchs = CosineAnnealingWarmRestarts(optimizer, 10, 2, 1e-3)
    optimizer.step()
    torchs.step(12.5)
    state = read_state(torchs.state_dict())
    assert (state.last_epoch, state.fraction, state.base_lrs) == (12, 0.5, [0.5])
    assert state.schedule == CosineRestartSchedule(10, 2, eta_min=1e-3)


def test_a_state_of_a_schedule_of_transformers_says_no_schedule():
    theirs = get_linear_schedule_with_warmup(make_optimizer(0.1), 5, 100)
    state = read_state(theirs.state_dict())
    assert (state.last_epoch, state.step_count, state.schedule) == (0, 1, None)


def test_what_a_schedule_of_transformers_carries_along_is_not_believed():
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=10))
    optimizer.step()
    scheduler.step(12.5)
    optimizer.param_groups[0]["lr"] = 0.05
    theirs = get_linear_schedule_with_warmup(make_optimizer(0.1), 5, 100)
    theirs.load_state_dict(scheduler.state_dict())
    theirs.optimizer.step()
    theirs.step()
    state = read_state(theirs.state_dict())
    assert (state.last_epoch, state.fraction, state.in_charge, state.schedule) == (13, 0, True, None)


@pytest.mark.parametrize("state", [None, 3, [1], "x"])
def test_what_is_no_dict_is_refused(state):
    with pytest.raises(TypeError, match="Expected a scheduler state to be a dict"):
        read_state(state)


@pytest.mark.parametrize(
    ("saved", "here", "differ"),
    [
        ({"T_0": 1, "T_mult": 1.0000001}, {"T_0": 1, "T_mult": 1.0000001}, False),
        ({"T_0": 1, "T_mult": 1.0000001}, {"T_0": 1, "T_mult": 1}, True),
        ({"T_0": 1, "T_mult": 1.0000001}, {"T_0": 1, "T_mult": 1.0000001, "decay": 0.999}, True),
        ({"T_0": 1}, {"T_0": 1, "num_cycles": 10**7}, False),
    ],
)
def test_two_schedules_of_very_many_cycles_are_compared_in_a_few_million_lines(saved, here, differ, caplog):
    scheduler = CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule(**saved))
    scheduler.optimizer.step()
    scheduler.step(10**6)
    resumed = CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule(**here))
    with at_most(5_000_000):
        resumed.load_state_dict(scheduler.state_dict())
    assert bool(caplog.records) == differ


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_state_of_a_scheduler_that_waits_for_its_turn_loads(warmup_steps):
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=10, warmup_steps=warmup_steps))
    scheduler.load_state_dict({"last_epoch": -1, "base_lrs": [0.1]})
    assert scheduler.state_dict()["last_epoch"] == -1
    optimizer.step()
    scheduler.step()
    assert scheduler.last_epoch == 0
