"""Pictures of the schedule. matplotlib (the `plot` extra) loads when one is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_warmcos.checks import real_number, whole_number
from hf_warmcos.schedule import CosineRestartSchedule
from hf_warmcos.scheduler import CosineRestartLR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CYCLES_WITHOUT_END = 5  # how many cycles to show of a schedule whose restarts never end
FIGURE_SIZE = (9, 3.4)  # inches
_MOST_POINTS = 4_000
_MOST_CYCLES_TO_MARK = 100
_MOST_PEAKS_TO_LABEL = 16


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
        schedules: A [`CosineRestartSchedule`], a [`CosineRestartLR`] (as it is or
            as `accelerator.prepare` returned it), or several to compare: a list of them, or a dict of label to
            schedule. A scheduler is drawn once for each distinct rate of its parameter groups.
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
        if curve.schedule.warmup_steps:
            _mark_warmup(ax, curve.schedule, num_steps, color, single)
        last_cycle = curve.schedule.cycle_at(num_steps - 1).index
        if last_cycle < _MOST_CYCLES_TO_MARK:
            _mark_restarts(ax, curve.schedule.restarts(num_steps), color, single)
            _mark_peaks(ax, curve.schedule, steps, rates, color, labelled=single and last_cycle < _MOST_PEAKS_TO_LABEL)
    ax.set_xlabel("step")
    ax.set_ylabel("learning rate")
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}" if step == int(step) else f"{step:g}")
    ax.margins(x=0.01)
    ax.set_ylim(bottom=min(0.0, *(curve.eta_min for curve in curves)))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    return ax


def default_num_steps(schedule: CosineRestartSchedule) -> int:
    """The steps that show a whole schedule: to its end, or five cycles where the restarts never end.

    ```python
    >>> default_num_steps(CosineRestartSchedule(T_0=10)), default_num_steps(CosineRestartSchedule(T_0=10, num_cycles=2))
    (50, 20)

    ```
    """
    if schedule.end is not None:
        return schedule.end
    return schedule.cycle(CYCLES_WITHOUT_END).start


def sample_steps(schedule: CosineRestartSchedule, num_steps: int, most: int = _MOST_POINTS) -> np.ndarray:
    """The steps, among the first `num_steps`, that a picture needs: all, or evenly spread with every corner kept.

    ```python
    >>> sample_steps(CosineRestartSchedule(T_0=50, warmup_steps=7), 100, most=8).tolist()
    [0, 6, 7, 14, 28, 42, 49, 50, 56, 57, 70, 84, 99]

    ```
    """
    if num_steps <= most:
        return np.arange(num_steps)
    starts = [schedule.origin]
    if schedule.cycle_at(num_steps - 1).index < most // 4:
        starts += schedule.restarts(num_steps)
    corners = [schedule.warmup_steps, *starts, *(start + schedule.warmup_steps for start in starts)]
    if schedule.end is not None:
        corners.append(schedule.end)
    spread = (index * (num_steps - 1) // (most - 1) for index in range(most))
    kept = {step for corner in corners for step in (corner - 1, corner) if 0 <= step < num_steps}
    return np.array(sorted(kept.union(spread)))


def schedule_png(schedule: CosineRestartSchedule) -> bytes:
    """The picture of a schedule as a notebook shows it, as the bytes of a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    plot_schedule(schedule, ax=figure.subplots())
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


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
            group_label = f"{label}, lr={group_base_lr:g}" if len(rates) > 1 else label
            curves.append(_Curve(group_label, scheduler.schedule, group_base_lr, group_eta_min))
    if not curves:
        raise ValueError(f"Expected schedules to hold at least one schedule, but got {schedules!r}")
    return curves


def _scheduler(schedule: Any) -> CosineRestartLR | None:
    """The scheduler itself, or inside what `accelerator.prepare` returned; None for anything else."""
    inner = getattr(schedule, "scheduler", schedule)
    return inner if isinstance(inner, CosineRestartLR) else None


def _pure(schedule: Any) -> CosineRestartSchedule:
    scheduler = _scheduler(schedule)
    if scheduler is not None:
        return scheduler.schedule
    if not isinstance(schedule, CosineRestartSchedule):
        raise TypeError(
            "Expected schedules to be a CosineRestartSchedule, a "
            "CosineRestartLR, or a list or dict of them, "
            f"but got a {type(schedule).__name__}"
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


def _mark_warmup(ax: Axes, schedule: CosineRestartSchedule, num_steps: int, color: Any, single: bool) -> None:
    starts = [0]
    if schedule.warmup_mode == "every_cycle" and schedule.cycle_at(num_steps - 1).index < _MOST_CYCLES_TO_MARK:
        starts += schedule.restarts(num_steps)
    for start in starts:
        label = f"warmup, {schedule.warmup_steps:,} steps" if single and start == 0 else None
        ax.axvspan(
            start, min(start + schedule.warmup_steps, num_steps - 1), color=color, alpha=0.15, linewidth=0, label=label
        )


def _mark_restarts(ax: Axes, restarts: list[int], color: Any, single: bool) -> None:
    for index, restart in enumerate(restarts):
        ax.axvline(
            restart,
            color="0.5" if single else color,
            alpha=0.6,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            label="restart" if single and index == 0 else None,
        )


def _mark_peaks(
    ax: Axes, schedule: CosineRestartSchedule, steps: np.ndarray, rates: np.ndarray, color: Any, *, labelled: bool
) -> None:
    """Mark the highest rate of each cycle: its peak, or less where an "overlap" warmup holds the rate below it."""
    firsts = np.searchsorted(steps, [0, *schedule.restarts(int(steps[-1]) + 1)])
    highest = [first + int(np.argmax(part)) for first, part in zip(firsts, np.split(rates, firsts[1:]))]
    ax.plot(steps[highest], rates[highest], ".", color=color, markersize=7, zorder=4)
    if labelled:
        for index in highest:
            ax.annotate(
                f"{rates[index]:.3g}",
                (steps[index], rates[index]),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize="small",
                color="0.4",
            )
