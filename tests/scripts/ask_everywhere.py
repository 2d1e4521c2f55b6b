"""Ask transformers for a schedule in every kind of process that training scripts start, and print what came."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import get_scheduler


def asked(*_: object) -> str:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("cosine_with_restarts", optimizer, num_warmup_steps=0, num_training_steps=70)
    return str(getattr(scheduler, "schedule", "built-in"))


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        return asked()


def main() -> None:
    print("this process:", asked())
    script = subprocess.run([sys.executable, __file__, "child"], capture_output=True, text=True, check=True)
    print("a script that it starts:", script.stdout.strip())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("a spawned process:", *pool.map(asked, [None]))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print("a forked process:", *pool.map(asked, [None]))
    print("a worker of a loader:", *next(iter(DataLoader(Rows(), num_workers=1, collate_fn=lambda rows: rows[:1]))))
    rows = Dataset.from_dict({"row": [0, 1]}).map(lambda row: {"asked": asked()}, num_proc=2)
    print("a process of datasets:", rows["asked"][0])


if __name__ == "__main__":
    print(asked()) if sys.argv[1:] == ["child"] else main()
