"""The studies of how models train: a few updates of each, so that the commands can be run again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import fine_tuning, further, known_end, moving_end, report
from benchmarks.quality.report import Estimate
from benchmarks.quality.results import pack, packed, read_lines
from benchmarks.quality.tasks import InBfloat16, Split, load_images, text_task, turned
from benchmarks.quality.training import Budget, Records, Study, estimated_hours, measure_all
from hf_warmcos import CosineRestartSchedule


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
    return [{**json.loads(line), "seconds": 0} for line in read_lines(path)]


def test_packed_runs_come_first_are_not_made_again_and_give_the_same_bytes_each_time(tmp_path):
    path = tmp_path / "results.jsonl"
    for index in range(6):
        Records(path).of({"seed": index}, lambda index=index: {"loss": index})
        assert [line["loss"] for line in lines_of(path)] == [*range(index + 1)]
        if index % 2:
            pack(path)
            assert not path.exists()
            pack(path)
    before = packed(path).read_bytes()
    path.write_text('{"run": {"seed": 6}, "lo')  # the half line of a kill
    assert Records(path).of({"seed": 5}, lambda: pytest.fail("made again"))["loss"] == 5
    pack(path)
    assert packed(path).read_bytes() == before
    with pytest.raises(FileNotFoundError):
        read_lines(tmp_path / "none.jsonl")


def test_study_1_measures_each_schedule_at_the_same_budget_and_continues_where_it_was_stopped(tmp_path, images):
    path = tmp_path / "known_end.jsonl"
    budget = replace(known_end.QUICK, num_updates=12, seeds=(0,), num_peak_lrs=1)
    measure_all([known_end.rows([images], budget, path)])
    whole = lines_of(path)
    tests = [line for line in whole if line["run"]["scenario"] == "test"]
    settings = [known_end.Setting(**line["run"]["contender"]) for line in tests]
    assert settings == known_end.settings(12)
    assert {setting.num_training_steps for setting in settings} == {12}
    by_schedule = {
        setting.name: [*line["curve"].values()][-1]
        for setting, line in zip(settings, tests)
        if not setting.num_warmup_steps and setting.decay == setting.T_mult == 1
    }
    assert by_schedule["hf_warmcos"] == by_schedule["cosine_with_restarts"] == by_schedule["torch"]
    assert by_schedule["hf_warmcos"] != by_schedule["cosine"] != by_schedule["linear"]

    path.write_text("\n".join(path.read_text().splitlines())[:-30])  # stopped while it wrote the last line
    measure_all([known_end.rows([images], budget, path)])
    assert lines_of(path) == whole


def test_study_2_gives_each_contender_the_same_number_of_updates_on_each_kind_of_data(tmp_path, images):
    path = tmp_path / "moving_end.jsonl"
    budget = replace(moving_end.QUICK, num_updates=8, seeds=(0,))
    runs = moving_end.FIRST + moving_end.THEN
    study = Study(Records(path), [images, turned(images)], budget, moving_end.planned_paths)
    measure_all([[(study, *run) for run in runs]])
    curves = {
        (line["run"]["scenario"], moving_end.Contender(**line["run"]["contender"])): line["curve"]
        for line in lines_of(path)
        if line["run"]["scenario"] != "tuning"
    }
    assert set(curves) == set(runs)
    for (scenario, contender), curve in curves.items():
        planned = contender.name in ("cosine", "growing_wsd_s")
        end = 8 * contender.plan if planned else 32 if scenario == "same data" else 16
        assert [*map(int, curve)] == [*range(4, end + 1, 4)]
    # The same up to N, since the schedules are; the new data is then measured beside the old.
    cosine, restart = (curves["same data", moving_end.Contender(name)] for name in ("cosine", "restarts"))
    assert restart["8"] == cosine["8"]
    assert len(curves["other data", moving_end.Contender("restarts")]["16"]) == 4


@pytest.fixture(scope="module")
def few_updates_of_study_3(tmp_path_factory):
    """Its rows, for any file of results, on a small text with other data, and the file of results."""
    kinds = [
        text_task(name, [f"{word} {number}" * 20 for number in range(20)], 4, further.QUICK_SIZE)
        for name, word in (("text", "a learning rate"), ("code", "return None"))
    ]
    path = tmp_path_factory.mktemp("further") / "further.jsonl"
    rows = partial(further.rows, kinds, further.QUICK_BUDGET, further.QUICK_SIZE)
    measure_all([rows(path)])
    return rows, path


def test_study_3_makes_any_one_run_again_to_the_printed_digits(few_updates_of_study_3, tmp_path):
    rows, path = few_updates_of_study_3
    lines, whole = path.read_text().splitlines(), lines_of(path)
    assert all({"model", "seed"} < {*line["run"]} and line["versions"] for line in whole)
    tuning, *_ = (index for index, line in enumerate(whole) if line["run"]["scenario"] == "tuning")
    for index in [tuning, *(index for index, line in enumerate(whole) if line["run"]["seed"] == 1)]:
        again = tmp_path / f"{index}.jsonl"
        again.write_text("".join(f"{line}\n" for line in lines[:index] + lines[index + 1 :]))
        measure_all([rows(again)])
        assert lines_of(again) == whole[:index] + whole[index + 1 :] + [whole[index]]


def test_two_processes_that_share_study_3_make_each_run_once(few_updates_of_study_3, tmp_path):
    rows, path = few_updates_of_study_3
    for half in (1, 2):
        measure_all([rows(tmp_path / f"{half}.jsonl", half)])
    both = lines_of(tmp_path / "1.jsonl") + lines_of(tmp_path / "2.jsonl")
    assert sorted(both, key=str) == sorted(lines_of(path), key=str)


def test_study_3_can_be_stopped_after_each_seed(few_updates_of_study_3):
    *_, path = few_updates_of_study_3
    runs = [line["run"] for line in lines_of(path) if line["run"]["scenario"] != "tuning"]
    rows = [(run["scenario"], moving_end.Contender(**run["contender"])) for run in runs]
    assert rows == [*further.ROWS, *further.ROWS]
    assert [run["seed"] for run in runs] == [0] * len(further.ROWS) + [1] * len(further.ROWS)


def test_study_3_says_for_each_decision_whether_it_held_by_pairs_of_seeds(few_updates_of_study_3):
    *_, path = few_updates_of_study_3
    frames = report.read(report.RAW) | {"further": report.moving_end(path)}
    rows = [row.split(" | ") for row in report.decision_table(frames).splitlines()[2:]]
    verdicts = {row[0].lstrip("| "): row[-1].rstrip(" |") for row in rows}
    not_measured = [what for what, verdict in verdicts.items() if verdict == "not measured"]
    assert [what.split()[0] for what in not_measured] == ["Schedule-Free"]

    losses, planned = report.same_data_losses(frames["further"], "text")
    interval = stats.ttest_rel(losses[4][report.RESTART], planned[4]).confidence_interval(0.95)
    difference = Estimate((interval.low + interval.high) / 2, (interval.high - interval.low) / 2).text(sign="+")
    of_restarts = next(verdict for what, verdict in verdicts.items() if what.startswith("**Continued on the same"))
    assert of_restarts in (f"yes, {difference}", f"no, {difference}")


def test_the_model_of_study_3_is_as_large_as_it_says():
    model = text_task("text", ["a text" * 100] * 20, 4, further.SIZE).make_model()
    assert 0.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6


def test_a_model_in_bfloat16_keeps_its_weights_in_float32():
    task = text_task("text", ["a text" * 100] * 20, 4, further.QUICK_SIZE)
    torch.manual_seed(0)
    model = InBfloat16(task.make_model())
    inputs = task.test.inputs
    logits, exact = task.logits(model, inputs), model.model(input_ids=inputs).logits.flatten(0, -2)
    assert {parameter.dtype for parameter in model.parameters()} == {logits.dtype} == {torch.float32}
    assert torch.equal(logits, logits.bfloat16().float())
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)


# A model with all that the pretrained one has, two layers of width 16, without its weights.
CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_labels=fine_tuning.NUM_TOPICS + 3,
)


def few_numbers(texts):
    """As many of the numbers 1 and 2 as the first two digits of a text say, then padding."""
    return torch.tensor(
        [[1] * int(text[0]) + [2] * int(text[1]) + [0] * (10 - int(text[0]) - int(text[1])) for text in texts]
    )


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """Study 4 with a tiny model and few updates: its kinds, its budget and the file of results."""
    torch.set_num_threads(1)

    def task(name, change, outputs):
        def make_model():
            model = BertForSequenceClassification(CONFIG)
            model.config.name_or_path = ""
            return InBfloat16(change(model), pad_token_id=0)

        labels = [number % 3 for number in range(80)]
        texts = [f"{1 + label}{1 + number % 4}" for number, label in enumerate(labels)]
        made = fine_tuning.make_task(name, ((texts, labels), (texts, labels)), few_numbers, outputs, make_model)
        return replace(made, peak_lrs=(1e-2,))

    def unchanged(model):
        return model

    kinds = {
        "full": [task("reviews", unchanged, (0, 3)), task("sections", unchanged, (3, None))],
        "LoRA": [task("reviews, LoRA", fine_tuning.with_lora, (0, 3))],
    }
    budget = replace(fine_tuning.QUICK_BUDGET, seeds=(0, 1))
    path = tmp_path_factory.mktemp("fine_tuning") / "fine_tuning.jsonl"
    measure_all(fine_tuning.blocks(kinds, budget, Records(path), {}))
    return kinds, budget, path


def test_study_4_evaluates_each_contender_three_times_and_the_last_time_at_the_end(fine_tuned):
    _, budget, path = fine_tuned
    for line in lines_of(path):
        run, times = line["run"], [*map(int, line["curve"])]
        if run["scenario"] == "fine-tuning":
            built_in = run["contender"]["name"] != "hf_warmcos"
            assert times == ([3, 6, 9] if built_in else [*fine_tuning.PLATEAU.evaluations(budget)])
            assert len(times) == 3
            assert times[-1] == 9
        elif run["scenario"] == "new data":
            assert times[-1] == 18
            assert {*line["curve"]["18"]} == {
                f"{kind}, {split}" for kind in ("reviews", "sections") for split in ("validation", "test")
            }


def test_study_4_makes_any_one_run_again_to_the_printed_digits_although_models_have_dropout(fine_tuned, tmp_path):
    kinds, budget, path = fine_tuned
    lines, whole = path.read_text().splitlines(), lines_of(path)
    # The last run on new data is made without those before it, whose first part it has.
    for index in (3, max(i for i, line in enumerate(whole) if line["run"]["scenario"] == "new data")):
        again = tmp_path / f"{index}.jsonl"
        again.write_text("".join(f"{line}\n" for line in lines[:index] + lines[index + 1 :]))
        measure_all(fine_tuning.blocks(kinds, budget, Records(again), {}))
        assert lines_of(again) == whole[:index] + whole[index + 1 :] + [whole[index]]


def test_the_tables_of_study_4_compare_seed_by_seed_and_leave_out_what_was_not_run(fine_tuned):
    *_, path = fine_tuned
    frame = report.fine_tuning(path)
    rows = [row.strip("| ").split(" | ") for row in report.fine_tuning_decisions(frame).splitlines()[2:]]
    assert len(rows) == 12
    assert {row[3] for row in rows if "new data" in row[0] or "old data" in row[0]} == {"not measured"}
    end = {
        (line["run"]["contender"]["name"], line["run"]["contender"]["stable_ratio"], line["run"]["seed"]): line["curve"]
        for line in lines_of(path)
        if line["run"]["task"] == "reviews"
        and line["run"]["scenario"] == "fine-tuning"
        and line["run"]["contender"]["decay"] == 1
    }
    plateau, linear = (
        [end[name, ratio, seed]["9"]["reviews, test"]["loss"] for seed in (0, 1)]
        for name, ratio in (("hf_warmcos", 0.8), ("linear", 0.0))
    )
    interval = stats.ttest_rel(plateau, linear).confidence_interval(0.95)
    expected = Estimate((interval.low + interval.high) / 2, (interval.high - interval.low) / 2)
    assert rows[0][2] == expected.text(sign="+")

    few = frame[(frame["seed"] == 0) | (frame["name"] == "`linear`")]
    assert report.fine_tuning_decisions(few) == report.NOT_YET


def test_the_best_checkpoint_of_study_4_is_chosen_on_the_validation_split(tmp_path):
    def losses(validation, test):
        return {
            f"reviews, {split}": {"loss": loss, "accuracy": 0.5}
            for split, loss in (("validation", validation), ("test", test))
        }

    run = {"task": "reviews", "scenario": "fine-tuning", "seed": 0, "contender": {"name": "linear"}}
    curve = {"30": losses(0.5, 0.7), "60": losses(0.4, 0.9), "90": losses(0.6, 0.8)}
    path = tmp_path / "fine_tuning.jsonl"
    path.write_text(json.dumps({"run": run, "curve": curve}) + "\n")
    frame = report.fine_tuning(path)
    assert [*frame["loss"]] == [0.8]
    assert [*frame["best loss"]] == [0.9]


def test_two_processes_that_share_study_4_make_each_run_once(fine_tuned):
    kinds, budget, path = fine_tuned
    both = [
        (row[0].kinds[0].name, *row[1:])
        for half in (1, 2)
        for block in fine_tuning.blocks(kinds, budget, Records(path), {}, half)
        for row in block
    ]
    whole = [
        (row[0].kinds[0].name, *row[1:])
        for block in fine_tuning.blocks(kinds, budget, Records(path), {})
        for row in block
    ]
    assert len(both) == len({*both})
    assert {*both} == {*whole}


def test_study_4_compares_what_the_trainer_of_transformers_makes(fine_tuned):
    budget = fine_tuning.BUDGET
    rates = {contender.name: contender.rates(budget) for contender in (fine_tuning.LINEAR, fine_tuning.WSD)}
    warmup, total = budget.num_warmup_steps, budget.num_updates
    falling = [1 - (step - warmup) / (total - warmup) for step in range(warmup, total)]
    assert rates["linear"] == pytest.approx([*(step / warmup for step in range(warmup)), *falling])
    one_cycle = CosineRestartSchedule.fit(total, warmup_steps=warmup, warmup_mode="prefix", stable_ratio=0.8)
    assert rates["warmup_stable_decay"] == pytest.approx(
        [one_cycle.lr_at(step, 1.0) for step in range(total)], abs=1e-12
    )


def test_the_cycle_on_new_data_has_its_own_peak_and_warmup():
    budget = fine_tuning.BUDGET
    full, half, _, warm_half = (contender.new_cycle(budget) for contender in fine_tuning.ON_NEW_DATA)
    assert half == pytest.approx([rate / 2 for rate in full])
    assert full[0] == max(full) == 1.0
    assert warm_half[0] == 0
    assert warm_half[budget.num_warmup_steps] == max(warm_half) == 0.5


def test_no_sentence_of_the_new_data_is_both_trained_on_and_tested_on():
    (train, train_labels), (test, test_labels) = fine_tuning.sentences(600)
    assert len(train) == 600
    assert not {*train} & {*test}
    assert len({*train, *test}) == len(train) + len(test)
    assert {*train_labels} == {*test_labels} == {*range(fine_tuning.NUM_TOPICS)}


def test_a_package_that_study_4_lacks_is_named():
    with pytest.raises(SystemExit, match="Expected the package 'no-such-package', but it is not installed: see bench"):
        fine_tuning.folder("no-such-package")


def test_a_study_says_how_long_it_takes(fine_tuned):
    kinds, budget, path = fine_tuned
    blocks = fine_tuning.blocks(kinds, budget, Records(path), {})
    assert 0 < estimated_hours(blocks[:1]) < estimated_hours(blocks) < 1


@pytest.mark.parametrize(
    ("budget", "least_seeds"),
    [
        (known_end.BUDGET, 8),
        (Budget(), 8),
        (further.BUDGET, 5),
        (fine_tuning.SCALES["cpu"].budget, 6),
        (fine_tuning.SCALES["gpu"].budget, 6),
    ],
)
def test_learning_rates_are_tuned_with_other_seeds_than_the_results(budget, least_seeds):
    assert len(budget.seeds) >= least_seeds
    assert not set(budget.seeds) & set(budget.tuning_seeds)
