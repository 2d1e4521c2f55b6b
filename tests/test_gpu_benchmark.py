"""The benchmark for a GPU runs to its end without one, and its page says what was not run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed import gpu

ROOT = Path(__file__).resolve().parent.parent


def test_it_runs_to_its_end_with_a_tiny_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick", "--output", str(tmp_path)])
    gpu.main()
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert gpu.tables(record) in capsys.readouterr().out
    assert len(record["updates"]) == 4
    assert all(0 < of["share"] < 1 for of in record["updates"].values())
    assert {name: [*of] for name, of in record["launches"].items()} == {gpu.OURS: ["1", "2"], gpu.TORCH: ["1", "2"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_measures_nothing_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    gpu.main()
    assert "Not run: there is no GPU here." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_page_has_the_figures_of_the_results_or_says_that_there_are_none():
    results = ROOT / "benchmarks" / "results" / "gpu.json"
    record = json.loads(results.read_text()) if results.exists() else None
    assert gpu.tables(record) in (ROOT / "benchmarks" / "speed" / "README.md").read_text()
