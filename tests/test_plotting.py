"""Pictures of the schedule."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import matplotlib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    CosineRestartSchedule,
    plot_schedule,
)
from hf_warmcos.plotting import default_num_steps, sample_steps

matplotlib.use("agg")

SCHEDULE = CosineRestartSchedule(T_0=100, decay=0.5, warmup_steps=20, warmup_mode="prefix", num_cycles=3)


@pytest.fixture
def ax():
    return Figure().subplots()


def curves(ax):
    """The label of each curve and its data: the lines that are neither restarts nor the dots of peaks."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 20}


def restarts(ax):
    return sorted(
        {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2}
    )


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_curve_is_the_schedule_at_every_step(ax):
    assert plot_schedule(SCHEDULE, base_lr=0.1, eta_min=0.01, ax=ax) is ax
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 0], np.arange(320))
    np.testing.assert_array_equal(drawn[:, 1], SCHEDULE.curve(320, 0.1, 0.01))


def test_restarts_warmup_and_peaks_are_marked_and_labelled(ax):
    plot_schedule(SCHEDULE, base_lr=0.1, ax=ax)
    assert restarts(ax) == [120, 220]
    assert texts(ax) == ["0.1", "0.05", "0.025"]
    (dots,) = (line for line in ax.lines if line.get_marker() == ".")
    assert dots.get_xydata().tolist() == [[20, 0.1], [120, 0.05], [220, 0.025]]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["learning rate", "warmup, 20 steps", "restart"]
    (warmup,) = ax.patches
    assert (warmup.get_x(), warmup.get_width()) == (0, 20)


def test_a_peak_is_labelled_with_the_rate_that_is_reached_where_the_warmup_holds_it_down(ax):
    schedule = CosineRestartSchedule(T_0=100, warmup_steps=20)
    plot_schedule(schedule, 100, ax=ax)
    assert texts(ax) == [f"{schedule.curve(100).max():.3g}"]


def test_a_warmup_in_every_cycle_is_marked_in_every_cycle(ax):
    plot_schedule(CosineRestartSchedule(T_0=100, warmup_steps=20, warmup_mode="every_cycle"), 300, ax=ax)
    assert [patch.get_x() for patch in ax.patches] == [0, 100, 200]


def test_a_scheduler_brings_its_own_rates_whatever_position_it_is_at(ax, make_optimizer):
    optimizer = make_optimizer(0.1)
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=50, eta_min=0.02, decay=0.5)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    plot_schedule(scheduler, 100, ax=ax)
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 1], scheduler.schedule.curve(100, 0.1, 0.02))
    assert scheduler.last_epoch == 30


def test_parameter_groups_have_a_curve_for_each_distinct_rate(ax, make_optimizer):
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(make_optimizer(0.1, 0.3, 0.1), T_0=50)
    plot_schedule({"run": scheduler}, 100, ax=ax)
    assert [(label, drawn[0, 1]) for label, drawn in curves(ax).items()] == [("run, lr=0.1", 0.1), ("run, lr=0.3", 0.3)]
    assert len(ax.get_legend().get_texts()) == 2


def test_a_prepared_scheduler_is_drawn_like_the_one_inside(ax, make_optimizer):
    optimizer = make_optimizer(0.1)
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=50)
    _, prepared = Accelerator(cpu=True).prepare(optimizer, scheduler)
    plot_schedule(prepared, 100, ax=ax)
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 1], scheduler.schedule.curve(100, 0.1))


def test_several_schedules_are_labelled_by_what_tells_them_apart(ax):
    plot_schedule([CosineRestartSchedule(100, decay=0.5), CosineRestartSchedule(100, decay=0.75)], 200, ax=ax)
    assert [*curves(ax)] == ["decay=0.5", "decay=0.75"]


def test_equal_schedules_are_told_apart_by_number(ax):
    plot_schedule([SCHEDULE, SCHEDULE], ax=ax)
    assert [*curves(ax)] == ["schedule 0", "schedule 1"]


def test_a_dict_labels_its_schedules_and_all_are_drawn_to_the_longest_end(ax):
    plot_schedule({"short": CosineRestartSchedule(50, num_cycles=1), "long": SCHEDULE}, ax=ax)
    assert {label: len(drawn) for label, drawn in curves(ax).items()} == {"short": 320, "long": 320}


@pytest.mark.parametrize("schedules", [[], {}])
def test_nothing_to_draw_is_an_error(schedules, ax):
    with pytest.raises(ValueError, match="Expected schedules to hold at least one schedule"):
        plot_schedule(schedules, ax=ax)


def test_another_scheduler_is_an_error_that_names_it(ax, make_optimizer):
    other = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(make_optimizer(), T_0=10)
    with pytest.raises(TypeError, match="but got a CosineAnnealingWarmRestarts"):
        plot_schedule(other, ax=ax)
    assert not ax.lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "Expected num_steps >= 1, but got num_steps=0"),
        ({"base_lr": float("nan")}, "Expected base_lr to be finite"),
        ({"eta_min": float("inf")}, "Expected eta_min to be finite"),
    ],
)
def test_a_number_out_of_its_range_is_an_error_before_anything_is_drawn(arguments, message, ax):
    with pytest.raises(ValueError, match=message):
        plot_schedule(SCHEDULE, ax=ax, **arguments)
    assert not ax.lines


def test_pyplot_is_left_alone_where_axes_are_given():
    code = """
import sys
from matplotlib.figure import Figure
from hf_warmcos import CosineRestartSchedule, plot_schedule
plot_schedule(CosineRestartSchedule(10), ax=Figure().subplots())
CosineRestartSchedule(10)._repr_png_()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_axes_a_new_figure_of_pyplot_holds_the_picture():
    from matplotlib import pyplot

    first, second = plot_schedule(SCHEDULE), plot_schedule(SCHEDULE)
    assert first.figure is not second.figure
    assert {first.figure.number, second.figure.number} <= set(pyplot.get_fignums())
    pyplot.close("all")


def test_a_schedule_without_end_is_drawn_for_five_cycles():
    assert default_num_steps(CosineRestartSchedule(T_0=100, T_mult=2)) == 3100


@given(
    T_0=st.integers(1, 10**12),
    T_mult=st.sampled_from([1, 1.5, 2, 3]),
    num_steps=st.integers(1, 10**15),
    mode=st.sampled_from(["overlap", "prefix", "every_cycle"]),
)
def test_the_steps_of_a_picture_are_few_ascending_and_hold_every_restart_that_it_can_show(T_0, T_mult, num_steps, mode):
    schedule = CosineRestartSchedule(T_0, T_mult=T_mult, warmup_steps=T_0 // 3, warmup_mode=mode)
    steps = sample_steps(schedule, num_steps)
    assert len(steps) < 12_000
    assert (steps[0], steps[-1]) == (0, num_steps - 1)
    assert np.all(np.diff(steps) > 0)
    if schedule.cycle_at(num_steps - 1).index < 100:
        assert set(schedule.restarts(num_steps)) <= set(steps.tolist())


@pytest.mark.parametrize("num_cycles", [1, 20, 5_000])
def test_few_and_many_cycles_can_be_drawn(num_cycles, ax):
    plot_schedule(CosineRestartSchedule(T_0=1.5, num_cycles=num_cycles), ax=ax)
    assert len(texts(ax)) == (1 if num_cycles == 1 else 0)


def test_a_notebook_shows_a_schedule_as_its_picture():
    picture = Image.open(BytesIO(SCHEDULE._repr_png_()))
    assert picture.format == "PNG"
    assert picture.width > picture.height > 100


def test_without_matplotlib_a_notebook_shows_the_plain_repr():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from hf_warmcos import CosineRestartSchedule
assert CosineRestartSchedule(10)._repr_png_() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)
