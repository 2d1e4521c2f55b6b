#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: ApolloDQN ignores the learning rate of its groups in its first 500 updates.
#
# Expected: a scheduler that sets the learning rate to 0 stops the weights.
# Seen: they move as much as without it. By default, warmup_steps=500, and until then a warmup of its own from init_lr to
# the lr of the constructor replaces what stands in param_groups; get_last_lr() of a scheduler shows another value.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 pytorch_optimizer==4.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from pytorch_optimizer import ApolloDQN


def moved(factor, **arguments):
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = ApolloDQN([weights], lr=1e-2, **arguments)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 20 else factor)
    for update in range(21):
        weights.grad, before = torch.ones(4), weights.detach().clone()
        optimizer.step()
        scheduler.step()
    return (weights.detach() - before).norm().item()


with_own_warmup = moved(0.0) / moved(1.0)
without = moved(0.0, warmup_steps=0) / moved(1.0, warmup_steps=0)
print(f"the update at a learning rate of 0, relative to one at the full: {with_own_warmup:.2f} by default, {without:.2f}")
raise SystemExit(not (with_own_warmup == 1 and without == 0))
PYTHON
