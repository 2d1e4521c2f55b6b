"""Pictures of the schedule, on paper and in the terminal. For paper, matplotlib (the `plot` extra) is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_warmcos.checks import MOST_STEPS, real_number, whole_number
from hf_warmcos.schedule import Arc, CosineRestartSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_warmcos.scheduler import CosineRestartLR

CYCLES_WITHOUT_END = 5  # how many cycles to show of a schedule whose restarts never end
FIGURE_SIZE = (9, 3.4)  # inches
_MOST_POINTS = 4_000
_MOST_CYCLES_TO_MARK = 24
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # the bit of each dot of a character


class _Curve(NamedTuple):
    label: str
    schedule: CosineRestartSchedule
    base_lr: float
    eta_min: float


def plot_schedule(
    schedules: Any,
    num_steps: int | None = None,
    base_lr: float = 1.0,
    eta_min: float = 0.0,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the learning rate of each step: the curve, its restarts, its warmup and the peak of each cycle.

    Args:
        schedules: A [`CosineRestartSchedule`], a [`CosineRestartLR`] (as it is or as `accelerator.prepare` returned
            it), or several to compare: a list of them, or a dict of label to schedule. A scheduler is drawn once for
            each distinct rate of its parameter groups.
        num_steps (`int`, *optional*): How many steps to draw, >= 1. Defaults to the end of the longest schedule; of one
            whose restarts never end, to five cycles.
        base_lr (`float`, *optional*, defaults to 1.0): The rate that a [`CosineRestartSchedule`] is drawn for. A
            scheduler brings its own.
        eta_min (`float`, *optional*, defaults to 0.0): The rate at the end of each cycle, likewise.
        ax (`matplotlib.axes.Axes`, *optional*): Where to draw. By default in a new figure of pyplot's.

    Returns:
        `matplotlib.axes.Axes`: Where it was drawn.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError, ValueError: If `schedules` holds something else or nothing, or if a number is out of its range.

    Example:

    ```python
    >>> from hf_warmcos import CosineRestartSchedule
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> schedule = CosineRestartSchedule(T_0=100, decay=0.75, warmup_steps=20, num_cycles=4)
    >>> plot_schedule({"decaying": schedule, "as it was": CosineRestartSchedule(T_0=100)}, ax=ax) is ax
    True

    ```
    """
    curves = _curves(schedules, real_number("base_lr", base_lr), real_number("eta_min", eta_min))
    if num_steps is None:
        num_steps = max(default_num_steps(curve.schedule) for curve in curves)
    num_steps = whole_number("num_steps", num_steps, (">=", 1))
    if ax is None:
        ax = _new_axes()
    single = len(curves) == 1
    for curve in curves:
        steps = sample_steps(curve.schedule, num_steps)
        rates = curve.schedule.curve(steps, curve.base_lr, curve.eta_min)
        (line,) = ax.plot(steps, rates, label=curve.label, linewidth=1.8, zorder=3)
        color = line.get_color()
        few = curve.schedule.cycle_at(num_steps - 1).index < _MOST_CYCLES_TO_MARK
        restarts = curve.schedule.restarts(num_steps) if few else []
        if curve.schedule.warmup_steps:
            _mark_warmup(ax, curve.schedule, restarts, num_steps, color, single)
        if restarts:
            dashes = (0, (4, 3))
            label, grey = ("restart", "0.5") if single else ("", color)
            ax.vlines(restarts, 0, 1.05 * rates.max(), grey, dashes, label=label, alpha=0.6, linewidth=0.8)
        if few:
            _mark_peaks(ax, restarts, steps, rates, color, labelled=single)
    ax.set_xlabel("step")
    ax.set_ylabel("learning rate")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda number, _: number_text(number))
    ax.margins(x=0.01)
    # The legend lies above all that is drawn, not over it.
    handles, labels = ax.get_legend_handles_labels()
    columns = min(len(handles), 4 if sum(map(len, labels)) < 75 else 1)
    rows = math.ceil(len(handles) / columns)
    ax.set_ylim(min(0.0, *(curve.eta_min for curve in curves)), (max(ax.dataLim.y1, 0.0) or 1.0) * (1.05 + 0.1 * rows))
    ax.legend(loc="upper right", ncols=columns, frameon=False, borderaxespad=0)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def number_text(number: float) -> str:
    """A step or a rate as people write it: three digits, and a short power of ten where it is small or large.

    ```python
    >>> [number_text(number) for number in (0, 5e-5, 0.0123, 0.75, 300, 12_500, 2e9)]
    ['0', '5e-5', '0.0123', '0.75', '300', '12,500', '2e9']

    ```
    """
    size = abs(number)
    if size and not 0.00995 <= size < 1e7:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{number:,.0f}" if size >= 1000 else f"{number:.3g}"


def default_num_steps(schedule: CosineRestartSchedule) -> int:
    """The steps that show a whole schedule: to its end, or five cycles where the restarts never end.

    ```python
    >>> default_num_steps(CosineRestartSchedule(T_0=10)), default_num_steps(CosineRestartSchedule(T_0=10, num_cycles=2))
    (50, 20)

    ```
    """
    if schedule.end is not None:
        return schedule.end
    last = schedule.cycle_at(MOST_STEPS).index
    return schedule.cycle(CYCLES_WITHOUT_END).start if last >= CYCLES_WITHOUT_END else MOST_STEPS


def arcs(schedule: CosineRestartSchedule, num_steps: int, most: int) -> Iterator[Arc]:
    """The arcs that hold at any of the first `num_steps` steps, in order; no more than `most` of them.

    ```python
    >>> [(arc.fall_start, arc.stop) for arc in arcs(CosineRestartSchedule(T_0=50, stable_ratio=0.2), 100, most=9)]
    [(10, 50), (60, 100)]

    ```
    """
    step: float = 0
    while step < num_steps and most > 0:
        arc = schedule.arc_at(step)
        yield arc
        step, most = arc.stop, most - 1


def sample_steps(schedule: CosineRestartSchedule, num_steps: int, most: int = _MOST_POINTS) -> np.ndarray:
    """The steps, among the first `num_steps`, that a picture needs: all, or evenly spread with every corner kept.

    Where there are more corners than points, those of the arcs that spread steps lie in are kept: the curve
    then fills the space between its peaks and its minimum.

    ```python
    >>> sample_steps(CosineRestartSchedule(T_0=50, warmup_steps=7), 100, most=8).tolist()
    [0, 6, 7, 14, 28, 42, 49, 50, 56, 70, 84, 99]

    ```
    """
    if num_steps <= most:
        return np.arange(num_steps)
    spread = [index * (num_steps - 1) // (most - 1) for index in range(most)]
    known = list(arcs(schedule, num_steps, most // 4))
    if known[-1].stop < num_steps:
        known += map(schedule.arc_at, spread[::4])
    corners = set[float]().union(*(arc.corners for arc in known))
    kept = {step for corner in corners for step in (corner - 1, corner) if 0 <= step < num_steps}
    return np.array(sorted(kept.union(spread)))


def save_picture(
    path: str,
    schedule: CosineRestartSchedule,
    num_steps: int,
    base_lr: float = 1.0,
    eta_min: float = 0.0,
    *,
    logged: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Write a picture of the schedule, as [`plot_schedule`] draws it, into a file.

    The text of a PNG holds what it shows, so that it can be compared with the schedule of another day.

    Args:
        path (`str`): The file, .png, .pdf or .svg.
        schedule, num_steps, base_lr, eta_min: As in [`plot_schedule`].
        logged (*optional*): The rates that a past run logged, as a pair of their steps and of themselves.

    Raises:
        ValueError, OSError: If the file ends otherwise or cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"Expected output to end in .png, .pdf or .svg, but got output={path!r}")
    figure = _figure(schedule, num_steps, base_lr, eta_min, logged)
    metadata = {"Title": "hf_warmcos schedule"}
    if suffix == ".png":
        steps = [step * (num_steps - 1) // 100 for step in range(101)]
        shown = {
            "schedule": asdict(schedule),
            "base_lr": base_lr,
            "eta_min": eta_min,
            "num_steps": num_steps,
            "rates": schedule.curve(steps, base_lr, eta_min).tolist(),
        }
        metadata["Description"] = json.dumps(shown)
    figure.savefig(path, dpi=150, metadata=metadata)


def load_ipython_extension(ipython: Any) -> None:
    """Let notebooks show a schedule as its picture, where matplotlib is there.

    Args:
        ipython (`IPython.InteractiveShell`): What `%load_ext` passes.
    """
    formatter = ipython.display_formatter.formatters["image/png"]
    formatter.for_type(CosineRestartSchedule, _notebook_png)


def _notebook_png(schedule: CosineRestartSchedule) -> bytes | None:
    png = BytesIO()
    try:
        _figure(schedule, default_num_steps(schedule)).savefig(png, format="png")
    except ImportError:
        return None  # the notebook then shows the schedule's repr
    return png.getvalue()


def _figure(
    schedule: CosineRestartSchedule,
    num_steps: int,
    base_lr: float = 1.0,
    eta_min: float = 0.0,
    logged: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    ax = figure.subplots()
    if logged is not None:
        ax.plot(*logged, ".", color="tab:red", markersize=4, zorder=5, label="logged")
    plot_schedule(schedule, num_steps, base_lr, eta_min, ax=ax)
    return figure


def terminal_picture(
    schedule: CosineRestartSchedule,
    num_steps: int,
    base_lr: float = 1.0,
    eta_min: float = 0.0,
    *,
    logged: tuple[Sequence[float], Sequence[float]] | None = None,
    width: int = 80,
    height: int = 24,
    ascii_only: bool = False,
) -> str:
    """Draw the learning rate of each step with characters.

    Args:
        schedule, num_steps, base_lr, eta_min: As in [`plot_schedule`].
        logged (*optional*): The rates that a past run logged, as a pair of their steps and of themselves.
        width, height (`int`, *optional*): The room for it, in characters and lines.
        ascii_only (`bool`, *optional*): Draw with ASCII rather than with the dots of Braille.

    Example:

    ```python
    >>> print(terminal_picture(CosineRestartSchedule(T_0=100), 200, width=40, height=8, ascii_only=True))
    learning rate
     1+#####             #####
      |    #####         #   #####
      |        ####      #       ####
      |           ####   #          ####
     0+              #####             #####
      ++--------+--------+--------+--------+
       0       50       100      150     200

    ```
    """
    steps = np.union1d(sample_steps(schedule, num_steps), np.linspace(0, num_steps - 1, 8 * width))
    rates = schedule.curve(steps, base_lr, eta_min)
    top = float(max(rates.max(), *logged[1])) if logged else float(rates.max())
    top, lines = top or 1.0, max(1, height - 3)
    high = 1 if ascii_only else 4  # dots in a character
    labels = {int(_places(rate, top, high * lines)) // high: number_text(rate) for rate in round_ticks(top, lines // 3)}
    margin = max(map(len, labels.values())) + 1
    if width < margin + 5:
        labels, margin = {}, 0
    columns = max(1, width - margin - 1)

    cells = _drawn(steps / num_steps, rates / top, columns, lines, ascii_only)
    if schedule.cycle_at(num_steps - 1).index <= columns // 4:
        for column in _places(schedule.restarts(num_steps), num_steps, columns):
            for line in cells:
                line[column] = line[column].replace(" ", ":" if ascii_only else "┊")
    if logged:
        for column, row in zip(_places(logged[0], num_steps, columns), _places(logged[1], top, lines)):
            cells[-1 - row][column] = "x"

    side, beside, corner, floor, under = "|++-+" if ascii_only else "│┤└─┬"
    picture = ["learning rate"[:width]]
    for row, line in zip(reversed(range(lines)), cells):
        label = labels.get(row, "")
        picture.append(label.rjust(margin) + (beside if label else side) + "".join(line))
    axis, names = [floor] * columns, " " * columns
    for step in round_ticks(num_steps, columns // (len(number_text(num_steps)) + 4)):
        column, text = int(_places(step, num_steps, columns)), number_text(step)
        start = max(0, min(column - len(text) // 2, columns - len(text)))
        if step == int(step) and not names[max(0, start - 1) : start + len(text) + 1].strip():
            axis[column] = under
            names = names[:start] + text + names[start + len(text) :]
    if not names[-6:].strip():
        names = f"{names[:-5]} step"
    picture += [" " * margin + corner + "".join(axis), " " * (margin + 1) + names[:columns]]
    return "\n".join(line.rstrip() for line in picture)


def _places(values: Any, most: float, count: int) -> np.ndarray:
    """Where values from 0 to `most` lie on `count` places."""
    return np.rint(np.asarray(values) / most * (count - 1)).astype(int)


def _drawn(across: np.ndarray, up: np.ndarray, columns: int, lines: int, ascii_only: bool) -> list[list[str]]:
    """A curve as characters, line by line from the top: its points are shares of the width and of the height."""
    wide, high = (1, 1) if ascii_only else (2, 4)  # dots in a character
    xs, ys = _places(across, 1, wide * columns), _places(up, 1, high * lines)
    # Each column of dots is filled from the lowest to the highest of its points and of the one before them.
    lowest, highest = np.full(wide * columns, high * lines), np.full(wide * columns, -1)
    for x, y in ((xs, ys), (xs[1:], ys[:-1])):
        np.minimum.at(lowest, x, y)
        np.maximum.at(highest, x, y)
    heights = np.arange(high * lines)[::-1, None]
    dots = (lowest <= heights) & (heights <= highest)
    codes = (dots.reshape(lines, high, columns, wide) * _BRAILLE[:high, None, :wide]).sum(axis=(1, 3))
    characters = " #" if ascii_only else [" ", *map(chr, range(0x2801, 0x2900))]
    return [[characters[code] for code in line] for line in codes]


def round_ticks(most: float, count: int) -> list[float]:
    """Round numbers from 0 to `most`, about as many as `count`: multiples of 1, 2 or 5 times a power of ten.

    ```python
    >>> round_ticks(0.0003, 3), round_ticks(10_000, 6)
    ([0.0, 0.0001, 0.0002, 0.0003], [0.0, 2000.0, 4000.0, 6000.0, 8000.0, 10000.0])

    ```
    """
    least = most / max(1, count)
    power = 10.0 ** math.floor(math.log10(least))
    between = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return [float(f"{index * between:.12g}") for index in range(int(most / between * (1 + 1e-9)) + 1)]


def _new_axes() -> Axes:
    from matplotlib import pyplot

    return pyplot.subplots(figsize=FIGURE_SIZE, layout="constrained")[1]


def _curves(schedules: Any, base_lr: float, eta_min: float) -> list[_Curve]:
    if isinstance(schedules, Mapping):
        labelled = {str(label): schedule for label, schedule in schedules.items()}
    elif isinstance(schedules, Iterable):
        several = list(schedules)
        labelled = dict(zip(_labels([_pure(schedule) for schedule in several]), several))
    else:
        labelled = {"learning rate": schedules}
    curves = []
    for label, schedule in labelled.items():
        scheduler = _scheduler(schedule)
        if scheduler is None:
            curves.append(_Curve(label, _pure(schedule), base_lr, eta_min))
            continue
        # Groups with the same rates have one curve.
        rates = dict.fromkeys(zip(scheduler.base_lrs, scheduler.eta_mins))
        for group_base_lr, group_eta_min in rates:
            group_label = f"{label}, lr={number_text(group_base_lr)}" if len(rates) > 1 else label
            curves.append(_Curve(group_label, scheduler.schedule, group_base_lr, group_eta_min))
    if not curves:
        raise ValueError(f"Expected schedules to hold at least one schedule, but got {schedules!r}")
    return curves


def _scheduler(schedule: Any) -> CosineRestartLR | None:
    """The scheduler itself, or inside what `accelerator.prepare` returned; None for anything else."""
    inner = getattr(schedule, "scheduler", schedule)
    return inner if isinstance(getattr(inner, "schedule", None), CosineRestartSchedule) else None


def _pure(schedule: Any) -> CosineRestartSchedule:
    scheduler = _scheduler(schedule)
    if scheduler is not None:
        return scheduler.schedule
    if not isinstance(schedule, CosineRestartSchedule):
        raise TypeError(
            "Expected schedules to be a CosineRestartSchedule, a CosineRestartLR, or a list or dict of them, but got a "
            f"{type(schedule).__name__}"
        )
    return schedule


def _labels(schedules: list[CosineRestartSchedule]) -> list[str]:
    """What tells schedules apart: the arguments in which they differ, numbered where that is not enough."""
    differing = [
        field.name for field in fields(CosineRestartSchedule) if len({getattr(s, field.name) for s in schedules}) > 1
    ]
    labels = [", ".join(f"{name}={getattr(schedule, name)}" for name in differing) for schedule in schedules]
    if len(set(labels)) == len(labels) and all(labels):
        return labels
    return [f"{index}: {label}" if label else f"schedule {index}" for index, label in enumerate(labels)]


def _mark_warmup(
    ax: Axes, schedule: CosineRestartSchedule, restarts: list[int], num_steps: int, color: Any, single: bool
) -> None:
    for start in [0, *restarts] if schedule.warmup_mode == "every_cycle" else [0]:
        label = f"warmup, {schedule.warmup_steps:,} steps" if single and start == 0 else None
        stop = min(start + schedule.warmup_steps, num_steps - 1)
        ax.axvspan(start, stop, color=color, alpha=0.15, linewidth=0, label=label)


def _mark_peaks(
    ax: Axes, restarts: list[int], steps: np.ndarray, rates: np.ndarray, color: Any, *, labelled: bool
) -> None:
    """Mark the highest rate of each cycle: its peak, or less where an "overlap" warmup holds the rate below it."""
    firsts = np.searchsorted(steps, [0, *restarts])
    highest = [first + int(np.argmax(part)) for first, part in zip(firsts, np.split(rates, firsts[1:]))]
    ax.plot(steps[highest], rates[highest], ".", color=color, markersize=7, zorder=4)
    points_per_step = ax.bbox.width * 72 / ax.figure.dpi / (steps[-1] + 1)
    for index, after in zip(highest, [*highest[1:], None]):
        text = number_text(rates[index])
        # A character of this size is about 6 points wide. A label that would reach into the next cycle is left out.
        if labelled and (after is None or (steps[after] - steps[index]) * points_per_step > 6 * len(text)):
            ax.annotate(
                text,
                (steps[index], rates[index]),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize="small",
                color="0.4",
            )
