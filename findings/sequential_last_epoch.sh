#!/usr/bin/env bash
# torch 2.13.0: a SequentialLR that is resumed by last_epoch goes on with other learning rates.
#
# Expected: last_epoch=7 takes the place of 8 calls of step(), as it does with each scheduler alone.
# Seen: the learning rates differ from those of a run that did not stop. Its state_dict() resumes it rightly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR


def sequence(optimizer, last_epoch=-1):
    warmup = LinearLR(optimizer, 0.1, total_iters=4, last_epoch=last_epoch)
    cosine = CosineAnnealingLR(optimizer, 16, last_epoch=max(-1, last_epoch - 4))
    return SequentialLR(optimizer, [warmup, cosine], [4], last_epoch=last_epoch)


def train(optimizer, scheduler, updates):
    used = []
    for _ in range(updates):
        optimizer.step()
        used.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return used


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


whole = optimizer()
expected = train(whole, sequence(whole), 12)[8:]
stopped = optimizer()
scheduler = sequence(stopped)
train(stopped, scheduler, 8)
by_state, by_epoch = optimizer(), optimizer()
resumed = sequence(by_state)
resumed.load_state_dict(scheduler.state_dict())
by_state.load_state_dict(stopped.state_dict())
by_epoch.load_state_dict(stopped.state_dict())
seen = {
    "never stopped": expected,
    "by its state": train(by_state, resumed, 4),
    "by last_epoch": train(by_epoch, sequence(by_epoch, last_epoch=7), 4),
}
for how, rates in seen.items():
    print(f"{how:14}", *(f"{rate:.4f}" for rate in rates))
raise SystemExit(not (seen["by its state"] == expected and max(map(abs, map(float.__sub__, seen["by last_epoch"], expected))) > 0.005))
PYTHON
