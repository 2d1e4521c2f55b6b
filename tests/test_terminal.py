"""Pictures in the terminal: `hf_warmcos.terminal`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_warmcos import CosineRestartSchedule
from hf_warmcos.overview import round_ticks
from hf_warmcos.terminal import terminal_picture

SCHEDULE = CosineRestartSchedule(T_0=100, decay=0.5, warmup_steps=20, warmup_mode="prefix", num_cycles=3)


@pytest.mark.parametrize("most", [0.0003, 1, 7.3, 10_000, 123_456])
def test_ticks_fall_on_round_numbers(most):
    ticks = round_ticks(most, 5)
    assert 3 <= len(ticks) <= 11
    assert (ticks[0], ticks[-1] <= most) == (0, True)
    assert all(len(f"{tick:e}".split("e")[0].rstrip("0")) <= 3 for tick in ticks)


def body(picture):
    """The lines between the legend and the axis, from right of the labels on; the column where they begin."""
    lines = picture.split("\n")
    margin = lines[-2].index("└") + 1
    return [line[margin:].ljust(len(lines[-2]) - margin) for line in lines[1:-2]], margin


def test_the_terminals_picture_has_the_curve_its_restarts_its_peaks_and_round_ticks():
    schedule = CosineRestartSchedule(T_0=100, decay=0.5)
    picture = terminal_picture(schedule, 300, base_lr=3e-4, width=66, height=18)
    lines = picture.split("\n")
    assert lines[0] == "learning rate  ┊ restart"
    assert {line.split("┤")[0].strip() for line in lines if "┤" in line} == {"0", "1e-4", "2e-4", "3e-4"}
    assert lines[-1].split() == ["0", "50", "100", "150", "200", "250", "300"]
    for peak in ("3e-4", "1.5e-4", "7.5e-5"):
        assert any(f" {peak}" in line for line in lines[1:-2])
    # Column by column, the highest dot is as high as the schedule.
    cells, _ = body(picture)
    for column in range(5, 60, 6):
        filled = [row for row, line in enumerate(cells) if "\u2800" < line[column] < "\u2900"]
        rates = schedule.curve(np.linspace(column, column + 1, 9) / 60 * 300, 3e-4)
        assert abs(1 + (len(cells) - 1) * (1 - rates.max() / 3e-4) - filled[0]) < 2


@given(
    lengths=st.lists(st.integers(500, 4000), min_size=2, max_size=3),
    width=st.integers(40, 120),
    yscale=st.sampled_from(["linear", "log"]),
)
@settings(max_examples=50)
def test_the_mark_of_a_restart_stands_on_the_jump(lengths, width, yscale):
    schedule = CosineRestartSchedule(cycles=lengths)
    cells, _ = body(terminal_picture(schedule, schedule.end, width=width, height=24, yscale=yscale))
    marks = [column for column, cell in enumerate(cells[0]) if cell == "┊"]
    assert len(marks) == len(lengths) - 1
    # Below the mark the jump fills the left or the right half of each character.
    for column in marks:
        dots = [ord(line[column]) - 0x2800 for line in cells[10:-1]]
        assert any(all(code > 0 and code & half == half for code in dots) for half in (0b01000111, 0b10111000))


def test_listed_cycles_have_their_marks_on_the_jumps_at_80_columns():
    schedule = CosineRestartSchedule(cycles=[1000, 2000, [4000, 0.5]])
    cells, _ = body(terminal_picture(schedule, 7000, width=80))
    marks = [column for column, cell in enumerate(cells[0]) if cell == "┊"]
    assert len(marks) == 2
    for column in marks:
        assert "\u2800" < cells[-2][column] < "\u2900"


def test_logged_learning_rates_are_crosses_in_the_terminals_picture_and_the_legend_says_so():
    picture = terminal_picture(SCHEDULE, 320, logged=([50, 319], [0.5, 0.9]))
    legend, *lines = picture.split("\n")
    assert legend == "learning rate  ┊ restart  x logged"
    assert "\n".join(lines).count("x") == 2


def test_the_terminals_log_scale_has_powers_of_ten_and_equal_heights_for_equal_factors():
    schedule = CosineRestartSchedule(T_0=1000, decay=0.1, num_cycles=3, eta_min=1e-6)
    picture = terminal_picture(schedule, 3000, base_lr=1e-3, yscale="log", width=80, height=28)
    lines = picture.split("\n")
    rows = {line.split("┤")[0].strip(): row for row, line in enumerate(lines) if "┤" in line}
    assert [*rows] == ["1e-3", "1e-4", "1e-5", "1e-6"]
    assert np.ptp(np.diff([*rows.values()])) <= 1  # rounded to whole lines
    for peak in ("1e-3", "1e-4", "1e-5"):
        assert f" {peak}" in lines[rows[peak] - 1]


@given(
    T_0=st.integers(1, 10**12),
    num_steps=st.integers(1, 10**15),
    eta_min=st.floats(0, 1e-2),
    width=st.integers(1, 200),
    height=st.integers(1, 50),
    yscale=st.sampled_from(["linear", "log"]),
)
@settings(max_examples=25)
def test_any_schedule_fits_any_terminal(T_0, num_steps, eta_min, width, height, yscale):
    schedule = CosineRestartSchedule(
        T_0, warmup_steps=T_0 // 3, warmup_mode="every_cycle", stable_ratio=0.3, eta_min=eta_min
    )
    picture = terminal_picture(schedule, num_steps, 1e-3, yscale=yscale, width=width, height=height).split("\n")
    assert len(picture) == max(5, height)
    assert max(map(len, picture)) <= width
