"""Cycles with a shape of their own, runs that are continued, and states of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from optimizers import advance, make_optimizer, rates_of

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.arguments import check_arguments, schedule_from_arguments
from hf_warmcos.cli import main
from hf_warmcos.schedule import WARMUP_MODES

OWN = {"steps": 20, "peak": 0.5, "warmup_steps": 4, "stable_ratio": 0.5}


@pytest.mark.parametrize("warmup_mode", WARMUP_MODES)
def test_a_cycle_with_a_shape_of_its_own_rises_stays_and_anneals(warmup_mode):
    schedule = CosineRestartSchedule(cycles=[10, OWN, 10], warmup_mode=warmup_mode, eta_min=0.1)
    lrs = schedule.curve(range(10, 31)).tolist()
    assert lrs[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])  # from the minimum to the peak
    assert lrs[4:13] == [0.5] * 9  # half of the other 16 steps
    one_cosine = CosineRestartSchedule(T_0=8, num_cycles=1, eta_min=0.1)
    assert lrs[12:20] == [one_cosine.lr_at(step, 0.5) for step in range(8)]
    assert lrs[20] == 1.0
    plain = CosineRestartSchedule(cycles=[10, [20, 0.5], 10], warmup_mode=warmup_mode, eta_min=0.1)
    for steps in (range(10), range(30, 45)):  # the other cycles are what they were
        assert_array_equal(schedule.curve(steps), plain.curve(steps))


def test_a_cycle_that_says_nothing_of_its_own_has_the_shape_of_the_schedule():
    shape = {"warmup_steps": 3, "warmup_mode": "every_cycle", "stable_ratio": 0.5}
    said = CosineRestartSchedule(
        cycles=[{"steps": 10}, {"steps": 20, "peak": 0.5, "warmup_steps": 3, "stable_ratio": 0.5}], **shape
    )
    assert said == CosineRestartSchedule(cycles=[10, [20, 0.5]], **shape)
    assert said.cycles == ((10, 1), (20, 0.5))
    assert hash(said) == hash(CosineRestartSchedule(cycles=[10, [20, 0.5]], **shape))


def test_a_cycle_of_its_own_may_have_no_warmup_where_every_other_has_one():
    schedule = CosineRestartSchedule(
        cycles=[10, {"steps": 10, "warmup_steps": 0}], warmup_steps=2, warmup_mode="every_cycle"
    )
    assert [schedule.lr_at(step) for step in (0, 1, 10)] == [0.0, 0.5, 1.0]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"steps": st.integers(2, 30)},
            optional={"peak": st.floats(0.1, 2), "warmup_steps": st.integers(0, 1), "stable_ratio": st.floats(0, 0.99)},
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_schedule_is_made_again_from_what_it_says_of_its_cycles(cycles):
    schedule = CosineRestartSchedule(cycles=cycles, eta_min_rate=0.1)
    assert CosineRestartSchedule(cycles=schedule.cycles, eta_min_rate=0.1) == schedule
    for k, cycle in enumerate(cycles):
        assert schedule.cycle(k).length == cycle["steps"]
        assert schedule.peak_lr(k) == pytest.approx(max(cycle.get("peak", 1), 0.1))


@pytest.mark.parametrize(
    ("cycles", "message"),
    [
        (
            [10, 10, {"steps": 9, "warmup_steps": 9}],
            r'cycles\[2\]\["warmup_steps"\] < 9, the steps of cycle 2',
        ),
        ([{"steps": 9, "warmup_steps": -1}], r'Expected cycles\[0\]\["warmup_steps"\] >= 0'),
        ([{"steps": 9, "warmup_steps": 1.5}], r'Expected cycles\[0\]\["warmup_steps"\] to be a whole number'),
        ([{"steps": 9, "stable_ratio": 1}], r'Expected cycles\[0\]\["stable_ratio"\] < 1'),
        ([{"steps": 9, "peak": 0}], r'Expected cycles\[0\]\["peak"\] > 0'),
        ([10, {"steps": 0}], r'Expected cycles\[1\]\["steps"\] >= 1'),
        (
            [10, {"steps": 9, "warmup": 3}],
            r"keys of cycles\[1\] to be among .* cycles\[1\]\['warmup'\]",
        ),
        ([10, {"peak": 0.5}], r"Expected cycles\[1\] to be its steps, .* or a dict with 'steps'"),
    ],
)
def test_a_wrong_cycle_is_named_by_its_place_and_key(cycles, message):
    for refuse in (lambda: CosineRestartSchedule(cycles=cycles), lambda: check_arguments(cycles=cycles)):
        with pytest.raises(ValueError, match=message):
            refuse()


@pytest.mark.parametrize("warmup_mode", ["overlap", "prefix"])
def test_a_cycle_has_one_warmup(warmup_mode):
    arguments = {"warmup_steps": 5, "warmup_mode": warmup_mode}
    with pytest.raises(ValueError, match=r'Expected cycles\[0\]\["warmup_steps"\] to be 0, because the warmup of 5'):
        CosineRestartSchedule(cycles=[{"steps": 10, "warmup_steps": 2}, 10], **arguments)
    schedule = CosineRestartSchedule(cycles=[10, {"steps": 10, "warmup_steps": 2}], **arguments)
    start = schedule.cycle(1).start
    assert [schedule.lr_at(start + step) for step in range(3)] == [0.0, 0.5, 1.0]


def test_a_state_says_the_shape_of_each_cycle_in_plain_values(tmp_path, caplog):
    schedule = CosineRestartSchedule(cycles=[10, OWN, [5, 0.25]], eta_min=0.01)
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, schedule)
    whole = advance(optimizer, scheduler, 35)
    optimizer = make_optimizer(0.1)
    scheduler = CosineRestartLR(optimizer, schedule)
    advance(optimizer, scheduler, 12)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (
        state["schedule"]["cycles"] == json.loads(json.dumps(state["schedule"]["cycles"])) == [[10, 1], OWN, [5, 0.25]]
    )
    optimizer = make_optimizer(0.1)
    resumed = CosineRestartLR(optimizer, schedule)
    resumed.load_state_dict(state)
    assert advance(optimizer, resumed, 23) == whole[12:]
    assert not caplog.records
    other = CosineRestartLR(make_optimizer(0.1), CosineRestartSchedule(cycles=[10, 20, [5, 0.25]], eta_min=0.01))
    other.load_state_dict(state)
    assert "cycles was" in caplog.text


def test_extend_keeps_the_minimum_and_the_past_and_shapes_only_the_new_cycles():
    schedule = CosineRestartSchedule.fit(90, 2, warmup_steps=10, eta_min_rate=0.1)
    longer = schedule.extend(150, peak=0.5, warmup_steps=6, stable_ratio=0.8)
    assert_array_equal(longer.curve(90), schedule.curve(90))
    assert longer.lr_at(150) == schedule.minimum() == 0.1
    assert [longer.lr_at(90 + step) for step in (0, 3, 6)] == pytest.approx([0.1, 0.3, 0.5])
    assert longer.lr_at(90 + 6 + 43) == 0.5
    assert CosineRestartSchedule(10, num_cycles=1).extend(20) != CosineRestartSchedule(10, num_cycles=1, eta_min=0.1)
    for name, value in {"warmup_steps": -1, "stable_ratio": 1, "peak": 0}.items():
        with pytest.raises(ValueError, match=f"Expected {name} "):
            schedule.extend(150, **{name: value})


def test_anneal_now_from_a_step_on_the_plateau():
    """A checkpoint at step 300 of a long plateau: the same past, then a cosine to the minimum."""
    running = CosineRestartSchedule(cycles=[{"steps": 1000, "stable_ratio": 0.9}])
    annealing = CosineRestartSchedule(cycles=[{"steps": 400, "stable_ratio": 0.75}])
    assert_array_equal(running.curve(300), annealing.curve(300))
    assert annealing.lr_at(400) == 0


PLANS = [
    {"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8},
    {"num_cycles": 2, "decay": 0.5, "warmup_mode": "overlap", "min_lr_rate": 0.1},
    {"warmup_mode": "every_cycle", "num_cycles": 3},
    {"cycles": [40, [55, 0.5]], "min_lr": 0.001},
]


@pytest.mark.parametrize("arguments", PLANS, ids=str)
def test_the_same_arguments_and_extend_from_continue_a_run(arguments):
    first = schedule_from_arguments(5, 100, **arguments)
    second = schedule_from_arguments(5, 160, **arguments, extend_from=100, extend_peak=0.5)
    third = schedule_from_arguments(5, 200, **arguments, extend_from=[100, 160], extend_peak=[0.5, 1.0])
    assert first.end == 100
    assert_array_equal(second.curve(100), first.curve(100))
    assert_array_equal(third.curve(160), second.curve(160))
    assert second.restarts(161)[-1:] == [100]
    assert (second.end, third.end) == (160, 200)
    assert second.peak_lr(second.cycle_at(120).index) == 0.5
    assert third.peak_lr(third.cycle_at(180).index) == 1.0
    assert second.minimum(0.3) == third.minimum(0.3) == first.minimum(0.3)


def test_the_factory_continues_a_run_from_its_state(caplog):
    plan = {"num_warmup_steps": 3, "num_cycles": 2, "stable_ratio": 0.5}

    def made(**more):
        optimizer = make_optimizer(0.1)
        return optimizer, get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **plan, **more)

    optimizer, scheduler = made(num_training_steps=30)
    advance(optimizer, scheduler, 30)
    optimizer, resumed = made(num_training_steps=50, extend_from=30)
    resumed.load_state_dict(scheduler.state_dict())
    assert not caplog.records
    lrs = [lr for (lr,) in advance(optimizer, resumed, 20)]
    assert lrs == resumed.schedule.curve(range(30, 50), 0.1).tolist()
    assert lrs[0] == 0.1
    assert resumed.at_cycle_end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T_0": 10, "extend_from": 30}, "those of T_0 never end"),
        ({"num_cycles": 2, "extend_from": 60}, "Expected num_training_steps > extend_from=60"),
        ({"num_cycles": 2, "extend_from": 0}, "Expected extend_from > 0"),
        ({"num_cycles": 2, "extend_from": [20, 10]}, r"Expected extend_from\[1\] > 20"),
        ({"num_cycles": 2, "extend_from": 2.5}, "Expected extend_from to be a whole number"),
        ({"num_cycles": 2, "extend_from": "30"}, "Expected extend_from to be a number"),
        ({"cycles": [10, 10], "extend_from": 30}, "Expected extend_from to be 25, where the cycles end"),
        ({"num_cycles": 2, "extend_peak": 0.5}, "Expected extend_peak only with extend_from"),
        ({"num_cycles": 2, "extend_from": 30, "extend_peak": 0}, "Expected extend_peak > 0"),
        ({"num_cycles": 2, "extend_from": 30, "extend_peak": [1, 1]}, "one for each extend_from"),
        ({"num_cycles": 2, "extend_from": 3}, "Expected num_warmup_steps <= extend_from=3"),
    ],
)
def test_a_wrong_continuation_is_named_before_the_optimizer_changes(arguments, message):
    optimizer = make_optimizer(0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises((TypeError, ValueError), match=message):
        get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 5, 60, **arguments)
    assert optimizer.param_groups[0] == before


def test_the_command_line_takes_cycles_as_json_and_continues_a_run(capsys):
    assert main(["table", "--cycles", json.dumps([10, OWN]), "--format", "json"]) == 0
    assert [row["peak_lr"] for row in json.loads(capsys.readouterr().out)] == [1, 0.5]
    plan = ["--num_cycles", "2", "--num_training_steps", "200", "--warmup_steps", "0.1"]
    assert main(["table", *plan, "--extend_from", "50,100", "--extend_peak", "0.5,1", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["start"], row["peak_lr"]) for row in rows] == [(5, 1), (27, 1), (50, 0.5), (100, 1)]


@pytest.mark.parametrize("saved_by", ["0.1.0", "minimum_beside_the_schedule"])
def test_states_of_earlier_versions_load_with_the_same_learning_rates(saved_by, caplog):
    """Saved after 17 steps of this schedule, by the release 0.1.0 and by the last commit before the minimum moved."""
    state = torch.load(Path(__file__).parent / "states" / f"{saved_by}.pt", weights_only=True)
    schedule = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5, warmup_steps=4, eta_min_rate=0.1)
    optimizer = make_optimizer(0.1, 0.02)
    scheduler = CosineRestartLR(optimizer, schedule)
    scheduler.load_state_dict(state)
    assert not caplog.records
    assert scheduler.last_epoch == 17
    assert rates_of(optimizer) == [schedule.lr_at(17, base_lr) for base_lr in (0.1, 0.02)]
