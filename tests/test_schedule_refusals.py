"""What a schedule refuses, and that numbers beyond measure cost nothing: `hf_warmcos.schedule`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from work import at_most

from hf_warmcos import CosineRestartSchedule

FIGURE = CosineRestartSchedule(T_0=10_000, decay=0.75, warmup_steps=2_000)
BIG = 2**1024


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"T_0": 0.9999999999999999}, "T_0"),
        ({"T_0": 0.9999999}, "T_0"),
        ({"T_0": 9.9999999, "warmup_steps": 9, "warmup_mode": "every_cycle"}, "warmup_steps"),
        ({"T_0": 10, "T_mult": 1e308}, "T_mult"),
        *[({"T_0": 10, name: BIG}, name) for name in ("T_0", "T_mult", "warmup_steps", "num_cycles", "decay")],
        ({"cycles": [10**5000]}, "cycles"),
        ({"T_0": 1e-300, "T_mult": 2**62}, "T_0"),
        ({"T_0": 10, "T_mult": 0.999999999999, "num_cycles": 10**15}, "T_0"),
    ],
)
def test_numbers_beyond_measure_are_refused_at_once(arguments, name):
    with at_most(10_000), pytest.raises(ValueError, match=name):
        CosineRestartSchedule(**arguments)


def test_cycles_beyond_measure_cost_nothing():
    with at_most(10_000):
        assert CosineRestartSchedule(1, 2, num_cycles=10**9).cycle_at(10**18).index == 59
        assert CosineRestartSchedule(1, 2, num_cycles=10**9).end is None
        assert CosineRestartSchedule(10, num_cycles=10**15).restarts(100) == list(range(10, 100, 10))
        assert CosineRestartSchedule(10).curve([10**15, 5]).tolist() == [1, 0.5]
        assert CosineRestartSchedule(2**63 - 1, 2**63 - 1).lr_at(2**63 - 1) == 1


@pytest.mark.parametrize("T_mult", [1, 1.0001])
def test_whatever_extend_permits_takes_at_most_a_hundred_lines_for_each_cycle(T_mult):
    schedule = CosineRestartSchedule(10, T_mult, num_cycles=99_999)
    end = schedule.end + 10
    with at_most(100 * 100_000):
        longer = schedule.extend(end)
    assert longer.cycle(99_998) == schedule.cycle(99_998)
    with pytest.raises(ValueError, match=r"Expected at most 100000 cycles in all, but got num_cycles=99999 \+ 2"):
        schedule.extend(schedule.end + 20, num_cycles=2)
    with pytest.raises(ValueError, match="at most 100000 cycles"):
        schedule.extend(10**12, num_cycles=10**11)


def test_a_peak_or_a_learning_rate_whose_product_no_float_holds_is_refused():
    with pytest.raises(ValueError, match=r"Expected the peak of cycles\[0\] <= 1e\+150"):
        CosineRestartSchedule(cycles=[[10, 1e300]])
    with pytest.raises(ValueError, match="base_lr"):
        FIGURE.lr_at(5, base_lr=1e300)
    with pytest.raises(ValueError, match="eta_min"):
        CosineRestartSchedule(T_0=10, eta_min=1e300)
    assert math.isfinite(CosineRestartSchedule(cycles=[[10, 1e150]], eta_min=1e150).lr_at(3, 1e150))


@pytest.mark.parametrize("method", ["lr_at", "cycle_at", "curve", "restarts"])
def test_steps_beyond_those_that_can_be_counted_are_refused(method):
    for step in (BIG, 2**63, 1e300):
        with pytest.raises(ValueError, match="step"):
            getattr(FIGURE, method)(step)
        with pytest.raises(ValueError, match="steps"):
            FIGURE.curve([step])


@pytest.mark.parametrize(
    ("cycles", "message"),
    [
        ([], "Expected cycles to list at least one cycle, but got cycles=[]"),
        ("1000", "Expected cycles to be a list"),
        (1000, "Expected cycles to be a list"),
        ([0], "Expected cycles[0] >= 1, but got cycles[0]=0"),
        ([10, 2.5], "Expected cycles[1] to be a whole number, but got cycles[1]=2.5"),
        ([10, "20"], "Expected cycles[1] to be a number, but got cycles[1]='20' of type str"),
        ([True], "cycles[0]=True"),
        ([math.nan], "Expected cycles[0] to be finite"),
        ([10, [20, 0]], "Expected the peak of cycles[1] > 0, but got the peak of cycles[1]=0"),
        ([[20, math.nan]], "Expected the peak of cycles[0] to be finite"),
        ([10, [20, 0.5, 3]], "Expected cycles[1] to be its steps, its steps and the fraction at which it peaks"),
        ([[20]], "Expected cycles[0] to be its steps, its steps and the fraction at which it peaks"),
    ],
)
def test_a_wrong_list_of_cycles_is_refused_in_words(cycles, message):
    with pytest.raises((TypeError, ValueError)) as error:
        CosineRestartSchedule(cycles=cycles)
    assert message in str(error.value)


@pytest.mark.parametrize("replaced", [{"T_0": 10}, {"T_mult": 2}, {"decay": 0.5}, {"num_cycles": 1}])
def test_listed_cycles_stand_in_place_of_what_they_replace(replaced):
    with pytest.raises(ValueError, match=f"Expected cycles in place of {next(iter(replaced))}"):
        CosineRestartSchedule(cycles=[10], **replaced)


@pytest.mark.parametrize("method", ["cycle", "peak_lr"])
@pytest.mark.parametrize("index", [-1, 2, 0.5, "0"])
def test_a_cycle_that_there_is_not_is_refused(method, index):
    for schedule in (CosineRestartSchedule(10, num_cycles=2), CosineRestartSchedule(cycles=[10, 20])):
        with pytest.raises((TypeError, ValueError), match="index"):
            getattr(schedule, method)(index)


def test_a_cycle_beyond_the_steps_that_can_be_counted_is_refused():
    with pytest.raises(ValueError, match="index=100000000"):
        CosineRestartSchedule(1, 2, num_cycles=10**9).cycle(10**8)
    assert CosineRestartSchedule(T_0=1).cycle(2**63 - 1) == CosineRestartSchedule(T_0=1).cycle_at(2**63 - 1)
    assert CosineRestartSchedule(10, num_cycles=2, warmup_steps=2**63 - 1, warmup_mode="prefix").end is None


WRONG_NUMBERS = [(value, ValueError) for value in (-1, math.nan, math.inf, -math.inf)] + [
    (value, TypeError) for value in ("3", True, np.True_, [3], 1j)
]


@pytest.mark.parametrize(
    "name", ["T_0", "T_mult", "decay", "warmup_steps", "num_cycles", "warmup_lr_rate", "stable_ratio"]
)
@pytest.mark.parametrize(("value", "error"), WRONG_NUMBERS)
def test_a_wrong_number_is_named_with_what_came(name, value, error):
    with pytest.raises(error, match=rf"Expected {name} .* but got {name}="):
        CosineRestartSchedule(**{"T_0": 10, name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T_0": 0}, "Expected T_0 > 0, but got T_0=0"),
        ({"T_0": None}, "Expected one of T_0 and cycles, but got T_0=None and cycles=None"),
        ({"T_0": 0.4}, "T_0=0.4"),
        ({"T_0": 10, "T_mult": 0}, "Expected T_mult > 0, but got T_mult=0"),
        ({"T_0": 10, "T_mult": 0.5}, "Expected num_cycles with T_mult < 1"),
        ({"T_0": 10, "T_mult": 0.5, "num_cycles": 9}, "T_mult=0.5, which give cycle 4 none"),
        ({"T_0": 10, "decay": 0}, "Expected decay > 0, but got decay=0"),
        ({"T_0": 10, "decay": 1.5}, "Expected decay <= 1, but got decay=1.5"),
        ({"T_0": 10, "warmup_steps": 2.5}, "Expected warmup_steps to be a whole number, but got warmup_steps=2.5"),
        ({"T_0": 10, "num_cycles": 0}, "Expected num_cycles >= 1, but got num_cycles=0"),
        ({"T_0": 10, "warmup_lr_rate": 2}, "Expected warmup_lr_rate <= 1, but got warmup_lr_rate=2"),
        ({"T_0": 10, "warmup_mode": "none"}, "Expected warmup_mode to be one of overlap, prefix, every_cycle, but got"),
        ({"T_0": 10, "warmup_mode": 1}, "warmup_mode=1"),
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


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_training_steps": 0}, "num_training_steps"),
        ({"num_training_steps": 10, "num_cycles": 11}, "num_cycles"),
        ({"num_training_steps": 10, "num_cycles": 4, "T_mult": 3}, "num_cycles=4 and T_mult=3"),
        ({"num_training_steps": 10, "warmup_steps": 11}, "warmup_steps"),
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


def test_a_wrong_learning_rate_is_refused():
    for method in (FIGURE.lr_at, FIGURE.curve, FIGURE.peak_lr):
        with pytest.raises(TypeError, match="base_lr"):
            method(5, base_lr="0.1")
