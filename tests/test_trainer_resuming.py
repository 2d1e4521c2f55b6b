"""A `WarmCosTrainer` that resumes: from which checkpoint, and to the same weights."""

from __future__ import annotations

import logging
import random
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from code_blocks import code_blocks, run_blocks
from trainer_runs import (
    BASE_LR,
    FOUR_CYCLES,
    causal_lm,
    logged_rates,
    processes,
    rates_of,
    token_rows,
    train,
    train_and_keep_result,
    training_arguments,
)
from transformers import (
    Trainer,
)
from work import HANGS_AFTER

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    WarmCosTrainer,
)
from hf_warmcos.checkpoints import find_incomplete_file, trainer_checkpoints

SAVED = {"max_steps": 12, "lr_scheduler_kwargs": FOUR_CYCLES, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint at every third step."""
    return train(tmp_path_factory.mktemp("run"), **SAVED)


class TestResuming:
    @pytest.fixture
    def output_dir(self, run, tmp_path):
        """A copy of the run, whose last checkpoint is gone."""
        output_dir = shutil.copytree(run.args.output_dir, tmp_path / "copy")
        shutil.rmtree(output_dir / "checkpoint-12")
        return output_dir

    def resume(self, output_dir, resume_from_checkpoint):
        trainer = WarmCosTrainer(causal_lm(), training_arguments(output_dir, **SAVED), train_dataset=token_rows(64))
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        return trainer

    @pytest.mark.parametrize(
        ("torn", "passed_over"),
        [({}, []), ({9: "trainer_state.json"}, [9]), ({9: "model.safetensors", 6: "optimizer.pt"}, [9, 6])],
    )
    def test_takes_the_newest_complete_checkpoint_and_names_what_it_skipped(
        self, run, output_dir, caplog, torn, passed_over
    ):
        for step, name in torn.items():
            path = output_dir / f"checkpoint-{step}" / name
            path.write_bytes(path.read_bytes()[:50])
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        resumed = self.resume(output_dir, True)
        messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
        assert len(messages) == bool(passed_over)
        for step in passed_over:
            assert f"{output_dir / f'checkpoint-{step}' / torn[step]} is missing or incomplete" in messages[0]
        for weight, expected in zip(resumed.model.parameters(), run.model.parameters()):
            assert torch.equal(weight, expected)

    def test_from_a_torn_checkpoint_is_an_error_that_names_the_file(self, output_dir):
        torn = output_dir / "checkpoint-9" / "trainer_state.json"
        torn.unlink()
        with pytest.raises(ValueError, match=f"but {torn} is missing or incomplete"):
            self.resume(output_dir, str(output_dir / "checkpoint-9"))

    def test_where_the_only_checkpoint_is_incomplete_is_an_error_that_says_what_to_do(self, output_dir):
        for step in (6, 9):
            shutil.rmtree(output_dir / f"checkpoint-{step}")
        torn = output_dir / "checkpoint-3" / "trainer_state.json"
        torn.unlink()
        message = f"but {torn} is missing or incomplete. Start without resume_from_checkpoint, or pass the path"
        with pytest.raises(ValueError, match=re.escape(message)):
            self.resume(output_dir, True)

    def test_where_there_is_no_checkpoint_is_an_error_that_says_what_to_do(self, tmp_path):
        with pytest.raises(ValueError, match=r"but there is none\. Start without resume_from_checkpoint, or"):
            self.resume(tmp_path, True)

    def test_from_a_folder_that_is_not_there_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(ValueError, match=f"but {tmp_path / 'nowhere' / 'trainer_state.json'} is missing"):
            self.resume(tmp_path, tmp_path / "nowhere")

    @pytest.mark.parametrize("by_path", [True, False])
    @pytest.mark.parametrize("missing", [["optimizer.pt", "scheduler.pt"], ["optimizer.pt"], ["scheduler.pt"], []])
    def test_from_a_checkpoint_whose_schedule_a_trainer_does_not_load_is_warned_of(
        self, output_dir, caplog, missing, by_path
    ):
        for name in missing:
            (output_dir / "checkpoint-9" / name).unlink()
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        resumed = self.resume(output_dir, output_dir / "checkpoint-9" if by_path else True)
        rates = rates_of(CosineRestartSchedule.fit(12, 4, decay=0.75), 12)
        assert logged_rates(resumed)[9:] == (rates[:3] if missing else rates[9:])
        messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
        assert messages == [
            f"{output_dir / 'checkpoint-9'} has no optimizer or scheduler state (save_only_model?): the schedule "
            "starts again at step 0"
        ] * bool(missing)

    @pytest.mark.parametrize("names", [["optimizer_0/__0_0.distcp", "scheduler.pt"], ["global_step9/mp_rank_00.pt"]])
    def test_from_a_checkpoint_of_fsdp_or_deepspeed_is_not(self, output_dir, caplog, monkeypatch, names):
        checkpoint = output_dir / "checkpoint-9"
        for name in ("optimizer.pt", "scheduler.pt"):
            (checkpoint / name).unlink()
        for name in names:
            (checkpoint / name).parent.mkdir(exist_ok=True)
            torch.save({}, checkpoint / name)
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        monkeypatch.setattr(Trainer, "train", lambda self, resume_from_checkpoint: resume_from_checkpoint)
        assert WarmCosTrainer(causal_lm(), training_arguments(output_dir)).train(checkpoint) == str(checkpoint)
        assert [record for record in caplog.records if record.name == "hf_warmcos"] == []

    def test_works_where_a_trainer_saves_and_loads_its_weights_itself(self, tmp_path):
        class SavesItsWeightsItself(WarmCosTrainer):
            def _save(self, output_dir=None, state_dict=None):
                Path(output_dir).mkdir(parents=True)
                torch.save(self.model.state_dict(), Path(output_dir, "projector.weights"))

            def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
                self.model.load_state_dict(torch.load(Path(resume_from_checkpoint, "projector.weights")))

        whole = train(tmp_path, SavesItsWeightsItself, **SAVED)
        shutil.rmtree(tmp_path / "checkpoint-12")
        for resume_from_checkpoint in (True, tmp_path / "checkpoint-9"):
            args = training_arguments(tmp_path, **{**SAVED, "save_strategy": "no"})
            resumed = SavesItsWeightsItself(causal_lm(), args, train_dataset=token_rows(64))
            resumed.train(resume_from_checkpoint=resume_from_checkpoint)
            for weight, expected in zip(resumed.model.parameters(), whole.model.parameters()):
                assert torch.equal(weight, expected)

    def test_continues_with_another_initial_learning_rate_by_the_callback_of_the_troubleshooting_page(self, tmp_path):
        page = "docs/troubleshooting.md"
        (block,) = (block for block in code_blocks(page, "python") if "NewInitialLearningRate" in block)
        callback = run_blocks([block], page)["NewInitialLearningRate"]()
        args = training_arguments(tmp_path, max_steps=12, save_steps=6, save_strategy="steps")
        WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64)).train()
        shutil.rmtree(tmp_path / "checkpoint-12")
        args = training_arguments(tmp_path, max_steps=12, learning_rate=BASE_LR / 4)
        trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64), callbacks=[callback])
        trainer.train(resume_from_checkpoint=True)
        schedule = CosineRestartSchedule.fit(12)
        initial = [BASE_LR] * 6 + [BASE_LR / 4] * 6
        assert logged_rates(trainer) == [schedule.lr_at(step, lr) for step, lr in enumerate(initial)]

    def test_this_callback_keeps_the_ratio_of_the_groups(self):
        page = "docs/troubleshooting.md"
        (block,) = (block for block in code_blocks(page, "python") if "NewInitialLearningRate" in block)
        callback = run_blocks([block], page)["NewInitialLearningRate"]()
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-4)]
        scheduler = CosineRestartLR(torch.optim.SGD(groups), CosineRestartSchedule.fit(12))
        callback.on_train_begin(SimpleNamespace(learning_rate=5e-4), None, None, lr_scheduler=scheduler)
        assert scheduler.get_last_lr() == pytest.approx([5e-4, 5e-5])

    def test_from_a_path_or_from_nothing_is_as_in_a_plain_trainer(self, run, output_dir):
        resumed = self.resume(output_dir, output_dir / "checkpoint-6")
        for weight, expected in zip(resumed.model.parameters(), run.model.parameters()):
            assert torch.equal(weight, expected)
        assert self.resume(output_dir, False).state.global_step == 12


class TestKilled:
    @pytest.mark.slow
    def test_ten_times_while_it_saves_and_resumed_ends_with_the_weights_and_rates_of_a_run_left_alone(self, tmp_path):
        num_steps, save_steps = 320, 4
        arguments = {
            "max_steps": num_steps,
            "warmup_steps": 20,
            "lr_scheduler_kwargs": {"num_cycles": 5, "decay": 0.75, "min_lr": 1e-4},
            "save_strategy": "steps",
            "save_steps": save_steps,
            "save_total_limit": 3,
        }
        left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
        left_alone.mkdir()
        killed.mkdir()

        def start(output_dir):
            resume = any(find_incomplete_file(folder) is None for folder in trainer_checkpoints(output_dir))
            process = processes.Process(target=train_and_keep_result, args=(str(output_dir), resume), kwargs=arguments)
            process.start()
            return process

        def finish(output_dir):
            process = start(output_dir)
            process.join(timeout=HANGS_AFTER)
            assert process.exitcode == 0

        finish(left_alone)
        num_torn = 0
        while num_torn < 10:  # the other kills come when a save has just ended
            process, known, num_saves = start(killed), {*trainer_checkpoints(killed)}, random.choice([1, 2])
            while len({*trainer_checkpoints(killed)} - known) < num_saves and process.is_alive():
                time.sleep(0.0005)
            time.sleep(random.uniform(0, 0.006))
            process.kill()
            process.join(timeout=HANGS_AFTER)
            assert process.exitcode == -9
            num_torn += any(find_incomplete_file(folder) for folder in trainer_checkpoints(killed)[:1])
        finish(killed)

        expected, result = (torch.load(folder / "result_0.pt") for folder in (left_alone, killed))
        schedule = CosineRestartSchedule.fit(num_steps, 5, decay=0.75, warmup_steps=20, eta_min=1e-4)
        assert expected["rates"] == result["rates"] == rates_of(schedule, num_steps)
        assert expected["weights"].keys() == result["weights"].keys()
        for name, weight in expected["weights"].items():
            assert torch.equal(weight, result["weights"][name]), name
