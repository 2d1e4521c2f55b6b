"""The timing benchmarks run, and what they print and write is whole; figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from work import HANGS_AFTER

from benchmarks.speed.timing import Bar, argument_parser, finish, interleave

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("step_cost", "curve")
VERDICTS = {"PASS", "FAIL", "NOT MEASURED"}


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory):
    """What each benchmark prints and writes under `--quick`, by its name; all of them run at once."""
    output = tmp_path_factory.mktemp("benchmarks")
    runs = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.speed.{name}", "--quick", "--output", output],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in NAMES
    }
    finished = {}
    for name, run in runs.items():
        printed, errors = run.communicate(timeout=HANGS_AFTER)
        assert run.returncode == 0, errors
        finished[name] = (printed, json.loads((output / f"{name}.json").read_text()))
    return finished


def table_of(printed: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_names_the_machine_and_the_versions(quick_runs, name):
    printed, record = quick_runs[name]
    surroundings = record["surroundings"]
    assert surroundings["cpu"]
    assert surroundings["cores"] >= 1
    assert {"hf_warmcos", "torch"} <= surroundings["versions"].keys()
    for figure in (surroundings["cpu"], surroundings["python"], *surroundings["versions"]):
        assert figure in printed


@pytest.mark.slow
def test_step_cost_has_each_contender_in_each_table_with_a_time_or_its_reason(quick_runs):
    printed, record = quick_runs["step_cost"]
    for part, title in (("update", "An update"), ("num_groups", "`step()` alone:"), ("tensor_rates", "are tensors:")):
        table = table_of(printed.split(title)[1].split("\n\n")[1])
        assert set(record[part]) == {"1", "2", "50", "1000"}
        measured = set(record[part]["1"])
        assert {"hf_warmcos", "torch CosineAnnealingWarmRestarts"} <= measured <= set(table)
        for name in table.keys() - {"1 group", "---"}:
            assert len(table[name]) == 4
            if name not in measured:
                assert set(table[name]) == {"not available"}
                assert record["unavailable"][name] in printed
        for of in record[part].values():
            assert all(0 < t["lower_quartile"] <= t["median"] <= t["upper_quartile"] for t in of.values())


@pytest.mark.slow
def test_step_cost_compares_each_ratio_of_medians_with_its_bar(quick_runs):
    printed, record = quick_runs["step_cost"]
    bars = {bar["name"]: bar for bar in record["bars"]}
    assert len(bars) == 4 + 5 * 4 + 4 + 4
    for part, kind, peer in (
        ("update", "update", "torch CosineAnnealingWarmRestarts"),
        ("num_groups", "step()", "torch CosineAnnealingWarmRestarts"),
        ("tensor_rates", "step(), tensors", "bare loop"),
    ):
        for num_groups, of in record[part].items():
            bar = bars[f"{kind}: hf_warmcos over {peer}, {num_groups} group{'s' if num_groups != '1' else ''}"]
            assert bar["value"] == of["hf_warmcos"]["median"] / of[peer]["median"]
            assert bar["holds"] == (bar["value"] <= bar["limit"])
    verdicts = [line.split(":")[0] for line in printed.splitlines() if line.split(":")[0] in VERDICTS]
    assert len(verdicts) == len(bars)
    assert verdicts.count("PASS") == sum(bar["holds"] for bar in bars.values())


@pytest.mark.slow
def test_curve_compares_with_stepping_torch_and_near_with_far(quick_runs):
    printed, record = quick_runs["curve"]
    assert {"T_0=10,000", "T_0=100"} < set(record["curves"]) < set(table_of(printed))
    assert set(record["access"]) == {"lr_at", "lr_at, T_mult=2", "cycle_at", "step(epoch)"} < set(table_of(printed))
    assert all(of["near"]["median"] > 0 and of["far"]["median"] > 0 for of in record["access"].values())
    assert [bar["limit"] for bar in record["bars"]] == [20, 20, 100, 100, 100, 100]


def test_a_missed_bar_fails_the_command_only_where_it_was_asked_to_check(capsys):
    bars = [Bar("ratio", 0.5, "<=", 0.45), Bar("times as fast", 60, ">=", 50), Bar("of a peer", None, "<=", 0.6)]
    finish(argument_parser("").parse_args([]), "name", {}, bars)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "FAIL: ratio: 0.5 (bar: <= 0.45)",
        "PASS: times as fast: 60 (bar: >= 50)",
        "NOT MEASURED: of a peer: (bar: <= 0.6)",
    ]
    checking = argument_parser("").parse_args(["--check"])
    finish(checking, "name", {}, bars[1:2])
    for missed in (bars[0], bars[2]):
        with pytest.raises(SystemExit, match="1"):
            finish(checking, "name", {}, [missed])


def test_contenders_are_timed_in_interleaved_rounds():
    calls = []
    contenders = {name: lambda count, name=name: calls.append((name, count)) for name in ("a", "b", "c")}
    timings = interleave(contenders, rounds=20, calls=7)
    rounds = [calls[start : start + 3] for start in range(0, 60, 3)]
    assert all(sorted(of_round) == [("a", 7), ("b", 7), ("c", 7)] for of_round in rounds)
    assert len({tuple(of_round) for of_round in rounds}) > 1
    assert all(timing.lower_quartile <= timing.median <= timing.upper_quartile for timing in timings.values())
