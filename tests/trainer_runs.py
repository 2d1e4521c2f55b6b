"""Small models, their data and whole training runs, for the tests that use a Trainer.

The functions are at the top of a module, so that the runs can also be had in processes of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from example_runs import warm_context
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, WarmCosTrainer

# These models are too small for more, and several of them train at once.
torch.set_num_threads(1)

VOCAB_SIZE = 32
BASE_LR = 1e-2
FOUR_CYCLES = {"num_cycles": 4, "decay": 0.75}

# Processes that are forked from one that has imported what takes its time start fast.
processes = warm_context()


def causal_lm(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A GPT-2 of one small layer, with GPT-2's dropout."""
    set_seed(seed)
    sizes = {"vocab_size": VOCAB_SIZE, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **config}))


class OverflowingLM(GPT2LMHeadModel):
    """A GPT-2 whose loss, and so its gradients, are infinite at some of its training batches, counted from 0."""

    overflows_at: tuple[int, ...] = ()

    def forward(self, input_ids: Any, labels: Any, **inputs: Any) -> Any:
        output = super().forward(input_ids, labels=labels, **inputs)
        if self.training:
            self.batch = getattr(self, "batch", -1) + 1
            if self.batch in self.overflows_at:
                output.loss = output.loss * float("inf")
        return output


def overflowing_lm(*batches: int) -> OverflowingLM:
    model = OverflowingLM(causal_lm().config)
    model.load_state_dict(causal_lm().state_dict())
    model.overflows_at = batches
    return model


def with_gradient_scaler(trainer: Trainer) -> Trainer:
    """Give a trainer what Accelerate uses under fp16 on a GPU. On the CPU it leaves it out, and torch does not."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    return trainer


def token_rows(num_rows: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of 8 random tokens."""
    rows = torch.randint(1, VOCAB_SIZE, (num_rows, 8), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": row, "labels": row} for row in rows]


def training_arguments(output_dir: str | Path, arguments_class: Any = TrainingArguments, **arguments: Any) -> Any:
    """Arguments that log the rate of each step."""
    defaults = {
        "per_device_train_batch_size": 4,
        "learning_rate": BASE_LR,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return arguments_class(output_dir=str(output_dir), **{**defaults, **arguments})


def logged_rates(trainer: Trainer) -> list[float]:
    """The rate of each step, from the Trainer's log."""
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def train(
    output_dir: Path, trainer_class: Any = WarmCosTrainer, num_rows: int = 64, model: Any = None, **arguments: Any
) -> Any:
    """A Trainer that has trained, the small model where no other is given."""
    args = training_arguments(output_dir, **arguments)
    trainer = trainer_class(causal_lm() if model is None else model, args, train_dataset=token_rows(num_rows))
    trainer.train()
    return trainer


def rates_of(schedule: CosineRestartSchedule, num_steps: int, base_lr: float = BASE_LR) -> list[float]:
    """The learning rates of the first steps."""
    return [schedule.lr_at(step, base_lr) for step in range(num_steps)]


def train_and_keep_result(output_dir: str, resume_from_checkpoint: str | bool = False, **arguments: Any) -> None:
    """Train; the logged rates and the final weights go into `result_<rank>.pt`."""
    args = training_arguments(output_dir, **arguments)
    trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64))
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    result = {"rates": logged_rates(trainer), "weights": trainer.model.state_dict()}
    torch.save(result, Path(output_dir) / f"result_{args.process_index}.pt")


def join_process_group(rank: int, world_size: int, port: int) -> None:
    """Set the environment that torchrun gives a process."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def train_in_process_group(rank: int, world_size: int, port: int, output_dir: str, arguments: dict[str, Any]) -> None:
    """One process of several that train together."""
    join_process_group(rank, world_size, port)
    train_and_keep_result(output_dir, **arguments)


def save_with_accelerate(output_dir: str) -> None:
    """Save the state of a model, its optimizer, its scheduler and an object of the user, as `state_1`."""
    accelerator = Accelerator(cpu=True)
    model = causal_lm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=1))
    prepared, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.register_for_checkpointing(torch.optim.SGD([torch.zeros(1)], lr=BASE_LR))
    tokens = torch.tensor([[1, 2, 3]])
    accelerator.backward(prepared(input_ids=tokens, labels=tokens).loss)
    optimizer.step()
    scheduler.step()
    accelerator.save_state(f"{output_dir}/state_1")
    accelerator.free_memory(prepared, optimizer, scheduler)
    accelerator.end_training()
