"""The fine-tuning example on one GPU, as each configuration starts it, and resumed to the last bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_runs import EXAMPLES, make_text, make_tiny_model, read_metrics
from safetensors.torch import load_file

from hf_warmcos import CosineRestartSchedule

pytestmark = pytest.mark.slow

NUM_UPDATES, STOPPED_AT = 24, 13


@pytest.fixture
def small(cuda, tmp_path):
    """Arguments of a small run that saves a checkpoint at its 13th update, without --output_dir."""
    model, text = make_tiny_model(tmp_path / "model"), make_text(tmp_path / "text.txt")
    return [f"--model_name_or_path={model}", f"--train_file={text}", "--block_size=16", "--num_warmup_steps=3",
            f"--max_train_steps={NUM_UPDATES}", "--per_device_train_batch_size=4",
            '--lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75}',
            f"--checkpointing_steps={STOPPED_AT}"]  # fmt: skip


def launch(config: str, device: torch.device, arguments: list[str]) -> str:
    """Start the example on one process of this device, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    if device.type == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch",
         f"--config_file={EXAMPLES / 'accelerate_configs' / config}.yaml", "--num_processes=1",
         "--main_process_port=0", Path(__file__).parent / "run_deterministically.py",
         EXAMPLES / "accelerate_finetune.py", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    assert f"Processes: 1, device: {device.type}" in finished.stdout
    return finished.stdout


@pytest.mark.parametrize("config", ["single", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_the_example_uses_each_rate_and_goes_on_to_the_last_bit(cuda, small, tmp_path, config):
    check_the_example(cuda, small, tmp_path, config)


def check_the_example(device: torch.device, small: list[str], tmp_path: Path, config: str) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    launch(config, device, [*small, f"--output_dir={whole}"])
    schedule = CosineRestartSchedule.fit(NUM_UPDATES, num_cycles=3, warmup_steps=3, decay=0.75)
    rates = [line["learning_rate"] for line in read_metrics(whole)]
    assert rates == [schedule.lr_at(step, 2e-3) for step in range(NUM_UPDATES)]

    resumed.mkdir()
    shutil.copytree(whole / f"step_{STOPPED_AT}", resumed / f"step_{STOPPED_AT}")
    output = launch(config, device, [*small, f"--output_dir={resumed}"])
    assert f"Continuing from {resumed / f'step_{STOPPED_AT}'}" in output
    assert read_metrics(resumed) == read_metrics(whole)
    weights, others = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
