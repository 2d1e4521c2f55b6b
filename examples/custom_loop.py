"""The schedule in a plain PyTorch loop. A small GPT-2 learns the reference of the Python language, byte by byte.

python examples/custom_loop.py
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from causal_lm_data import ModelAndDataArguments, load_blocks, load_model_and_tokenizer
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule

NUM_TRAINING_STEPS = 60


def main() -> None:
    torch.manual_seed(0)
    arguments = ModelAndDataArguments()
    model, tokenizer = load_model_and_tokenizer(arguments)
    blocks = load_blocks(arguments, tokenizer)
    train: Any = blocks["train"]
    loader: DataLoader = DataLoader(train, batch_size=8, shuffle=True, drop_last=True, collate_fn=default_data_collator)
    held_out = default_data_collator([blocks["validation"][i] for i in range(0, 140, 7)])

    # Six steps of warmup, then three cycles, each twice as long as the one before. They end at the last step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
        optimizer, num_warmup_steps=6, num_training_steps=NUM_TRAINING_STEPS, num_cycles=3, T_mult=2, stable_ratio=0.8
    )

    model.train()
    for step, batch in enumerate(islice(loader, NUM_TRAINING_STEPS), start=1):
        loss = model(**batch).loss
        loss.backward()
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()  # after optimizer.step(), once per update
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step:3}  learning rate {learning_rate:.2e}  loss {loss.item():.3f}")

        # The learning rate is at its minimum: the moment to evaluate and to save.
        if scheduler.at_cycle_end:
            model.eval()
            with torch.no_grad():
                held_out_loss = model(**held_out).loss.item()
            model.train()
            print(f"end of a cycle at step {step}: held-out loss {held_out_loss:.3f}")


if __name__ == "__main__":
    main()
