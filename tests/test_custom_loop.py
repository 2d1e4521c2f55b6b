"""The plain loop: it runs, it shows its cycles, and it stays short."""

from __future__ import annotations

import re
import runpy

import pytest
from example_runs import EXAMPLES, Run

from hf_warmcos import CosineRestartSchedule


def run_custom_loop() -> None:
    runpy.run_path(str(EXAMPLES / "custom_loop.py"), run_name="__main__")


@pytest.mark.slow
@pytest.mark.needs("datasets")
def test_the_loop_learns_and_evaluates_at_the_end_of_each_of_its_three_cycles(tmp_path):
    output = Run(tmp_path / "log", entry=run_custom_loop).succeed()
    ends = [int(step) for step in re.findall(r"end of a cycle at step (\d+)", output)]
    assert ends == [14, 29, 60]
    held_out = [float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", output)]
    assert held_out[2] < held_out[0] < 4, "an untrained model has log(256) = 5.5"
    rates = [float(rate) for rate in re.findall(r"learning rate (\S+)", output)]
    schedule = CosineRestartSchedule.fit(60, 3, T_mult=2, stable_ratio=0.8, warmup_steps=6)
    assert rates == [pytest.approx(schedule.lr_at(step - 1, 2e-3), rel=1e-2) for step in range(10, 61, 10)]


def test_the_loop_has_fewer_than_60_lines():
    assert len((EXAMPLES / "custom_loop.py").read_text().splitlines()) < 60
