"""Updates that DeepSpeed skips, where gradients overflow: its `skipped_steps` take no cycle end from a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from example_runs import Run, free_port
from trainer_runs import overflowing_lm, token_rows, training_arguments

from hf_warmcos import CycleEndCallback, WarmCosTrainer, find_cycle_end_checkpoints


def train_with_deepspeed(output_dir: str) -> None:
    import deepspeed

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    # Its collectives over shared memory would be compiled for a minute first. Without them it uses gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True, "check_grad_overflow": True},
    }
    folder = Path(output_dir)
    (folder / "ds.json").write_text(json.dumps(config))
    args = training_arguments(
        folder / "run",
        max_steps=30,
        warmup_steps=2,
        lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2},
        deepspeed=str(folder / "ds.json"),
        optim="adamw_torch",
        bf16=True,
    )
    callback = CycleEndCallback(evaluate=False)
    trainer = WarmCosTrainer(overflowing_lm(0, 6), args, train_dataset=token_rows(32), callbacks=[callback])
    trainer.train()
    result = {"skipped": trainer.model_wrapped.skipped_steps, "ends": callback.cycle_ends}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
@pytest.mark.needs("deepspeed")
def test_take_no_cycle_end_from_a_run(tmp_path):
    Run(tmp_path / "log", str(tmp_path), entry=train_with_deepspeed).succeed()
    assert json.loads((tmp_path / "result.json").read_text()) == {"skipped": 2, "ends": [8, 16, 30]}
    found = find_cycle_end_checkpoints(tmp_path / "run")
    assert [folder.name for folder in found] == ["checkpoint-8", "checkpoint-16", "checkpoint-30"]
