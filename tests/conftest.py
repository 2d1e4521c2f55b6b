"""What several test modules share."""

from __future__ import annotations

import os

# Before anything that reads them is imported. Nothing here needs the Hub, and no test may wait for it. The models are
# too small for more threads than one, and the threads of several processes would wait for each other. DeepSpeed is to
# run on the CPU.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
