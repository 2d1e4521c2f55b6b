"""Trainers with a `CycleEndCallback`, and what they evaluated and saved."""

from __future__ import annotations

from trainer_runs import (
    causal_lm,
    token_rows,
    training_arguments,
)

from hf_warmcos import WarmCosTrainer

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


def checkpoints(output_dir):
    return sorted(int(folder.name.split("-")[1]) for folder in output_dir.glob("checkpoint-*"))
