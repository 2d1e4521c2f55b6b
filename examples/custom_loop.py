"""The schedule in a plain PyTorch loop. A small GPT-2 learns the reference of the Python language, byte by byte.

python examples/custom_loop.py
"""

from __future__ import annotations

from itertools import chain, repeat
from pydoc_data.topics import topics
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule

NUM_TRAINING_STEPS = 60


def main() -> None:
    torch.manual_seed(0)
    text = torch.tensor(list("".join(topics.values()).encode()))
    blocks: Any = text.unfold(0, 64, 64)  # rows of 64 bytes
    held_out, train_data = blocks[:20], blocks[20:]
    loader: DataLoader = DataLoader(train_data, batch_size=8, shuffle=True, drop_last=True)
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers cannot tell it from the name of this class, and would warn

    # Six steps of warmup, then three cycles, each twice as long as the one before. They end at the last step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
        optimizer, num_warmup_steps=6, num_training_steps=NUM_TRAINING_STEPS, num_cycles=3, T_mult=2, stable_ratio=0.8
    )

    model.train()
    batches = chain.from_iterable(repeat(loader))  # epoch after epoch
    while scheduler.last_epoch < NUM_TRAINING_STEPS:
        loss = model(input_ids=(batch := next(batches)), labels=batch).loss
        loss.backward()
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()  # after optimizer.step(), once per update
        optimizer.zero_grad()
        if (step := scheduler.last_epoch) % 10 == 0:
            print(f"step {step:3}  learning rate {learning_rate:.2e}  loss {loss.item():.3f}")

        # The update that was just made had the lowest learning rate of its cycle: the moment to evaluate and to save.
        if scheduler.at_cycle_end:
            model.eval()
            with torch.no_grad():
                held_out_loss = model(input_ids=held_out, labels=held_out).loss.item()
            model.train()
            print(f"end of a cycle at step {step}: held-out loss {held_out_loss:.3f}")


if __name__ == "__main__":
    main()
