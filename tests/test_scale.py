"""The cost of scheduling by number of processes: the benchmark runs, and shows what it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_counting_updates_costs_the_same_on_any_number_of_processes_and_stepping_per_process_does_not(tmp_path):
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--quick", "--output", tmp_path], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "scale.json").read_text())
    for num_groups in ("2", "200"):
        costs = record["num_groups"][num_groups]
        assert list(costs) == ["1", "8", "64", "512", "4096", "16384"]
        prepared, counted = (
            {processes: cost[name]["median"] for processes, cost in costs.items()}
            for name in ("as accelerator.prepare returns it", "with count_optimizer_steps")
        )
        # The true ratio is in the thousands: what a busy machine does to a single time does not come near.
        assert prepared["16384"] > 100 * counted["16384"]
        assert prepared["16384"] > 100 * prepared["1"]
    assert "| 16,384 |" in run.stdout
