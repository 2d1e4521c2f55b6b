from __future__ import annotations

import json
import logging

import pytest
import torch
from example_runs import free_port
from trainer_runs import (
    causal_lm,
    join_process_group,
    overflowing_lm,
    processes,
    token_rows,
    training_arguments,
    with_gradient_scaler,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_warmcos import CycleEndCallback, WarmCosTrainer, find_cycle_end_checkpoints, register

# Cycles end at steps 6, 10, 14 and 18, after a warmup of 2 steps.
ARGUMENTS = {"max_steps": 18, "warmup_steps": 2, "lr_scheduler_kwargs": {"num_cycles": 4, "decay": 0.75}}
CYCLE_ENDS = [6, 10, 14, 18]


def make_trainer(output_dir, *callbacks, trainer_class=WarmCosTrainer, eval_dataset=True, model=None, **arguments):
    return trainer_class(
        model or causal_lm(),
        training_arguments(output_dir, **{**ARGUMENTS, **arguments}),
        train_dataset=token_rows(32),
        eval_dataset=token_rows(8, seed=1) if eval_dataset is True else eval_dataset,
        callbacks=list(callbacks),
    )


def evaluations(trainer):
    return {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}


def evaluated_steps(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def saved_strategies(output_dir):
    return {torch.load(path, weights_only=False).save_strategy for path in output_dir.rglob("training_args.bin")}


def checkpoints(output_dir):
    return sorted(int(folder.name.split("-")[1]) for folder in output_dir.glob("checkpoint-*"))


@pytest.mark.parametrize(("evaluate", "save"), [(True, True), (True, False), (False, True)])
def test_evaluates_and_saves_at_cycle_ends_and_nowhere_else(tmp_path, evaluate, save):
    trainer = make_trainer(tmp_path, CycleEndCallback(evaluate=evaluate, save=save))
    trainer.train()
    assert list(evaluations(trainer)) == (CYCLE_ENDS if evaluate else [])
    assert checkpoints(tmp_path) == (CYCLE_ENDS if save else [])


class Saves(TrainerCallback):
    """Keeps the steps at which the trainer saves."""

    def __init__(self):
        self.steps = []

    def on_save(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


# Cycles and epochs of 8 steps end together, but for those of the last case.
TOGETHER = {"max_steps": 24, "warmup_steps": 0, "lr_scheduler_kwargs": {"num_cycles": 3}}


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_a_step_at_which_a_cycle_and_an_epoch_end_is_evaluated_and_saved_once(tmp_path, strategy):
    saves = Saves()
    strategies = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 8, "save_steps": 8}
    trainer = make_trainer(tmp_path, CycleEndCallback(), saves, **TOGETHER, **strategies)
    trainer.train()
    assert evaluated_steps(trainer) == saves.steps == [8, 16, 24]


def test_an_epoch_that_ends_where_training_stops_inside_it_is_not_evaluated_again(tmp_path):
    saves = Saves()
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = make_trainer(tmp_path, CycleEndCallback(), saves, **{**TOGETHER, "max_steps": 12}, **strategies)
    trainer.train()
    assert evaluated_steps(trainer) == saves.steps == [4, 8, 12]


def test_what_the_callback_leaves_to_the_strategies_is_still_done_at_the_end_of_an_epoch(tmp_path):
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path, CycleEndCallback(evaluate=False), **TOGETHER, **strategies)
    trainer.train()
    assert evaluated_steps(trainer) == checkpoints(tmp_path) == [8, 16, 24]
    # What was saved before the evaluation does not know that it is the best.
    best = json.loads((tmp_path / "checkpoint-24" / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert best == trainer.state.best_model_checkpoint is not None


def test_early_stopping_sees_each_evaluation_once(tmp_path):
    trainer = make_trainer(
        tmp_path,
        CycleEndCallback(),
        EarlyStoppingCallback(1),
        **{**TOGETHER, "max_steps": 48, "lr_scheduler_kwargs": {"num_cycles": 6}},
        **{"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    first_without_improvement = next((i for i in range(1, 6) if losses[i] >= min(losses[:i])), 5)
    assert evaluated_steps(trainer) == [8 * (i + 1) for i in range(first_without_improvement + 1)]
    assert trainer.state.global_step > 8


@pytest.mark.parametrize("trainer_class", [WarmCosTrainer, Trainer])
@pytest.mark.parametrize("order", [1, -1])
def test_early_stopping_without_an_evaluation_strategy_is_an_error_that_says_what_to_set(
    tmp_path, trainer_class, order
):
    callbacks = [EarlyStoppingCallback(1), CycleEndCallback()][::order]
    arguments = {"trainer_class": trainer_class, "metric_for_best_model": "loss"}
    with pytest.raises(ValueError, match='set eval_strategy="steps" and eval_steps to a number above max_steps'):
        make_trainer(tmp_path, *callbacks, eval_strategy="no", **arguments)


def test_early_stopping_at_cycle_ends_works_as_that_error_says(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 1000, "metric_for_best_model": "loss", "learning_rate": 3e-1}
    trainer = make_trainer(tmp_path, EarlyStoppingCallback(1), CycleEndCallback(), **arguments)
    trainer.train()
    losses = [*evaluations(trainer).values()]
    assert evaluated_steps(trainer) == CYCLE_ENDS[: len(losses)]
    assert len(losses) < 4
    assert losses[-1] >= min(losses[:-1])


def test_adds_to_the_evaluation_and_save_strategies(tmp_path):
    trainer = make_trainer(
        tmp_path, CycleEndCallback(), eval_strategy="steps", eval_steps=4, save_strategy="epoch", num_train_epochs=3
    )
    trainer.train()
    assert list(evaluations(trainer)) == [4, 6, 8, 10, 12, 14, 16, 18]
    # An epoch has 8 steps.
    assert checkpoints(tmp_path) == [6, 8, 10, 14, 16, 18]


@pytest.mark.parametrize(
    "arguments",
    [
        {"eval_strategy": "no", "save_strategy": "no"},
        {"eval_strategy": "no", "save_strategy": "best"},
        {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 7, "save_steps": 7},
    ],
)
def test_load_best_model_at_end_loads_the_best_checkpoint(tmp_path, arguments):
    # The rate makes the model diverge in places, so that the best checkpoint is not the last one.
    trainer = make_trainer(tmp_path, CycleEndCallback(), load_best_model_at_end=True, learning_rate=3e-1, **arguments)
    trainer.train()
    losses = evaluations(trainer)
    best_step = min(losses, key=losses.get)
    assert best_step != 18
    assert set(checkpoints(tmp_path)) >= {*CYCLE_ENDS}
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best_step}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best_step])
    last_state = json.loads((tmp_path / "checkpoint-18" / "trainer_state.json").read_text())
    assert last_state["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    assert trainer.args.save_strategy == arguments["save_strategy"]
    assert saved_strategies(tmp_path) == {arguments["save_strategy"]}


def test_the_arguments_in_a_checkpoint_are_the_ones_that_the_user_gave(tmp_path):
    make_trainer(tmp_path, CycleEndCallback()).train()
    assert checkpoints(tmp_path) == CYCLE_ENDS
    assert saved_strategies(tmp_path) == {"no"}


def test_a_run_resumed_into_another_folder_leaves_the_checkpoints_of_the_first_as_they_are(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = {"load_best_model_at_end": True, "learning_rate": 3e-1}
    make_trainer(first, CycleEndCallback(), **arguments).train()
    saved = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    # What diverges from here on has its best checkpoint in the first folder.
    resumed = make_trainer(second, CycleEndCallback(), **{**arguments, "learning_rate": 10.0})
    resumed.add_callback(TrainsAtItsOwnLearningRate())
    resumed.train(resume_from_checkpoint=str(first / "checkpoint-10"))
    assert resumed.state.best_model_checkpoint.startswith(str(first))
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == saved
    assert checkpoints(second) == [14, 18]
    assert saved_strategies(second) == {"no"}


class TrainsAtItsOwnLearningRate(TrainerCallback):
    def on_train_begin(self, args, state, control, lr_scheduler, **kwargs):
        lr_scheduler.base_lrs = [args.learning_rate for _ in lr_scheduler.base_lrs]


@pytest.mark.needs("optuna")
@pytest.mark.parametrize("evaluate", [True, False])
def test_the_arguments_in_the_checkpoints_of_a_hyperparameter_search_are_the_ones_that_the_user_gave(
    tmp_path, evaluate
):
    trainer = WarmCosTrainer(
        args=training_arguments(tmp_path, **ARGUMENTS, metric_for_best_model="loss"),
        model_init=lambda: causal_lm(),
        train_dataset=token_rows(32),
        eval_dataset=token_rows(8, seed=1),
        callbacks=[CycleEndCallback(evaluate=evaluate)],
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
        compute_objective=lambda metrics: 0.0,
        n_trials=2,
        backend="optuna",
    )
    assert [checkpoints(tmp_path / f"run-{trial}") for trial in range(2)] == [CYCLE_ENDS] * 2
    assert saved_strategies(tmp_path) == {"no"}


@pytest.mark.parametrize(
    ("arguments", "warns"),
    [
        ({"save_total_limit": 3}, True),
        ({"save_total_limit": 4}, False),
        ({"save_total_limit": 4, "save_strategy": "steps", "save_steps": 5}, True),
        ({}, False),
    ],
)
def test_a_save_total_limit_that_will_delete_cycle_ends_is_warned_of_at_the_start(tmp_path, caplog, arguments, warns):
    class StopsAtOnce(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            control.should_training_stop = True

    caplog.set_level(logging.WARNING, logger="hf_warmcos")
    make_trainer(tmp_path, CycleEndCallback(), StopsAtOnce(), **arguments).train()
    messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
    assert [("save_total_limit=" in message, "will have 4 cycle ends" in message) for message in messages] == [
        (True, True)
    ] * warns


def test_save_total_limit_keeps_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path, CycleEndCallback(), load_best_model_at_end=True, learning_rate=3e-1, save_total_limit=2
    )
    trainer.train()
    losses = evaluations(trainer)
    assert checkpoints(tmp_path) == sorted({min(losses, key=losses.get), 18})


def test_a_run_resumed_from_a_cycle_end_continues_with_the_next_one(tmp_path):
    make_trainer(tmp_path, CycleEndCallback()).train()
    resumed = make_trainer(tmp_path / "resumed", CycleEndCallback())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert checkpoints(tmp_path / "resumed") == [14, 18]


def test_training_can_resume_from_a_checkpoint_that_was_saved_without_it(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=8).train()
    resumed = make_trainer(tmp_path / "resumed", CycleEndCallback())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert checkpoints(tmp_path / "resumed") == [10, 14, 18]


def test_a_run_has_one_mark_and_a_resumed_one_keeps_it(tmp_path):
    callback = CycleEndCallback()
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    first_run = callback.run
    assert callback.cycle_ends == CYCLE_ENDS
    for restored in (False, True):
        resumed = CycleEndCallback()
        arguments = {"restore_callback_states_from_checkpoint": restored}
        again = make_trainer(tmp_path / str(restored), resumed, **arguments)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
        callbacks = [cb for cb in again.callback_handler.callbacks if isinstance(cb, CycleEndCallback)]
        assert [(cb.run, cb.cycle_ends) for cb in callbacks] == [(first_run, CYCLE_ENDS)]
    trainer.train()
    assert callback.run != first_run
    assert callback.cycle_ends == CYCLE_ENDS


def test_works_under_register_with_a_plain_trainer(tmp_path):
    with register():
        trainer = make_trainer(
            tmp_path, CycleEndCallback(), trainer_class=Trainer, lr_scheduler_type="cosine_with_restarts"
        )
        trainer.train()
    assert list(evaluations(trainer)) == checkpoints(tmp_path) == CYCLE_ENDS


def test_finds_the_scheduler_in_the_wrapper_of_accelerate(tmp_path):
    class PreparesItsScheduler(WarmCosTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = self.accelerator.prepare(self.lr_scheduler)
            return self.lr_scheduler

    trainer = make_trainer(tmp_path, CycleEndCallback(), trainer_class=PreparesItsScheduler)
    trainer.train()
    assert list(evaluations(trainer)) == CYCLE_ENDS


def test_a_scheduler_without_cycles_is_an_error_at_the_start(tmp_path):
    trainer = make_trainer(tmp_path, CycleEndCallback(), trainer_class=Trainer, lr_scheduler_kwargs=None)
    with pytest.raises(TypeError, match=r"scheduler with cycles .* is a LambdaLR\. Use WarmCosTrainer"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_missing_evaluation_set_is_an_error_at_the_start(tmp_path):
    trainer = make_trainer(tmp_path, CycleEndCallback(), eval_dataset=None)
    with pytest.raises(ValueError, match="Expected an evaluation set for CycleEndCallback"):
        trainer.train()
    assert trainer.state.global_step == 0
    make_trainer(tmp_path, CycleEndCallback(evaluate=False), eval_dataset=None).train()
    assert checkpoints(tmp_path) == CYCLE_ENDS
    plain = {"trainer_class": Trainer, "lr_scheduler_type": "cosine_with_restarts"}
    with register(), pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(tmp_path, CycleEndCallback(), eval_dataset=None, **plain).train()


def test_an_evaluation_set_can_come_from_an_overridden_method_or_be_several(tmp_path):
    class BringsItsEvaluationSet(WarmCosTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return super().get_eval_dataloader(token_rows(8, seed=1))

    trainer = make_trainer(
        tmp_path, CycleEndCallback(save=False), trainer_class=BringsItsEvaluationSet, eval_dataset=None
    )
    trainer.train()
    assert list(evaluations(trainer)) == CYCLE_ENDS
    several = {"first": token_rows(4, seed=1), "second": token_rows(4, seed=2)}
    trainer = make_trainer(tmp_path, CycleEndCallback(save=False), eval_dataset=several)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_second_loss" in entry] == CYCLE_ENDS


class IsInterrupted(WarmCosTrainer):
    """Gets Ctrl-C in its first evaluation, or in its first save."""

    where = "evaluation"

    def evaluation_loop(self, *args, **kwargs):
        self.interrupt("evaluation")
        return super().evaluation_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):
        self.interrupt("save")
        super()._save_optimizer_and_scheduler(output_dir)

    def interrupt(self, where):
        if where == self.where:
            self.where = None
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["evaluation", "save"])
@pytest.mark.parametrize("again", ["same trainer", "another trainer"])
def test_a_training_after_one_that_was_interrupted_saves_as_the_arguments_say(tmp_path, where, again):
    arguments = {"load_best_model_at_end": True, "save_steps": 3}
    trainer = make_trainer(tmp_path, CycleEndCallback(), trainer_class=IsInterrupted, **arguments)
    trainer.where = where
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == CYCLE_ENDS[0]
    if again == "another trainer":
        trainer = WarmCosTrainer(
            causal_lm(),
            trainer.args,
            train_dataset=token_rows(32),
            eval_dataset=token_rows(8),
            callbacks=[CycleEndCallback()],
        )
    trainer.train()
    assert trainer.args.save_strategy == "no"
    assert list(evaluations(trainer)) == checkpoints(tmp_path) == CYCLE_ENDS
    assert saved_strategies(tmp_path) == {"no"}


def test_an_evaluation_that_was_interrupted_leaves_the_arguments_as_they_were(tmp_path):
    arguments = {"load_best_model_at_end": True, "save_steps": 3}
    trainer = make_trainer(tmp_path, CycleEndCallback(), trainer_class=IsInterrupted, **arguments)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.args.save_strategy == "no"
    WarmCosTrainer(causal_lm(), trainer.args, train_dataset=token_rows(32)).train()
    assert checkpoints(tmp_path) == []


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
            process.join(timeout=240)
        assert [process.exitcode for process in group] == [0, 0]
        assert checkpoints(tmp_path) == found(tmp_path) == [8, 16, 30]
        evaluated = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
        assert evaluated == [[8, 16, 30]] * 2


def train_with_skips(rank, world_size, port, output_dir, overflows):
    join_process_group(rank, world_size, port)
    trainer = TestUpdatesThatMixedPrecisionSkips().trainer(output_dir, *((0, 6) if overflows else ()))
    trainer.train()
    (output_dir / f"{rank}.json").write_text(json.dumps(evaluated_steps(trainer)))
