#!/usr/bin/env bash
# transformers 5.24.0: a run that is resumed with more training steps uses the old schedule's learning rate once more.
#
# Expected: after the states were loaded, the first update has the learning rate of the schedule that was constructed.
# Seen: the first update has the learning rate that was saved with the optimizer, the second that of the new schedule.
# LambdaLR.load_state_dict() writes no learning rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
from transformers import get_cosine_schedule_with_warmup


def start(num_training_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, 0, num_training_steps)


def train(optimizer, scheduler, updates):
    used = []
    for _ in range(updates):
        optimizer.step()
        used.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return used


stopped = start(10)
train(*stopped, 5)
resumed = start(40)
for part, saved in zip(resumed, stopped):
    part.load_state_dict(saved.state_dict())
seen = train(*resumed, 2)
new = [0.1 * (1 + math.cos(math.pi * step / 40)) / 2 for step in (5, 6)]
print("the new schedule:", *(f"{rate:.4f}" for rate in new))
print("used:            ", *(f"{rate:.4f}" for rate in seen))
raise SystemExit(not (abs(seen[0] - 0.05) < 1e-6 and abs(seen[1] - new[1]) < 1e-6))
PYTHON
