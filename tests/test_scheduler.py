"""The schedule on a torch optimizer: `CosineAnnealingWarmRestartsWithDecayAndLinearWarmup`."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import SETTINGS, advance, make_optimizer, rates_of, torch_saved_and_loaded
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler
from hf_warmcos import CosineRestartSchedule
from hf_warmcos.schedule import WARMUP_MODES


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_each_update_uses_the_rate_of_the_schedule(arguments):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, **arguments)
    for step in range(60):
        cycle = scheduler.schedule.cycle_at(step)
        assert (scheduler.last_epoch, scheduler.cycle_index, scheduler.T_i) == (step, cycle.index, cycle.length)
        assert scheduler.T_cur == step - cycle.start
        assert rates_of(optimizer) == scheduler.get_last_lr() == scheduler.get_lr()
        assert rates_of(optimizer) == [scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.1, 0.02)]
        advance(optimizer, scheduler)


@pytest.mark.parametrize(
    ("T_0", "T_mult", "eta_min"), [(10, 1, 0), (1, 1, 0.01), (7, 2, 1e-5), (3, 3, 0.03), (50, 1, 0.2), (1, 5, 0)]
)
def test_without_decay_and_warmup_rates_equal_torchs_to_the_last_bit(T_0, T_mult, eta_min):
    optimizer, torchs_optimizer = make_optimizer(0.1, 3e-4), make_optimizer(0.1, 3e-4)
    scheduler = Scheduler(optimizer, T_0, T_mult, eta_min)
    torchs = CosineAnnealingWarmRestarts(torchs_optimizer, T_0, T_mult, eta_min)
    for _ in range(5_000):
        assert rates_of(optimizer) == rates_of(torchs_optimizer)
        assert (scheduler.T_cur, scheduler.T_i, scheduler.last_epoch) == (torchs.T_cur, torchs.T_i, torchs.last_epoch)
        advance(optimizer, scheduler)
        advance(torchs_optimizer, torchs)


@given(st.integers(1, 40), st.lists(st.one_of(st.none(), st.integers(0, 500), st.floats(0, 500)), max_size=30))
def test_any_mix_of_steps_equals_torchs(T_0, epochs):
    optimizer, torchs_optimizer = make_optimizer(0.1), make_optimizer(0.1)
    scheduler, torchs = Scheduler(optimizer, T_0, 1, 1e-3), CosineAnnealingWarmRestarts(torchs_optimizer, T_0, 1, 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in epochs:
            scheduler.step(epoch)
            torchs.step(epoch)
            assert scheduler.last_epoch == torchs.last_epoch
            # To the last bit, but for what torch loses of a fraction when it counts on from it.
            whole = all(epoch is None or epoch == int(epoch) for epoch in epochs)
            expected = rates_of(torchs_optimizer)
            assert rates_of(optimizer) == (expected if whole else pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize("T_mult", [1, 2, 3, 5, 6, 7, 10])
@pytest.mark.parametrize("T_0", [1, 3, 7, 10, 50, 1000])
def test_step_to_a_restart_sets_the_peak(T_0, T_mult):
    optimizer = make_optimizer(0.1)
    optimizer.step()
    scheduler = Scheduler(optimizer, T_0, T_mult, decay=0.9)
    start = 0
    for k in range(16):
        scheduler.step(start)
        assert rates_of(optimizer) == [0.1 * 0.9**k]
        assert (scheduler.cycle_index, scheduler.T_cur, scheduler.T_i) == (k, 0, T_0 * T_mult**k)
        start += T_0 * T_mult**k


def test_step_goes_on_from_where_step_to_an_epoch_led():
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10, decay=0.5, warmup_steps=15)
    optimizer.step()
    for epoch in (37, 12, 3.25, 19.5, 0, 10**15):
        scheduler.step(epoch)
        for steps in range(15):
            assert scheduler.last_epoch == math.floor(epoch) + steps
            assert rates_of(optimizer) == [scheduler.schedule.lr_at(epoch + steps, 0.1)]
            assert scheduler.T_cur == (epoch + steps) % 10
            scheduler.step()


def original_rates(T_0: int, T_mult: int, warmup_steps: int, decay: float, base_lr: float, steps: int) -> list[float]:
    """The rates of the scheduler that the class takes its name from, by its own bookkeeping, where it could run.

    https://github.com/qu-gg/pytorch-cosine-annealing-with-decay-and-initial-warmup: the step in the constructor failed
    on attributes set after it, and the failure was swallowed, so the first update ran at the base rate with T_cur = -1.
    """
    rates, T_cur, T_i, warmed = [base_lr], -1, T_0, 0
    peak = base_lr
    for _ in range(steps - 1):
        if T_cur + 1 == T_i:
            peak *= decay
        T_cur += 1
        warmed = min(warmed + 1, warmup_steps)
        if T_cur >= T_i:
            T_cur, T_i = 0, T_i * T_mult
        rates.append(warmed / warmup_steps * peak * (1 + math.cos(math.pi * T_cur / T_i)) / 2)
    return rates


def test_the_original_runs_one_step_late_and_starts_at_the_full_rate():
    T_0, warmup_steps, decay = 100, 20, 0.75
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, T_0, warmup_steps=warmup_steps, decay=decay)
    here = [rate for (rate,) in advance(optimizer, scheduler, 1_200)]
    original = original_rates(T_0, 1, warmup_steps, decay, 0.1, 1_200)
    assert (original[0], here[0]) == (0.1, 0.0)
    cosine = CosineRestartSchedule(T_0, decay=decay)
    for step in range(1, 1_200):
        warm = min(1, step / warmup_steps)
        assert original[step] == pytest.approx(warm * cosine.lr_at(step - 1, 0.1), rel=1e-9)
        assert here[step] == pytest.approx(warm * cosine.lr_at(step, 0.1), rel=1e-9)


def test_a_rate_of_each_warmup_mode_by_hand():
    def rates(**arguments):
        optimizer = make_optimizer(1.0)
        return [
            rate for (rate,) in advance(optimizer, Scheduler(optimizer, 4, decay=0.5, warmup_steps=2, **arguments), 9)
        ]

    half, low = 0.5, (1 - math.sqrt(0.5)) / 2
    high = 1 - low
    assert rates() == pytest.approx([0, high / 2, half, low, half, high / 2, half / 2, low / 2, 0.25])
    assert rates(warmup_mode="prefix") == pytest.approx([0, half, 1, high, half, low, half, high / 2, half / 2])
    assert rates(warmup_mode="every_cycle") == pytest.approx([0, half, 1, half, 0, 0.25, half, 0.25, 0])
    assert rates(warmup_lr_rate=0.5)[:2] == pytest.approx([half, 0.75 * high])


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
@pytest.mark.parametrize("last_epoch", [0, 1, 9, 30, 10**6])
def test_construction_at_any_last_epoch_goes_on_after_it(arguments, last_epoch):
    optimizer = make_optimizer(0.1, 0.02)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    scheduler = Scheduler(optimizer, last_epoch=last_epoch, **arguments)
    reference_optimizer = make_optimizer(0.1, 0.02)
    reference = Scheduler(reference_optimizer, **arguments)
    reference_optimizer.step()
    reference.step(last_epoch + 1)
    assert advance(optimizer, scheduler, 30) == advance(reference_optimizer, reference, 30)


def test_last_epoch_without_initial_lr_is_the_key_error_of_torch():
    with pytest.raises(KeyError, match="initial_lr"):
        Scheduler(make_optimizer(), 10, last_epoch=3)


def test_at_cycle_end_is_true_after_the_last_update_of_each_cycle():
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, 3, 2, warmup_steps=4, warmup_mode="prefix", num_cycles=3)
    ends = []
    for update in range(1, 60):
        advance(optimizer, scheduler)
        ends += [update] if scheduler.at_cycle_end else []
    assert ends == [4 + 3, 4 + 9, 4 + 21]
    scheduler.step(7.5)
    assert not scheduler.at_cycle_end
    scheduler.step(7)
    assert scheduler.at_cycle_end


class WithRatesOfItsOwn(Scheduler):
    def get_lr(self):
        return [0.123 for _ in self.base_lrs]


@pytest.mark.parametrize("scheduler_class", [Scheduler, WithRatesOfItsOwn])
def test_verbose_prints_one_line_at_each_restart(capsys, scheduler_class):
    optimizer = make_optimizer(0.1)
    scheduler = scheduler_class(optimizer, 10, 2, decay=0.5, verbose=True)
    assert capsys.readouterr().out == ""
    advance(optimizer, scheduler, 75)
    assert capsys.readouterr().out.splitlines() == [
        "Step 10: restart, cycle 1 of 20 steps with peak [0.05]",
        "Step 30: restart, cycle 2 of 40 steps with peak [0.025]",
        "Step 70: restart, cycle 3 of 80 steps with peak [0.0125]",
    ]


def test_a_run_that_is_resumed_within_a_cycle_prints_no_restart(capsys):
    optimizer = make_optimizer(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    scheduler = Scheduler(optimizer, 10, last_epoch=14, verbose=True)
    advance(optimizer, scheduler, 3)
    assert capsys.readouterr().out == ""
    advance(optimizer, scheduler, 5)
    assert capsys.readouterr().out.startswith("Step 20: restart, cycle 2")


def test_scheduler_step_before_optimizer_step_is_warned_about_once():
    scheduler = Scheduler(make_optimizer(), 10)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`") as caught:
        scheduler.step()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_a_scheduler_that_was_saved_before_its_first_step_warns_after_loading_too():
    optimizers = make_optimizer(), make_optimizer()
    for optimizer in optimizers:
        optimizer.param_groups[0]["initial_lr"] = 0.1
    saved = Scheduler(optimizers[0], 10, last_epoch=4).state_dict()
    scheduler = Scheduler(optimizers[1], 10)
    scheduler.load_state_dict(saved)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


def test_the_right_order_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = make_optimizer()
        advance(optimizer, Scheduler(optimizer, 10, warmup_steps=5), 30)


def test_a_group_with_a_tensor_rate_added_later_keeps_its_base_rate():
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler, 13)
    rate = torch.tensor(0.25)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate})
    advance(optimizer, scheduler, 7)
    assert optimizer.param_groups[1]["lr"] is rate
    assert (float(rate), optimizer.param_groups[1]["initial_lr"]) == (0.25, 0.25)


def test_a_scheduler_that_is_gone_leaves_added_groups_alone():
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10, warmup_steps=5)
    del scheduler
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})
    assert optimizer.param_groups[1]["lr"] == 0.4


@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_rates_are_filled_in_place(shape):
    rates = [torch.full(shape, 0.1, dtype=torch.float64), torch.full(shape, 0.02, dtype=torch.float64)]
    optimizer = make_optimizer(*rates)
    scheduler = Scheduler(optimizer, 10, decay=0.5, warmup_steps=4)
    for step in range(40):
        assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates))
        assert rates_of(optimizer) == [scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.1, 0.02)]
        assert all(type(rate) is float for rate in [*scheduler.get_last_lr(), *scheduler.base_lrs])
        advance(optimizer, scheduler)
    scheduler.step(3)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates))


def test_tensor_rates_that_a_loaded_optimizer_state_brings_are_filled_in_place():
    tensor_optimizer = make_optimizer(torch.tensor(0.1), torch.tensor(0.02))
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, 10)
    optimizer.load_state_dict(copy.deepcopy(tensor_optimizer.state_dict()))
    rates = [group["lr"] for group in optimizer.param_groups]
    advance(optimizer, scheduler, 3)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates))
    assert rates_of(optimizer) == pytest.approx([scheduler.schedule.lr_at(3, base_lr) for base_lr in (0.1, 0.02)])


@pytest.mark.parametrize(
    ("base_lrs", "message"),
    [
        ([0.3], "Expected base_lrs of 2 parameter groups, but got 1"),
        ([0.3] * 3, "Expected base_lrs of 2 parameter groups, but got 3"),
        ([0.3, math.nan], r"base_lrs\[1\]"),
        ([-0.3, 0.3], r"Expected base_lrs\[0\] >= 0"),
        (["x", 0.3], r"base_lrs\[0\]"),
    ],
)
def test_initial_learning_rates_that_are_none_are_refused_where_they_are_set(base_lrs, message):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler)
    before = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()["param_groups"]))
    with pytest.raises((TypeError, ValueError), match=message):
        scheduler.base_lrs = base_lrs
    assert (scheduler.state_dict(), optimizer.state_dict()["param_groups"]) == before


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_initial_learning_rates_of_any_kind_of_number_are_kept_as_floats(kind):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler)
    scheduler.base_lrs = kind([0.5, 0.25])
    advance(optimizer, scheduler)
    assert scheduler.base_lrs == [0.5, 0.25]
    assert {type(lr) for lr in (*scheduler.base_lrs, *scheduler.get_last_lr())} == {float}
    assert torch_saved_and_loaded(scheduler.state_dict())["base_lrs"] == [0.5, 0.25]


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
def test_initial_learning_rates_that_were_set_before_a_save_wait_for_the_next_step_as_without_it(order):
    optimizer = make_optimizer(0.1)
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler, 3)
    scheduler.base_lrs = [0.3]
    states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    resumed_optimizer = make_optimizer(0.1)
    resumed = Scheduler(resumed_optimizer, 10)
    pairs = [(resumed_optimizer, states[0]), (resumed, states[1])]
    for of, state in pairs if order == "optimizer first" else pairs[::-1]:
        of.load_state_dict(state)
    assert advance(resumed_optimizer, resumed, 5) == advance(optimizer, scheduler, 5)


@pytest.mark.parametrize("lr", [-0.1, torch.tensor(-0.1), torch.tensor(math.nan), torch.tensor(1e200).double()])
def test_a_group_whose_learning_rate_is_none_is_refused_by_name(lr):
    optimizer = make_optimizer(0.1, lr)
    with pytest.raises(ValueError, match=r"Expected param_groups\[1\]\['lr'\]"):
        Scheduler(optimizer, 10)
    assert all("initial_lr" not in group for group in optimizer.param_groups)


WRONG_ARGUMENTS = [
    (name, value)
    for name in ("T_0", "T_mult", "eta_min", "warmup_steps", "decay", "eta_min_rate", "num_cycles", "warmup_lr_rate")
    for value in (-1, math.nan, math.inf, "3", True, [3])
] + [
    ("T_0", 0),
    ("T_0", None),
    ("T_mult", 0),
    ("T_mult", None),
    ("T_mult", 0.5),
    ("eta_min", None),
    ("warmup_steps", None),
    ("warmup_steps", 1.5),
    ("warmup_mode", "after"),
    ("warmup_mode", None),
    ("decay", 0),
    ("decay", 1.1),
    ("eta_min_rate", 1.1),
    ("num_cycles", 0),
    ("num_cycles", 2.5),
    ("last_epoch", -2),
    ("last_epoch", 1.5),
    ("last_epoch", "0"),
    ("last_epoch", None),
    ("last_epoch", True),
    ("verbose", 2000),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named_and_leaves_the_optimizer_as_it_was(name, value):
    optimizer = make_optimizer(0.1, 0.02)
    before, attributes = copy.deepcopy(optimizer.state_dict()), set(vars(optimizer))
    with pytest.raises((TypeError, ValueError), match=name):
        Scheduler(optimizer, **{"T_0": 10, name: value})
    assert optimizer.state_dict() == before
    assert set(vars(optimizer)) == attributes


def test_both_minima_at_once_are_refused():
    with pytest.raises(ValueError, match="one of eta_min and eta_min_rate"):
        Scheduler(make_optimizer(), 10, eta_min=0.01, eta_min_rate=0.1)


def test_something_that_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="optimizer"):
        Scheduler(torch.nn.Linear(1, 1), 10)


@pytest.mark.parametrize("minimum", [{"eta_min": 0.01}, {"eta_min_rate": 0.1}])
def test_the_repr_says_the_schedule_with_its_minimum_and_the_position(minimum):
    scheduler = Scheduler(make_optimizer(), 10, **minimum)
    ((name, value),) = minimum.items()
    assert f"{name}={value}" in repr(scheduler.schedule)
    assert repr(scheduler) == f"{Scheduler.__name__}({scheduler.schedule}, last_epoch=0)"


def test_every_mode_is_tested_here():
    assert {arguments.get("warmup_mode", "overlap") for arguments in SETTINGS} == set(WARMUP_MODES)


def test_base_lrs_that_are_changed_in_place_around_a_save_and_back_are_those_of_the_next_step():
    optimizer = make_optimizer(0.5, 0.1)
    scheduler = Scheduler(optimizer, T_0=10)
    advance(optimizer, scheduler)
    scheduler.base_lrs[:] = [0.25, 0.1]
    scheduler.state_dict()
    scheduler.base_lrs[:] = [0.5, 0.1]
    advance(optimizer, scheduler)
    assert rates_of(optimizer) == [scheduler.schedule.lr_at(2, base_lr) for base_lr in (0.5, 0.1)]
