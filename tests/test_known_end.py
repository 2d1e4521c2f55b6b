"""The first study: that the comparison is fair, and that it can be repeated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import known_end
from benchmarks.quality.known_end import Budget, Run, Setting, ensembles
from benchmarks.quality.tasks import load_images
from benchmarks.quality.training import batches, loss_and_accuracy

BUDGET = Budget()


@pytest.fixture(scope="module")
def digits():
    return load_images()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rates(setting: Setting) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = setting.make_scheduler(optimizer)
    values = []
    for _ in range(setting.num_training_steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


class TestSettings:
    SETTINGS = known_end.settings(BUDGET.num_training_steps)

    def test_all_schedules_are_there_and_none_twice(self):
        assert len(set(self.SETTINGS)) == len(self.SETTINGS)
        schedules = {setting.schedule for setting in self.SETTINGS}
        assert schedules == {"constant", "linear", "cosine", "cosine_with_restarts", "torch", "hf_warmcos"}
        own = {(s.decay, s.T_mult, bool(s.num_warmup_steps)) for s in self.SETTINGS if s.schedule == "hf_warmcos"}
        assert own == {(d, m, w) for d in (1, 0.75, 0.5) for m in (1, 2) for w in (False, True)}

    @pytest.mark.parametrize("budget_factor", [1, 3])
    def test_every_setting_has_the_same_budget(self, budget_factor):
        settings = known_end.settings(BUDGET.num_training_steps, budget_factor)
        budgets = {setting.num_training_steps * setting.num_separate_runs for setting in settings}
        assert budgets == {BUDGET.num_training_steps * budget_factor}

    def test_all_schedules_with_warmup_have_the_same_rates_in_it(self):
        warm = [s for s in self.SETTINGS if s.num_warmup_steps and s.num_separate_runs == 1]
        (num_warmup_steps,) = {setting.num_warmup_steps for setting in warm}
        expected = [step / num_warmup_steps for step in range(num_warmup_steps + 1)]
        for setting in warm:
            assert rates(setting)[: num_warmup_steps + 1] == pytest.approx(expected)

    @pytest.mark.parametrize("setting", SETTINGS, ids=repr)
    def test_cycles_end_where_the_scheduler_restarts(self, setting):
        values = rates(setting)
        rises = [step for step in range(setting.num_warmup_steps + 1, len(values)) if values[step] > values[step - 1]]
        assert setting.cycle_ends() == [*rises, setting.num_training_steps]


class TestTraining:
    SETTING = Setting("hf_warmcos", 40, num_cycles=2)

    def measure(self, task, setting=SETTING, seed=0):
        return known_end.measure(task, Run(task.name, setting, 2e-3, seed, "test"), num_evaluations=4)

    def test_a_seed_gives_the_same_numbers_again_and_another_seed_others(self, digits, one_thread):
        assert self.measure(digits) == self.measure(digits)
        assert self.measure(digits) != self.measure(digits, seed=1)

    def test_equal_schedules_give_equal_numbers(self, digits, one_thread):
        assert self.measure(digits) == self.measure(digits, Setting("torch", 40, num_cycles=2))

    def test_the_loss_falls(self, digits, one_thread):
        curve = self.measure(digits)["curve"]
        assert sorted(curve) == [10, 20, 30, 40]
        assert curve[40]["loss"] < curve[10]["loss"]

    def test_separate_runs_are_an_ensemble_of_differently_seeded_models(self, digits, one_thread):
        measured = self.measure(digits, Setting("cosine", 20, num_separate_runs=2))
        first, second = measured["members"]
        assert first != second
        assert measured["ensembles"][1] == second
        alone = self.measure(digits, Setting("cosine", 20))
        assert alone["members"] == [first]

    def test_batches_go_through_all_rows_in_an_order_that_the_seed_decides(self):
        def first_batches(seed: int) -> list[list[int]]:
            drawn = batches(10, 3, seed)
            return [next(drawn).tolist() for _ in range(6)]

        first = first_batches(0)
        assert first == first_batches(0)
        assert first != first_batches(1)
        for epoch in (first[:3], first[3:]):
            rows = [row for batch in epoch for row in batch]
            assert len(set(rows)) == len(rows) == 9
            assert set(rows) <= set(range(10))

    def test_an_ensemble_averages_probabilities(self):
        torch.manual_seed(0)
        members = [torch.randn(50, 7).log_softmax(-1) for _ in range(3)]
        labels = torch.randint(7, (50,))
        found = ensembles(members, labels)
        for size in (1, 2, 3):
            mean = torch.stack(members[-size:]).exp().mean(0)
            assert found[size]["loss"] == pytest.approx(-mean[range(50), labels].log().mean().item(), rel=1e-5)
            assert found[size]["accuracy"] == (mean.argmax(-1) == labels).double().mean().item()

    def test_a_diverged_loss_is_written_as_null(self):
        measured = loss_and_accuracy(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.long))
        assert measured["loss"] is None


class TestResuming:
    def test_only_a_run_whose_line_was_cut_off_is_made_again(self, digits, tmp_path, one_thread):
        path = tmp_path / "known_end.jsonl"
        runs = [Run("digits", Setting("cosine", 4), 1e-3, seed, "test") for seed in (0, 1)]
        results = known_end.Results(path, [digits], num_evaluations=2)
        made = [results.of(run) for run in runs]
        whole = path.read_text()
        assert len(whole.splitlines()) == 2
        path.write_text(whole[:-30])

        resumed = known_end.Results(path, [digits], num_evaluations=2)
        assert len(resumed.records.known) == 1
        assert resumed.of(runs[0]) == made[0]
        assert path.read_text() == whole.splitlines()[0] + "\n"
        again = resumed.of(runs[1])
        assert {**again, "seconds": 0} == {**made[1], "seconds": 0}
        assert len(path.read_text().splitlines()) == 2
