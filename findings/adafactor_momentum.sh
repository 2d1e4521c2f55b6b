#!/usr/bin/env bash
# transformers 5.24.0: Adafactor with beta1 keeps moving the weights for many updates at a learning rate of 0.
#
# Expected: no update at a learning rate of 0 moves the weights, with or without momentum, as with Adam.
# Seen: the first update at 0 is about 0.9 times as large as at the full learning rate, the tenth 0.3 times. The
# average that beta1 asks for is one of updates that the learning rate has already multiplied. After a restart
# the learning rate comes back as slowly. Without beta1, an update at 0 moves nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers.optimization import Adafactor


def sizes(beta1):
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = Adafactor([weights], lr=1e-2, relative_step=False, scale_parameter=False, beta1=beta1)
    moved = []
    for update in range(30):
        optimizer.param_groups[0]["lr"] = 1e-2 if update < 20 else 0.0
        weights.grad, before = torch.ones(4), weights.detach().clone()
        optimizer.step()
        moved.append((weights.detach() - before).norm().item())
    return moved[20] / moved[19], moved[29] / moved[19]


without, with_momentum = sizes(None), sizes(0.9)
print("first and tenth update at 0, without beta1: {:.2f} {:.2f}".format(*without))
print("first and tenth update at 0, with beta1=0.9: {:.2f} {:.2f}".format(*with_momentum))
raise SystemExit(not (without == (0, 0) and with_momentum[0] > 0.8 and with_momentum[1] > 0.2))
PYTHON
