"""The loop to copy: it runs alone, on one process and on two, and goes on where it stopped."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from example_runs import EXAMPLES, Run
from safetensors.torch import load_file

from hf_warmcos import CosineRestartSchedule

LOOP = EXAMPLES / "accelerate_loop.py"


def run_loop(output_dir: Path) -> None:
    sys.path.insert(0, str(EXAMPLES))
    import accelerate_loop

    accelerate_loop.main(output_dir, num_epochs=2)


def train(output_dir: Path, num_processes: int) -> str:
    return Run(output_dir.parent / "log", output_dir, num_processes=num_processes, entry=run_loop).succeed()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, num_processes):
    output = train(tmp_path / "run", num_processes)
    ends = [int(update) for update in re.findall(r"update (\d+): a cycle has ended", output)]
    num_updates = ends[-1]
    schedule = CosineRestartSchedule.fit(num_updates, num_cycles=3, T_mult=2, warmup_steps=num_updates // 15)
    assert ends == [*schedule.restarts(num_updates), num_updates]
    assert len(list((tmp_path / "run" / f"update_{num_updates}").glob("random_states_*"))) == num_processes
    losses = [float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", output)]
    assert losses[-1] < losses[0] < 4, "an untrained network has log(256) = 5.55"

    assert ends[0] % (num_updates // 2), "the first cycle ends inside an epoch"
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "run" / f"update_{ends[0]}", tmp_path / "resumed" / f"update_{ends[0]}")
    resumed_output = train(tmp_path / "resumed", num_processes)
    assert [int(update) for update in re.findall(r"update (\d+)", resumed_output)] == ends[1:]
    for update in ends:
        weights, others = (
            load_file(tmp_path / name / f"update_{update}" / "model.safetensors") for name in ("run", "resumed")
        )
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_loop_is_one_file_of_at_most_100_lines():
    source = LOOP.read_text()
    assert len(source.splitlines()) <= 100
    siblings = {path.stem for path in EXAMPLES.glob("*.py")}
    assert not siblings & set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
