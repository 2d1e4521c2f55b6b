"""The mathematics: `CosineRestartSchedule`."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_warmcos import CosineRestartSchedule, Cycle
from hf_warmcos.schedule import WARMUP_MODES

FIGURE = CosineRestartSchedule(T_0=10_000, decay=0.75, warmup_steps=2_000)


def formula(schedule: CosineRestartSchedule, step: float, base_lr: float, eta_min: float) -> float:
    """The definition of the schedule, written as plainly as it can be: a walk over all cycles, in fractions."""
    W, r = schedule.warmup_steps, schedule.warmup_lr_rate
    first = W if schedule.warmup_mode == "prefix" else 0
    if step < first:
        return base_lr * (r + (1 - r) * step / W)
    k, start, growth = 0, Fraction(0), Fraction(schedule.T_0)
    while True:
        s_k, s_next = first + round(start), first + round(start + growth)
        if step < s_next:
            break
        if k + 1 == schedule.num_cycles:
            return eta_min
        k, start, growth = k + 1, start + growth, growth * Fraction(schedule.T_mult)
    peak = max(base_lr * schedule.decay**k, min(base_lr, eta_min))
    tau, T_k = step - s_k, s_next - s_k
    if schedule.warmup_mode == "every_cycle" and W:
        if tau < W:
            return eta_min + (peak - eta_min) * (r + (1 - r) * tau / W)
        tau, T_k = tau - W, T_k - W
    rate = eta_min + (peak - eta_min) * (1 + math.cos(math.pi * tau / T_k)) / 2
    if schedule.warmup_mode == "overlap" and step < W:
        rate *= r + (1 - r) * min(1, step / W)
    return rate


@st.composite
def schedules(draw: st.DrawFn) -> CosineRestartSchedule:
    T_mult = draw(st.one_of(st.integers(1, 4), st.floats(0.3, 3)))
    num_cycles = draw(st.integers(1, 6) if T_mult < 1 else st.one_of(st.none(), st.integers(1, 6)))
    T_0 = draw(st.one_of(st.integers(1, 300), st.floats(1, 300)))
    arguments = {
        "T_0": T_0,
        "T_mult": T_mult,
        "decay": draw(st.floats(0.1, 1)),
        "warmup_steps": draw(st.integers(0, 50)),
        "warmup_mode": draw(st.sampled_from(WARMUP_MODES)),
        "num_cycles": num_cycles,
        "warmup_lr_rate": draw(st.floats(0, 1)),
    }
    try:
        return CosineRestartSchedule(**arguments)
    except ValueError:
        assume(False)
        raise


@given(schedules(), st.floats(0, 3000), st.floats(1e-6, 10), st.floats(0, 0.5))
def test_lr_at_is_the_formula(schedule, step, base_lr, eta_min):
    for t in (step, int(step)):
        assert schedule.lr_at(t, base_lr, eta_min) == pytest.approx(
            formula(schedule, t, base_lr, eta_min), rel=1e-9, abs=1e-12
        )


@given(schedules(), st.integers(0, 2000), st.floats(0, 0.1))
def test_a_curve_over_a_number_of_steps_equals_lr_at_to_the_last_bit(schedule, num_steps, eta_min):
    steps = range(num_steps)
    expected = [schedule.lr_at(step, 0.3, eta_min) for step in steps[:: max(1, num_steps // 50)]]
    assert schedule.curve(num_steps, 0.3, eta_min)[:: max(1, num_steps // 50)].tolist() == expected
    assert schedule.curve(steps[:: max(1, num_steps // 50)], 0.3, eta_min).tolist() == expected


@given(schedules(), st.lists(st.one_of(st.integers(0, 10**15), st.floats(0, 3000)), max_size=40))
def test_a_curve_over_any_array_of_steps_equals_lr_at_to_the_last_bit(schedule, steps):
    assert schedule.curve(np.array(steps), 0.3).tolist() == [schedule.lr_at(float(step), 0.3) for step in steps]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "float32"])
def test_a_curve_takes_steps_of_any_number_type_and_keeps_their_shape(dtype):
    steps = np.array([[3, 120, 7], [0, 99, 50]], dtype=dtype)
    assert FIGURE.curve(steps).tolist() == [[FIGURE.lr_at(int(step)) for step in row] for row in steps]


def test_a_curve_of_no_steps_is_empty():
    assert FIGURE.curve(0).shape == FIGURE.curve([]).shape == FIGURE.curve(range(5, 5)).shape == (0,)


def test_a_curve_runs_backwards_where_the_range_does():
    assert FIGURE.curve(range(50_000, 0, -1)).tolist() == FIGURE.curve(range(1, 50_001)).tolist()[::-1]


@pytest.mark.parametrize("T_mult", [1, 2, 3, 5, 6, 7, 10])
@pytest.mark.parametrize("T_0", [1, 3, 7, 10, 50, 1000])
def test_every_restart_is_at_its_peak(T_0, T_mult):
    schedule = CosineRestartSchedule(T_0, T_mult, decay=0.9)
    start = 0
    for k in range(16):
        length = T_0 * T_mult**k
        assert schedule.cycle_at(start) == Cycle(k, start, length)
        assert schedule.cycle_at(start + length - 1) == Cycle(k, start, length)
        assert schedule.lr_at(start, 0.1) == 0.1 * 0.9**k
        start += length


def test_cycles_are_exact_at_step_10_to_the_18():
    step = 10**18
    assert CosineRestartSchedule(10).cycle_at(step) == Cycle(10**17, step, 10)
    assert CosineRestartSchedule(7).cycle_at(step + 1) == Cycle((step + 1) // 7, (step + 1) // 7 * 7, 7)
    start, length = 0, 3
    for k in range(100):
        if start <= step < start + length:
            assert CosineRestartSchedule(3, 2).cycle_at(step) == Cycle(k, start, length)
        start, length = start + length, 2 * length
    assert CosineRestartSchedule(1, 3).cycle_at((3**40 - 1) // 2) == Cycle(40, (3**40 - 1) // 2, 3**40)
    assert CosineRestartSchedule(1, 3).cycle_at((3**40 - 1) // 2 - 1).index == 39


@given(st.floats(1.001, 4), st.floats(1, 1000), st.integers(0, 10**15))
def test_any_real_T_mult_has_its_restarts_on_the_rounded_exact_sums(T_mult, T_0, step):
    cycle = CosineRestartSchedule(T_0, T_mult).cycle_at(step)
    ratio = Fraction(T_mult)
    assert cycle.start == round(Fraction(T_0) * (ratio**cycle.index - 1) / (ratio - 1))
    assert cycle.end == round(Fraction(T_0) * (ratio ** (cycle.index + 1) - 1) / (ratio - 1))
    assert cycle.start <= step < cycle.end


def test_a_restart_halfway_between_two_steps_is_rounded_to_the_even_one():
    assert CosineRestartSchedule(10, 1.5).restarts(200) == [10, 25, round(47.5), 81, 132, 208][:5]
    assert CosineRestartSchedule(2.5).restarts(14) == [2, 5, 8, 10, 12]


@given(st.integers(1, 20_000), st.integers(1, 12), st.one_of(st.integers(1, 4), st.floats(0.3, 3)), st.integers(0, 99))
def test_fitted_cycles_end_exactly_at_the_budget_with_each_restart_at_its_peak(
    num_training_steps, num_cycles, T_mult, warmup_steps
):
    try:
        schedule = CosineRestartSchedule.fit(
            num_training_steps, num_cycles, T_mult=T_mult, decay=0.9, warmup_steps=warmup_steps
        )
    except ValueError:
        # Cycles that do not fit: the shortest one is then really shorter than a step can show.
        budget = num_training_steps - warmup_steps
        lengths = [Fraction(T_mult) ** k for k in range(num_cycles)]
        assert budget < num_cycles or budget * min(lengths) / sum(lengths) < 1
        return
    assert schedule.end == num_training_steps
    restarts = schedule.restarts(num_training_steps)
    assert len(restarts) == num_cycles - 1
    for k, step in enumerate([warmup_steps, *restarts]):
        assert schedule.lr_at(step, 0.1) == 0.1 * 0.9**k
    assert schedule.lr_at(num_training_steps - 1, 0.1) > 0
    assert schedule.lr_at(num_training_steps, 0.1) == schedule.lr_at(10 * num_training_steps, 0.1) == 0


@pytest.mark.parametrize("warmup_mode", ["overlap", "every_cycle"])
def test_the_whole_budget_is_for_cycles_where_the_warmup_lies_in_them(warmup_mode):
    schedule = CosineRestartSchedule.fit(100, 4, warmup_steps=10, warmup_mode=warmup_mode)
    assert (schedule.T_0, schedule.end, schedule.restarts(100)) == (25, 100, [25, 50, 75])


def test_a_budget_of_10_to_the_18_is_fitted_exactly_or_refused():
    assert CosineRestartSchedule.fit(10**18, 4).end == 10**18
    assert CosineRestartSchedule.fit(3 * 10**17 + 1, 1).end == 3 * 10**17 + 1
    with pytest.raises(ValueError, match="num_training_steps"):
        CosineRestartSchedule.fit(10**18, 3)


def test_the_known_figure_has_twelve_cycles_under_one_warmup():
    assert FIGURE.restarts(120_000) == list(range(10_000, 120_000, 10_000))
    rates = FIGURE.curve(120_000)
    assert rates[0] == 0
    assert rates[1_000] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.1)) / 2)
    assert [rates[step] for step in range(10_000, 120_000, 10_000)] == [0.75**k for k in range(1, 12)]
    assert rates.argmax() == 2_000  # the cosine falls under the rising warmup: the highest rate lies at its end


def test_shrinking_cycles_end_where_num_cycles_says():
    schedule = CosineRestartSchedule(100, 0.5, num_cycles=4)
    assert (schedule.restarts(1000), schedule.end) == ([100, 150, 175], 188)


def test_the_rate_stays_at_the_minimum_after_the_last_cycle():
    schedule = CosineRestartSchedule(10, num_cycles=2, decay=0.5)
    assert [schedule.lr_at(step, 1.0, 0.01) for step in (20, 20.5, 21, 10**18)] == [0.01] * 4
    assert schedule.cycle_at(10**18) == Cycle(1, 10, 10)


def test_decay_never_takes_a_peak_below_the_minimum():
    schedule = CosineRestartSchedule(10, decay=0.1)
    assert [schedule.peak_lr(k, 1.0, 0.05) for k in range(4)] == [1.0, 0.1, 0.05, 0.05]
    assert schedule.lr_at(35, 1.0, 0.05) == 0.05
    assert schedule.lr_at(10**6, 1.0) == 0


def test_a_fractional_step_lies_between_its_neighbours():
    assert FIGURE.lr_at(5000) > FIGURE.lr_at(5000.5) > FIGURE.lr_at(5001)
    assert CosineRestartSchedule(10).lr_at(9.5) == (1 + math.cos(math.pi * 9.5 / 10)) / 2


def test_a_schedule_is_a_value():
    assert CosineRestartSchedule(10, 2) == CosineRestartSchedule(np.int64(10), 2.0)
    assert hash(CosineRestartSchedule(10, 2)) == hash(CosineRestartSchedule(10.0, np.float64(2)))
    assert type(CosineRestartSchedule(np.int32(10)).T_0) is int
    with pytest.raises(FrozenInstanceError):
        FIGURE.T_0 = 5


WRONG_NUMBERS = [(value, ValueError) for value in (-1, math.nan, math.inf, -math.inf)] + [
    (value, TypeError) for value in ("3", True, np.True_, [3], 1j)
]


@pytest.mark.parametrize("name", ["T_0", "T_mult", "decay", "warmup_steps", "num_cycles", "warmup_lr_rate"])
@pytest.mark.parametrize(("value", "error"), WRONG_NUMBERS)
def test_a_wrong_number_is_named_with_what_came(name, value, error):
    with pytest.raises(error, match=rf"Expected {name} .* but got {name}="):
        CosineRestartSchedule(**{"T_0": 10, name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T_0": 0}, "Expected T_0 > 0, but got T_0=0"),
        ({"T_0": None}, "Expected T_0 to be a number, but got T_0=None of type NoneType"),
        ({"T_0": 0.4}, "T_0=0.4"),
        ({"T_0": 10, "T_mult": 0}, "Expected T_mult > 0, but got T_mult=0"),
        ({"T_0": 10, "T_mult": 0.5}, "Expected num_cycles with T_mult < 1"),
        ({"T_0": 10, "T_mult": 0.5, "num_cycles": 9}, "T_mult=0.5, which give cycle 8 none"),
        ({"T_0": 10, "decay": 0}, "Expected decay > 0, but got decay=0"),
        ({"T_0": 10, "decay": 1.5}, "Expected decay <= 1, but got decay=1.5"),
        ({"T_0": 10, "warmup_steps": 2.5}, "Expected warmup_steps to be a whole number, but got warmup_steps=2.5"),
        ({"T_0": 10, "num_cycles": 0}, "Expected num_cycles >= 1, but got num_cycles=0"),
        ({"T_0": 10, "warmup_lr_rate": 2}, "Expected warmup_lr_rate <= 1, but got warmup_lr_rate=2"),
        ({"T_0": 10, "warmup_mode": "none"}, "Expected warmup_mode to be one of overlap, prefix, every_cycle, but got"),
        ({"T_0": 10, "warmup_steps": 21, "num_cycles": 2}, "Expected warmup_steps <= 20"),
        ({"T_0": 10, "warmup_steps": 10, "warmup_mode": "every_cycle"}, "Expected warmup_steps < 10"),
        (
            {"T_0": 40, "T_mult": 0.5, "num_cycles": 3, "warmup_steps": 10, "warmup_mode": "every_cycle"},
            "Expected warmup_steps < 10, the steps of cycle 2",
        ),
    ],
)
def test_arguments_that_do_not_go_are_refused_in_words(arguments, message):
    with pytest.raises((TypeError, ValueError)) as error:
        CosineRestartSchedule(**arguments)
    assert message in str(error.value)


def test_a_warmup_mode_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="warmup_mode=1"):
        CosineRestartSchedule(10, warmup_mode=1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_training_steps": 0}, "num_training_steps"),
        ({"num_training_steps": 10, "num_cycles": 11}, "num_cycles"),
        ({"num_training_steps": 10, "num_cycles": 4, "T_mult": 3}, "T_0"),
        ({"num_training_steps": 10, "warmup_steps": 11}, "warmup_steps"),
        ({"num_training_steps": 10, "warmup_steps": 10}, "num_cycles"),
        ({"num_training_steps": "10"}, "num_training_steps"),
        ({"num_training_steps": 10, "T_mult": None}, "T_mult"),
    ],
)
def test_cycles_that_do_not_fit_are_refused(arguments, name):
    with pytest.raises((TypeError, ValueError), match=name):
        CosineRestartSchedule.fit(**arguments)


@pytest.mark.parametrize("method", ["lr_at", "cycle_at", "curve", "restarts"])
@pytest.mark.parametrize("step", [-1, math.nan, "1", None, True])
def test_a_wrong_step_is_refused(method, step):
    with pytest.raises((TypeError, ValueError), match="step"):
        getattr(FIGURE, method)(step)


@pytest.mark.parametrize("steps", [[-1], [math.nan], [math.inf], ["1"], [None], range(-1, 3)])
def test_wrong_steps_in_an_array_are_refused(steps):
    with pytest.raises((TypeError, ValueError), match="steps"):
        FIGURE.curve(steps)


@pytest.mark.parametrize("name", ["base_lr", "eta_min"])
def test_a_wrong_rate_is_refused(name):
    for method in (FIGURE.lr_at, FIGURE.curve):
        with pytest.raises(TypeError, match=name):
            method(5, **{name: "0.1"})
