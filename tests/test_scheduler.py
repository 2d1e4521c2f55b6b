"""The schedule on a torch optimizer: `CosineAnnealingWarmRestartsWithDecayAndLinearWarmup`."""

from __future__ import annotations

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import advance, make_optimizer, rates_of
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from transformers import get_cosine_schedule_with_warmup

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler
from hf_warmcos import CosineRestartLR, CosineRestartSchedule
from hf_warmcos.schedule import WARMUP_MODES

SETTINGS = [
    {"T_0": 10},
    {"T_0": 10, "decay": 0.75, "warmup_steps": 25},
    {"T_0": 5, "T_mult": 2, "decay": 0.5, "warmup_steps": 3, "warmup_mode": "every_cycle", "eta_min": 0.001},
    {"T_0": 7, "T_mult": 1.5, "decay": 0.9, "warmup_steps": 4, "warmup_mode": "prefix", "num_cycles": 3},
    {"T_0": 8, "warmup_steps": 12, "warmup_lr_rate": 0.1, "eta_min_rate": 0.2, "num_cycles": 2},
    {"T_0": 20, "T_mult": 0.5, "num_cycles": 3, "warmup_steps": 4, "warmup_mode": "every_cycle"},
]


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


def torch_saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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
