"""The studies of how models train: a few updates of each, so that the commands can be run again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import known_end, moving_end, weight_averages
from benchmarks.quality.tasks import Split, load_images, turned
from benchmarks.quality.training import Records


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    """The digits, with few images to evaluate on."""
    task = load_images()
    few = {name: Split(*(tensor[:50] for tensor in getattr(task, name))) for name in ("validation", "test")}
    return replace(task, **few)


def lines_of(path):
    return [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]


def test_study_1_measures_each_schedule_at_the_same_budget_and_continues_where_it_was_stopped(tmp_path, images):
    path = tmp_path / "known_end.jsonl"
    budget = replace(known_end.QUICK, num_training_steps=12, seeds=(0,), num_peak_lrs=1)
    known_end.measure_all([images], budget, path)
    whole = lines_of(path)
    tests = [line for line in whole if line["run"]["split"] == "test"]
    settings = [known_end.Setting(**line["run"]["setting"]) for line in tests]
    assert settings == known_end.settings(12)
    assert {setting.num_training_steps * setting.num_separate_runs for setting in settings} == {12}
    by_schedule = {
        setting.schedule: line["curve"]
        for setting, line in zip(settings, tests)
        if not setting.num_warmup_steps and setting.decay == setting.T_mult == setting.num_separate_runs == 1
    }
    assert by_schedule["hf_warmcos"] == by_schedule["cosine_with_restarts"] == by_schedule["torch"]
    assert by_schedule["hf_warmcos"] != by_schedule["cosine"] != by_schedule["linear"]

    path.write_text("\n".join(path.read_text().splitlines())[:-30])  # stopped while it wrote the last line
    known_end.measure_all([images], budget, path)
    assert lines_of(path) == whole


def test_study_2_gives_each_contender_the_same_number_of_updates_on_each_kind_of_data(tmp_path, images):
    path = tmp_path / "moving_end.jsonl"
    budget = replace(moving_end.QUICK, num_updates=8, seeds=(0,))
    runs = moving_end.FIRST + moving_end.THEN
    moving_end.Study(Records(path), [images, turned(images)], budget, lambda: None).measure(0, runs)
    curves = {
        (line["run"]["scenario"], moving_end.Contender(**line["run"]["contender"])): line["curve"]
        for line in lines_of(path)
        if line["run"]["scenario"] != "tuning"
    }
    assert set(curves) == set(runs)
    for (scenario, contender), curve in curves.items():
        end = 8 * contender.plan if contender.name in ("cosine", "linear") else 32 if scenario == "same data" else 16
        assert [*map(int, curve)] == [*range(4, end + 1, 4)]
    # The same up to N, since the schedules are; the new data is then measured beside the old.
    cosine, restart = (curves["same data", moving_end.Contender(name)] for name in ("cosine", "restarts"))
    assert restart["8"] == cosine["8"]
    assert len(curves["other data", moving_end.Contender("restarts")]["16"]) == 4


def test_averages_of_one_checkpoint_are_the_checkpoint(images):
    setting = known_end.Setting("hf_warmcos", 8, num_warmup_steps=1, num_cycles=3, T_mult=2)
    measured = weight_averages.measure(images, known_end.Run("digits", setting, 2e-3, 0, "test"))
    assert set(measured["weights"]) == set(measured["predictions"]) == {1, 2, 3}
    assert measured["weights"][1]["loss"] == pytest.approx(measured["predictions"][1]["loss"])
    assert measured["weights"][3]["loss"] != pytest.approx(measured["predictions"][3]["loss"])


@pytest.mark.parametrize("budget", [known_end.Budget(), moving_end.Budget()])
def test_learning_rates_are_tuned_with_other_seeds_than_the_results(budget):
    assert len(budget.seeds) >= 8
    assert not set(budget.seeds) & set(budget.tuning_seeds)
