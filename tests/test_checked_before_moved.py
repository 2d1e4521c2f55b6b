"""Nothing changes before everything is checked, and other code cannot take back learning rates that are in use."""

from __future__ import annotations

import copy
import math
import threading
import warnings

import pytest
import torch
from optimizers import advance, make_optimizer, parameter_group, rates_of

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule

SCHEDULE = CosineRestartSchedule(T_0=10, decay=0.5, warmup_steps=3)


def expected(step, *base_lrs):
    return [SCHEDULE.lr_at(step, base_lr) for base_lr in base_lrs]


def gain(groups):
    groups.append(parameter_group(0.3))


def lose(groups):
    del groups[0]


def reorder(groups):
    groups.reverse()


def snapshot(optimizer, scheduler):
    state = copy.deepcopy([{**group, "params": None} for group in optimizer.param_groups])
    return state, [*scheduler.base_lrs], scheduler.last_epoch, scheduler.get_last_lr()


@pytest.mark.parametrize("change", [None, gain, lose, reorder])
@pytest.mark.parametrize(
    "refused",
    [
        lambda scheduler: scheduler.step(-1),
        lambda scheduler: scheduler.step(math.nan),
        lambda scheduler: scheduler.load_state_dict({"last_epoch": 5}),
        lambda scheduler: scheduler.load_state_dict({"last_epoch": 5, "base_lrs": [0.1] * 7}),
        lambda scheduler: scheduler.load_state_dict({"last_epoch": -3, "base_lrs": [0.1] * 3}),
        lambda scheduler: setattr(scheduler, "base_lrs", [0.1] * 7),
        lambda scheduler: setattr(scheduler, "base_lrs", [*[0.1] * (len(scheduler.optimizer.param_groups) - 1), -1]),
    ],
    ids=["step -1", "step nan", "no base_lrs", "another number of groups", "position", "too many", "negative"],
)
def test_what_is_refused_changes_nothing_also_after_the_groups_have_changed(refused, change):
    optimizer = make_optimizer(0.1, 0.02, 0.4)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    advance(optimizer, scheduler, 4)
    if change:
        change(optimizer.param_groups)
    before = snapshot(optimizer, scheduler)
    with pytest.raises((TypeError, ValueError)):
        refused(scheduler)
    assert snapshot(optimizer, scheduler) == before


def test_an_added_group_keeps_its_learning_rate_after_a_state_of_fewer_groups_was_refused():
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    state = scheduler.state_dict()
    advance(optimizer, scheduler, 5)
    optimizer.add_param_group(parameter_group(0.2))
    with pytest.raises(ValueError, match="Expected base_lrs of 2 parameter groups, but got 1"):
        scheduler.load_state_dict(state)
    assert advance(optimizer, scheduler, 2) == [expected(step, 0.1, 0.2) for step in (5, 6)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e200, True, "x", None])
def test_a_wrong_value_put_into_base_lrs_is_named_where_it_is_first_used(value):
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    advance(optimizer, scheduler, 5)
    scheduler.base_lrs[1] = value
    before = rates_of(optimizer)
    with pytest.raises((TypeError, ValueError), match=r"base_lrs\[1\]"):
        scheduler.step()
    assert (rates_of(optimizer), scheduler.last_epoch) == (before, 5)
    scheduler.base_lrs[1] = torch.tensor(0.5)
    scheduler.step()
    assert rates_of(optimizer) == expected(6, 0.1, 0.5)
    assert [group["initial_lr"] for group in optimizer.param_groups] == scheduler.base_lrs == [0.1, 0.5]


@pytest.mark.parametrize("value", [0.5, None, torch.tensor(0.5)])
def test_base_lrs_that_are_no_list_are_refused_in_words(value):
    with pytest.raises(TypeError, match="Expected base_lrs to be a list of learning rates, but got base_lrs="):
        CosineRestartLR(make_optimizer(0.1), SCHEDULE).base_lrs = value


def test_values_put_into_base_lrs_hold_when_a_group_is_added_later():
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    scheduler.base_lrs[0] = 0.5
    advance(optimizer, scheduler, 3)
    optimizer.add_param_group(parameter_group(0.3))
    assert advance(optimizer, scheduler, 2) == [expected(step, 0.5, 0.02, 0.3) for step in (3, 4)]


def test_values_put_into_base_lrs_are_of_the_groups_as_they_lie_then():
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    advance(optimizer, scheduler, 3)
    optimizer.param_groups.reverse()
    scheduler.base_lrs[0] = 0.5
    optimizer.add_param_group(parameter_group(0.3))
    scheduler.step()
    assert rates_of(optimizer) == expected(4, 0.5, 0.02, 0.3)


def roll_back(optimizer, state):
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("other_code", [roll_back, lambda optimizer, _: optimizer.param_groups.reverse()])
@pytest.mark.parametrize("change", ["add", "remove"])
def test_learning_rates_in_use_hold_when_other_code_has_changed_the_initial_ones(other_code, change):
    optimizer = make_optimizer(0.1, 0.02, 0.4)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    earlier = copy.deepcopy(optimizer.state_dict())
    scheduler.base_lrs = [0.5, 0.2, 0.7]
    advance(optimizer, scheduler, 5)
    other_code(optimizer, earlier)
    advance(optimizer, scheduler, 1)
    assert rates_of(optimizer) == expected(6, 0.5, 0.2, 0.7)
    if change == "add":
        optimizer.add_param_group(parameter_group(0.3))
    else:
        del optimizer.param_groups[1]
    base_lrs = (0.5, 0.2, 0.7, 0.3) if change == "add" else (0.5, 0.7)
    assert advance(optimizer, scheduler, 2)[1] == expected(7, *base_lrs)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [*base_lrs]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_group_added_to_groups_that_share_a_tensor_has_their_initial_learning_rate(steps):
    shared = torch.tensor(0.1, dtype=torch.float64)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:2]}], lr=shared)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    advance(optimizer, scheduler, steps)
    optimizer.add_param_group({"params": parameters[2:3]})  # torch gives it the same tensor
    optimizer.add_param_group({"params": parameters[3:], "lr": 0.3})
    assert advance(optimizer, scheduler, 15) == [expected(steps + k, 0.1, 0.1, 0.1, 0.3) for k in range(15)]
    assert scheduler.get_last_lr() == rates_of(optimizer)
    assert optimizer.param_groups[2]["lr"] is optimizer.param_groups[0]["lr"] is shared


def test_groups_of_one_tensor_with_other_initial_learning_rates_have_tensors_of_their_own():
    shared = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.SGD([parameter_group(shared) for _ in range(3)])
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    scheduler.base_lrs[1] = 0.5
    scheduler.step()
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert tensors[0] is tensors[2] is shared
    assert advance(optimizer, scheduler, 12)[1:] == [expected(step, 0.1, 0.5, 0.1) for step in range(2, 13)]
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_learning_rate_in_half_precision_is_a_warning_and_adamw_loses_its_weight_decay_with_it(dtype):
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.AdamW([weight], lr=torch.tensor(1e-3, dtype=dtype), weight_decay=0.1, foreach=False)
    with pytest.warns(UserWarning, match="loses its weight decay"):
        CosineRestartLR(optimizer, CosineRestartSchedule(T_0=10))
    optimizer.step()
    assert weight.item() == 1  # what the warning says, of torch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CosineRestartLR(make_optimizer(torch.tensor(1e-3)), SCHEDULE)


def test_a_learning_rate_on_the_meta_device_is_refused_by_name():
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['lr'\] to be one float.*not on meta"):
        CosineRestartLR(make_optimizer(torch.tensor(0.1, device="meta")), SCHEDULE)


def test_the_last_step_that_can_be_counted_is_the_last():
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=10))
    scheduler.step(2**63 - 1)
    before = snapshot(optimizer, scheduler)
    with pytest.raises(ValueError, match="Expected steps up to 9223372036854775807"):
        scheduler.step()
    assert snapshot(optimizer, scheduler) == before
    CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule(T_0=10)).load_state_dict(scheduler.state_dict())


def test_state_dict_writes_nothing_into_the_optimizer():
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    advance(optimizer, scheduler, 5)
    optimizer.add_param_group(parameter_group(0.3))
    before = snapshot(optimizer, scheduler)
    state = scheduler.state_dict()
    assert snapshot(optimizer, scheduler) == before
    assert (state["base_lrs"], state["_last_lr"], state["in_charge"]) == ([0.1, 0.3], expected(5, 0.1, 0.3), True)


def test_a_thread_that_saves_reads_one_position():
    optimizer = make_optimizer(*[0.1] * 50)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    optimizer.step()
    states, done = [], threading.Event()

    def save():
        while not done.is_set():
            states.append(scheduler.state_dict())

    saving = threading.Thread(target=save)
    saving.start()
    while len(states) < 200:
        scheduler.step()
    done.set()
    saving.join()
    for state in states:
        assert state["in_charge"]
        assert state["_last_lr"] == expected(state["last_epoch"], *[0.1] * 50)


def test_a_run_with_a_float32_learning_rate_resumes_with_a_float_without_a_warning(caplog):
    saved = CosineRestartLR(make_optimizer(torch.tensor(0.1)), SCHEDULE).state_dict()
    CosineRestartLR(make_optimizer(0.1), SCHEDULE).load_state_dict(saved)
    assert not caplog.records


def test_a_position_after_the_end_is_said_at_loading(caplog):
    longer = CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule.fit(40, 2))
    advance(longer.optimizer, longer, 29)
    shorter = CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule.fit(24, 2))
    shorter.load_state_dict(longer.state_dict())
    assert "after the end of the schedule at step 24" in caplog.text
    assert "the end of the schedule was 40, is 24" in caplog.text


def test_messages_show_at_most_a_part_of_long_values():
    listed = list(range(1, 10**5))
    for refuse in (
        lambda: CosineRestartSchedule(cycles=listed, T_0=5),
        lambda: CosineRestartSchedule(cycles=[listed]),
        lambda: CosineRestartSchedule(T_0="9" * 10**6),
        lambda: CosineRestartSchedule(T_0=10, warmup_mode=torch.zeros(1000)),
        lambda: setattr(CosineRestartLR(make_optimizer(0.1), SCHEDULE), "base_lrs", listed),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            refuse()
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("lr", "arguments", "message"),
    [
        (1e-4, {"min_lr": 1e-3}, "The minimum 0.001 is above the initial learning rate 0.0001"),
        (0.0, {}, "The initial learning rate is 0 in each parameter group"),
    ],
)
def test_the_factory_warns_of_a_learning_rate_that_nobody_meant(lr, arguments, message):
    with pytest.warns(UserWarning, match=message):
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(lr), 0, 30, **arguments)


def test_a_number_that_yaml_reads_as_a_text_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r"in YAML a float needs a point, such as 1\.0e-5"):
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(0.1), 0, 30, min_lr="1e-5")
