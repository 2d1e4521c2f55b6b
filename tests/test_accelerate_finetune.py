"""The fine-tuning example, end to end: what it writes, how it resumes, and that many processes change no rate."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from example_runs import (
    EXAMPLES,
    Run,
    free_port,
    make_text,
    make_tiny_model,
    processes_of_group,
    read_evaluations,
    read_metrics,
    run_example,
    wait_until,
)
from safetensors.torch import load_file
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule

sys.path.insert(0, str(EXAMPLES))

from accelerate_finetune import parse_arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Arguments of a run that takes a second, without --output_dir."""
    folder = tmp_path_factory.mktemp("small")
    model, text = make_tiny_model(folder / "model"), make_text(folder / "text.txt")
    return [f"--model_name_or_path={model}", f"--train_file={text}", "--block_size=16", "--max_train_steps=24",
            "--per_device_train_batch_size=4", "--num_warmup_steps=3",
            '--lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75}']  # fmt: skip


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
    options = [f"--output_dir={tmp_path / 'run'}", "--max_train_steps=12", "--num_warmup_steps=1", "--block_size=64"]
    output = Run(tmp_path / "log", [*options, '--lr_scheduler_kwargs={"num_cycles": 1}']).succeed()
    first, last = read_evaluations(tmp_path / "run")
    assert (first["step"], last["step"]) == (0, 12)
    assert last["eval_loss"] < first["eval_loss"] - 0.5
    losses = f"{first['eval_loss']:.4f} before training, {last['eval_loss']:.4f} after 12 updates"
    assert f"Held-out loss {losses}. The results are in {tmp_path / 'run'}.\n" in output


def test_the_metrics_hold_the_rate_that_each_update_used(whole_run):
    schedule, metrics = schedule_of_small_run(), read_metrics(whole_run)
    assert [line["step"] for line in metrics] == list(range(1, 25))
    assert [line["learning_rate"] for line in metrics] == [schedule.lr_at(step, 2e-3) for step in range(24)]
    assert [line["cycle"] for line in metrics] == [schedule.cycle_at(step).index for step in range(24)]


def test_the_held_out_loss_stands_before_training_and_at_the_end_of_each_cycle(whole_run):
    evaluations = read_evaluations(whole_run)
    assert [(entry["cycle"], entry["step"]) for entry in evaluations] == [(None, 0), (0, 10), (1, 17), (2, 24)]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_a_run_that_ends_within_a_cycle_is_evaluated_at_its_end(small, tmp_path):
    train(small, tmp_path / "run", "--max_train_steps=12", '--lr_scheduler_kwargs={"T_0": 8}')
    evaluations = read_evaluations(tmp_path / "run")
    assert [(entry["cycle"], entry["step"]) for entry in evaluations] == [(None, 0), (0, 11), (None, 12)]


def test_the_model_and_the_tokenizer_can_be_used(whole_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole_run), AutoTokenizer.from_pretrained(whole_run)
    assert model(**tokenizer("the quick", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("step", [1, 10, 13, 23])
def test_the_same_command_continues_a_run_to_the_same_bits(small, whole_run, tmp_path, step):
    """The folder of a checkpoint has all that a run needs."""
    output_dir = folder_with(whole_run, tmp_path, f"step_{step}")
    assert f"Continuing from {output_dir / f'step_{step}'}" in train(small, output_dir)
    assert_same_run(output_dir, whole_run)
    assert read_evaluations(output_dir) == read_evaluations(whole_run)


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
    (output_dir / "unfinished").mkdir()
    (output_dir / "unfinished" / "optimizer.bin").write_bytes(b"half of it")
    (output_dir / "metrics.jsonl").write_text('{"step": 1, "cyc')  # the half line of a kill
    assert f"Beginning a new run in {output_dir}" in train(small, output_dir)
    assert not (output_dir / "unfinished").exists()
    assert_same_run(output_dir, whole_run)


def test_a_log_that_was_damaged_is_written_again(small, whole_run, tmp_path):
    """It is never read."""
    output_dir = folder_with(whole_run, tmp_path, "step_20")
    (output_dir / "metrics.jsonl").write_bytes(b"\xff{" * 100)
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


def expect_one_line_error(run: Run, *expected: str) -> None:
    assert run.wait() != 0, run.output
    (error,) = [line for line in run.output.splitlines() if re.match(r"[-\w.]+: error: ", line)]
    for text in expected:
        assert text in error
    assert 'accelerate_finetune.py", line' not in run.output
    if run.num_processes == 1:  # a launcher shows a traceback of its own
        assert run.process.exitcode == 2
        assert "Traceback" not in run.output
    assert not re.search("gloo|closed by peer", run.output)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_second_start_in_the_same_folder_ends_with_one_line_and_leaves_the_first_alone(
    small, whole_run, tmp_path, num_processes
):
    from filelock import FileLock

    output_dir = folder_with(whole_run, tmp_path, "step_9")
    (output_dir / "unfinished").mkdir()
    before = sorted(output_dir.rglob("*"))
    with FileLock(output_dir / ".lock"):
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"], num_processes=num_processes)
        expect_one_line_error(run, f"Cannot train in {output_dir}", "lock")
    assert sorted(path for path in output_dir.rglob("*") if path.name != ".lock") == before
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(small, whole_run, tmp_path, num_processes):
    file = tmp_path / "file"
    file.write_text("not a folder")
    run = Run(tmp_path / "log", [*small, f"--output_dir={file / 'run'}"], num_processes=num_processes)
    expect_one_line_error(run, str(file))

    output_dir = folder_with(whole_run, tmp_path, "step_9")
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", output_dir]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no permission to mount a read-only folder")
    try:
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"], num_processes=num_processes)
        expect_one_line_error(run, "Read-only file system", str(output_dir))
    finally:
        subprocess.run(["umount", output_dir], check=True)
    train(small, output_dir)
    assert_same_run(output_dir, whole_run)


def test_a_folder_that_is_no_checkpoint_of_the_script_is_named_in_one_line(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path, "step_20")
    state = output_dir / "step_20" / "training_state.json"
    for content in ('{"global_step": 3}', '{"state"', None):
        state.unlink() if content is None else state.write_text(content)
        run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"])
        expect_one_line_error(run, f"Cannot continue in {output_dir}")
        assert (f"{state} is missing or incomplete" if content != '{"global_step": 3}' else "global_step") in run.output


def test_a_checkpoint_of_another_model_is_named_in_one_line(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path, "step_20")
    other_model = [f"--model_name_or_path={make_tiny_model(tmp_path / 'model', n_embd=32)}", *small[1:]]
    run = Run(tmp_path / "log", [*other_model, f"--output_dir={output_dir}"])
    expected = f"Expected {output_dir / 'step_20'} to fit this model and optimizer"
    expect_one_line_error(run, expected, "wte.weight", "[384, 16]", "[384, 32]")


FILES = ["model.safetensors", "optimizer.bin", "scheduler.bin", "training_state.json", "random_states_0.pkl"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut off", "garbage"])
def test_a_checkpoint_with_a_damaged_file_is_named_and_the_one_before_is_taken(
    small, whole_run, tmp_path, name, damage
):
    output_dir = folder_with(whole_run, tmp_path, "step_20", "step_22")
    assert {path.name for path in (output_dir / "step_22").iterdir()} == {*FILES}
    path = output_dir / "step_22" / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(b"?" * 99 if damage == "garbage" else content[:-1])
    output = train(small, output_dir)
    assert f"Skipping {output_dir / 'step_22'}: {path} is missing or incomplete" in output
    assert f"Continuing from {output_dir / 'step_20'}" in output
    assert_same_run(output_dir, whole_run)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_random_state_of_one_of_two_processes_belongs_to_the_checkpoint(small, tmp_path, lost):
    whole, output_dir = tmp_path / "whole", tmp_path / "run"
    train(small, whole, "--checkpointing_steps=11", num_processes=2)
    shutil.copytree(whole, output_dir)
    shutil.rmtree(output_dir / "step_24")
    (output_dir / "step_22" / f"random_states_{lost}.pkl").unlink()
    output = train(small, output_dir, "--checkpointing_steps=11", num_processes=2)
    assert f"Skipping {output_dir / 'step_22'}" in output
    assert f"Continuing from {output_dir / 'step_17'}" in output
    assert_same_run(output_dir, whole)


def test_without_a_complete_checkpoint_an_error_says_so(small, whole_run, tmp_path):
    output_dir = folder_with(whole_run, tmp_path, "step_20", "step_22")
    for name in ("step_20", "step_22"):
        (output_dir / name / "optimizer.bin").write_bytes(b"")
    run = Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"])
    expect_one_line_error(run, f"Expected a complete checkpoint in {output_dir}, but all 2 are incomplete")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_ctrl_c_ends_the_run_with_one_line(small, whole_run, tmp_path, num_processes):
    """As in a terminal, where each process of the command gets it."""
    output_dir, log = tmp_path / "run", tmp_path / "log"
    launcher = [sys.executable] if num_processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
    ]  # fmt: skip
    command = [*launcher, EXAMPLES / "accelerate_finetune.py", *small, f"--output_dir={output_dir}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--max_train_steps=2000", "--checkpointing_steps=10"],
            stdout=file, stderr=file, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    wait_until(lambda: any(output_dir.glob("step_*")))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(HANGS_AFTER) != 0
    wait_until(lambda: not processes_of_group(process.pid))
    line = "Interrupted. The same command continues the run from its newest checkpoint."
    output = log.read_text()
    assert output.splitlines().count(line) == 1
    assert process.returncode == 130 or num_processes == 2
    assert output.count("Traceback") == (num_processes == 2), output  # the launcher's own
    assert 'accelerate_finetune.py", line' not in output
    train(small, output_dir)


def run_example_with_overflows(arguments: list[str]) -> None:
    """With gradients that are scaled as in mixed precision, so far up that the first updates overflow."""
    construct = Accelerator.__init__

    def construct_with_scaler(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    Accelerator.__init__ = construct_with_scaler
    run_example(arguments)


def test_updates_that_mixed_precision_skips_take_no_cycle_end_from_the_run(small, whole_run, tmp_path):
    output_dir = tmp_path / "run"
    Run(tmp_path / "log", [*small, f"--output_dir={output_dir}"], entry=run_example_with_overflows).succeed()
    of_scaler = torch.load(output_dir / "step_24" / "scaler.pt")
    assert of_scaler["scale"] < 2.0**125, "updates were skipped"
    assert [line["step"] for line in read_metrics(output_dir)] == list(range(1, 25))
    rates, alone = ([line["learning_rate"] for line in read_metrics(path)] for path in (output_dir, whole_run))
    assert rates == alone
    assert [entry["step"] for entry in read_evaluations(output_dir)] == [0, 10, 17, 24]
    assert {path.name for path in output_dir.glob("step_*")} == {"step_10", "step_17", "step_24"}


def test_a_run_continues_from_the_end_of_an_epoch(small, tmp_path):
    """57 training lines make 200 blocks and so 13 updates of 4 blocks on 4 micro-batches each."""
    output_dir = tmp_path / "run"
    options = ["--checkpointing_steps=13", "--gradient_accumulation_steps=4"]
    train(small, output_dir, *options)
    position = json.loads((output_dir / "step_13" / "training_state.json").read_text())
    assert (position["epoch"], position["samples_seen"]) == (0, 200)
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
    options = [text, "--block_size=16", "--max_train_steps=6", "--num_warmup_steps=1",
               f"--model_name_or_path={tmp_path / 'model'}"]  # fmt: skip
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
    one, two = (read_evaluations(folder)[0]["eval_loss"] for folder in (whole_run, tmp_path / "run"))
    assert two == pytest.approx(one, rel=1e-6)


def test_accelerate_launch_runs_two_processes_at_the_rates_of_one(small, whole_run, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
               "--main_process_port=0", EXAMPLES / "accelerate_finetune.py", *small,
               f"--output_dir={tmp_path / 'run'}"]  # fmt: skip
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=HANGS_AFTER, env={**os.environ, "OMP_NUM_THREADS": "1"}
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
    assert len(events.Scalars("eval_loss")) == 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ('--lr_scheduler_kwargs={"num_cycles": 3, "decay": 2}', "Expected decay <= 1"),
        ('--lr_scheduler_kwargs={"num_cycles": 30}', "num_cycles"),
        ('--lr_scheduler_kwargs={"nun_cycles": 3}', "num_cycles"),
        ('--lr_scheduler_kwargs={"warmup_mode": "postfix"}', "postfix"),
        ('--lr_scheduler_kwargs={"cycles": [21], "decay": 0.5}', "cycles"),
        ('--lr_scheduler_kwargs={"num_cycles"', "--lr_scheduler_kwargs: invalid json_object value"),
        ("--lr_scheduler_kwargs=[3]", "--lr_scheduler_kwargs: invalid json_object value"),
        ("--resume_from_checkpoint=latest", "--resume_from_checkpoint"),
        ("--num_warmup_steps=25", "num_warmup_steps"),
        ("--learning_rate=nan", "learning rate: nan"),
        ("--train_file=nowhere.txt", "nowhere.txt"),
        ("--train_file=nowhere", "nowhere"),
        ("--train_file=broken.json", "broken.json"),
        ("--model_name_or_path=nowhere", "nowhere"),
        ("--dataset_name=nowhere/none", "nowhere/none"),
        ("--block_size=33", "Expected --block_size <= 32, the model's positions, but got 33"),
        ("--per_device_train_batch_size=1000", "Expected at least 1000 blocks of --block_size 16 tokens"),
        ("--report_to=abacus", "abacus"),
    ],
)
def test_a_wrong_option_gives_one_clear_line_before_anything_is_written(small, tmp_path, monkeypatch, option, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"text": "a"}\n{"text"')
    run = Run(tmp_path / "log", [*small, f"--output_dir={tmp_path / 'run'}", option])
    expect_one_line_error(run, expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--train_file=nowhere.txt", "--learning_rate=nan", "--block_size=33"])
def test_a_wrong_option_gives_one_line_on_two_processes_too(small, tmp_path, option):
    run = Run(tmp_path / "log", [*small, f"--output_dir={tmp_path / 'run'}", option], num_processes=2)
    expect_one_line_error(run, option.partition("=")[2])


@pytest.mark.parametrize(
    ("option", "minimum"),
    [
        ("--max_train_steps=0", 1),
        ("--num_train_epochs=0", 1),
        ("--gradient_accumulation_steps=0", 1),
        ("--checkpointing_steps=0", 1),
        ("--save_total_limit=0", 1),
        ("--num_warmup_steps=-1", 0),
        ("--max_grad_norm=-1", 0),
        ("--max_grad_norm=nan", 0),
    ],
)
def test_options_that_would_train_nothing_or_have_no_effect_are_refused(capsys, option, minimum):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--output_dir=nowhere", option])
    name, _, value = option.partition("=")
    error = f"error: argument {name}: expected a number >= {minimum}, but got {value}\n"
    assert capsys.readouterr().err.endswith(error)


def test_it_is_one_file_that_uses_public_names_only():
    text = (EXAMPLES / "accelerate_finetune.py").read_text()
    assert len(text.splitlines()) <= 385
    assert re.findall(r"(?:from|import) hf_warmcos(\S*)", text) == [""]
    modules = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    assert not [name for name in modules if (EXAMPLES / f"{name}.py").exists()]
