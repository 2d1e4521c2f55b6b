"""Run a script with deterministic algorithms: `run_deterministically.py SCRIPT ARGUMENTS…`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

# Read by cuBLAS when it is first used.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import torch

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
