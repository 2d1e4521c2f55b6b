"""A whole training loop under Accelerate, to copy into your project. It saves at the end of each cycle and resumes.

    python accelerate_loop.py output                        # one process
    torchrun --nproc_per_node 2 accelerate_loop.py output   # two processes, on two GPUs or on the CPU

The same command continues the run in that folder: after Ctrl-C or a kill, from the newest checkpoint `update_N`. For a
new run, pick another folder. A small network learns the bytes of Python's own argparse.py.
"""

import argparse
import ctypes
import inspect
import math
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Eight bytes of a text and the byte that follows them, for training and held out."""
    windows = torch.tensor(list(inspect.getsource(argparse).encode())).unfold(0, 9, 9)
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
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: if the launcher is killed, end with it
    set_seed(0)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),  # an order for each epoch
    )
    accelerator.print(f"Processes: {accelerator.num_processes}, device: {accelerator.device.type}")
    train_data, held_out_data = load_data()
    # With generators of their own the loaders leave the random numbers of dropout alone.
    loader: Any = DataLoader(train_data, batch_size=32, shuffle=True, generator=torch.Generator())
    held_out_loader: Any = DataLoader(held_out_data, batch_size=32, generator=torch.Generator())
    layers = [nn.Embedding(256, 16), nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256)]
    model: Any = nn.Sequential(*layers)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=2e-3)

    # Compute the number of updates from the *prepared* loader: it has the batches of one process. A fifteenth warms up.
    loader, held_out_loader = accelerator.prepare(loader, held_out_loader)
    updates_per_epoch = math.ceil(len(loader) / accelerator.gradient_accumulation_steps)
    num_updates = updates_per_epoch * num_epochs
    scheduler: Any = get_cosine_restarts_with_decay_and_warmup_schedule(
        optimizer, num_updates // 15, num_updates, num_cycles=3, T_mult=2, stable_ratio=0.8
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    own = count_optimizer_steps(scheduler).scheduler  # the scheduler of this package, in the one that Accelerate made
    set_seed(0, device_specific=True)  # the same weights on each process, but a dropout of its own

    shutil.rmtree(output_dir / "unfinished", ignore_errors=True)  # a kill may have left it
    # Continue from the newest checkpoint. Its name has the updates before it, a file in it has the attempts at them.
    attempt, newest = 0, max(output_dir.glob("update_*"), key=lambda path: int(path.name[7:]), default=None)
    if newest is not None:
        saved_by = len(list(newest.glob("random_states_*")))
        if saved_by != accelerator.num_processes:
            error = f"Expected as many processes as saved {newest}, {saved_by}, but got {accelerator.num_processes}"
            sys.exit(error if accelerator.is_main_process else 1)
        accelerator.load_state(str(newest))
        attempt = int((newest / "attempts").read_text())
        accelerator.print(f"Continuing from {newest}, with {own.last_epoch} of {num_updates} updates done")

    while own.last_epoch < num_updates:  # until the schedule has ended: mixed precision skips some attempts
        epoch, done = divmod(attempt, updates_per_epoch)
        batches = done * accelerator.gradient_accumulation_steps
        rest = accelerator.skip_first_batches(loader, batches) if batches else loader
        rest.set_epoch(epoch)
        for inputs, targets in rest:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            attempt += accelerator.sync_gradients
            # At the end of a cycle the learning rate is at its minimum: the moment to evaluate and to save.
            if accelerator.sync_gradients and own.at_cycle_end and not accelerator.optimizer_step_was_skipped:
                held_out_loss = evaluate(accelerator, model, held_out_loader)
                accelerator.print(f"update {own.last_epoch}: a cycle has ended, held-out loss {held_out_loss:.4f}")
                accelerator.save_state(str(output_dir / "unfinished"))
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    (output_dir / "unfinished" / "attempts").write_text(str(attempt))
                    (output_dir / "unfinished").rename(output_dir / f"update_{own.last_epoch}")  # now it is whole
            if own.last_epoch == num_updates:
                break
    # Free the model before the process group ends: otherwise some runs on CPUs hang at exit.
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, nargs="?", default="output")
    main(parser.parse_args().output_dir)
