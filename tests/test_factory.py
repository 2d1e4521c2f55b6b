"""The transformers-style door: `get_cosine_restarts_with_decay_and_warmup_schedule`."""

from __future__ import annotations

import copy
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizers import make_optimizer
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)


def rates(optimizer: torch.optim.Optimizer, scheduler, steps: int) -> list[list[float]]:
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return used


def test_it_mirrors_the_signature_of_transformers():
    theirs = list(inspect.signature(get_cosine_with_hard_restarts_schedule_with_warmup).parameters)
    ours = list(inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters)
    assert ours[: len(theirs)] == theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.integers(1, 6), st.integers(1, 50), st.integers(0, 40))
def test_without_decay_it_equals_hard_restarts_where_the_cycles_divide_the_budget(num_cycles, length, num_warmup_steps):
    num_training_steps = num_warmup_steps + num_cycles * length
    optimizer, theirs = make_optimizer(0.1, 3e-4), make_optimizer(0.1, 3e-4)
    arguments = (num_warmup_steps, num_training_steps, num_cycles)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, *arguments)
    hard_restarts = get_cosine_with_hard_restarts_schedule_with_warmup(theirs, *arguments)
    ours_used, theirs_used = (
        rates(optimizer, scheduler, num_training_steps + 5),
        rates(theirs, hard_restarts, num_training_steps + 5),
    )
    restarts = {num_warmup_steps + k * length for k in range(1, num_cycles)}
    for step, (ours, other) in enumerate(zip(ours_used, theirs_used)):
        # At a restart their progress can fall short of the whole cycle by a rounding error: a rate of about 0.
        if step not in restarts or other[0] > 1e-9:
            assert ours == pytest.approx(other, rel=1e-12, abs=1e-16)
        if step in restarts:
            assert ours == [0.1, 3e-4]


def test_it_returns_the_scheduler():
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 10, 110, num_cycles=4, decay=0.5)
    assert type(scheduler) is CosineRestartLR
    assert scheduler.schedule == CosineRestartSchedule(25, 1, 0.5, 10, "prefix", 4)


def test_num_cycles_defaults_to_one_with_num_training_steps_and_to_no_end_with_T_0():
    assert get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 10, 110).schedule.num_cycles == 1
    assert get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 10, T_0=50).schedule.num_cycles is None
    assert (
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 0, T_0=50, num_cycles=3).schedule.end
        == 150
    )


def test_every_argument_reaches_the_schedule():
    schedule = get_cosine_restarts_with_decay_and_warmup_schedule(
        make_optimizer(),
        np.int64(4),
        num_cycles=3,
        decay=0.5,
        T_0=16,
        T_mult=0.5,
        warmup_mode="overlap",
        warmup_lr_rate=0.25,
    ).schedule
    assert schedule == CosineRestartSchedule(16, 0.5, 0.5, 4, "overlap", 3, 0.25)


def test_min_lr_is_one_rate_for_all_and_min_lr_rate_a_share_of_each():
    for arguments, minima in (({}, [0, 0]), ({"min_lr": 0.001}, [0.001, 0.001]), ({"min_lr_rate": 0.1}, [0.01, 0.002])):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 0, 10, **arguments)
        assert rates(optimizer, scheduler, 12)[10:] == [pytest.approx(minima)] * 2


@pytest.mark.parametrize("arguments", [{"decay": 0.5}, {"T_mult": 2}])
def test_decay_and_T_mult_of_a_single_cycle_that_nobody_asked_for_are_an_error(arguments):
    with pytest.raises(ValueError, match="Expected num_cycles with decay or T_mult, but got num_cycles=None"):
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 0, 10, **arguments)
    get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 0, 10, num_cycles=1, **arguments)


def test_it_goes_on_at_last_epoch():
    optimizer = make_optimizer(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 10, 110, 4, 59, 0.5)
    assert [rate for (rate,) in rates(optimizer, scheduler, 50)] == scheduler.schedule.curve(
        range(60, 110), 0.1
    ).tolist()


def test_training_that_ends_inside_a_cycle_is_warned_about_with_what_would_end_at_the_minimum():
    with pytest.warns(UserWarning, match="inside a cycle") as caught:
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(0.1), 0, 1000, T_0=300, decay=0.5)
    (message,) = (str(warning.message) for warning in caught)
    rate = 0.1 * 0.5**3 * (1 + math.cos(math.pi / 3)) / 2
    assert message == (
        "Training ends inside a cycle: num_training_steps=1000 is step 100 of the 300 steps of cycle 3, at a learning "
        f"rate of {rate:.6g}. Use num_cycles=3 in place of T_0 to end training with a whole cycle."
    )
    assert caught[0].filename == __file__


def test_cycles_that_end_long_before_the_training_are_warned_about():
    with pytest.warns(UserWarning, match="stays at its minimum from step 250 on, for the last 850 of") as caught:
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(0.1), 0, 1100, num_cycles=1, T_0=250)
    assert caught[0].filename == __file__


def test_a_warmup_as_long_as_the_training_has_the_rates_of_transformers():
    optimizer, theirs = make_optimizer(0.1), make_optimizer(0.1)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 50, 50)
    hard_restarts = get_cosine_with_hard_restarts_schedule_with_warmup(theirs, 50, 50)
    assert rates(optimizer, scheduler, 55) == rates(theirs, hard_restarts, 55)


def test_listed_cycles_and_plateaus_reach_the_schedule():
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
        make_optimizer(), 5, cycles=[10, [20, 0.5]], stable_ratio=0.3
    )
    assert scheduler.schedule == CosineRestartSchedule(
        cycles=[10, [20, 0.5]], stable_ratio=0.3, warmup_steps=5, warmup_mode="prefix"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_training_steps": 900, "T_0": 300},
        {"num_training_steps": 900, "T_0": 300, "num_cycles": 3},
        {"num_training_steps": 900, "cycles": [300, 600]},
        {"num_training_steps": 1000, "num_cycles": 7},
        {"T_0": 300},
    ],
)
def test_training_that_ends_at_the_minimum_is_not_warned_about(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 0, **arguments)


WRONG_ARGUMENTS = (
    [
        ({name: value}, name)
        for name in (
            "num_warmup_steps",
            "num_training_steps",
            "num_cycles",
            "decay",
            "T_mult",
            "min_lr",
            "min_lr_rate",
            "warmup_lr_rate",
        )
        for value in (-1, math.nan, math.inf, "3", True)
    ]
    + [({"num_training_steps": None, "T_0": value}, "T_0") for value in (0, -1, math.nan, math.inf, "3", True)]
    + [({name: None}, name) for name in ("num_warmup_steps", "decay", "T_mult", "warmup_mode", "warmup_lr_rate")]
    + [
        ({"num_training_steps": None}, "one of T_0, cycles and num_training_steps"),
        ({"cycles": [100], "decay": 0.5}, "decay"),
        ({"cycles": []}, "cycles"),
        ({"stable_ratio": 1}, "stable_ratio"),
        ({"num_training_steps": 0}, "num_training_steps"),
        ({"num_cycles": 101}, "num_cycles"),
        ({"num_cycles": 0}, "num_cycles"),
        ({"num_warmup_steps": 101}, "num_warmup_steps"),
        ({"num_warmup_steps": 0.5}, "num_warmup_steps"),
        ({"num_warmup_steps": 50, "num_cycles": 4, "warmup_mode": "every_cycle"}, "warmup_steps"),
        ({"num_warmup_steps": 101, "T_0": 10}, "num_warmup_steps"),
        ({"min_lr": 0.01, "min_lr_rate": 0.1}, "min_lr and min_lr_rate"),
        ({"warmup_mode": "after"}, "warmup_mode"),
        ({"last_epoch": -2}, "last_epoch"),
    ]
)


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named_and_leaves_the_optimizer_as_it_was(arguments, message):
    optimizer = make_optimizer(0.1, 0.02)
    before, attributes = copy.deepcopy(optimizer.state_dict()), set(vars(optimizer))
    with pytest.raises((TypeError, ValueError), match=message):
        get_cosine_restarts_with_decay_and_warmup_schedule(
            optimizer, **{"num_warmup_steps": 0, "num_training_steps": 100, **arguments}
        )
    assert optimizer.state_dict() == before
    assert set(vars(optimizer)) == attributes
