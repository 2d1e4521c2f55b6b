"""Study 3: does what studies 1 and 2 found hold with five times the updates and about ten times the model?

    python -m benchmarks.quality.further               # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.further --half 1      # and at the same time, on another core: --half 2
    python -m benchmarks.quality.further --estimate    # only says how long it takes on this machine
    python -m benchmarks.quality.further --quick       # the same code on a few updates, in seconds
    timeout 30m python -m benchmarks.quality.further --scale gpu    # as much as fits, the first rows first
    python -m benchmarks.quality.report                # the column on the decision page

A few contenders of study 2, trained by its code, and the growing cycles of study 1. A plan is tuned right before the
first run that needs it. All contenders are run with one seed, then with the next: wherever you stop it, what is there
can be compared.

To repeat one run, unpack the results, delete its line and run the command again: all digits but the seconds come back.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.moving_end import Contender, planned_paths
from benchmarks.quality.tasks import InBfloat16, Size, Task, load_code, load_text, on_device, text_task
from benchmarks.quality.training import Budget, Records, Row, Study, estimate_or_measure, parse, results_file

# The most important first.
ROWS = [
    ("same data", Contender("cosine")),
    ("same data", Contender("restarts")),
    ("same data", Contender("cosine", 4)),
    ("same data", Contender("wsd_s")),
    ("same data", Contender("low")),
    ("other data", Contender("restarts")),
    ("other data", Contender("restarts", decay=0.5)),
    ("other data", Contender("wsd_s")),
    ("same data", Contender("growing")),
    ("same data", Contender("growing_wsd_s")),
]
# By their tuned peaks and first updates, these have nothing in common with the others.
SECOND_HALF = [Contender("cosine", 4), Contender("wsd_s")]


def on_gpu(task: Task, device: str = "cuda") -> Task:
    """The same task, on a GPU and in bfloat16."""
    return on_device(replace(task, make_model=lambda: InBfloat16(task.make_model())), device)


def torch_sources(pattern: str) -> list[str]:
    """Every fourth source file of the installed torch: about ten megabytes, in Python or in C++."""
    files = sorted(Path(torch.__file__).parent.rglob(pattern))[::4]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


@dataclass(frozen=True)
class Scale:
    """How much is measured, with which model, and the peak learning rates of the tuning grid."""

    budget: Budget
    size: Size
    peak_lrs: tuple[float, ...]
    gpu: bool = False

    def kinds(self) -> list[Task]:
        """The text that training begins with, and the other data."""
        arguments = self.budget.num_evaluation_blocks, self.size
        if self.gpu:
            sources = {"python": "*.py", "headers": "*.h"}
            tasks = [on_gpu(text_task(name, torch_sources(of), *arguments)) for name, of in sources.items()]
        else:
            tasks = [load_text(*arguments), load_code(*arguments)]
        return [replace(task, peak_lrs=self.peak_lrs) for task in tasks]

    def settings(self) -> dict[str, Any]:
        """What determines the numbers in the results, beside the run."""
        return {
            "model": self.size._asdict(),
            "num_evaluation_blocks": self.budget.num_evaluation_blocks,
            "device": torch.cuda.get_device_name() if self.gpu else platform.machine(),
        }


SCALES = {
    "cpu": Scale(
        Budget(800, seeds=(0, 1, 2, 3, 4), num_evaluation_blocks=128),
        Size(block_size=128, width=144, num_layers=4, num_heads=4, batch_size=4),
        peak_lrs=(1e-3, 2e-3, 4e-3),
    ),
    "gpu": Scale(
        Budget(4000, seeds=(0, 1, 2), num_peak_lrs=2, max_grid_extensions=1, num_evaluation_blocks=512),
        Size(block_size=256, width=512, num_layers=8, num_heads=8, batch_size=16),
        peak_lrs=(5e-4, 1e-3),
        gpu=True,
    ),
}
QUICK_BUDGET = Budget(
    8, tuning_seeds=(100,), seeds=(0, 1), num_peak_lrs=1, max_grid_extensions=0, num_evaluation_blocks=4
)
QUICK_SIZE = Size(block_size=32, width=32, num_layers=1, num_heads=2, batch_size=2)


def rows(kinds: Sequence[Task], scale: Scale, path: Path, half: int | None = None) -> list[Row]:
    """The rows of one of two processes that share the work, or all."""
    study = Study(Records(path), kinds, scale.budget, planned_paths, scale.settings())
    return [(study, *row) for row in ROWS if half is None or (row[1] in SECOND_HALF) == (half == 2)]


def main() -> None:
    arguments = parse(__doc__, SCALES)
    scale = SCALES[arguments.scale]
    if arguments.quick:
        scale = replace(scale, budget=QUICK_BUDGET, size=QUICK_SIZE)
    path = results_file("further", arguments)
    estimate_or_measure([rows(scale.kinds(), scale, path, arguments.half)], arguments)


if __name__ == "__main__":
    main()
