"""The schedule that trains is the one that was asked for: anything else is said before the first update."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch
from example_runs import Run, free_port
from trainer_runs import causal_lm, logged_rates, token_rows, training_arguments
from transformers import Trainer, get_linear_schedule_with_warmup

from hf_warmcos import (
    CycleEndCallback,
    WarmCosTrainer,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)

THREE_CYCLES = {"num_cycles": 3, "T_mult": 2}


def trainer_of(
    output_dir, trainer_class=WarmCosTrainer, callbacks=(), optimizers=(None, None), model=None, **arguments
):
    args = training_arguments(output_dir, **{"max_steps": 14, **arguments})
    model = causal_lm() if model is None else model
    return trainer_class(model, args, train_dataset=token_rows(64), callbacks=[*callbacks], optimizers=optimizers)


def optimizer_and_scheduler(model, num_training_steps=14):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return optimizer, get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 0, num_training_steps, 3)


@pytest.mark.parametrize("trainer_class", [WarmCosTrainer, Trainer])
def test_a_scheduler_of_another_optimizer_is_refused_before_the_first_update(trainer_class, tmp_path):
    model = causal_lm()
    _, scheduler = optimizer_and_scheduler(model)
    trainer = trainer_of(
        tmp_path, trainer_class, [CycleEndCallback(evaluate=False)], optimizers=(None, scheduler), model=model
    )
    with pytest.raises(ValueError, match=r"shares no parameter group.*optimizers=\(optimizer, scheduler\)"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_scheduler_that_is_passed_with_its_optimizer_trains_and_says_what_it_ignores(tmp_path):
    model = causal_lm()
    optimizer, scheduler = optimizer_and_scheduler(model)
    with pytest.warns(UserWarning, match="ignores lr_scheduler_kwargs=.*given a scheduler"):
        trainer = trainer_of(tmp_path, optimizers=(optimizer, scheduler), model=model, lr_scheduler_kwargs=THREE_CYCLES)
    trainer.train()
    assert logged_rates(trainer) == [scheduler.schedule.lr_at(step, 1e-3) for step in range(14)]


def test_a_scheduler_of_another_kind_that_is_passed_is_used_as_it_is(tmp_path):
    model = causal_lm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    linear = get_linear_schedule_with_warmup(optimizer, 0, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = trainer_of(tmp_path, optimizers=(optimizer, linear), model=model)
    trainer.train()
    assert logged_rates(trainer) == pytest.approx([1e-3 * (14 - step) / 14 for step in range(14)])


def test_a_second_training_with_a_scheduler_that_was_passed_says_where_it_begins(tmp_path, caplog):
    model = causal_lm()
    trainer = trainer_of(tmp_path, optimizers=optimizer_and_scheduler(model), model=model)
    trainer.train()
    assert "scheduler that was passed" not in caplog.text
    with caplog.at_level(logging.WARNING, "hf_warmcos"):
        trainer.train()
    assert "Training begins at step 14 of the scheduler that was passed" in caplog.text


def test_a_trainer_that_creates_its_scheduler_creates_a_new_one_for_each_training(tmp_path, caplog):
    trainer = trainer_of(tmp_path, lr_scheduler_kwargs=THREE_CYCLES)
    trainer.train()
    first = logged_rates(trainer)
    trainer.train()
    assert logged_rates(trainer) == first
    assert not [record for record in caplog.records if record.name == "hf_warmcos"]


def test_a_scheduler_that_a_subclass_creates_is_refused_before_the_first_update(tmp_path):
    class OwnScheduler(WarmCosTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = get_linear_schedule_with_warmup(optimizer or self.optimizer, 0, num_training_steps)
            self._created_lr_scheduler = True
            return self.lr_scheduler

    trainer = trainer_of(tmp_path, OwnScheduler, lr_scheduler_kwargs=THREE_CYCLES)
    with pytest.raises(ValueError, match="Expected OwnScheduler to use the scheduler that it creates, but a LambdaLR"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_resumed_run_with_nothing_left_to_train_says_so(tmp_path, caplog):
    trainer_of(tmp_path, save_strategy="steps", save_steps=10, lr_scheduler_kwargs=THREE_CYCLES).train()
    resumed = trainer_of(tmp_path, max_steps=7, lr_scheduler_kwargs=THREE_CYCLES)
    with caplog.at_level(logging.WARNING, "hf_warmcos"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert "Nothing is left to train: the checkpoint to resume from has 10 steps, and this training 7" in caplog.text


def test_the_warning_about_the_type_of_the_schedule_comes_once_and_points_at_the_users_line(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_of(tmp_path, lr_scheduler_type="cosine", max_steps=2)
        trainer.train()
    (warning,) = (each for each in caught if "ignores lr_scheduler_type" in str(each.message))
    assert warning.filename == __file__


def train_with_deepspeed(output_dir: str, with_callback: bool) -> None:
    import deepspeed

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    # Its collectives over shared memory would be compiled for a minute first. Without them it uses gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
    }
    folder = Path(output_dir)
    (folder / "ds.json").write_text(json.dumps(config))
    callbacks = [CycleEndCallback(evaluate=False)] if with_callback else []
    trainer_class = Trainer if with_callback else WarmCosTrainer
    trainer = trainer_of(folder, trainer_class, callbacks, deepspeed=str(folder / "ds.json"))
    try:
        trainer.train()
    except ValueError as error:
        (folder / "error.txt").write_text(f"{trainer.state.global_step} {error}")


@pytest.mark.slow
@pytest.mark.needs("deepspeed")
@pytest.mark.parametrize("with_callback", [False, True], ids=["trainer", "callback"])
def test_a_scheduler_section_in_deepspeeds_configuration_is_refused_with_its_file(tmp_path, with_callback):
    Run(tmp_path / "log", str(tmp_path), with_callback, entry=train_with_deepspeed).succeed()
    error = (tmp_path / "error.txt").read_text()
    assert error.startswith('0 Expected no "scheduler" section in DeepSpeed')
    assert str(tmp_path / "ds.json") in error
    assert "its WarmupLR would replace the schedule" in error
