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

import argparse
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.quality.moving_end import Budget, Contender, Runs, Stage, Study, planned_paths
from benchmarks.quality.tasks import Size, Split, Task, load_code, load_text, text_task
from benchmarks.quality.training import Records

RESULTS = Path(__file__).parent.parent / "results"
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
Row = tuple[str, Contender]


class InBfloat16(torch.nn.Module):
    """A model whose weights are in float32, and which computes in bfloat16."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        with torch.autocast(input_ids.device.type, torch.bfloat16):
            output = self.model(input_ids=input_ids)
        output.logits = output.logits.float()
        return output


def on_gpu(task: Task, device: str = "cuda") -> Task:
    """The same task, on a GPU and in bfloat16."""
    train, validation, test = (
        Split(*(tensor.to(device) for tensor in split)) for split in (task.train, task.validation, task.test)
    )
    return replace(
        task,
        train=train,
        validation=validation,
        test=test,
        make_model=lambda: InBfloat16(task.make_model()).to(device),
    )


def torch_sources(pattern: str) -> list[str]:
    """Every fourth source file of the installed torch: about ten megabytes, in Python or in C++."""
    files = sorted(Path(torch.__file__).parent.rglob(pattern))[::4]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


@dataclass(frozen=True)
class Scale:
    """How much is measured, with which model, and the peak learning rates of the tuning grid (without the first)."""

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
        peak_lrs=(5e-4, 1e-3, 2e-3, 4e-3),
    ),
    "gpu": Scale(
        Budget(4000, seeds=(0, 1, 2), num_peak_lrs=2, max_grid_extensions=1, num_evaluation_blocks=512),
        Size(block_size=256, width=512, num_layers=8, num_heads=8, batch_size=16),
        peak_lrs=(2.5e-4, 5e-4, 1e-3),
        gpu=True,
    ),
}
QUICK_BUDGET = Budget(
    8, tuning_seeds=(100,), seeds=(0, 1), num_peak_lrs=1, max_grid_extensions=0, num_evaluation_blocks=4
)
QUICK_SIZE = Size(block_size=32, width=32, num_layers=1, num_heads=2, batch_size=2)


def stages(runs: Iterable[Row], budget: Budget) -> list[Stage]:
    """What is trained with one seed, by scenario and contender. What several have in common is trained once."""
    distinct = {
        (contender.tuned_as(), path[:length])
        for scenario, contender in runs
        for path in planned_paths(scenario, contender, budget)
        for length in range(1, len(path) + 1)
    }
    return [path[-1] for _, path in distinct]


def rows_of(half: int | None) -> list[Row]:
    """The rows of one of two processes that share the work, or all."""
    return [row for row in ROWS if half is None or (row[1] in SECOND_HALF) == (half == 2)]


def estimated_hours(kinds: Sequence[Task], budget: Budget, half: int | None = None) -> float:
    """How long all of it takes where no tuning grid grows, by the speed of a few updates and of one evaluation."""
    rows = rows_of(half)
    all_stages = stages(rows, budget) * len(budget.seeds)
    tuning = stages((("tuning", contender.tuned_as()) for _, contender in rows), budget)
    all_stages += tuning * len(budget.tuning_seeds) * budget.num_peak_lrs
    runs = Runs(kinds, 0, 1)

    def seconds(num_updates: int, *stops: int) -> float:
        start = time.perf_counter()
        runs.train((Stage((1.0,) * num_updates, 0, stops),), False, 1e-3, ("validation", "test"))
        return time.perf_counter() - start

    seconds(3)  # the first updates are slower
    of_update = seconds(20) / 20
    of_evaluation = max(0.0, seconds(1, 1) - of_update)
    num_updates = sum(len(stage.shares) for stage in all_stages)
    num_evaluations = sum(len(stage.stops) for stage in all_stages)
    return (num_updates * of_update + num_evaluations * of_evaluation) / 3600


def measure_all(kinds: Sequence[Task], scale: Scale, path: Path, half: int | None = None) -> None:
    """Tune and measure the rows, but for the runs that the file has already."""
    rows = rows_of(half)
    with tqdm(total=len(scale.budget.seeds) * len(rows), unit="run") as bar:
        study = Study(Records(path), kinds, scale.budget, bar.update, scale.settings())
        for seed in scale.budget.seeds:
            for row in rows:
                study.measure(seed, [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="cpu", help="the machine (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few updates of a tiny model, into output/")
    parser.add_argument("--estimate", action="store_true", help="only say how long all of it takes")
    parser.add_argument("--half", type=int, choices=[1, 2], help="only this half, so that two processes share the work")
    parser.add_argument("--output", type=Path, help=f"the results (default: in {RESULTS})")
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    if scale.gpu and not torch.cuda.is_available():
        parser.error("Expected a GPU for --scale gpu, but torch sees none")
    if arguments.quick:
        scale = replace(scale, budget=QUICK_BUDGET, size=QUICK_SIZE)
    # Sums are then always taken in the same order, and a seed gives the same numbers again.
    torch.set_num_threads(1)
    if scale.gpu:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    kinds = scale.kinds()
    hours = estimated_hours(kinds, scale.budget, arguments.half)
    print(f"It takes about {hours:.2f} hours at this machine's speed, longer where a tuning grid grows.")
    if not arguments.estimate:
        name = "further" + "-gpu" * scale.gpu
        path = Path("output") / f"{name}-quick.jsonl" if arguments.quick else RESULTS / f"{name}.jsonl"
        measure_all(kinds, scale, arguments.output or path, arguments.half)


if __name__ == "__main__":
    main()
