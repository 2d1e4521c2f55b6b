#!/usr/bin/env bash
# transformers 5.24.0: with cosine_with_min_lr, a parameter group can end at a tenth of min_lr.
#
# Expected: min_lr=1e-4 is the lowest learning rate of every group, as eta_min is in torch's CosineAnnealingLR.
# Seen: min_lr is divided by the optimizer's default lr, and each group ends at that fraction of its own lr.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import get_scheduler

groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-4)]
optimizer = torch.optim.AdamW(groups, lr=1e-3)
scheduler = get_scheduler("cosine_with_min_lr", optimizer, 0, 10, scheduler_specific_kwargs={"min_lr": 1e-4})
for _ in range(10):
    optimizer.step()
    scheduler.step()
print("with min_lr=1e-4 the groups end at", *(f"{lr:.2g}" for lr in scheduler.get_last_lr()))
raise SystemExit(not abs(scheduler.get_last_lr()[1] - 1e-5) < 1e-9)
PYTHON
