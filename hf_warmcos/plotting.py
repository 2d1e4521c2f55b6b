"""Pictures of the schedule with matplotlib (the `plot` extra), and the steps that any picture of it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_warmcos.checks import MOST_STEPS, learning_rate, whole_number
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
YSCALES = ("linear", "log")
CYCLES_WITHOUT_END = 5  # how many cycles to show of a schedule whose restarts never end
MOST_MARKED_CYCLES = 24  # of a curve with more cycles, the cycles are not marked
_MOST_POINTS = 4_000
_LEGEND: dict[str, Any] = {"loc": "upper right", "borderaxespad": 0, "edgecolor": "none", "framealpha": 1}
_LEGEND |= {"fontsize": "small", "handlelength": 1.8, "handletextpad": 0.4, "columnspacing": 0.8, "borderpad": 0.2}


def plot_schedule(
    schedules: Any,
    num_steps: int | None = None,
    base_lr: float = 1.0,
    eta_min: float = 0.0,
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
        eta_min (`float`, *optional*, defaults to 0.0): The minimum of a [`CosineRestartSchedule`], a learning rate. A
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
    curves = _curves(schedules, learning_rate("base_lr", base_lr), learning_rate("eta_min", eta_min))
    if num_steps is None:
        num_steps = max(default_num_steps(schedule) for _, schedule, _, _ in curves)
    num_steps = whole_number("num_steps", num_steps, (">=", 1), ("<=", MOST_STEPS))
    if yscale not in YSCALES:
        raise ValueError(f"Expected yscale to be one of {', '.join(YSCALES)}, but got {yscale=}")
    if logged is not None and (len(logged) != 2 or len(logged[0]) != len(logged[1])):
        raise ValueError(f"Expected logged to be a pair of steps and as many learning rates, but got {logged=}")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=FIGURE_SIZE, layout="constrained")[1]
    foreground = ax.yaxis.label.get_color()  # of the axes' style, dark or light
    marked: list[Arc] = []
    for index, (label, schedule, *bounds) in enumerate(curves, start=len(ax.lines)):
        steps = sample_steps(schedule, num_steps)
        rates = schedule.curve(steps, *bounds)
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
    _fit_heights(ax, min(eta_min for *_, eta_min in curves), legend)
    return ax


def number_text(number: float) -> str:
    """A number as people write it: three digits, and a short power of ten where it is small or large.

    ```python
    >>> [number_text(number) for number in (0, 5e-5, 0.0123, 0.75, 300, 12_500, 2e9)]
    ['0', '5e-5', '0.0123', '0.75', '300', '12,500', '2e9']

    ```
    """
    if number and not 0.00995 <= abs(number) < 1e7:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def round_ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 to `most`, about as many as `count`: multiples of 1, 2 or 5 times a power of ten.

    ```python
    >>> round_ticks(0.0003, 3), round_ticks(10_000, 6)
    ([0.0, 0.0001, 0.0002, 0.0003], [0.0, 2000.0, 4000.0, 6000.0, 8000.0, 10000.0])

    ```
    """
    betweens = (float(f"{factor}e{power}") for power in range(-300, 300) for factor in (1, 2, 5))
    between = next(each for each in betweens if each * max(1, count) >= most * (1 - 1e-9))
    return [float(f"{index * between:.12g}") for index in range(int(most / between * (1 + 1e-9)) + 1)]


def default_num_steps(schedule: CosineRestartSchedule) -> int:
    """The steps that show a whole schedule: to its end, or five cycles where the restarts never end.

    ```python
    >>> default_num_steps(CosineRestartSchedule(T_0=10)), default_num_steps(CosineRestartSchedule(T_0=10, num_cycles=2))
    (50, 20)

    ```
    """
    step = 0
    for _ in range(CYCLES_WITHOUT_END):
        step = int(min(schedule.arc_at(step).stop, MOST_STEPS))
    return schedule.end or step


def arcs(schedule: CosineRestartSchedule, num_steps: int, most: int) -> list[Arc]:
    """The arcs of the cycles in the first `num_steps` steps; none where there are more than `most` of them.

    ```python
    >>> schedule = CosineRestartSchedule(T_0=50)
    >>> [arc.stop for arc in arcs(schedule, 120, most=3)], arcs(schedule, 120, most=2)
    ([50, 100, 150], [])

    ```
    """
    if schedule.cycle_at(num_steps - 1).index >= most:
        return []
    return [schedule.arc_at(step) for step in (0, *schedule.restarts(num_steps))]


def sample_steps(schedule: CosineRestartSchedule, num_steps: int, most: int = _MOST_POINTS) -> np.ndarray:
    """The steps, among the first `num_steps`, that a picture needs: all, or evenly spread ones and every corner.

    Where there are too many cycles for that, the corners of those are kept that evenly spread steps lie in. The curve
    then fills the space between its peaks and its minimum.

    ```python
    >>> sample_steps(CosineRestartSchedule(T_0=50, warmup_steps=7), 100, most=8).tolist()
    [0, 6, 7, 14, 28, 42, 49, 50, 56, 70, 84, 99]

    ```
    """
    if num_steps <= most:
        return np.arange(num_steps)
    spread = [index * (num_steps - 1) // (most - 1) for index in range(most)]
    known = arcs(schedule, num_steps, most // 4) or map(schedule.arc_at, spread[::4])
    kept = {step for arc in known for corner in arc.corners for step in (corner - 1, corner) if 0 <= step < num_steps}
    return np.array(sorted(kept.union(spread)))


def highest_of_each(some_arcs: Sequence[Arc], steps: np.ndarray, rates: np.ndarray) -> list[int]:
    """The index of the highest learning rate in each arc: its peak, or less where an "overlap" warmup scales it down.

    ```python
    >>> schedule, steps = CosineRestartSchedule(T_0=5, warmup_steps=3), np.arange(10)
    >>> highest_of_each(arcs(schedule, 10, most=9), steps, schedule.curve(steps))
    [2, 5]

    ```
    """
    firsts = np.searchsorted(steps, [max(0, arc.start) for arc in some_arcs])
    return [int(first + np.argmax(part)) for first, part in zip(firsts, np.split(rates, firsts[1:]))]


def lowest_on_log_scale(top: float, eta_min: float) -> float:
    """Where a log scale up to `top` starts: at the minimum, or at 1e-4 of `top` where the minimum is 0.

    ```python
    >>> lowest_on_log_scale(0.5, eta_min=0.01), lowest_on_log_scale(0.5, eta_min=0)
    (0.01, 5e-05)

    ```
    """
    return eta_min if 0 < eta_min < top else top / 10_000


def save_picture(
    path: str, schedule: CosineRestartSchedule, num_steps: int, base_lr: float = 1.0, eta_min: float = 0.0, **how: Any
) -> None:
    """Write a picture of the schedule, as [`plot_schedule`] draws it, into a file.

    The file's metadata say what it shows, as JSON (`Description` in PNG and SVG, `Subject` in PDF), so that a test can
    tell whether the schedule still looks like that.

    Args:
        path (`str`): The file, .png, .pdf or .svg.
        schedule, num_steps, base_lr, eta_min: As in [`plot_schedule`].
        **how: `yscale`, `legend` and `logged`, as in [`plot_schedule`].

    Raises:
        ValueError, OSError: If the file's name ends in something else or the file cannot be written.
    """
    about = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}.get(Path(path).suffix.lower())
    if about is None:
        raise ValueError(f"Expected output to end in .png, .pdf or .svg, but got output={path!r}")
    shown = {"schedule": asdict(schedule), "num_steps": num_steps, "base_lr": base_lr, "eta_min": eta_min}
    steps = [step * (num_steps - 1) // 100 for step in range(101)]
    shown["rates"] = schedule.curve(steps, base_lr, eta_min).tolist()
    metadata = {"Title": "hf_warmcos schedule", about: json.dumps(shown)}
    _figure(schedule, num_steps, base_lr, eta_min, **how).savefig(path, dpi=150, metadata=metadata)


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


def _curves(schedules: Any, base_lr: float, eta_min: float) -> list[tuple[str, CosineRestartSchedule, float, float]]:
    """The label of each curve, its schedule, its initial learning rate and its minimum.

    A label is the key in a dict, and what tells the curve from the others of this key.
    """
    curves = []
    for key, value in schedules.items() if isinstance(schedules, Mapping) else [("", schedules)]:
        several = value if isinstance(value, Iterable) else [value]
        drawn = [each for schedule in several for each in _of_one(schedule, base_lr, eta_min)]
        settings = [{f.name: getattr(s, f.name) for f in fields(s)} | {"lr": number_text(lr)} for s, lr, _ in drawn]
        for each, own in zip(drawn, settings):
            differing = [f"{name}={own[name]}" for name in own if any(own[name] != other[name] for other in settings)]
            curves.append((", ".join(filter(None, [str(key), *differing])), *each))
    if not curves:
        raise ValueError(f"Expected schedules to hold at least one schedule, but got {schedules!r}")
    return curves


def _of_one(schedule: Any, base_lr: float, eta_min: float) -> list[tuple[CosineRestartSchedule, float, float]]:
    """A schedule with these learning rates, or the schedule of a scheduler with each of its own, once."""
    inner = getattr(schedule, "scheduler", schedule)  # of what `accelerator.prepare` returned
    if isinstance(inner, CosineRestartSchedule):
        return [(inner, base_lr, eta_min)]
    if not isinstance(getattr(inner, "schedule", None), CosineRestartSchedule):
        came = type(schedule).__name__
        raise TypeError(f"Expected a CosineRestartSchedule or CosineRestartLR in schedules, but got a {came}")
    return [(inner.schedule, *rates) for rates in dict.fromkeys(zip(inner.base_lrs, inner.eta_mins))]


def _label_peaks(ax: Axes, steps: np.ndarray, rates: np.ndarray, color: Any) -> None:
    points_per_step = ax.bbox.width * 72 / ax.figure.dpi / max(1, ax.dataLim.width)
    for step, rate, after in zip(steps, rates, [*steps[1:], math.inf]):
        text = number_text(rate)
        # A character of this size is about 6 points wide. A label that would reach into the next cycle is left out.
        if (after - step) * points_per_step > 6 * len(text):
            ax.annotate(text, (step, rate), (3, 3), textcoords="offset points", fontsize="small", color=color)


def _fit_heights(ax: Axes, eta_min: float, legend: bool) -> None:
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
    bottom = lowest_on_log_scale(top, eta_min) if ax.get_yscale() == "log" else min(0.0, eta_min)
    scale = ax.yaxis.get_transform()
    low, high = scale.transform([bottom, top])
    ax.set_ylim(bottom, float(scale.inverted().transform(low + (high - low) / (1 - above))))
