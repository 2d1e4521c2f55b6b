"""Pictures of the schedule."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from PIL import Image

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    CosineRestartSchedule,
    plot_schedule,
)
from hf_warmcos.plotting import FIGURE_SIZE, default_num_steps, number_text, round_ticks, sample_steps, terminal_picture

matplotlib.use("agg")

SCHEDULE = CosineRestartSchedule(T_0=100, decay=0.5, warmup_steps=20, warmup_mode="prefix", num_cycles=3)


@pytest.fixture
def ax():
    return Figure().subplots()


def curves(ax):
    """The label of each curve and its data: the lines that are neither restarts nor the dots of peaks."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 20}


def restarts(ax):
    return sorted({segment[0, 0] for lines in ax.collections for segment in lines.get_segments()})


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
    assert texts(ax) == [number_text(schedule.curve(100).max())]


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


def test_pyplot_and_torch_are_left_alone_where_axes_and_a_pure_schedule_are_given():
    code = """
import sys
from matplotlib.figure import Figure
from hf_warmcos import CosineRestartSchedule, plot_schedule
plot_schedule(CosineRestartSchedule(10), ax=Figure().subplots())
assert not {"matplotlib.pyplot", "torch"} & {*sys.modules}
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
@settings(deadline=None)
def test_the_steps_of_a_picture_are_few_ascending_and_hold_every_restart_that_it_can_show(T_0, T_mult, num_steps, mode):
    schedule = CosineRestartSchedule(T_0, T_mult=T_mult, warmup_steps=T_0 // 3, warmup_mode=mode)
    steps = sample_steps(schedule, num_steps)
    assert len(steps) < 12_000
    assert (steps[0], steps[-1]) == (0, num_steps - 1)
    assert np.all(np.diff(steps) > 0)
    if schedule.cycle_at(num_steps - 1).index < 100:
        assert set(schedule.restarts(num_steps)) <= set(steps.tolist())


@pytest.mark.parametrize(("num_cycles", "marked"), [(1, 0), (20, 19), (5_000, 0)])
def test_many_cycles_are_no_forest_of_dashes(num_cycles, marked, ax):
    plot_schedule(CosineRestartSchedule(T_0=1.5, num_cycles=num_cycles), ax=ax)
    assert len(restarts(ax)) == marked


@pytest.mark.parametrize(
    "schedule",
    [
        CosineRestartSchedule(100, 2, warmup_steps=50, warmup_mode="every_cycle", num_cycles=8),
        CosineRestartSchedule(1000, 0.8, num_cycles=20),
        CosineRestartSchedule(100, decay=0.9, warmup_steps=30, num_cycles=12),
        CosineRestartSchedule(cycles=[5, 10, [700, 0.5]], stable_ratio=0.5),
    ],
)
def test_no_label_lies_over_another_or_over_a_restart_or_over_the_legend(schedule):
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    ax = plot_schedule(schedule, base_lr=5e-5, ax=figure.subplots())
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert boxes  # that of the last cycle at least
    assert not any(one.overlaps(other) for one, other in combinations([*boxes, ax.get_legend().get_window_extent()], 2))
    lines = [ax.transData.transform((restart, 0))[0] for restart in restarts(ax)]
    assert not any(box.x0 < line < box.x1 for box in boxes for line in lines)


def test_a_notebook_shows_a_schedule_as_its_picture_once_the_extension_is_loaded():
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "hf_warmcos.plotting")
    shown, _ = shell.display_formatter.format(SCHEDULE)
    picture = Image.open(BytesIO(shown["image/png"]))
    assert picture.width > picture.height > 100
    assert shown["text/plain"] == repr(SCHEDULE)


# In the terminal


@pytest.mark.parametrize("most", [0.0003, 1, 7.3, 10_000, 123_456])
def test_ticks_fall_on_round_numbers(most):
    ticks = round_ticks(most, 5)
    assert 3 <= len(ticks) <= 11
    assert (ticks[0], ticks[-1] <= most) == (0, True)
    assert all(len(f"{tick:e}".split("e")[0].rstrip("0")) <= 3 for tick in ticks)


def test_the_terminals_picture_has_the_curve_its_restarts_and_round_ticks():
    schedule = CosineRestartSchedule(T_0=100, decay=0.5)
    picture = terminal_picture(schedule, 300, base_lr=3e-4, width=66, height=18).split("\n")
    assert {line.split("┤")[0].strip() for line in picture if "┤" in line} == {"0", "1e-4", "2e-4", "3e-4"}
    assert picture[-1].split() == ["0", "50", "100", "150", "200", "250", "300"]
    columns = [index for index, character in enumerate(picture[1]) if character == "┊"]
    assert columns == [picture[-2].index("┬", picture[-1].index(step)) for step in ("100", "200")]
    # Column by column, the highest dot is as high as the schedule.
    body = [line[5:].ljust(60) for line in picture[1:-2]]
    for column in range(5, 60, 6):
        filled = [row for row, line in enumerate(body) if "\u2800" < line[column] < "\u2900"]
        rates = schedule.curve(np.linspace(column, column + 1, 9) / 60 * 300, 3e-4)
        assert abs(len(body) * (1 - rates.max() / 3e-4) - filled[0]) < 2


@pytest.mark.parametrize("ascii_only", [False, True])
def test_logged_rates_are_crosses_in_the_terminals_picture(ascii_only):
    picture = terminal_picture(SCHEDULE, 320, logged=([50, 319], [0.5, 0.9]), ascii_only=ascii_only)
    assert picture.count("x") == 2


@given(
    T_0=st.integers(1, 10**12),
    num_steps=st.integers(1, 10**15),
    eta_min=st.floats(0, 1e-3),
    width=st.integers(1, 200),
    height=st.integers(1, 50),
    ascii_only=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_any_schedule_fits_any_terminal(T_0, num_steps, eta_min, width, height, ascii_only):
    schedule = CosineRestartSchedule(T_0, warmup_steps=T_0 // 3, warmup_mode="every_cycle", stable_ratio=0.3)
    picture = terminal_picture(
        schedule, num_steps, 1e-3, eta_min, width=width, height=height, ascii_only=ascii_only
    ).split("\n")
    assert len(picture) == max(4, height)
    assert max(map(len, picture)) <= max(2, width)
    assert picture[1].isascii() or not ascii_only
