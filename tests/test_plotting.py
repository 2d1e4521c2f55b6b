"""Pictures of the schedule."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from itertools import combinations

import matplotlib.style
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from optimizers import make_optimizer
from PIL import Image

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    CosineRestartLR,
    CosineRestartSchedule,
    plot_schedule,
)
from hf_warmcos.cli import main
from hf_warmcos.overview import default_num_steps, number_text, sample_steps
from hf_warmcos.plotting import FIGURE_SIZE, LINE_STYLES, MOST_MARKED_CYCLES, PALETTE

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


def legend(ax):
    return [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]


def drawn(size, schedules, **arguments):
    """Axes of a figure of this size in inches, drawn to the end: all its boxes are where they are on paper."""
    figure = Figure(size, layout="constrained")
    ax = plot_schedule(schedules, ax=figure.subplots(), **arguments)
    figure.draw_without_rendering()
    return ax


def six_groups(**arguments):
    optimizer = make_optimizer(1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5)
    schedule = CosineRestartSchedule.fit(700, 3, T_mult=2, warmup_steps=35)
    return CosineRestartLR(optimizer, schedule, **arguments)


def test_the_curve_is_the_schedule_at_every_step(ax):
    assert plot_schedule(replace(SCHEDULE, eta_min=0.01), base_lr=0.1, ax=ax) is ax
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 0], np.arange(320))
    np.testing.assert_array_equal(drawn[:, 1], replace(SCHEDULE, eta_min=0.01).curve(320, 0.1))


def test_restarts_warmup_and_peaks_are_marked_and_labelled(ax):
    plot_schedule(SCHEDULE, base_lr=0.1, ax=ax)
    assert restarts(ax) == [120, 220]
    assert texts(ax) == ["0.1", "0.05", "0.025"]
    (dots,) = (line for line in ax.lines if line.get_marker() == ".")
    assert dots.get_xydata().tolist() == [[20, 0.1], [120, 0.05], [220, 0.025]]
    assert legend(ax) == ["warmup", "restart"]
    (warmup,) = ax.patches
    assert (warmup.get_x(), warmup.get_width()) == (0, 20)


@pytest.mark.parametrize(("num_steps", "last"), [(15, 14), (20, 19), (21, 20), (300, 20)])
def test_a_warmup_is_marked_up_to_its_end_or_the_last_step_that_is_drawn(num_steps, last, ax):
    plot_schedule(SCHEDULE, num_steps, ax=ax)
    (warmup,) = ax.patches
    assert (warmup.get_x(), warmup.get_width()) == (0, last)


def test_a_picture_is_9_by_3_4_inches_where_nobody_brings_axes(tmp_path):
    assert plot_schedule(SCHEDULE).figure.get_size_inches().tolist() == [9, 3.4]
    main(["plot", "--T_0", "10", "--output", str(tmp_path / "picture.png")])
    picture = Image.open(tmp_path / "picture.png")
    assert [pixels / dpi for pixels, dpi in zip(picture.size, picture.info["dpi"])] == pytest.approx([9, 3.4], rel=1e-3)


@pytest.mark.parametrize("yscale", ["linear", "log"])
def test_a_restart_can_be_seen_above_the_jump_where_peaks_do_not_decay(yscale, ax):
    plot_schedule(CosineRestartSchedule(T_0=100), 300, ax=ax, yscale=yscale)
    (lines,) = ax.collections
    top_of_jump = ax.transData.transform((100, 1))[1]
    tops = [lines.get_transform().transform(segment)[-1, 1] for segment in lines.get_segments()]
    assert all(top - top_of_jump > 10 for top in tops)  # pixels


def test_a_peak_is_labelled_with_the_rate_that_is_reached_where_the_warmup_holds_it_down(ax):
    schedule = CosineRestartSchedule(T_0=100, warmup_steps=20)
    plot_schedule(schedule, 100, ax=ax)
    assert texts(ax) == [number_text(schedule.curve(100).max())]


def test_a_warmup_in_every_cycle_is_marked_in_every_cycle(ax):
    plot_schedule(CosineRestartSchedule(T_0=100, warmup_steps=20, warmup_mode="every_cycle"), 300, ax=ax)
    assert [patch.get_x() for patch in ax.patches] == [0, 100, 200]


def test_a_scheduler_brings_its_own_rates_whatever_position_it_is_at(ax):
    optimizer = make_optimizer(0.1)
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=50, eta_min=0.02, decay=0.5)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    plot_schedule(scheduler, 100, ax=ax)
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 1], scheduler.schedule.curve(100, 0.1))
    assert scheduler.last_epoch == 30


def test_parameter_groups_have_a_curve_for_each_distinct_rate(ax):
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(make_optimizer(0.1, 0.3, 0.1), T_0=50)
    plot_schedule({"run": scheduler}, 100, ax=ax)
    assert [(label, drawn[0, 1]) for label, drawn in curves(ax).items()] == [("run, lr=0.1", 0.1), ("run, lr=0.3", 0.3)]
    assert legend(ax) == ["run, lr=0.1", "run, lr=0.3", "restart"]


def test_a_prepared_scheduler_is_drawn_like_the_one_inside(ax):
    optimizer = make_optimizer(0.1)
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(optimizer, T_0=50)
    _, prepared = Accelerator(cpu=True).prepare(optimizer, scheduler)
    plot_schedule(prepared, 100, ax=ax)
    (drawn,) = curves(ax).values()
    np.testing.assert_array_equal(drawn[:, 1], scheduler.schedule.curve(100, 0.1))


def test_several_schedules_are_labelled_by_what_tells_them_apart(ax):
    plot_schedule([CosineRestartSchedule(100, decay=0.5), CosineRestartSchedule(100, decay=0.75)], 200, ax=ax)
    assert [*curves(ax)] == ["decay=0.5", "decay=0.75"]


def test_equal_schedules_are_one_curve_of_no_label(ax):
    plot_schedule([SCHEDULE, SCHEDULE], ax=ax)
    assert legend(ax) == ["warmup", "restart"]


def test_a_key_of_a_dict_may_have_several_schedules(ax):
    plot_schedule({"run": [CosineRestartSchedule(50), CosineRestartSchedule(70)], "other": SCHEDULE}, ax=ax)
    assert [*curves(ax)] == ["run, T_0=50", "run, T_0=70", "other"]


def test_a_dict_labels_its_schedules_and_all_are_drawn_to_the_longest_end(ax):
    plot_schedule({"short": CosineRestartSchedule(50, num_cycles=1), "long": SCHEDULE}, ax=ax)
    assert {label: len(drawn) for label, drawn in curves(ax).items()} == {"short": 320, "long": 320}


@pytest.mark.parametrize("schedules", [[], {}])
def test_nothing_to_draw_is_an_error(schedules, ax):
    with pytest.raises(ValueError, match="Expected schedules to hold at least one schedule"):
        plot_schedule(schedules, ax=ax)


def test_another_scheduler_is_an_error_that_names_it(ax):
    other = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(make_optimizer(), T_0=10)
    with pytest.raises(TypeError, match="but got a CosineAnnealingWarmRestarts"):
        plot_schedule(other, ax=ax)
    assert not ax.lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "Expected num_steps >= 1, but got num_steps=0"),
        ({"base_lr": float("nan")}, "Expected base_lr to be finite"),
        ({"yscale": "cubic"}, "Expected yscale to be one of linear, log, but got yscale='cubic'"),
        ({"logged": ([1, 2], [0.1])}, "Expected logged to be a pair of steps and as many learning rates"),
        ({"logged": ([1], [0.1], [2])}, "Expected logged to be a pair of steps and as many learning rates"),
    ],
)
def test_a_wrong_argument_is_an_error_before_anything_is_drawn(arguments, message, ax):
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


@pytest.mark.parametrize("arguments", [{"base_lr": 1e200}, {"num_steps": 2**70}])
def test_a_wrong_argument_is_named_before_a_figure_is_made(arguments):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    with pytest.raises(ValueError, match=f"Expected {next(iter(arguments))} "):
        plot_schedule(CosineRestartSchedule(T_0=10), **arguments)
    assert pyplot.get_fignums() == before


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


@pytest.mark.parametrize(
    ("num_cycles", "marked"), [(1, 0), (MOST_MARKED_CYCLES, MOST_MARKED_CYCLES - 1), (MOST_MARKED_CYCLES + 1, 0)]
)
def test_many_cycles_are_no_forest_of_dashes(num_cycles, marked, ax):
    plot_schedule(CosineRestartSchedule(T_0=1.5, num_cycles=num_cycles), ax=ax)
    assert len(restarts(ax)) == marked


# How it looks


PAPER = (3.3, 2.0)  # inches: a column of a paper


@pytest.mark.parametrize("size", [PAPER, FIGURE_SIZE, (6.4, 4.8)])
@pytest.mark.parametrize("groups", [1, 6])
def test_the_legend_lies_in_the_axes_above_the_curves_at_any_size(size, groups):
    schedules = SCHEDULE if groups == 1 else six_groups()
    ax = drawn(size, schedules)
    box, axes = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert axes.x0 <= box.x0 + 1
    assert box.x1 <= axes.x1 + 1
    highest = max(line.get_window_extent().y1 for line in ax.lines)
    assert highest < box.y0 < box.y1 <= axes.y1 + 1
    assert highest - axes.y0 > 0.4 * axes.height
    assert axes.height > 0.5 * 72 * size[1]  # the layout has not collapsed


def test_six_groups_have_one_warmup_band_few_rows_of_legend_and_a_colour_and_style_each():
    ax = drawn(PAPER, six_groups())
    assert len(ax.patches) == 1
    assert legend(ax) == [f"lr={lr}" for lr in ("1e-3", "5e-4", "2e-4", "1e-4", "5e-5", "2e-5")] + ["warmup", "restart"]
    rows = {round(text.get_window_extent().y0) for text in ax.get_legend().get_texts()}
    assert len(rows) <= 3
    lines = [line for line in ax.lines if len(line.get_xdata()) > 20]
    assert tuple(line.get_color() for line in lines) == PALETTE
    assert [line.get_linestyle() for line in lines[:4]] == [*LINE_STYLES]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6


def test_without_a_legend_its_room_is_the_curves(ax):
    plot_schedule(SCHEDULE, ax=ax)
    low, high = ax.get_ylim()
    other = plot_schedule(SCHEDULE, ax=Figure().subplots(), legend=False)
    assert other.get_legend() is None
    assert other.get_ylim()[0] == low
    assert 1 < other.get_ylim()[1] < high


def test_a_second_call_on_the_same_axes_takes_another_colour_and_one_legend_names_all(ax):
    plot_schedule({"first": CosineRestartSchedule(50)}, 200, ax=ax)
    plot_schedule({"second": CosineRestartSchedule(80)}, 200, ax=ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert legend(ax) == ["first", "restart", "second"]


def test_a_log_scale_starts_at_the_minimum_and_holds_all_peaks(ax):
    schedule = CosineRestartSchedule(T_0=1000, decay=0.25, num_cycles=5, eta_min=1e-6)
    plot_schedule(schedule, base_lr=1e-3, ax=ax, yscale="log")
    assert ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    assert bottom == pytest.approx(1e-6)
    heights = [ax.transAxes.inverted().transform(ax.transData.transform((0, peak)))[1] for peak in (1e-3, 1e-3 / 4**4)]
    assert 0.1 < heights[1] < heights[0] < 1 < top / 1e-3
    assert len(texts(ax)) == 5


def test_a_log_scale_without_a_minimum_holds_four_powers_of_ten(ax):
    plot_schedule(SCHEDULE, base_lr=0.01, ax=ax, yscale="log")
    assert ax.get_ylim()[0] == pytest.approx(1e-6)


def test_logged_learning_rates_are_dots_of_their_own(ax):
    logged = ([10, 100, 400], [0.5, 0.9, 2.0])
    plot_schedule(SCHEDULE, ax=ax, logged=logged)
    (dots,) = (line for line in ax.lines if line.get_label() == "logged")
    assert dots.get_xydata().tolist() == [[10, 0.5], [100, 0.9], [400, 2.0]]
    assert legend(ax)[-1] == "logged"
    assert ax.get_ylim()[1] > 2.0


def linear(color):
    """The linear red, green and blue of a colour."""
    srgb = np.array(to_rgb(color))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast of two colours after WCAG 2."""
    dark, light = sorted(linear(color) @ [0.2126, 0.7152, 0.0722] for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


# Of no colour vision deficiency, and of full protanopia, deuteranopia and tritanopia (Machado et al. 2009).
SEEN_BY = {
    "all": np.eye(3),
    "protanope": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranope": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanope": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def difference(one, other, seen):
    """The distance of two colours in CIELAB, for eyes that see so."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]

    def lab(color):
        xyz = to_xyz @ np.clip(seen @ linear(color), 0, 1) / [0.9505, 1, 1.089]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return np.linalg.norm(lab(one) - lab(other))


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_the_colours_of_curves_differ_to_every_kind_of_colour_vision(eyes):
    assert len(PALETTE) == 6
    for one, other in combinations(PALETTE, 2):
        assert difference(one, other, np.array(SEEN_BY[eyes])) > 15


@pytest.mark.parametrize("style", ["default", "dark_background", "ggplot", "grayscale"])
def test_labels_have_a_contrast_of_4_5_in_any_style(style):
    with matplotlib.style.context(style):
        ax = Figure(PAPER).subplots()
    plot_schedule(SCHEDULE, ax=ax)  # after the style has been left, too
    for text in ax.texts:
        assert contrast(text.get_color(), ax.get_facecolor()[:3]) >= 4.5


@pytest.mark.parametrize(
    "schedule",
    [
        CosineRestartSchedule(100, 2, warmup_steps=50, warmup_mode="every_cycle", num_cycles=8),
        CosineRestartSchedule(1000, 0.8, num_cycles=20),
        CosineRestartSchedule(100, decay=0.9, warmup_steps=30, num_cycles=12),
        CosineRestartSchedule(cycles=[5, 10, [700, 0.5]], stable_ratio=0.5),
    ],
)
@pytest.mark.parametrize("size", [PAPER, FIGURE_SIZE])
def test_no_label_lies_over_another_or_over_a_restart_or_over_the_legend(schedule, size):
    ax = drawn(size, schedule, base_lr=5e-5)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert boxes  # that of the last cycle at least
    assert not any(one.overlaps(other) for one, other in combinations([*boxes, ax.get_legend().get_window_extent()], 2))
    lines = [ax.transData.transform((restart, 0))[0] for restart in restarts(ax)]
    assert not any(box.x0 < line < box.x1 for box in boxes for line in lines)


def test_a_notebook_shows_a_schedule_as_its_picture_once_the_extension_is_loaded():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "hf_warmcos.plotting")
    shown, _ = shell.display_formatter.format(SCHEDULE)
    picture = Image.open(BytesIO(shown["image/png"]))
    assert picture.width > picture.height > 100
    assert shown["text/plain"] == repr(SCHEDULE)


# In the terminal
