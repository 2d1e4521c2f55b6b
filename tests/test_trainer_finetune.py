"""The Trainer example, end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from example_runs import EXAMPLES, make_text, make_tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule, find_cycle_end_checkpoints

SCHEDULE = CosineRestartSchedule.fit(24, 3, decay=0.75, warmup_steps=3)


@pytest.fixture(scope="module")
def run_example(tmp_path_factory):
    """A function that runs the example on a tiny model in this process, and returns its output folder."""
    folder = tmp_path_factory.mktemp("tiny")
    model, text = make_tiny_model(folder / "model"), make_text(folder / "text.txt")

    def run(output_dir, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(EXAMPLES))
            import trainer_finetune

            trainer_finetune.main(
                [
                    f"--model_name_or_path={model}",
                    f"--train_file={text}",
                    f"--output_dir={output_dir}",
                    "--block_size=16",
                    "--max_steps=24",
                    "--warmup_steps=3",
                    '--lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75}',
                    "--per_device_train_batch_size=4",
                    "--logging_steps=1",
                    "--disable_tqdm=true",
                    *arguments,
                ]
            )
        return output_dir

    return run


@pytest.fixture(scope="module")
def whole_run(run_example, tmp_path_factory):
    return run_example(tmp_path_factory.mktemp("whole_run"), "--resume_from_checkpoint=False")


def logged(output_dir, name):
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in log if name in entry}


def test_the_log_holds_the_learning_rate_of_each_update(whole_run):
    assert logged(whole_run, "learning_rate") == {step + 1: SCHEDULE.lr_at(step, 2e-3) for step in range(24)}


def test_evaluates_and_saves_where_cycles_end(whole_run):
    losses = logged(whole_run, "eval_loss")
    assert list(losses) == [10, 17, 24]
    assert losses[24] < losses[10]
    assert {path.name for path in whole_run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in losses}
    perplexities = json.loads((whole_run / "eval_results.json").read_text())
    assert len(perplexities) == 3
    assert all(perplexity > 1 for perplexity in perplexities.values())


def test_the_model_and_the_checkpoints_of_its_cycles_can_be_used(whole_run):
    tokens = AutoTokenizer.from_pretrained(whole_run)("the quick", return_tensors="pt")
    folders = find_cycle_end_checkpoints(whole_run)
    assert [folder.name for folder in folders] == ["checkpoint-10", "checkpoint-17", "checkpoint-24"]
    last, saved_last = (
        AutoModelForCausalLM.from_pretrained(path)(**tokens).logits for path in (whole_run, folders[-1])
    )
    assert torch.equal(saved_last, last)


def test_a_resumed_run_ends_at_the_same_bits(run_example, whole_run, tmp_path):
    """An eighth of its 24 updates are the same 3 updates of warmup."""
    fraction = ["--warmup_steps=0.125"]
    if int(transformers.__version__.partition(".")[0]) < 5:
        fraction = ["--warmup_steps=0", "--warmup_ratio=0.125"]
    resumed = run_example(tmp_path / "resumed", f"--resume_from_checkpoint={whole_run / 'checkpoint-10'}", *fraction)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (resumed, whole_run))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert logged(resumed, "learning_rate") == logged(whole_run, "learning_rate")


def test_a_run_that_was_killed_while_it_saved_continues_from_the_checkpoint_before(run_example, whole_run, tmp_path):
    resumed = shutil.copytree(whole_run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoint-24")
    (resumed / "checkpoint-17" / "trainer_state.json").unlink()
    run_example(resumed, "--resume_from_checkpoint=True")
    weights, expected = (load_file(folder / "model.safetensors") for folder in (resumed, whole_run))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(find_cycle_end_checkpoints(resumed)) == 3


@pytest.mark.slow
@pytest.mark.needs("datasets")
def test_the_script_learns_the_language_reference_offline(tmp_path):
    options = ["--max_steps=8", "--warmup_steps=1", '--lr_scheduler_kwargs={"num_cycles": 1}', "--block_size=64"]
    completed = subprocess.run(
        [sys.executable, str(EXAMPLES / "trainer_finetune.py"), f"--output_dir={tmp_path}", *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )
    assert completed.returncode == 0, completed.stderr
    # Untrained, a byte costs log(384) = 5.95.
    assert logged(tmp_path, "eval_loss")[8] < 5.5
