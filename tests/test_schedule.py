"""The mathematics: `CosineRestartSchedule`."""

from __future__ import annotations

import copy
import decimal
import math
import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from hf_warmcos import CosineRestartSchedule, Cycle
from hf_warmcos.schedule import WARMUP_MODES

FIGURE = CosineRestartSchedule(T_0=10_000, decay=0.75, warmup_steps=2_000)


def all_cycles(schedule: CosineRestartSchedule) -> Iterator[tuple[int, float]]:
    """The length of each cycle, and the share of the base rate at which it peaks, one after the other in fractions."""
    if schedule.cycles is not None:
        yield from (cycle if isinstance(cycle, (list, tuple)) else (cycle, 1) for cycle in schedule.cycles)
        return
    start, growth = Fraction(0), Fraction(schedule.T_0)
    for k in count() if schedule.num_cycles is None else range(schedule.num_cycles):
        yield round(start + growth) - round(start), schedule.decay**k
        start, growth = start + growth, growth * Fraction(schedule.T_mult)


def formula(schedule: CosineRestartSchedule, step: float, base_lr: float) -> float:
    """The definition of the schedule, written as plainly as it can be: a walk over all cycles."""
    W, r = schedule.warmup_steps, schedule.warmup_lr_rate
    eta_min = schedule.eta_min if schedule.eta_min_rate is None else base_lr * schedule.eta_min_rate
    s_k = W if schedule.warmup_mode == "prefix" else 0
    for T_k, share in all_cycles(schedule):
        peak = max(base_lr * share, min(base_lr, eta_min))
        if step < s_k:
            return peak * (r + (1 - r) * step / W)
        if step < s_k + T_k:
            break
        s_k += T_k
    else:
        return eta_min
    tau = step - s_k
    w = W if schedule.warmup_mode == "every_cycle" else 0
    if tau < w:
        return eta_min + (peak - eta_min) * (r + (1 - r) * tau / W)
    h = min(round(schedule.stable_ratio * (T_k - w)), T_k - w - 1)
    tau, T_k = max(0, tau - w - h), T_k - w - h
    rate = eta_min + (peak - eta_min) * (1 + math.cos(math.pi * tau / T_k)) / 2
    if schedule.warmup_mode == "overlap" and step < W:
        rate *= r + (1 - r) * min(1, step / W)
    return rate


@st.composite
def schedules(draw: st.DrawFn) -> CosineRestartSchedule:
    arguments = {
        "warmup_steps": draw(st.integers(0, 50)),
        "warmup_mode": draw(st.sampled_from(WARMUP_MODES)),
        "warmup_lr_rate": draw(st.floats(0, 1)),
        "stable_ratio": draw(st.one_of(st.just(0), st.floats(0, 0.999))),
        **draw(st.sampled_from([{}, {"eta_min": 0.003}, {"eta_min": 0.2}, {"eta_min_rate": 0.1}])),
    }
    if draw(st.booleans()):
        lengths, shares = st.integers(1, 300), st.floats(0.05, 3)
        pairs = st.tuples(lengths, shares).map(list)
        arguments["cycles"] = draw(st.lists(st.one_of(lengths, pairs), min_size=1, max_size=8))
    else:
        T_mult = draw(st.one_of(st.integers(1, 4), st.floats(0.3, 3)))
        arguments["T_mult"] = T_mult
        arguments["T_0"] = draw(st.one_of(st.integers(1, 300), st.floats(1, 300)))
        arguments["decay"] = draw(st.floats(0.1, 1))
        arguments["num_cycles"] = draw(st.integers(1, 6) if T_mult < 1 else st.one_of(st.none(), st.integers(1, 6)))
    try:
        return CosineRestartSchedule(**arguments)
    except ValueError:
        assume(False)
        raise


@given(schedules(), st.floats(0, 3000), st.floats(1e-6, 10))
def test_lr_at_is_the_formula(schedule, step, base_lr):
    for t in (step, int(step)):
        assert schedule.lr_at(t, base_lr) == pytest.approx(formula(schedule, t, base_lr), rel=1e-9, abs=1e-12)


@given(schedules(), st.integers(0, 2000))
def test_a_curve_over_a_number_of_steps_equals_lr_at(schedule, num_steps):
    steps = range(num_steps)
    expected = [schedule.lr_at(step, 0.3) for step in steps[:: max(1, num_steps // 50)]]
    # numpy's cosine need not have the last bit of the standard library's.
    assert_allclose(schedule.curve(num_steps, 0.3)[:: max(1, num_steps // 50)], expected, 1e-12, 1e-15)
    assert_allclose(schedule.curve(steps[:: max(1, num_steps // 50)], 0.3), expected, 1e-12, 1e-15)


@given(schedules(), st.lists(st.one_of(st.integers(0, 10**15), st.floats(0, 3000)), max_size=40))
def test_a_curve_over_any_array_of_steps_equals_lr_at(schedule, steps):
    expected = [schedule.lr_at(float(step), 0.3) for step in steps]
    assert_allclose(schedule.curve(np.array(steps), 0.3), expected, 1e-12, 1e-15)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "float32"])
def test_a_curve_takes_steps_of_any_number_type_and_keeps_their_shape(dtype):
    steps = np.array([[3, 120, 7], [0, 99, 50]], dtype=dtype)
    assert_allclose(FIGURE.curve(steps), [[FIGURE.lr_at(int(step)) for step in row] for row in steps], 1e-12)


def test_a_curve_takes_steps_that_a_float_cannot_tell_from_a_restart():
    schedule = CosineRestartSchedule(T_0=2**53 + 1)
    assert schedule.curve(np.array([2.0**53])).tolist() == [schedule.lr_at(2**53)]


def test_a_fit_is_the_same_in_any_decimal_context():
    with decimal.localcontext() as context:
        context.prec = 6
        context.traps[decimal.Inexact] = True
        schedules = [CosineRestartSchedule.fit(1_000_003, 3), CosineRestartSchedule.fit(1_000_003, 5, T_mult=1.3)]
    assert schedules == [CosineRestartSchedule.fit(1_000_003, 3), CosineRestartSchedule.fit(1_000_003, 5, T_mult=1.3)]


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
    assume(warmup_steps != num_training_steps)
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
    schedule = CosineRestartSchedule(10, num_cycles=2, decay=0.5, eta_min=0.01)
    assert [schedule.lr_at(step) for step in (20, 20.5, 21, 10**18)] == [0.01] * 4
    assert schedule.cycle_at(10**18) == Cycle(1, 10, 10)


def test_decay_never_takes_a_peak_below_the_minimum():
    schedule = CosineRestartSchedule(10, decay=0.1, eta_min=0.05)
    assert [schedule.peak_lr(k) for k in range(4)] == [1.0, 0.1, 0.05, 0.05]
    assert schedule.lr_at(35) == 0.05
    assert CosineRestartSchedule(10, decay=0.1).lr_at(10**6) == 0


def test_a_fractional_step_lies_between_its_neighbours():
    assert FIGURE.lr_at(5000) > FIGURE.lr_at(5000.5) > FIGURE.lr_at(5001)
    assert CosineRestartSchedule(10).lr_at(9.5) == (1 + math.cos(math.pi * 9.5 / 10)) / 2


def test_a_schedule_is_a_value():
    assert CosineRestartSchedule(10, 2) == CosineRestartSchedule(np.int64(10), 2.0)
    FIGURE.lr_at(0)  # what it keeps by now can be copied, too
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(FIGURE, protocol)) == copy.deepcopy(FIGURE) == FIGURE
    assert hash(CosineRestartSchedule(10, 2)) == hash(CosineRestartSchedule(10.0, np.float64(2)))
    assert type(CosineRestartSchedule(np.int32(10)).T_0) is int
    with pytest.raises(FrozenInstanceError):
        FIGURE.T_0 = 5


@given(schedules(), st.integers(0, 2000))
def test_arcs_follow_one_another_without_a_gap_and_hold_the_step_that_asks_for_them(schedule, step):
    arc = schedule.arc_at(step)
    assert arc.start <= step < arc.stop
    assert arc.cycle == schedule.cycle_at(step)
    if arc.start == -math.inf:
        assert arc.cycle.index == 0
    else:
        assert schedule.arc_at(arc.start) == arc
        assert schedule.arc_at(arc.start - 1).stop == arc.start == arc.cycle.start
    if arc.stop == math.inf:
        assert schedule.arc_at(2**63 - 1) == arc
    else:
        assert schedule.arc_at(arc.stop).start == arc.stop == arc.cycle.end


@given(schedules(), st.integers(0, 2000))
def test_between_the_corners_of_an_arc_the_learning_rate_rises_stays_or_falls_throughout(schedule, step):
    corners = sorted(schedule.arc_at(step).corners)
    between = [corner for corner in corners if corner > step]
    steps = range(step, min(int(between[0]) if between else step + 50, step + 50))
    assume(schedule.warmup_mode != "overlap" or step >= schedule.warmup_steps)
    differences = np.diff(schedule.curve(steps))
    assert np.all(differences >= -1e-12) or np.all(differences <= 1e-12)


def test_a_plateau_takes_its_share_of_what_each_cycle_has_after_its_own_warmup():
    schedule = CosineRestartSchedule(10, 2, decay=0.5, stable_ratio=0.5, warmup_steps=2, warmup_mode="every_cycle")
    rates = schedule.curve(30)
    assert rates[:7].tolist() == [0, 0.5, 1, 1, 1, 1, 1]
    assert rates[7] < 1
    assert rates[10:22].tolist() == [0, 0.25, *[0.5] * 10]
    assert rates[22] < 0.5


def test_the_longest_plateau_leaves_one_step_to_anneal():
    schedule = CosineRestartSchedule(4, stable_ratio=0.999)
    assert [schedule.lr_at(step) for step in (0, 2, 3, 3.5, 4)] == pytest.approx([1, 1, 1, 0.5, 1])


def test_listed_cycles_have_the_lengths_and_peaks_that_the_list_says():
    schedule = CosineRestartSchedule(cycles=[10, [20, 0.25], (5, 3)])
    assert [schedule.cycle(k) for k in range(3)] == [Cycle(0, 0, 10), Cycle(1, 10, 20), Cycle(2, 30, 5)]
    assert [schedule.lr_at(step, 0.1) for step in (0, 10, 30)] == pytest.approx([0.1, 0.025, 0.3])
    assert (schedule.end, schedule.lr_at(35, 0.1), schedule.restarts(99)) == (35, 0, [10, 30])
    assert schedule == CosineRestartSchedule(cycles=[[10, 1.0], (20, 0.25), [np.int64(5), 3]])
    assert hash(schedule) == hash(CosineRestartSchedule(cycles=[[10, 1.0], (20, 0.25), [5, 3]]))


@given(st.integers(1, 50), st.integers(1, 3), st.floats(0.1, 1), st.integers(1, 5), st.sampled_from(WARMUP_MODES))
def test_listed_geometric_cycles_have_the_rates_of_geometric_ones(T_0, T_mult, decay, num_cycles, warmup_mode):
    listed = [[T_0 * T_mult**k, decay**k] for k in range(num_cycles)]
    shape = {"warmup_steps": T_0 - 1, "warmup_mode": warmup_mode, "stable_ratio": 0.3}
    geometric = CosineRestartSchedule(T_0, T_mult, decay, num_cycles=num_cycles, **shape)
    num_steps = geometric.end + 5
    assert (
        CosineRestartSchedule(cycles=listed, **shape).curve(num_steps).tolist() == geometric.curve(num_steps).tolist()
    )


def test_a_prefix_warmup_rises_to_the_peak_of_the_first_listed_cycle():
    schedule = CosineRestartSchedule(cycles=[[10, 0.5], 20], warmup_steps=4, warmup_mode="prefix")
    assert [schedule.lr_at(step) for step in range(5)] == [0, 0.125, 0.25, 0.375, 0.5]


def test_a_warmup_that_takes_the_whole_budget_leaves_no_cycle_in_it():
    schedule = CosineRestartSchedule.fit(10, 3, warmup_steps=10)
    assert schedule.curve(10).tolist() == [step / 10 for step in range(10)]
    assert schedule.restarts(1000) == []
