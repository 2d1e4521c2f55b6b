"""A whole training loop under Accelerate, to copy: the schedule counts updates, cycles end in a checkpoint, runs go on.

    python accelerate_loop.py output          # or: accelerate launch accelerate_loop.py output

The same command goes on where the run stopped. A small network learns Python's own argparse.py, byte by byte.
"""

import argparse
import inspect
import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule

GRADIENT_ACCUMULATION_STEPS = 2


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Every eight bytes of a text with the byte that follows, to train on and held out."""
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    windows = text.unfold(0, 9, 9)
    return TensorDataset(windows[500:, :8], windows[500:, 8]), TensorDataset(windows[:500, :8], windows[:500, 8])


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, loader: Any) -> float:
    model.eval()
    losses = []
    for inputs, targets in loader:
        loss = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
        losses.append(accelerator.gather_for_metrics(loss))  # without the samples that only fill up the last batch
    model.train()
    return torch.cat(losses).mean().item()


def main(output_dir: Path, num_epochs: int = 6) -> None:
    set_seed(0)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),  # an order for each epoch
    )
    train_data, held_out_data = load_data()
    # With a generator of their own the loaders leave the random numbers of dropout alone.
    loader: Any = DataLoader(train_data, batch_size=32, shuffle=True, generator=torch.Generator())
    held_out_loader: Any = DataLoader(held_out_data, batch_size=32, generator=torch.Generator())
    layers = [nn.Embedding(256, 16), nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256)]
    model: Any = nn.Sequential(*layers)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=2e-3)

    # A length in updates: of the *prepared* loader, which is one process's share, and not times the processes.
    loader, held_out_loader = accelerator.prepare(loader, held_out_loader)
    updates_per_epoch = math.ceil(len(loader) / GRADIENT_ACCUMULATION_STEPS)
    num_updates = updates_per_epoch * num_epochs
    # Each cycle ends in a checkpoint. Where only the last checkpoint counts, num_cycles=1 comes to the same.
    scheduler: Any = get_cosine_restarts_with_decay_and_warmup_schedule(
        optimizer, num_warmup_steps=num_updates // 15, num_training_steps=num_updates, num_cycles=3, T_mult=2
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    count_optimizer_steps(scheduler)
    set_seed(0, device_specific=True)  # the same weights on each process, but not the same dropout
    # Go on at the newest checkpoint, which is named after the updates before it.
    update = max((int(path.name.split("_")[1]) for path in output_dir.glob("update_*")), default=0)
    if update:
        accelerator.load_state(str(output_dir / f"update_{update}"))

    for epoch in range(update // updates_per_epoch, num_epochs):
        batches_done = update % updates_per_epoch * GRADIENT_ACCUMULATION_STEPS
        rest = accelerator.skip_first_batches(loader, batches_done) if batches_done else loader
        rest.set_epoch(epoch)
        for inputs, targets in rest:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            update += accelerator.sync_gradients
            # The rate is at its lowest: the moment to evaluate and to save.
            if accelerator.sync_gradients and scheduler.scheduler.at_cycle_end:
                held_out_loss = evaluate(accelerator, model, held_out_loader)
                accelerator.print(f"update {update}: a cycle has ended, held-out loss {held_out_loss:.4f}")
                accelerator.save_state(str(output_dir / "unfinished"))
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    (output_dir / "unfinished").rename(output_dir / f"update_{update}")  # now it is whole
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)  # else some runs never end
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "output"))
