"""The main example, end to end: what it writes, how it resumes, and that many processes change no rate."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_runs import EXAMPLES, Run, make_text, make_tiny_model, read_metrics
from safetensors.torch import load_file

from hf_warmcos import CosineRestartSchedule

sys.path.insert(0, str(EXAMPLES))

from finetune_arguments import parse_arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Arguments of a run that takes a second, without --output_dir."""
    folder = tmp_path_factory.mktemp("small")
    model, text = make_tiny_model(folder / "model"), make_text(folder / "text.txt")
    return [f"--model_name_or_path={model}", f"--train_file={text}", "--block_size=16", "--max_train_steps=24",
            "--per_device_train_batch_size=4", "--num_warmup_steps=3", "--num_cycles=3", "--decay=0.75"]  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(small, tmp_path_factory):
    """The folder of a run left alone, with a checkpoint at each update."""
    output_dir = tmp_path_factory.mktemp("whole_run")
    Run(output_dir / "log", [*small, f"--output_dir={output_dir}", "--checkpointing_steps=1"]).succeed()
    return output_dir


def schedule_of_small_run() -> CosineRestartSchedule:
    return CosineRestartSchedule.fit(24, num_cycles=3, warmup_steps=3, decay=0.75)


def train(small: list[str], output_dir: Path, *options: str, num_processes: int = 1) -> str:
    arguments = [*small, f"--output_dir={output_dir}", *options]
    return Run(output_dir.parent / "log", arguments, num_processes=num_processes).succeed()


def folder_with(whole_run: Path, tmp_path: Path, *checkpoints: str) -> Path:
    """A folder with these checkpoints of the run and nothing else."""
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    for name in checkpoints:
        shutil.copytree(whole_run / name, output_dir / name)
    return output_dir


def assert_same_run(output_dir: Path, other: Path) -> None:
    assert read_metrics(output_dir) == read_metrics(other)
    weights, others = load_file(output_dir / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_offline_run_learns_the_language_reference(tmp_path):
    options = [f"--output_dir={tmp_path / 'run'}", "--max_train_steps=12", "--num_cycles=1", "--block_size=64"]
    Run(tmp_path / "log", options).succeed()
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["completed_steps"] == 12
    assert results["eval_loss"] < results["untrained_eval_loss"] - 0.5
    assert results["perplexity"] == pytest.approx(math.exp(results["eval_loss"]))


def test_the_metrics_hold_the_rate_that_each_update_used(whole_run):
    schedule, metrics = schedule_of_small_run(), read_metrics(whole_run)
    assert [line["step"] for line in metrics] == list(range(1, 25))
    assert [line["learning_rate"] for line in metrics] == [schedule.lr_at(step, 2e-3) for step in range(24)]
    assert [line["cycle"] for line in metrics] == [schedule.cycle_at(step).index for step in range(24)]


def test_held_out_perplexity_stands_at_the_end_of_each_cycle(whole_run):
    results = json.loads((whole_run / "all_results.json").read_text())
    assert [(result["cycle"], result["step"]) for result in results["cycles"]] == [(0, 10), (1, 17), (2, 24)]
    assert results["eval_loss"] == results["cycles"][-1]["eval_loss"] < results["untrained_eval_loss"]
    metrics = read_metrics(whole_run)
    assert results["train_loss"] == pytest.approx(sum(line["loss"] for line in metrics) / 24)


def test_the_model_the_tokenizer_and_the_picture_can_be_used(whole_run):
    from matplotlib.image import imread
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole_run), AutoTokenizer.from_pretrained(whole_run)
    assert model(**tokenizer("the quick", return_tensors="pt")).logits.isfinite().all()
    picture = imread(whole_run / "learning_rate.png")
    assert picture.shape[0] > 300
    assert len({tuple(pixel) for pixel in picture[::4, ::4].reshape(-1, picture.shape[2])}) > 10


@pytest.mark.parametrize("step", [1, 10, 13, 23])
def test_the_same_command_continues_a_run_to_the_same_bits(small, whole_run, tmp_path, step):
    """The folder of a checkpoint has all that a run needs."""
    output_dir = folder_with(whole_run, tmp_path, f"step_{step}")
    assert f"Continuing from {output_dir / f'step_{step}'}" in train(small, output_dir)
    assert_same_run(output_dir, whole_run)
    assert json.loads((output_dir / "all_results.json").read_text()) == json.loads(
        (whole_run / "all_results.json").read_text()
    )


def test_a_run_continues_from_the_checkpoint_with_the_most_updates_whatever_its_age(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path, "step_20", "step_9")
    os.utime(output_dir / "step_20", (0, 0))
    assert f"Continuing from {output_dir / 'step_20'}" in train(small, output_dir)


def test_a_run_that_has_ended_is_not_trained_again(small, whole_run, tmp_path):
    output_dir = shutil.copytree(whole_run, tmp_path / "run")
    weights = (output_dir / "step_24" / "model.safetensors").stat().st_mtime_ns
    assert f"Continuing from {output_dir / 'step_24'}" in train(small, output_dir)
    assert (output_dir / "step_24" / "model.safetensors").stat().st_mtime_ns == weights
    assert_same_run(output_dir, whole_run)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path)
    (output_dir / ".step_24.incomplete").mkdir()
    (output_dir / "metrics.jsonl").write_text('{"step": 1, "cyc')  # the half line of a kill
    assert f"Beginning a new run in {output_dir}" in train(small, output_dir)
    assert not list(output_dir.glob(".*incomplete"))
    assert_same_run(output_dir, whole_run)


def expect_one_line_error(run: Run, *expected: str) -> None:
    assert run.wait() == 2, run.output
    (error,) = [line for line in run.output.splitlines() if "error: " in line]
    for text in expected:
        assert text in error
    if run.num_processes == 1:
        assert "Traceback" not in run.output


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_second_start_in_the_same_folder_ends_with_one_line_and_leaves_the_first_alone(
    small, whole_run, tmp_path, num_processes
):
    from filelock import FileLock

    output_dir = folder_with(whole_run, tmp_path, "step_9")
    (output_dir / ".step_10.incomplete").mkdir()
    before = sorted(output_dir.rglob("*"))
    with FileLock(output_dir / ".lock"):
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"], num_processes=num_processes)
        assert run.wait() != 0
    (error,) = [line for line in run.output.splitlines() if "error: " in line]
    assert f"Another process is training in {output_dir}" in error
    assert sorted(path for path in output_dir.rglob("*") if path.name != ".lock") == before
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


def test_a_folder_that_cannot_be_written_is_named_in_one_line(small, whole_run, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    run = Run(tmp_path / "log", [*small, f"--output_dir={file / 'run'}"])
    expect_one_line_error(run, str(file))

    output_dir = folder_with(whole_run, tmp_path, "step_9")
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", output_dir]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no permission to mount a read-only folder")
    try:
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"])
        expect_one_line_error(run, "Read-only file system", str(output_dir))
    finally:
        subprocess.run(["umount", output_dir], check=True)
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


def test_a_folder_that_is_no_checkpoint_is_named_in_one_line(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path, "step_20")
    state = output_dir / "step_20" / "training_state.json"
    for content in ('{"global_step": 3}', '{"state"', None):
        state.unlink() if content is None else state.write_text(content)
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"])
        expect_one_line_error(run, f"Expected {state.parent} to be a checkpoint of this script")


def test_a_checkpoint_that_does_not_load_is_named_in_one_line(small, whole_run, tmp_path):
    """That of another model, and one whose file was cut off."""
    output_dir = folder_with(whole_run, tmp_path, "step_20")
    other_model = [f"--model_name_or_path={make_tiny_model(tmp_path / 'model', n_embd=32)}", *small[1:]]
    expected = f"Expected {output_dir / 'step_20'} to fit this model and optimizer"
    run = Run(tmp_path / "log", [*other_model, f"--output_dir={output_dir}"])
    expect_one_line_error(run, expected, "wte.weight", "[384, 16]", "[384, 32]")
    for name in ("model.safetensors", "optimizer.bin", "scheduler.bin"):
        path = output_dir / "step_20" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        expect_one_line_error(Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"]), expected)
        path.write_bytes(content)
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


def test_a_run_continues_from_the_end_of_an_epoch(small, tmp_path):
    """57 training lines make 199 blocks and so 13 updates of 4 blocks on 4 micro-batches each."""
    output_dir = tmp_path / "run"
    options = ["--checkpointing_steps=13", "--gradient_accumulation_steps=4"]
    train(small, output_dir, *options)
    position = json.loads((output_dir / "step_13" / "training_state.json").read_text())
    assert (position["epoch"], position["samples_seen"]) == (1, 0)
    other = tmp_path / "other"
    shutil.copytree(output_dir / "step_13", other / "step_13")
    train(small, other, *options)
    assert_same_run(other, output_dir)


def test_it_saves_at_the_end_of_each_cycle_and_every_so_many_updates(small, tmp_path):
    train(small, tmp_path / "run", "--checkpointing_steps=9")
    assert {path.name for path in (tmp_path / "run").glob("step_*")} == {
        f"step_{step}" for step in (9, 18, *schedule_of_small_run().restarts(24), 24)
    }


def test_gradient_accumulation_gives_the_updates_of_one_large_batch(small, tmp_path):
    """Without dropout the loss of an update is the mean over its samples, in one batch of 8 or in 4 of 2.

    No gradient is clipped: by `--max_grad_norm=0`, or because the norm is out of reach.
    """
    text = next(option for option in small if option.startswith("--train_file"))
    options = [text, "--block_size=16", "--max_train_steps=6", f"--model_name_or_path={tmp_path / 'model'}"]
    make_tiny_model(tmp_path / "model", dropout=0.0)
    train(options, tmp_path / "large", "--per_device_train_batch_size=8", "--max_grad_norm=0")
    small_batches = ("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4")
    train(options, tmp_path / "small", *small_batches, "--max_grad_norm=1e9")
    for large, small_ in zip(read_metrics(tmp_path / "large"), read_metrics(tmp_path / "small")):
        assert large.pop("loss") == pytest.approx(small_.pop("loss"), rel=1e-4)
        assert large == small_


def test_held_out_loss_is_the_same_on_any_number_of_processes(small, whole_run, tmp_path):
    """The held-out blocks do not divide among the processes: the samples that fill up are not counted."""
    train(small, tmp_path / "run", num_processes=2)
    one, two = (
        json.loads((folder / "all_results.json").read_text())["untrained_eval_loss"]
        for folder in (whole_run, tmp_path / "run")
    )
    assert two == pytest.approx(one, rel=1e-6)


def test_accelerate_launch_runs_two_processes_at_the_rates_of_one(small, whole_run, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
               "--main_process_port=0", EXAMPLES / "accelerate_finetune.py", *small,
               f"--output_dir={tmp_path / 'run'}"]  # fmt: skip
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr
    assert "Processes: 2" in finished.stdout
    rates, alone = ([line["learning_rate"] for line in read_metrics(path)] for path in (tmp_path / "run", whole_run))
    assert rates == alone


def test_trackers_get_loss_and_rate(small, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small, tmp_path / "run", "--report_to=tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "accelerate_finetune"))
    events.Reload()
    schedule = schedule_of_small_run()
    rates = {event.step: event.value for event in events.Scalars("learning_rate")}
    assert rates == {step + 1: pytest.approx(schedule.lr_at(step, 2e-3), rel=1e-6) for step in range(24)}
    assert len(events.Scalars("perplexity")) == 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--decay=2", "Expected decay <= 1"),
        ("--resume_from_checkpoint=latest", "--resume_from_checkpoint"),
        ("--num_cycles=30", "num_cycles"),
        ("--num_warmup_steps=25", "num_warmup_steps"),
        ("--learning_rate=nan", "learning rate: nan"),
        ("--max_train_steps=0", "Expected --max_train_steps >= 1"),
        ("--checkpointing_steps=0", "Expected --checkpointing_steps >= 1"),
        ("--warmup_mode=postfix", "postfix"),
        ("--train_file=nowhere.txt", "nowhere.txt"),
        ("--block_size=33", "Expected --block_size <= 32, the model's positions, but got 33"),
        ("--per_device_train_batch_size=1000", "Expected at least 1000 blocks of --block_size 16 tokens"),
        ("--cycles=three", "--cycles: expected STEPS or STEPS:FRACTION"),
        ("--cycles=21", "cycles"),
        ("--extend_cycles=1", "Expected --extend_cycles to extend the schedule of a run, but got --num_warmup_steps"),
        ("--save_total_limit=0", "Expected --save_total_limit >= 1"),
        ("--report_to=abacus", "abacus"),
    ],
)
def test_a_wrong_option_gives_one_clear_line_before_anything_is_written(small, tmp_path, option, expected):
    run = Run(tmp_path / "log", [*small, f"--output_dir={tmp_path / 'run'}", option])
    assert run.wait() == 2, run.output
    errors = [line for line in run.output.splitlines() if "error: " in line]
    assert len(errors) == 1, run.output
    assert expected in errors[0]
    assert "Traceback" not in run.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max_grad_norm=-1"], "Expected --max_grad_norm >= 0, but got -1.0"),
        (["--max_grad_norm=nan"], "Expected --max_grad_norm >= 0, but got nan"),
        (["--num_train_epochs=0"], "Expected --num_train_epochs > 0 and finite, but got 0.0"),
        (["--num_train_epochs=-1"], "Expected --num_train_epochs > 0 and finite, but got -1.0"),
        (["--num_train_epochs=inf"], "Expected --num_train_epochs > 0 and finite, but got inf"),
        (["--extend_cycles=1"], "Expected --extend_cycles together with --max_train_steps, but got it alone"),
        (
            ["--max_train_steps=9", "--extend_decay=0.5"],
            "Expected --extend_decay together with --extend_cycles, but got it alone",
        ),
    ],
)
def test_options_that_would_train_nothing_or_have_no_effect_are_refused(capsys, options, expected):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--output_dir=nowhere", *options])
    assert capsys.readouterr().err == f"accelerate_finetune.py: error: {expected}\n"


def test_it_reads_in_at_most_220_lines():
    assert len((EXAMPLES / "accelerate_finetune.py").read_text().splitlines()) <= 220
