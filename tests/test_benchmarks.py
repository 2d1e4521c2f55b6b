"""The timing benchmarks run, and what they print and write is whole; figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        printed, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
        finished[name] = (printed, json.loads((output / f"{name}.json").read_text()), output / f"{name}.png")
    return finished


def table_of(printed: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_names_the_machine_and_the_versions(quick_runs, name):
    printed, record, _ = quick_runs[name]
    surroundings = record["surroundings"]
    assert surroundings["cpu"]
    assert surroundings["cores"] >= 1
    assert {"hf_warmcos", "torch"} <= surroundings["versions"].keys()
    for figure in (surroundings["cpu"], surroundings["python"], *surroundings["versions"]):
        assert figure in printed


@pytest.mark.slow
def test_step_cost_has_each_contender_in_the_table_with_a_time_or_its_reason(quick_runs):
    printed, record, _ = quick_runs["step_cost"]
    table = table_of(printed.split("Rates are tensors")[0])
    assert set(record["num_groups"]) == {"1", "2", "50", "1000"}
    measured = set(record["num_groups"]["1"])
    assert {"hf_warmcos", "bare loop", "torch CosineAnnealingWarmRestarts"} <= measured
    assert len(measured) + len(record["unavailable"]) == 9
    for name in measured:
        for of in record["num_groups"].values():
            assert 0 < of[name]["lower_quartile"] <= of[name]["median"] <= of[name]["upper_quartile"]
        assert len(table[name]) == 4
    for name, reason in record["unavailable"].items():
        assert set(table[name]) == {"not available"}
        assert reason in printed


@pytest.mark.slow
def test_step_cost_has_tensor_rates_with_a_tensor_for_each_group_and_with_one_for_all(quick_runs):
    printed, record, _ = quick_runs["step_cost"]
    table = table_of(printed.split("Rates are tensors")[1])
    assert len(record["tensor_rates"]) == 5
    assert "1000 groups that share one tensor" in record["tensor_rates"]
    names = {"hf_warmcos", "bare loop"} | {name for name in table if name.startswith(("torch ", "transformers "))}
    assert len(names) == 4
    for of in record["tensor_rates"].values():
        assert set(of) == names
    assert all(len(table[name]) == 5 for name in names)


@pytest.mark.slow
def test_step_cost_holds_each_ratio_of_medians_against_its_bar(quick_runs):
    printed, record, _ = quick_runs["step_cost"]
    bars = {bar["name"]: bar for bar in record["bars"]}
    assert len(bars) == 4 * 4 + 3 * 4 + 4 + 1
    for kind, columns in (("", record["num_groups"].items()), (", tensor rates", record["tensor_rates"].items())):
        for column, of in columns:
            num_groups = f"{column.split()[0]} group{'s' if not column.startswith('1 ') and column != '1' else ''}"
            if "share" not in column:
                bar = bars[f"hf_warmcos over bare loop, {num_groups}{kind}"]
                assert bar["value"] == of["hf_warmcos"]["median"] / of["bare loop"]["median"]
                assert bar["holds"] == (bar["value"] <= bar["limit"])
    one, many = (record["shared_tensor"][counted]["median"] for counted in ("1 group", "1000 groups"))
    assert bars["hf_warmcos, 1000 groups that share one tensor over 1 group"]["value"] == many / one
    verdicts = [line.split(":")[0] for line in printed.splitlines() if line.split(":")[0] in VERDICTS]
    assert len(verdicts) == len(bars)
    assert verdicts.count("PASS") == sum(bar["holds"] for bar in bars.values())


@pytest.mark.slow
def test_curve_compares_with_stepping_torch_and_near_with_far(quick_runs):
    printed, record, _ = quick_runs["curve"]
    assert {"T_0=10,000", "T_0=100"} < set(record["curves"]) < set(table_of(printed))
    assert set(record["access"]) == {"lr_at", "lr_at, T_mult=2", "cycle_at", "step(epoch)"} < set(table_of(printed))
    assert all(of["near"]["median"] > 0 and of["far"]["median"] > 0 for of in record["access"].values())
    assert [bar["limit"] for bar in record["bars"]] == [20, 20, 20, 3, 3, 3, 3, 20]


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
