"""Behind the prefix `hf-warmcos run`: checkpoints and evaluations at cycle ends, and runs that are continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from example_runs import free_port, make_text, make_tiny_model
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule, find_cycle_end_checkpoints

SCRIPTS = Path(__file__).parent / "scripts"
RUN = [sys.executable, "-m", "hf_warmcos", "run"]
SCHEDULE = ["--num_cycles=3", "--T_mult=2", "--stable_ratio=0.5"]
NUM_STEPS, ENDS, LR = 14, [2, 6, 14], 1e-3


def outcome(*command):
    completed = subprocess.run(
        [str(argument) for argument in command],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return completed.returncode, completed.stdout + completed.stderr


def trainer_arguments(folder, max_steps=NUM_STEPS, **others):
    given = {
        "output_dir": folder,
        "max_steps": max_steps,
        "learning_rate": LR,
        "lr_scheduler_type": "cosine_with_restarts",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        **others,
    }
    return [*(f"--{name}={value}" for name, value in given.items()), "--use_cpu"]


@pytest.fixture
def train_clm(tmp_path, monkeypatch):
    """A command of the shape of run_clm.py, on a small text."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return [SCRIPTS / "train_clm.py", f"--train_file={make_text(tmp_path / 'text.txt')}"]


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def logged(folder, step):
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]


@pytest.mark.slow
def test_each_trainer_of_the_command_saves_at_cycle_ends_on_two_processes_and_resumed(tmp_path, train_clm):
    out = tmp_path / "out"
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [*RUN, *SCHEDULE, "--at_cycle_ends", "save", *launcher, *train_clm, *trainer_arguments(out)]
    exit_code, output = outcome(*command)
    assert exit_code == 0, output
    assert "hf-warmcos run:" not in output
    assert checkpoints(out) == ENDS
    assert [folder.name for folder in find_cycle_end_checkpoints(out)] == [f"checkpoint-{step}" for step in ENDS]
    exit_code, output = outcome(*command, f"--resume_from_checkpoint={out / 'checkpoint-6'}")
    assert exit_code == 0, output
    assert [folder.name for folder in find_cycle_end_checkpoints(out)] == [f"checkpoint-{step}" for step in ENDS]


@pytest.mark.slow
def test_a_run_is_continued_with_one_option_more_and_more_steps(tmp_path, train_clm):
    out = tmp_path / "out"
    common = [*RUN, *SCHEDULE, "--at_cycle_ends=save"]
    exit_code, output = outcome(*common, *train_clm, *trainer_arguments(out, 30, warmup_steps=3))
    assert exit_code == 0, output
    first = CosineRestartSchedule.fit(30, 3, T_mult=2, stable_ratio=0.5, warmup_steps=3)
    assert checkpoints(out) == [*first.restarts(30), 30]
    assert [folder.name for folder in find_cycle_end_checkpoints(out)] == [
        f"checkpoint-{step}" for step in checkpoints(out)
    ]
    assert logged(out, 30) == first.curve(30, LR).tolist()
    longer = [*common, "--extend_from", "30", "--extend_peak=0.5", *train_clm]
    resume = {"warmup_steps": 3, "resume_from_checkpoint": out / "checkpoint-30"}
    exit_code, output = outcome(*longer, *trainer_arguments(out, 50, **resume))
    assert exit_code == 0, output
    assert "The saved schedule differs" not in output
    assert logged(out, 50) == first.extend(50, peak=0.5).curve(50, LR).tolist()
    assert find_cycle_end_checkpoints(out)[-1].name == "checkpoint-50"


@pytest.mark.slow
@pytest.mark.needs("trl")
def test_a_command_of_trl_saves_and_evaluates_at_cycle_ends(tmp_path):
    make_tiny_model(tmp_path / "model")
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = [json.dumps({"text": f"line {number} of the {split}"}) for number in range(64)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    exit_code, output = outcome(
        *[*RUN, *SCHEDULE, "--at_cycle_ends", "evaluate,save", "trl", "sft"],
        *[f"--model_name_or_path={tmp_path / 'model'}", f"--dataset_name={tmp_path / 'data'}", "--max_length=16"],
        *["--bf16=false", "--eval_strategy=steps", "--eval_steps=1000", *trainer_arguments(out)],
    )
    assert exit_code == 0, output
    assert checkpoints(out) == ENDS
    log = json.loads((out / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == ENDS


@pytest.mark.slow
def test_a_trainer_without_an_evaluation_set_is_refused_before_the_first_update(tmp_path, train_clm):
    out = tmp_path / "out"
    exit_code, output = outcome(*RUN, *SCHEDULE, "--at_cycle_ends=evaluate", *train_clm, *trainer_arguments(out))
    assert exit_code == 1
    assert "eval_dataset=None" in output
    assert "hf-warmcos run --at_cycle_ends save." in output
    assert "'loss'" not in output


@pytest.mark.slow
def test_a_command_in_which_no_trainer_trained_says_that_nothing_was_saved(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('ran')")
    exit_code, output = outcome(*RUN, *SCHEDULE, "--at_cycle_ends=save", script)
    assert exit_code == 0
    assert "hf-warmcos run: nothing was evaluated or saved at cycle ends: no Trainer trained" in output


@pytest.mark.parametrize("what", ["", "saves", "save,test", "save;evaluate"])
def test_what_to_do_at_cycle_ends_is_checked_before_anything_starts(what):
    exit_code, output = outcome(*RUN, *SCHEDULE, f"--at_cycle_ends={what}", "true")
    assert exit_code == 2
    assert "argument --at_cycle_ends: expected evaluate, save or evaluate,save, but got" in output


@pytest.mark.slow
def test_a_trainer_whose_author_added_the_callback_keeps_that_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from trainer_runs import causal_lm, token_rows, training_arguments
from transformers import Trainer
from hf_warmcos import CycleEndCallback
args = training_arguments({str(tmp_path / "out")!r}, max_steps=14, lr_scheduler_type="cosine_with_restarts")
own = CycleEndCallback(evaluate=False, save=False)
trainer = Trainer(causal_lm(), args, train_dataset=token_rows(64), callbacks=[own])
trainer.train()
assert [each for each in trainer.callback_handler.callbacks if isinstance(each, CycleEndCallback)] == [own]
"""
    )
    exit_code, output = outcome(*RUN, *SCHEDULE, "--at_cycle_ends=save", script)
    assert exit_code == 0, output
    assert checkpoints(tmp_path / "out") == []
