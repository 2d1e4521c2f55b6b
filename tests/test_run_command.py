"""`python -m hf_warmcos run`: a training script that knows nothing of this project, with its schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_warmcos import CosineRestartSchedule

SCRIPT = Path(__file__).parent / "scripts" / "train_clm.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
LAUNCH += ["--main_process_port=0", "-m"]


def run_script(command, output_dir):
    text = output_dir / "text.txt"
    text.write_text("".join(f"{number} and a peak that decays at each restart\n" for number in range(50)))
    arguments = [
        f"--output_dir={output_dir}",
        f"--train_file={text}",
        "--max_steps=20",
        "--warmup_steps=4",
        "--learning_rate=1e-2",
        "--lr_scheduler_type=cosine_with_restarts",
        '--lr_scheduler_kwargs={"num_cycles": 4, "decay": 0.75}',
        "--logging_steps=1",
        "--save_strategy=no",
        "--report_to=none",
        "--use_cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(output_dir / "cache")}
    return subprocess.run(
        [*command, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "num_processes"),
    [([sys.executable, "-m", "hf_warmcos", "run"], 1), ([*LAUNCH, "hf_warmcos", "run"], 2)],
    ids=["one process", "two processes"],
)
def test_an_unmodified_script_trains_by_the_rates_of_this_schedule(tmp_path, command, num_processes):
    assert "hf_warmcos" not in SCRIPT.read_text()
    completed = run_script(command, tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"Started as {SCRIPT} on {num_processes} processes" in completed.stdout
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    schedule = CosineRestartSchedule.fit(20, 4, decay=0.75, warmup_steps=4)
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == [schedule.lr_at(step, 1e-2) for step in range(20)]
