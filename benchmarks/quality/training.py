"""What the studies share: batches, losses, and a file of runs that continues where it was stopped."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.results import read_lines
from benchmarks.quality.tasks import Task

# The texts come with Python, and differ from one version to the next.
VERSIONS = {"python": platform.python_version()} | {
    name: version(name)
    for name in ("hf_warmcos", "torch", "transformers", "datasets", "numpy", "scikit-learn", "schedulefree")
}


def batches(num_rows: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows of each batch, without end: epoch after epoch in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(num_rows, generator=generator)[: num_rows // batch_size * batch_size].split(
            batch_size
        )


def update(task: Task, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    """One update on these rows of the training split."""
    logits = task.logits(model, task.train.inputs[batch])
    torch.nn.functional.cross_entropy(logits, task.train.labels[batch].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def log_probabilities(task: Task, model: torch.nn.Module, split: str) -> Tensor:
    """The logarithm of the probability of each class, a row per prediction of a split."""
    return task.logits(model, getattr(task, split).inputs).log_softmax(-1)


def loss_and_accuracy(log_probs: Tensor, labels: Tensor) -> dict[str, float | None]:
    """The mean cross-entropy in nats and the fraction of right predictions; the loss is None if training diverged."""
    labels = labels.flatten()
    loss = float(torch.nn.functional.nll_loss(log_probs, labels))
    accuracy = float((log_probs.argmax(-1) == labels).double().mean())
    return {"loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}


class Records:
    """A file of results with a line for each run: what determines it (`"run"`), and what was measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:  # without the half line of a run that was stopped while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        records = [json.loads(line) for line in read_lines(path)]
        self.known = {json.dumps(record["run"], sort_keys=True): record for record in records}

    def of(self, run: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a run, measured now where it is not there yet."""
        key = json.dumps(run, sort_keys=True)
        if key not in self.known:
            start = time.perf_counter()
            record = {"run": run, **measure(), "seconds": round(time.perf_counter() - start, 3)}
            line = json.dumps(record | {"versions": VERSIONS, "machine": platform.machine()})
            with self.path.open("a") as file:
                file.write(line + "\n")
            self.known[key] = json.loads(line)
        return self.known[key]


def best_peak_lr(
    peak_lrs: tuple[float, ...], max_grid_extensions: int, validation_loss: Callable[[float], float]
) -> float:
    """The peak learning rate of the lowest loss on a grid of factor 2, which grows if its best value is at an edge."""
    tried = {peak_lr: validation_loss(peak_lr) for peak_lr in peak_lrs}
    for _ in range(max_grid_extensions):
        best = min(tried, key=tried.__getitem__)
        if best == max(tried):
            tried[best * 2] = validation_loss(best * 2)
        elif best == min(tried):
            tried[best / 2] = validation_loss(best / 2)
    return min(tried, key=tried.__getitem__)
