#!/usr/bin/env bash
# transformers 5.24.0: a Trainer that resumes from the last checkpoint of a finished run makes one more update.
#
# Expected: the run has taken max_steps updates, so that nothing is left to train.
# Seen: where it had ended inside an epoch, update max_steps + 1 is made, and changes the weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 16, (64, 4))]


def train(resume):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=4, n_embd=8, n_layer=1, n_head=1))
    args = TrainingArguments("out", max_steps=10, save_steps=5, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.global_step


first, resumed = train(None), train("out/checkpoint-10")
print(f"max_steps=10: the run took {first} updates; resumed from checkpoint-10, it is at {resumed}")
raise SystemExit(not (first == 10 and resumed == 11))
PYTHON
