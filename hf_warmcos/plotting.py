"""Pictures of the schedule with matplotlib (the `plot` extra)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_warmcos.checks import MOST_STEPS, learning_rate, shown, whole_number
from hf_warmcos.overview import (
    YSCALES,
    arcs,
    default_num_steps,
    highest_of_each,
    lowest_on_log_scale,
    number_text,
    sample_steps,
)
from hf_warmcos.schedule import Arc, CosineRestartSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of this project's pictures. Readers with any kind of colour vision can tell them apart.
# Source: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, without its yellow, which is too pale for a line.
BLUE, VERMILLION, GREEN, SKY_BLUE, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#e69f00"
PALETTE = (BLUE, VERMILLION, GREEN, SKY_BLUE, PURPLE, ORANGE)
LINE_STYLES = ("-", "--", "-.", ":")  # taken in turn with the colours, for prints without colour
FIGURE_SIZE = (9, 3.4)  # inches
MOST_MARKED_CYCLES = 24  # of a curve with more cycles, the cycles are not marked
_LEGEND: dict[str, Any] = {"loc": "upper right", "borderaxespad": 0, "edgecolor": "none", "framealpha": 1}
_LEGEND |= {"fontsize": "small", "handlelength": 1.8, "handletextpad": 0.4, "columnspacing": 0.8, "borderpad": 0.2}


def plot_schedule(
    schedules: Any,
    num_steps: int | None = None,
    base_lr: float = 1.0,
    *,
    ax: Axes | None = None,
    yscale: str = "linear",
    legend: bool = True,
    logged: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Axes:
    """Draw the learning rate at each step, with the warmup, the restarts and the peak of each cycle.

    Args:
        schedules: A [`CosineRestartSchedule`], a [`CosineRestartLR`] (also as `accelerator.prepare` returns it), or
            several to compare: a list of them, or a dict of label to schedule. A scheduler is drawn once for each
            distinct learning rate of its parameter groups.
        num_steps (`int`, *optional*): How many steps to draw, >= 1. Defaults to the end of the longest schedule. A
            schedule whose restarts never end is drawn for five cycles.
        base_lr (`float`, *optional*, defaults to 1.0): The initial learning rate of a [`CosineRestartSchedule`]. A
            scheduler has its own.
        ax (`matplotlib.axes.Axes`, *optional*): The axes to draw into. By default a new figure of pyplot, 9 by
            3.4 inches.
        yscale (`str`, *optional*, defaults to `"linear"`): The scale of the learning rate, `"linear"` or `"log"`. A
            log scale starts at the minimum, or at 1e-4 of the highest learning rate where the minimum is 0.
        legend (`bool`, *optional*, defaults to `True`): Whether to draw a legend, above the curves.
        logged (`tuple`, *optional*): The learning rates that a run logged, drawn as dots: a sequence of steps and one
            of learning rates. Update n uses the learning rate of step n - 1, so the entry that a Trainer logs as step n
            belongs to step n - 1 here.

    Returns:
        `matplotlib.axes.Axes`: The axes with the picture.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError, ValueError: If `schedules` is empty or holds anything else, or if another argument is out of its
            range. Nothing is drawn then.

    Example:

    ```python
    >>> from hf_warmcos import CosineRestartSchedule
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> doubling = CosineRestartSchedule.fit(700, num_cycles=3, T_mult=2, stable_ratio=0.8, warmup_steps=35)
    >>> plain = CosineRestartSchedule.fit(700, warmup_steps=35)
    >>> plot_schedule({"three cycles": doubling, "plain cosine": plain}, ax=ax) is ax
    True

    ```
    """
    curves = _curves(schedules, learning_rate("base_lr", base_lr))
    if num_steps is None:
        num_steps = max(default_num_steps(schedule) for _, schedule, _ in curves)
    num_steps = whole_number("num_steps", num_steps, (">=", 1), ("<=", MOST_STEPS))
    if not isinstance(yscale, str) or yscale not in YSCALES:
        raise ValueError(f"Expected yscale to be one of {', '.join(YSCALES)}, but got yscale={shown(yscale)}")
    if logged is not None and not _is_pair(logged):
        expected = "logged to be a pair of steps and as many learning rates"
        raise ValueError(f"Expected {expected}, but got logged={shown(logged)}")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=FIGURE_SIZE, layout="constrained")[1]
    foreground = ax.yaxis.label.get_color()  # of the axes' style, dark or light
    marked: list[Arc] = []
    for index, (label, schedule, of_curve) in enumerate(curves, start=len(ax.lines)):
        steps = sample_steps(schedule, num_steps)
        rates = schedule.curve(steps, of_curve)
        color, style = PALETTE[index % len(PALETTE)], LINE_STYLES[index % len(LINE_STYLES)]
        ax.plot(steps, rates, style, color=color, linewidth=1.8, label=label)
        cycles = arcs(schedule, num_steps, MOST_MARKED_CYCLES)
        marked += cycles
        peaks = highest_of_each(cycles, steps, rates)
        ax.plot(steps[peaks], rates[peaks], ".", color=color, markersize=7, zorder=4)
        if len(curves) == 1:
            _label_peaks(ax, steps[peaks], rates[peaks], foreground)
    for start, rise in sorted({(arc.rise_start, arc.rise) for arc in marked if arc.rise}):
        stop = min(start + rise, num_steps - 1)
        ax.axvspan(start, stop, color=foreground, alpha=0.15, linewidth=0, label="warmup")
    if restarts := {arc.start for arc in marked if arc.start > 0}:
        # From the bottom to the top of the axes: above the peak the jump does not hide them.
        lines = ax.vlines(sorted(restarts), 0, 1, foreground, (0, (4, 3)), transform=ax.get_xaxis_transform())
        lines.set(label="restart", alpha=0.6, linewidth=0.8, zorder=1)
    if logged is not None:
        ax.plot(*logged, ".", color=foreground, markersize=4, zorder=5, label="logged")
    ax.set(xlabel="step", ylabel="learning rate", yscale=yscale)
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda number, _: number_text(number))
    _fit_heights(ax, min(schedule.minimum(of_curve) for _, schedule, of_curve in curves), legend)
    return ax


def save_picture(path: str, schedule: CosineRestartSchedule, num_steps: int, base_lr: float = 1.0, **how: Any) -> None:
    """Write a picture of the schedule, as [`plot_schedule`] draws it, into a file.

    The file's metadata say what it shows, as JSON (`Description` in PNG and SVG, `Subject` in PDF), so that a test can
    tell whether the schedule still looks like that.

    Args:
        path (`str`): The file, .png, .pdf or .svg.
        schedule, num_steps, base_lr: As in [`plot_schedule`].
        **how: `yscale`, `legend` and `logged`, as in [`plot_schedule`].

    Raises:
        ValueError, OSError: If the file's name ends in something else or the file cannot be written.
    """
    about = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}.get(Path(path).suffix.lower())
    if about is None:
        raise ValueError(f"Expected output to end in .png, .pdf or .svg, but got output={path!r}")
    shown = {"schedule": asdict(schedule), "num_steps": num_steps, "base_lr": base_lr}
    steps = [step * (num_steps - 1) // 100 for step in range(101)]
    shown["rates"] = schedule.curve(steps, base_lr).tolist()
    metadata = {"Title": "hf_warmcos schedule", about: json.dumps(shown)}
    _figure(schedule, num_steps, base_lr, **how).savefig(path, dpi=150, metadata=metadata)


def load_ipython_extension(ipython: Any) -> None:
    """Let notebooks show a schedule as its picture, where matplotlib is installed.

    Args:
        ipython (`IPython.InteractiveShell`): The shell that `%load_ext` passes.
    """

    def png_of(schedule: CosineRestartSchedule) -> bytes:
        _figure(schedule).savefig(png := BytesIO(), format="png")
        return png.getvalue()

    if find_spec("matplotlib"):
        ipython.display_formatter.formatters["image/png"].for_type(CosineRestartSchedule, png_of)


def _figure(*arguments: Any, **how: Any) -> Figure:
    """A figure that pyplot does not know, with what [`plot_schedule`] draws."""
    from matplotlib.figure import Figure

    figure = Figure(FIGURE_SIZE, layout="constrained")
    plot_schedule(*arguments, **how, ax=figure.subplots())
    return figure


def _is_pair(logged: Any) -> bool:
    try:
        steps, learning_rates = logged
        return len(steps) == len(learning_rates)
    except Exception:  # whatever it is, it is no pair of sequences
        return False


def _curves(schedules: Any, base_lr: float) -> list[tuple[str, CosineRestartSchedule, float]]:
    """The label of each curve, its schedule and its initial learning rate.

    A label is the key in a dict, and what tells the curve from the others of this key.
    """
    curves = []
    for key, value in schedules.items() if isinstance(schedules, Mapping) else [("", schedules)]:
        try:
            several = [*value]
        except TypeError:  # it holds no others
            several = [value]
        drawn = [each for schedule in several for each in _of_one(schedule, base_lr)]
        settings = [{f.name: getattr(s, f.name) for f in fields(s)} | {"lr": number_text(lr)} for s, lr in drawn]
        for each, own in zip(drawn, settings):
            differing = [f"{name}={own[name]}" for name in own if any(own[name] != other[name] for other in settings)]
            curves.append((", ".join(filter(None, [str(key), *differing])), *each))
    if not curves:
        raise ValueError(f"Expected schedules to hold at least one schedule, but got {schedules!r}")
    return curves


def _of_one(schedule: Any, base_lr: float) -> list[tuple[CosineRestartSchedule, float]]:
    """A schedule with these learning rates, or the schedule of a scheduler with each of its own, once."""
    inner = getattr(schedule, "scheduler", schedule)  # of what `accelerator.prepare` returned
    if isinstance(inner, CosineRestartSchedule):
        return [(inner, base_lr)]
    if not isinstance(getattr(inner, "schedule", None), CosineRestartSchedule):
        came = type(schedule).__name__
        raise TypeError(f"Expected a CosineRestartSchedule or CosineRestartLR in schedules, but got a {came}")
    return [(inner.schedule, of_group) for of_group in dict.fromkeys(inner.base_lrs)]


def _label_peaks(ax: Axes, steps: np.ndarray, rates: np.ndarray, color: Any) -> None:
    points_per_step = ax.bbox.width * 72 / ax.figure.dpi / max(1, ax.dataLim.width)
    for step, rate, after in zip(steps, rates, [*steps[1:], math.inf]):
        text = number_text(rate)
        # A character of this size is about 6 points wide. A label that would reach into the next cycle is left out.
        if (after - step) * points_per_step > 6 * len(text):
            ax.annotate(text, (step, rate), (3, 3), textcoords="offset points", fontsize="small", color=color)


def _fit_heights(ax: Axes, minimum: float, legend: bool) -> None:
    """Draw the legend in as few rows as its width allows, and set the height so that it lies above all curves."""
    handles, labels = ax.get_legend_handles_labels()
    named = dict(zip(labels, handles))
    height = 16 * ax.figure.dpi / 72  # of the labels of peaks
    for columns in range(len(named) * legend, 0, -1):
        drawn = ax.legend(named.values(), named, ncols=columns, **_LEGEND)
        if columns == 1 or drawn.get_window_extent().width < 0.95 * ax.bbox.width:  # the layout may narrow it
            height += drawn.get_window_extent().height
            break
    above = min(0.6, height / ax.bbox.height)
    top = max(ax.dataLim.y1, 0.0) or 1.0
    bottom = lowest_on_log_scale(top, minimum) if ax.get_yscale() == "log" else min(0.0, minimum)
    scale = ax.yaxis.get_transform()
    low, high = scale.transform([bottom, top])
    ax.set_ylim(bottom, float(scale.inverted().transform(low + (high - low) / (1 - above))))
