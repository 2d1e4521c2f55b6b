"""Pictures of the schedule in a terminal, made of Braille dots: each character has two across and four up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_warmcos.overview import arcs, highest_of_each, lowest_on_log_scale, number_text, round_ticks, sample_steps
from hf_warmcos.schedule import CosineRestartSchedule

_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of the dots of a character
_CHARACTERS = np.array([" ", *map(chr, range(0x2801, 0x2900))])


def terminal_picture(
    schedule: CosineRestartSchedule,
    num_steps: int,
    base_lr: float = 1.0,
    *,
    yscale: str = "linear",
    logged: tuple[Sequence[float], Sequence[float]] | None = None,
    width: int = 80,
    height: int = 24,
) -> str:
    """Draw the learning rate at each step, the restarts, and the peak of each cycle.

    Args:
        schedule, num_steps, base_lr, yscale, logged: As in [`plot_schedule`].
        width, height (`int`, *optional*): The size of the picture, in characters and lines. It has 5 lines at least.

    Returns:
        `str`: The picture. Its first line is its legend.

    Example:

    ```python
    >>> print(terminal_picture(CosineRestartSchedule(T_0=100), 200, width=40, height=9))
    learning rate  ┊ restart
      │  1               ┊ 1
     1┤⠉⠉⠓⠲⢤⡀            ⡏⠉⠓⠲⢤⣀
      │     ⠉⠳⢤⡀         ⡇    ⠈⠓⢦⡀
      │        ⠙⠦⣄       ⡇       ⠉⠳⣄
      │          ⠈⠳⢤⡀    ⡇         ⠈⠙⢦⣀
     0┤             ⠉⠓⠦⢤⣀⡇            ⠈⠓⠦⢤⣀⣀
      └┬────────┬────────┬────────┬────────┬
       0       50       100      150     200

    ```
    """
    rows = max(1, height - 4)
    steps = np.union1d(sample_steps(schedule, num_steps), np.linspace(0, num_steps - 1, 8 * width))
    rates = schedule.curve(steps, base_lr)
    logged_steps, logged_rates = logged or ((), ())
    top = float(max(rates.max(), *logged_rates, 0)) or 1.0
    bottom, ticks = 0.0, round_ticks(top, rows // 3)
    scale: Any = np.asarray
    if yscale == "log":
        bottom, scale = lowest_on_log_scale(top, schedule.minimum(base_lr)), np.log
        ticks = [tick for power in range(-99, 99) if bottom <= (tick := float(f"1e{power}")) <= top]

    def up(values: Any) -> np.ndarray:
        low, reached, most = (scale(each) for each in (bottom, np.maximum(values, bottom), top))
        return np.rint((reached - low) / (most - low) * (4 * rows - 1)).astype(int)

    def across(values: Any) -> np.ndarray:
        return np.rint(np.asarray(values) / num_steps * (2 * columns - 1)).astype(int)

    names = {int(up(tick)) // 4: number_text(tick) for tick in ticks}
    margin = max(map(len, names.values()), default=0) + 1
    columns = max(1, width - margin - 1)

    # Each column of dots is filled from the lowest to the highest of its points and of the one before them.
    lowest, highest = np.full(2 * columns, 4 * rows), np.full(2 * columns, -1)
    xs, ys = across(steps), up(rates)
    for x, y in ((xs, ys), (xs[1:], ys[:-1])):
        np.minimum.at(lowest, x, y)
        np.maximum.at(highest, x, y)
    heights = np.arange(4 * rows)[::-1, None]
    dots = ((lowest <= heights) & (heights <= highest)).reshape(rows, 4, columns, 2)
    # Above the curve lies one line more, for the labels of its highest peaks.
    cells = np.vstack([np.full(columns, " "), _CHARACTERS[(dots * _BITS[:, None]).sum(axis=(1, 3))]])

    cycles = arcs(schedule, num_steps, columns // 4)
    restarts = across([arc.start for arc in cycles[1:]]) // 2
    cells[:, restarts] = np.where(cells[:, restarts] == " ", "┊", cells[:, restarts])
    cells[-1 - up(logged_rates) // 4, across(logged_steps) // 2] = "x"
    for index in highest_of_each(cycles, steps, rates):
        _write(cells[-2 - ys[index] // 4], xs[index] // 2 + 2, number_text(rates[index]))

    axis, below = np.full((2, columns), " ")
    axis[:] = "─"
    for step in round_ticks(num_steps, min(num_steps, columns // (len(number_text(num_steps)) + 4))):
        column, text = int(across(step)) // 2, number_text(step)
        axis[column] = "┬"
        _write(below, max(0, min(column - len(text) // 2, columns - len(text))), text)
    _write(below, max(0, columns - 4), "step")
    picture = ["learning rate" + "  ┊ restart" * bool(len(restarts)) + "  x logged" * bool(logged)]
    for row, cell_line in zip(range(rows, -1, -1), cells):
        picture.append(names.get(row, "").rjust(margin) + "│┤"[row in names] + "".join(cell_line))
    picture += [" " * margin + "└" + "".join(axis), " " * (margin + 1) + "".join(below)]
    return "\n".join(line[:width].rstrip() for line in picture)


def _write(line: np.ndarray, start: int, text: str) -> None:
    """Write a text into a line where it fits between blanks."""
    stop = start + len(text)
    if stop <= len(line) and np.all(line[max(0, start - 1) : stop + 1] == " "):
        line[start:stop] = list(text)
