"""A scheduler that is saved and loaded, and states of other schedulers: `CosineRestartLR.load_state_dict`."""

from __future__ import annotations

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from optimizers import SETTINGS, advance, make_optimizer, rates_of, torch_saved_and_loaded
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from transformers import get_cosine_schedule_with_warmup

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler
from hf_warmcos import CosineRestartLR, CosineRestartSchedule


@pytest.mark.parametrize("with_optimizer_state", [True, False])
@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_save_load_and_continue_gives_the_bits_of_never_having_stopped_at_every_cut(arguments, with_optimizer_state):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, **arguments)
    whole = advance(optimizer, scheduler, 60)
    for cut in range(60):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = Scheduler(optimizer, **arguments)
        assert advance(optimizer, scheduler, cut) == whole[:cut]
        file = io.BytesIO()
        torch.save((optimizer.state_dict(), scheduler.state_dict()), file)
        file.seek(0)
        optimizer_state, state = torch.load(file, weights_only=True)

        # Without the optimizer's state it may even have been made with other rates: the base rates come along.
        optimizer = make_optimizer(0.1, 0.02) if with_optimizer_state else make_optimizer(5.0, 6.0)
        scheduler = Scheduler(optimizer, **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if with_optimizer_state:
                optimizer.load_state_dict(optimizer_state)
            scheduler.load_state_dict(state)
            assert advance(optimizer, scheduler, 60 - cut) == whole[cut:]


def test_a_fractional_position_survives_a_reload():
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10)
    optimizer.step()
    scheduler.step(12.7)
    other_optimizer = make_optimizer(0.1)
    other = Scheduler(other_optimizer, 10)
    other.load_state_dict(scheduler.state_dict())
    assert advance(other_optimizer, other, 20) == advance(optimizer, scheduler, 20)


def test_state_dict_is_plain_and_does_not_change_with_the_scheduler():
    scheduler = Scheduler(make_optimizer(torch.tensor(0.1)), np.int64(10), warmup_steps=np.int32(3))
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})
    scheduler.step(5)
    assert state == before

    def kinds(value):
        if isinstance(value, (dict, list)):
            return {kind for item in (value.values() if isinstance(value, dict) else value) for kind in kinds(item)}
        return {type(value)}

    assert kinds(state) <= {int, float, str, bool, type(None)}


@pytest.mark.parametrize("epoch", [0, 7, 34, 20.25])
def test_a_state_of_torchs_warm_restarts_is_adopted(epoch):
    torchs_optimizer = make_optimizer(0.1, 0.02)
    torchs = CosineAnnealingWarmRestarts(torchs_optimizer, 10, 2, 1e-3)
    torchs_optimizer.step()
    torchs.step(epoch)
    optimizer = make_optimizer(7.0, 8.0)
    scheduler = Scheduler(optimizer, 10, 2, 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.load_state_dict(torchs.state_dict())
        assert scheduler.base_lrs == [0.1, 0.02]
        assert advance(optimizer, scheduler, 50) == advance(torchs_optimizer, torchs, 50)


def test_what_differs_from_a_state_of_torchs_warm_restarts_is_named(caplog):
    optimizer = make_optimizer(0.1)
    torchs = CosineAnnealingWarmRestarts(optimizer, 10, 2, 1e-3)
    advance(optimizer, torchs, 35)
    Scheduler(make_optimizer(0.1), 10, 3, 1e-3, decay=0.5).load_state_dict(torchs.state_dict())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("hf_warmcos", "WARNING")
    assert "T_mult was 2, is 3; decay was 1, is 0.5" in record.getMessage()


def test_a_state_of_transformers_schedules_is_adopted():
    lambda_optimizer = make_optimizer(0.1, 0.02)
    lambda_scheduler = get_cosine_schedule_with_warmup(lambda_optimizer, 5, 100)
    advance(lambda_optimizer, lambda_scheduler, 37)
    optimizer = make_optimizer(7.0, 8.0)
    scheduler = Scheduler(optimizer, 10, decay=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.load_state_dict(lambda_scheduler.state_dict())
    assert (scheduler.last_epoch, scheduler.cycle_index) == (37, 3)
    assert rates_of(optimizer) == [scheduler.schedule.lr_at(37, base_lr) for base_lr in (0.1, 0.02)]


def resumed(saved, here, steps, **arguments):
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(**saved, **arguments))
    advance(optimizer, scheduler, steps)
    optimizer = make_optimizer(0.1)
    schedule = CosineRestartSchedule(**here, **arguments)
    resumed = CosineRestartLR(optimizer, schedule)
    resumed.load_state_dict(scheduler.state_dict())
    assert rates_of(optimizer) == [schedule.lr_at(steps, 0.1)]


@pytest.mark.parametrize(
    ("saved", "here", "steps"),
    [
        ({"cycles": [10, 20]}, {"cycles": [10, 20, 40]}, 30),
        ({"cycles": [10, 20]}, {"T_0": 10, "T_mult": 2}, 30),
        ({"cycles": [10, 20]}, {"T_0": 10, "T_mult": 2}, 12),
        ({"cycles": [10, 20]}, {"cycles": [10, 7]}, 10),
        ({"T_0": 10, "num_cycles": 2}, {"T_0": 10, "num_cycles": 5}, 20),
        ({"T_0": 10, "decay": 0.5}, {"cycles": [10, [10, 0.5], [30, 2]]}, 20),
        ({"T_0": 10}, {"T_0": 10, "decay": 0.5}, 10),
        ({"T_0": 10}, {"T_0": 10, "warmup_mode": "prefix", "warmup_lr_rate": 0.5}, 15),
        ({"T_0": 100}, {"T_0": 100, "T_mult": 2, "num_cycles": 3}, 100),
        ({"T_0": 100}, {"T_0": 7, "stable_ratio": 0.5}, 0),
    ],
)
def test_a_run_that_goes_on_with_the_same_past_hears_nothing(caplog, saved, here, steps):
    resumed(saved, here, steps, eta_min=0.01)
    assert not caplog.records


END_AND_CYCLES = "the end of the schedule was 30, is 35; cycles was ((10, 1), (20, 1)), is ((10, 1), (25, 1))"


END_AND_COUNT = "the end of the schedule was 20, is 50; num_cycles was 2, is 5"


@pytest.mark.parametrize(
    ("saved", "here", "steps", "message"),
    [
        (
            {"cycles": [10, 20]},
            {"cycles": [10, 25]},
            12,
            END_AND_CYCLES,
        ),
        (
            {"T_0": 10, "num_cycles": 2},
            {"T_0": 10, "num_cycles": 5},
            22,
            END_AND_COUNT,
        ),
        ({"T_0": 10}, {"T_0": 10, "decay": 0.5}, 11, "decay was 1, is 0.5"),
        ({"T_0": 10}, {"T_0": 20, "warmup_steps": 3}, 2, "T_0 was 10, is 20; warmup_steps was 0, is 3"),
        ({"T_0": 10}, {"T_0": 10, "stable_ratio": 0.3}, 2, "stable_ratio was 0, is 0.3"),
    ],
)
def test_a_run_that_goes_on_with_another_past_hears_which_arguments_differ(caplog, saved, here, steps, message):
    resumed(saved, here, steps)
    assert [message for message in caplog.messages if "saved" in message] == [
        f"The saved schedule differs from this run's before step {steps}: {message}. This run's schedule is used."
    ]


def test_another_minimum_is_another_past(caplog):
    saved = Scheduler(make_optimizer(0.1), 10, eta_min=0.01)
    saved.optimizer.step()
    saved.step(5)
    Scheduler(make_optimizer(0.1), 10, eta_min_rate=0.2).load_state_dict(saved.state_dict())
    assert "eta_min was 0.01, is 0.0; eta_min_rate was None, is 0.2" in caplog.messages[0]


def test_a_schedule_of_transformers_goes_on_from_a_state_of_this_one_and_back(caplog):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, 10, decay=0.5)
    advance(optimizer, scheduler, 13)
    other_optimizer = make_optimizer(0.1, 0.02)
    theirs = get_cosine_schedule_with_warmup(other_optimizer, 5, 100)
    state = torch_saved_and_loaded(scheduler.state_dict())
    theirs.load_state_dict(state)
    assert (theirs.last_epoch, theirs.get_last_lr()) == (13, scheduler.get_last_lr())
    other_optimizer.step()
    theirs.step()
    whole = get_cosine_schedule_with_warmup(make_optimizer(0.1, 0.02), 5, 100)
    for _ in range(14):
        whole.optimizer.step()
        whole.step()
    assert theirs.get_last_lr() == whole.get_last_lr()

    # A LambdaLR carries along what it was given: it is no schedule of ours for all that.
    back = Scheduler(make_optimizer(0.1, 0.02), 40)
    back.load_state_dict(torch_saved_and_loaded(theirs.state_dict()))
    assert (back.last_epoch, back.base_lrs) == (14, [0.1, 0.02])
    assert (
        rates_of(back.optimizer) == back.get_last_lr() == [back.schedule.lr_at(14, base_lr) for base_lr in (0.1, 0.02)]
    )
    assert not caplog.records


@pytest.mark.parametrize("T_mult", [1, 2])
def test_torchs_class_continues_from_a_state_of_this_one(T_mult):
    optimizer, torchs_optimizer = make_optimizer(0.1, 0.02), make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, 10, T_mult)
    advance(optimizer, scheduler, 13)
    torchs = CosineAnnealingWarmRestarts(torchs_optimizer, 10, T_mult)
    torchs_optimizer.load_state_dict(optimizer.state_dict())
    torchs.load_state_dict(torch_saved_and_loaded(scheduler.state_dict()))
    assert advance(torchs_optimizer, torchs, 50) == advance(optimizer, scheduler, 50)
    # What it carries along from this one is out of date by then.
    back = Scheduler(make_optimizer(0.1, 0.02), 10, T_mult)
    back.load_state_dict(torchs.state_dict())
    assert (back.last_epoch, back.get_last_lr()) == (63, scheduler.get_last_lr())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_epoch": None}, "last_epoch"),
        ({"last_epoch": -5}, "last_epoch"),
        ({"last_epoch": 2**70}, "last_epoch"),
        ({"base_lrs": [0.1, 0.2]}, "Expected base_lrs of 1 parameter groups, but got 2"),
        ({"base_lrs": ["x"]}, "base_lrs"),
        ({"base_lrs": [-1.0]}, "base_lrs"),
        ({"base_lrs": [math.nan]}, "base_lrs"),
        ({"base_lrs": 0.1}, "base_lrs"),
        ({"fraction": "x"}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"_step_count": "x"}, "_step_count"),
        ({"_step_count": -1}, "_step_count"),
        ({"in_charge": 1}, "in_charge"),
        ({"schedule": [1]}, "schedule"),
        ({"schedule": {"T_0": -1}}, "schedule.*T_0=-1"),
        ({"schedule": {"T_0": 10, "T_1": 10}}, "schedule.*T_1"),
        ({"schedule": {"T_0": 10, "eta_min": "x"}}, "schedule.*eta_min"),
        ({"schedule": {"T_0": 10, "eta_min_rate": 2}}, "schedule.*eta_min_rate"),
    ],
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change, message):
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler, 4)
    before, groups = scheduler.state_dict(), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises((TypeError, ValueError), match=message):
        scheduler.load_state_dict({**before, **change})
    assert (scheduler.state_dict(), optimizer.state_dict()["param_groups"]) == (before, groups)


def test_a_state_of_something_else_is_refused():
    scheduler = Scheduler(make_optimizer(), 10)
    with pytest.raises(ValueError, match="Expected a scheduler state with last_epoch and base_lrs, but got keys"):
        scheduler.load_state_dict({"scale": 65536.0})
    with pytest.raises(TypeError, match="Expected a scheduler state to be a dict, but got a list"):
        scheduler.load_state_dict([1, 2])
    with pytest.raises((TypeError, ValueError), match="T_mult"):
        scheduler.load_state_dict({"last_epoch": 3, "base_lrs": [0.1], "T_0": 10, "T_cur": 3, "eta_min": 0})
