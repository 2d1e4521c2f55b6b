#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: FTRL moves the weights far at each change of the learning rate, also at a lower one.
#
# Expected: after the learning rate is halved, the next update is half as large, as with every other optimizer.
# Seen: it is more than 1000 times as large. FTRL divides the change of its accumulator by the learning rate and
# subtracts the weights times that; the accumulator's old part was divided by the old learning rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 pytorch_optimizer==4.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from pytorch_optimizer import FTRL


def size_of_last_update(factor):
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(16))
    optimizer = FTRL([weights], lr=1e-3)
    for update in range(21):
        optimizer.param_groups[0]["lr"] = 1e-3 * (factor if update == 20 else 1)
        weights.grad, before = torch.randn(16), weights.detach().clone()
        optimizer.step()
    return (weights.detach() - before).norm().item()


ratio = size_of_last_update(0.5) / size_of_last_update(1)
print(f"at half the learning rate, the update is {ratio:.0f} times as large")
raise SystemExit(not ratio > 100)
PYTHON
