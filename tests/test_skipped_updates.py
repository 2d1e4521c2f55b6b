"""Updates that mixed precision skips: each cycle is evaluated and saved all the same."""

from __future__ import annotations

import json

import pytest
from cycle_end_runs import checkpoints, evaluated_steps, evaluations, make_trainer
from example_runs import free_port
from trainer_runs import (
    join_process_group,
    overflowing_lm,
    processes,
    with_gradient_scaler,
)
from transformers import Trainer, TrainerCallback
from work import HANGS_AFTER

from hf_warmcos import CycleEndCallback, WarmCosTrainer, find_cycle_end_checkpoints, register


def found(output_dir):
    return [int(folder.name.split("-")[1]) for folder in find_cycle_end_checkpoints(output_dir)]


def skips_reported(caplog):
    messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
    return [message for message in messages if message.startswith("Mixed precision skipped")]


class TestUpdatesThatMixedPrecisionSkips:
    """With torch's gradient scaler. Without skips the cycles end at attempts 6, 14 and 30, the last one."""

    ARGUMENTS = {"max_steps": 30, "warmup_steps": 2, "lr_scheduler_kwargs": {"num_cycles": 3, "T_mult": 2}}  # noqa: RUF012

    def trainer(self, output_dir, *overflows_at, callback=True, **arguments):
        callbacks = [CycleEndCallback()] if callback else []
        arguments = {**self.ARGUMENTS, "optim": "adamw_torch", **arguments}
        trainer = make_trainer(output_dir, *callbacks, model=overflowing_lm(*overflows_at), **arguments)
        return with_gradient_scaler(trainer)

    @pytest.mark.parametrize(
        ("overflows_at", "ends"),
        [
            ((), [6, 14, 30]),
            ((0,), [7, 15, 30]),  # usual at the start of a run
            ((6,), [6, 15, 30]),  # right behind a cycle end
            ((6, 7, 8, 14), [6, 18, 30]),
            ((13,), [6, 15, 30]),
            ((29,), [6, 14, 30]),
            ((27, 28, 29), [6, 14, 30]),
        ],
    )
    def test_take_no_cycle_end_from_a_run_and_repeat_none(self, tmp_path, caplog, overflows_at, ends):
        trainer = self.trainer(tmp_path, *overflows_at)
        trainer.train()
        assert trainer.lr_scheduler.last_epoch == 30 - len(overflows_at)
        assert evaluated_steps(trainer) == checkpoints(tmp_path) == found(tmp_path) == ends
        expected = f"Mixed precision skipped {len(overflows_at)} of the 30 updates"
        assert [message.startswith(expected) for message in skips_reported(caplog)] == [True] * bool(overflows_at)

    def test_take_no_checkpoint_from_load_best_model_at_end(self, tmp_path):
        trainer = self.trainer(tmp_path, 0, 6, load_best_model_at_end=True)
        trainer.eval_dataset = trainer.train_dataset  # on these data the last cycle end is the best
        trainer.train()
        losses = evaluations(trainer)
        assert [*losses] == checkpoints(tmp_path) == [8, 16, 30]
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-30")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[30])

    def test_are_still_counted_in_a_resumed_run(self, tmp_path, caplog):
        self.trainer(tmp_path, 0, 2, save_strategy="steps", save_steps=10).train()
        caplog.clear()
        for checkpoint, overflows_at in ((8, ()), (10, (3, 4)), (16, (0,))):
            resumed = self.trainer(tmp_path / str(checkpoint), *overflows_at)
            resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
            assert evaluated_steps(resumed)[-1] == checkpoints(tmp_path / str(checkpoint))[-1] == 30
        skipped = [message.split()[3] for message in skips_reported(caplog)]
        assert skipped == ["2", "4", "3"]

    def test_are_counted_where_the_checkpoint_was_saved_without_the_callback(self, tmp_path):
        self.trainer(tmp_path, 0, 2, callback=False, save_strategy="steps", save_steps=10).train()
        resumed = self.trainer(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
        assert checkpoints(tmp_path / "resumed") == [30]

    def test_right_behind_the_cycle_end_to_resume_from_do_not_repeat_it(self, tmp_path):
        self.trainer(tmp_path).train()
        resumed = self.trainer(tmp_path / "resumed", 0)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert evaluated_steps(resumed)[-2:] == checkpoints(tmp_path / "resumed") == [15, 30]

    def test_let_a_run_that_is_continued_reach_the_end_that_counted_only_once(self, tmp_path):
        self.trainer(tmp_path, 0).train()
        cycles = {"lr_scheduler_kwargs": {"cycles": [4, 8, 16, 10]}}
        resumed = self.trainer(tmp_path / "resumed", max_steps=40, **cycles)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
        assert checkpoints(tmp_path / "resumed") == [40]

    def test_do_not_make_a_cycle_end_of_a_training_that_ends_inside_a_cycle(self, tmp_path):
        cycles_of_10 = {"warmup_steps": 0, "lr_scheduler_kwargs": {"T_0": 10}}
        trainer = self.trainer(tmp_path / "inside", 0, 12, max_steps=27, **cycles_of_10)
        with pytest.warns(UserWarning, match="Training ends inside a cycle"):
            trainer.train()
        assert checkpoints(tmp_path / "inside") == found(tmp_path / "inside") == [11, 22]

        class Stops(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 28

        trainer = self.trainer(tmp_path / "stopped", 0, 3)
        trainer.add_callback(Stops())
        trainer.train()
        assert checkpoints(tmp_path / "stopped") == [8, 16]

    @pytest.mark.parametrize("trainer_class", [WarmCosTrainer, Trainer])
    def test_do_not_hide_the_last_cycle_end_among_checkpoints_without_a_mark(self, tmp_path, trainer_class):
        arguments = {"callback": False, "trainer_class": trainer_class, "save_strategy": "steps", "save_steps": 5}
        with register():
            arguments["lr_scheduler_type"] = "cosine_with_restarts"
            self.trainer(tmp_path, 0, 9, **arguments).train()
        assert found(tmp_path) == [30]

    def test_do_not_make_a_cycle_end_of_a_checkpoint_without_a_mark_inside_a_cycle(self, tmp_path):
        arguments = {"warmup_steps": 0, "lr_scheduler_kwargs": {"T_0": 10}, "max_steps": 27}
        trainer = self.trainer(tmp_path, 0, callback=False, save_strategy="steps", save_steps=11, **arguments)
        with pytest.warns(UserWarning, match="Training ends inside a cycle"):
            trainer.train()
        assert checkpoints(tmp_path) == [11, 22, 27]
        assert found(tmp_path) == [11]

    def test_of_a_fused_optimizer_count_as_updates(self, tmp_path):
        # It skips them itself, and Accelerate does not see it: https://github.com/huggingface/accelerate/issues/4242
        trainer = self.trainer(tmp_path, 0, 6, optim="adamw_torch_fused")
        trainer.train()
        assert trainer.lr_scheduler.last_epoch == 30
        assert checkpoints(tmp_path) == found(tmp_path) == [6, 14, 30]

    @pytest.mark.slow
    @pytest.mark.parametrize("overflows_on", [(0, 1), (1,)])
    def test_on_two_processes_take_no_cycle_end_from_a_run(self, tmp_path, overflows_on):
        port = free_port()
        group = [
            processes.Process(target=train_with_skips, args=(rank, 2, port, tmp_path, rank in overflows_on))
            for rank in range(2)
        ]
        for process in group:
            process.start()
        for process in group:
            process.join(timeout=HANGS_AFTER)
        assert [process.exitcode for process in group] == [0, 0]
        assert checkpoints(tmp_path) == found(tmp_path) == [8, 16, 30]
        evaluated = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
        assert evaluated == [[8, 16, 30]] * 2


def train_with_skips(rank, world_size, port, output_dir, overflows):
    join_process_group(rank, world_size, port)
    trainer = TestUpdatesThatMixedPrecisionSkips().trainer(output_dir, *((0, 6) if overflows else ()))
    trainer.train()
    (output_dir / f"{rank}.json").write_text(json.dumps(evaluated_steps(trainer)))
