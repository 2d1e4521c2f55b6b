"""The second study: that nobody gets more updates than another, and that what is trained once is as if trained anew."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from example_runs import Run, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality.moving_end import (
    FIRST,
    OTHER_DATA,
    SAME_DATA,
    THEN,
    Budget,
    Contender,
    Runs,
    Stage,
    Study,
    paths,
    rates,
)
from benchmarks.quality.tasks import load_images, turned
from benchmarks.quality.training import Records

ROOT = Path(__file__).resolve().parent.parent
N, WARMUP = 160, 10
TINY = Budget(8, tuning_seeds=(100,), seeds=(0,), num_peak_lrs=1, max_grid_extensions=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kinds():
    images = load_images()
    return [images, turned(images)]


@pytest.fixture(scope="module")
def slice_of_the_study(kinds, tmp_path_factory):
    """All contenders on a plan of a few updates: the curves by scenario and contender."""
    path = tmp_path_factory.mktemp("study") / "moving_end.jsonl"
    Study(Records(path), kinds, TINY, lambda: None).measure(0, FIRST + THEN)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {(record["run"]["scenario"], Contender(**record["run"]["contender"])): record["curve"] for record in records}


def stages_in_time(contender: Contender, ends: list[int], other_data: bool) -> list[Stage]:
    """What is trained, without what is trained already."""
    seen, stages = set(), []
    for path in paths(contender, ends, WARMUP, other_data):
        for length in range(1, len(path) + 1):
            if path[:length] not in seen:
                seen.add(path[:length])
                stages.append(path[length - 1])
    return stages


@pytest.mark.parametrize("contender", SAME_DATA, ids=repr)
def test_every_contender_has_a_model_at_each_end_and_no_update_more(contender):
    ends = [N, 2 * N, 4 * N]
    total = N * contender.plan if contender.name in ("cosine", "linear") else 4 * N
    stages = stages_in_time(contender, ends, other_data=False)
    assert sum(len(stage.shares) for stage in stages) == total
    time, evaluated = 0, []
    for stage in stages:
        evaluated += [time + stop for stop in stage.stops]
        time += len(stage.shares)
    assert evaluated == list(range(N // 2, total + 1, N // 2))


@pytest.mark.parametrize("contender", OTHER_DATA, ids=repr)
def test_every_contender_has_the_same_number_of_updates_on_each_kind_of_data(contender):
    stages = stages_in_time(contender, [N, 2 * N], other_data=True)
    assert [sum(len(stage.shares) for stage in stages if stage.data == kind) for kind in (0, 1)] == [N, N]


def test_all_contenders_but_the_one_whose_optimizer_does_it_warm_up_in_the_same_way():
    for contender in {*SAME_DATA, *OTHER_DATA} - {Contender("schedule_free")}:
        shares = rates(contender, [N, 2 * N], WARMUP)
        assert shares[: WARMUP + 1] == pytest.approx([step / WARMUP for step in range(WARMUP + 1)])
        assert max(shares) <= 1


def test_a_cooldown_is_left_behind_and_shortens_the_trunk():
    first, second, third = paths(Contender("wsd"), [N, 2 * N, 4 * N], WARMUP, other_data=False)
    assert [len(stage.shares) for stage in first] == [128, 32]
    for before, after in pairwise((first, second, third)):
        assert after[: len(before) - 1] == before[:-1]  # the trunk goes on from where the cooldown began
    trunk, cooldown = third[:-1], third[-1]
    assert len(cooldown.shares) == round(0.2 * (4 * N - 32 - len(second[-1].shares)))
    assert {share for stage in trunk for share in stage.shares[WARMUP:]} == {1.0}
    assert cooldown.shares[0] == 1
    assert cooldown.shares[-1] < 0.01


def test_what_is_trained_in_pieces_and_branched_is_what_is_trained_in_one_go(kinds):
    shares = [1.0, 0.5, 0.75, 0.25]
    whole = Runs(kinds, 0, 1).train((Stage(tuple(shares), 0, (4,)),), False, 2e-3, ["test"])
    runs = Runs(kinds, 0, 1)
    start = Stage(tuple(shares[:2]), 0, ())
    runs.train((start, Stage((1.0, 1.0), 1, (2,))), False, 2e-3, ["test"])  # another branch first
    branch = runs.train((start, Stage(tuple(shares[2:]), 0, (2,))), False, 2e-3, ["test"])
    assert branch[2] == whole[4]


def test_a_look_at_schedule_free_weights_does_not_change_how_they_are_trained(kinds):
    path = lambda stops: (Stage((1.0,) * 6, 0, stops),)  # noqa: E731
    often = Runs(kinds, 0, 2).train(path((1, 2, 3, 6)), True, 2e-3, ["test"])
    once = Runs(kinds, 0, 2).train(path((6,)), True, 2e-3, ["test"])
    assert often[6] == once[6]


def test_a_fresh_optimizer_forgets_its_moments_and_nothing_else(kinds):
    start = Stage((1.0,) * 4, 0, ())
    kept, fresh, still = (
        Runs(kinds, 0, 1).train((start, stage), False, 2e-3, ["test"])[1]
        for stage in (Stage((1.0,), 0, (1,)), Stage((1.0,), 0, (1,), True), Stage((0.0,), 0, (1,), True))
    )
    assert kept != fresh
    assert still == Runs(kinds, 0, 1).train((start._replace(stops=(4,)),), False, 2e-3, ["test"])[4]


def test_the_slice_has_every_contender_in_both_scenarios(slice_of_the_study):
    for scenario, contenders in (("same data", SAME_DATA), ("other data", OTHER_DATA)):
        assert {contender for of, contender in slice_of_the_study if of == scenario} == set(contenders)
    ends = {max(map(int, curve)) for (scenario, _), curve in slice_of_the_study.items() if scenario == "other data"}
    assert ends == {16}


def test_contenders_are_the_same_as_long_as_their_rates_are(slice_of_the_study):
    def at(updates: int, contender: Contender, scenario: str = "same data") -> dict:
        return slice_of_the_study[scenario, contender][str(updates)]

    knew = at(8, Contender("cosine"))
    for decay in (1.0, 0.5):
        assert at(8, Contender("restarts", decay=decay)) == knew
    assert at(16, Contender("restarts", decay=0.5)) != at(16, Contender("restarts"))
    assert at(4, Contender("wsd")) == at(4, Contender("constant"))
    assert at(8, Contender("wsd")) != at(8, Contender("constant"))


def test_the_old_data_is_evaluated_beside_the_new(slice_of_the_study):
    curve = slice_of_the_study["other data", Contender("restarts")]
    assert set(curve["8"]) == {"digits, validation", "digits, test"}
    assert set(curve["16"]) == {
        f"{kind}, {on}" for kind in ("digits", "digits, turned") for on in ("validation", "test")
    }


def test_every_rate_is_tuned_on_seeds_that_the_results_do_not_use():
    budget = Budget()
    assert len(budget.seeds) >= 8
    assert not set(budget.seeds) & set(budget.tuning_seeds)


def run_study(arguments: list[str]) -> None:
    """`python -m benchmarks.quality.moving_end`, in a process that has been started for it."""
    sys.path.insert(0, str(ROOT))
    sys.argv = ["moving_end", *arguments]
    runpy.run_module("benchmarks.quality.moving_end", run_name="__main__")


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_killed(tmp_path):
    path = tmp_path / "runs.jsonl"

    def lines_after_kill(num_lines: int) -> list[str]:
        """Run the command until it has written so many lines, and kill it."""
        run = Run(tmp_path / "log", ["--quick", "--task=digits", f"--output={path}"], entry=run_study)
        wait_until(lambda: path.exists() and path.read_text().count("\n") >= num_lines)
        assert run.process.exitcode is None, run.output
        run.kill()
        text = path.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    before = lines_after_kill(2)
    after = lines_after_kill(len(before) + 2)
    assert after[: len(before)] == before
    keys = [json.dumps(json.loads(line)["run"]) for line in after]
    assert len(set(keys)) == len(keys)
