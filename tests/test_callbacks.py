from __future__ import annotations

import json
import logging

import pytest
import torch
from cycle_end_runs import ARGUMENTS, CYCLE_ENDS, checkpoints, evaluated_steps, evaluations, make_trainer
from trainer_runs import (
    causal_lm,
    token_rows,
    training_arguments,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_warmcos import CycleEndCallback, WarmCosTrainer, register


def saved_strategies(output_dir):
    return {torch.load(path, weights_only=False).save_strategy for path in output_dir.rglob("training_args.bin")}


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
