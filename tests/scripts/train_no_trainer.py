"""A script of the shape of transformers' run_clm_no_trainer.py: its lengths are multiplied by the processes."""

from __future__ import annotations

import argparse
import json

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, SchedulerType, get_scheduler, set_seed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr_scheduler_type", type=SchedulerType, default="linear")
    parser.add_argument("--num_warmup_steps", type=int, default=0)
    parser.add_argument("--max_train_steps", type=int, required=True)
    parser.add_argument("--stop_after", type=int)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resume_from_checkpoint")
    args = parser.parse_args()
    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation_steps)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    rows = torch.randint(16, (args.max_train_steps * accelerator.num_processes * args.gradient_accumulation_steps, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    lr_scheduler = get_scheduler(
        name=args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.num_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, DataLoader(rows), lr_scheduler)
    completed_steps = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        completed_steps = args.stop_after or 0
        loader = accelerator.skip_first_batches(loader, completed_steps * args.gradient_accumulation_steps)
        args.stop_after = None
    rates = []
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch, labels=batch).loss)
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            rates.append(rate)
            completed_steps += 1
            if completed_steps == args.stop_after:
                break
    accelerator.save_state(f"{args.output_dir}/step_{completed_steps}")
    if accelerator.is_main_process:
        with open(f"{args.output_dir}/rates.jsonl", "a") as file:
            file.writelines(f"{json.dumps(rate)}\n" for rate in rates)
    # The model uses the group of processes, and goes before it: the other way round, some runs never end.
    model, optimizer, lr_scheduler = accelerator.free_memory(model, optimizer, lr_scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
