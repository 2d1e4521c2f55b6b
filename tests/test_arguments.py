"""The factory's arguments become a schedule: `hf_warmcos.arguments`."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizers import make_optimizer

from hf_warmcos import CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.arguments import check_arguments, misfit, schedule_from_arguments
from hf_warmcos.names import COMMANDS, ELSEWHERE, meaning_of


def test_it_takes_the_arguments_of_the_factory_with_the_same_defaults():
    factory = dict(inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters)
    taken = inspect.signature(schedule_from_arguments).parameters
    assert {name: parameter.default for name, parameter in taken.items()} == {
        name: parameter.default for name, parameter in factory.items() if name not in ("optimizer", "last_epoch")
    }


def test_one_of_three_says_how_long_cycles_are():
    assert schedule_from_arguments(5, 105, 4) == CosineRestartSchedule.fit(105, 4, warmup_steps=5)
    assert schedule_from_arguments(5, T_0=25, num_cycles=4).end == 105
    assert schedule_from_arguments(5, cycles=[25, [75, 0.5]]).end == 105
    with pytest.raises(ValueError, match="one of T_0, cycles and num_training_steps"):
        schedule_from_arguments(5)


def test_a_warmup_as_long_as_the_training_only_warms_up():
    for num_cycles in (None, 1, 4):
        schedule = schedule_from_arguments(50, 50, num_cycles)
        assert schedule.curve(50).tolist() == [step / 50 for step in range(50)]
        assert misfit(schedule, 50) is None


GOOD = [
    {},
    {"num_cycles": 4, "decay": 0.75},
    {"T_0": 10, "T_mult": 2},
    {"T_mult": 3, "num_cycles": 6, "min_lr": 1e-6},
    {"cycles": [10, [20, 0.5]], "min_lr_rate": 0.1, "stable_ratio": 0.5},
    {"warmup_mode": "every_cycle", "warmup_lr_rate": 0.1},
    {"num_cycles": None, "T_0": None, "cycles": None},
]
BAD = [
    ({"decay": 2}, "decay"),
    ({"num_cycles": 0}, "num_cycles"),
    ({"T_0": -1}, "T_0"),
    ({"cycles": [0]}, "cycles"),
    ({"cycles": [5], "T_0": 5}, "T_0"),
    ({"min_lr": 0.1, "min_lr_rate": 0.1}, "min_lr"),
    ({"min_lr": -1}, "min_lr"),
    ({"warmup_mode": "after"}, "warmup_mode"),
    ({"stable_ratio": 1}, "stable_ratio"),
    ({"T_mult": 0.5, "T_0": 10}, "num_cycles"),
    ({"num_warmup_steps": 10}, "num_warmup_steps"),
    ({"last_epoch": 3}, "last_epoch"),
    ({"nun_cycles": 3}, "nun_cycles"),
]


@pytest.mark.parametrize("arguments", GOOD, ids=str)
def test_good_arguments_pass_before_the_training_is_known(arguments):
    before = dict(arguments)
    check_arguments(**arguments)
    assert arguments == before


@pytest.mark.parametrize(("arguments", "name"), BAD, ids=str)
def test_bad_arguments_are_named_before_the_training_is_known(arguments, name):
    with pytest.raises((TypeError, ValueError), match=name):
        check_arguments(**arguments)


def test_cycles_that_end_long_before_the_training_are_told_with_what_would_fill_it():
    schedule = schedule_from_arguments(100, 1100, num_cycles=1, T_0=250)
    assert misfit(schedule, 1100) == (
        "The learning rate stays at its minimum from step 350 on, for the last 750 of num_training_steps=1100. "
        "Use num_cycles=4 in place of T_0 to end training with a whole cycle."
    )
    listed = schedule_from_arguments(0, cycles=[250, 250])
    assert misfit(listed, 1100) == (
        "The learning rate stays at its minimum from step 500 on, for the last 600 of num_training_steps=1100."
    )


def test_a_training_that_ends_after_the_last_cycle_is_told_also_where_a_next_one_could_not_hold_its_warmup():
    schedule = CosineRestartSchedule(9.5, warmup_steps=9, warmup_mode="every_cycle", num_cycles=1)
    assert misfit(schedule, 100) == (
        "The learning rate stays at its minimum from step 10 on, for the last 90 of num_training_steps=100. "
        "Use num_cycles=10 in place of T_0 to end training with a whole cycle."
    )


def test_a_training_that_ends_inside_a_cycle_is_told_with_the_rate_of_each_group():
    assert misfit(CosineRestartSchedule(T_0=300, eta_min=0.02), 1050, [0.1, 0.2]) == (
        "Training ends inside a cycle: num_training_steps=1050 is step 150 of the 300 steps of cycle 3, at a learning "
        "rate of 0.06, 0.11. Use num_cycles=4 in place of T_0 to end training with a whole cycle."
    )
    assert misfit(CosineRestartSchedule(100, 0.5, num_cycles=3), 120).endswith("at a learning rate of 0.654508.")


def test_the_number_of_cycles_that_is_advised_is_that_of_the_steps_after_a_long_warmup():
    schedule = schedule_from_arguments(900, 1000, T_0=30)
    assert "Use num_cycles=3 in place of T_0" in misfit(schedule, 1000)


@given(st.integers(1, 400), st.integers(1, 100), st.sampled_from([1, 1.5, 2]), st.integers(0, 50), st.integers(1, 5))
def test_something_is_told_exactly_where_training_does_not_end_with_a_cycle_and_the_advice_holds(
    num_training_steps, T_0, T_mult, num_warmup_steps, num_cycles
):
    num_warmup_steps = min(num_warmup_steps, num_training_steps)
    for cycles in (None, num_cycles):
        schedule = schedule_from_arguments(num_warmup_steps, num_training_steps, cycles, T_0=T_0, T_mult=T_mult)
        told = misfit(schedule, num_training_steps)
        ends = {schedule.end, *schedule.restarts(num_training_steps + 1)}
        assert (told is None) == (num_training_steps in ends or num_training_steps == num_warmup_steps)
        if told and "num_cycles=" in told:
            advised = int(told.split("num_cycles=")[1].split()[0])
            fitted = schedule_from_arguments(num_warmup_steps, num_training_steps, advised, T_mult=T_mult)
            assert misfit(fitted, num_training_steps) is None


@pytest.mark.parametrize(
    ("brought", "hint"),
    [
        ("eta_min", "did you mean 'min_lr'?"),
        ("gamma", "did you mean 'decay'?"),
        ("min_lr_ratio", "did you mean 'min_lr_rate'?"),
        ("eta_min_ratio", "did you mean 'min_lr_rate'?"),
        ("first_cycle_steps", "did you mean 'T_0'?"),
        ("first_decay_steps", "did you mean 'T_0'?"),
        ("m_mul", "did you mean 'decay'?"),
        ("eta_mul", "did you mean 'decay'?"),
        ("cycle_limit", "did you mean 'num_cycles'?"),
        ("lr_scheduler_num_cycles", "did you mean 'num_cycles'?"),
        ("periods", "did you mean 'cycles'?"),
        ("period_lengths", "did you mean 'cycles'?"),
        ("T_mul", "did you mean 'T_mult'?"),
        ("num_cycle", "did you mean 'num_cycles'?"),
        ("numCycles", "did you mean 'num_cycles'?"),
        ("num_restarts", "here: num_cycles, which is the number of restarts plus 1"),
        ("restart_weights", "here: cycles, as [[period, weight], …]"),
        ("eta_max", "here: the optimizer's lr"),
        ("warmup_lr_init", "here: warmup_lr_rate, as a fraction of the initial learning rate"),
    ],
)
def test_names_that_people_bring_get_a_hint_at_the_one_that_they_mean(brought, hint):
    hint = re.escape(f"but got '{brought}' ({hint})")
    with pytest.raises(TypeError, match=hint):
        check_arguments(**{brought: 2})
    with pytest.raises(TypeError, match=hint):
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 10, 110, **{brought: 2})


@pytest.mark.parametrize(
    "brought", ["warmup_steps", "warmup_ratio", "num_warmup_epochs", "warmup_t", "T_up", "lr_warmup_steps", "warmup"]
)
def test_who_brings_a_warmup_is_told_where_the_warmup_is_set(brought):
    factory = get_cosine_restarts_with_decay_and_warmup_schedule
    with pytest.raises(TypeError, match=rf"but got '{brought}' \((did you mean '|here: )num_warmup_steps\b"):
        factory(make_optimizer(), 10, num_training_steps=110, **{brought: 10})
    where = "the warmup is set where the training is: TrainingArguments, or the command's own option"
    with pytest.raises(TypeError, match=rf"but got '{brought}' \({where}\)$"):
        check_arguments(**{brought: 10})


@pytest.mark.parametrize("brought", ["warmup_rate", "warmup_lr", "min_ratio", "num_steps", "decay_rate", "power"])
def test_a_name_that_only_looks_like_an_argument_gets_no_hint(brought):
    with pytest.raises(TypeError, match=rf"but got '{brought}'$"):
        check_arguments(**{brought: 2})


def test_each_meaning_in_the_table_of_names_begins_with_an_argument_or_is_the_learning_rate_of_the_optimizer():
    known = inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters
    for of in (*ELSEWHERE.values(), COMMANDS):
        for meaning in of.values():
            argument = re.match(r"`(\w+)`", meaning)
            assert meaning == "the optimizer's `lr`" or argument[1] in known or " in `cycles`" in meaning, meaning


def test_schedulers_that_share_the_name_of_an_argument_share_the_argument_it_is_here():
    for name in {name for of in (*ELSEWHERE.values(), COMMANDS) for name in of}:
        assert meaning_of(name), name
