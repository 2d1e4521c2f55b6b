"""Study 3: does what studies 1 and 2 found hold with five times the updates and about ten times the model?

    python -m benchmarks.quality.further               # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.further --half 1      # and at the same time, on another core: --half 2
    python -m benchmarks.quality.further --estimate    # only says how long it takes on this machine
    python -m benchmarks.quality.further --quick       # the same code on a few updates, in seconds
    python -m benchmarks.quality.report                # the column on the decision page

A few contenders of study 2, trained by its code, and the growing cycles of study 1. A plan is tuned right before the
first run that needs it. All contenders are run with one seed, then with the next: wherever you stop it, what is there
can be compared.

To repeat one run, unpack the results, delete its line and run the command again: all digits but the seconds come back.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.moving_end import Contender, planned_paths
from benchmarks.quality.tasks import Size, Task, load_code, load_text
from benchmarks.quality.training import Budget, Records, Row, Study, estimate_or_measure, parse

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


BUDGET = Budget(800, seeds=(0, 1, 2, 3, 4), num_evaluation_blocks=128)
SIZE = Size(block_size=128, width=144, num_layers=4, num_heads=4, batch_size=4)
QUICK_BUDGET = Budget(8, (100,), (0, 1), num_peak_lrs=1, max_grid_extensions=0, num_evaluation_blocks=4)
QUICK_SIZE = Size(block_size=32, width=32, num_layers=1, num_heads=2, batch_size=2)


def rows(kinds: Sequence[Task], budget: Budget, size: Size, path: Path, half: int | None = None) -> list[Row]:
    """The rows of one of two processes that share the work, or all."""
    blocks = budget.num_evaluation_blocks
    settings = {"model": size._asdict(), "num_evaluation_blocks": blocks, "device": platform.machine()}
    study = Study(Records(path), kinds, budget, planned_paths, settings)
    return [(study, *row) for row in ROWS if half is None or (row[1] in SECOND_HALF) == (half == 2)]


def main() -> None:
    arguments = parse(__doc__, "further")
    budget, size = (QUICK_BUDGET, QUICK_SIZE) if arguments.quick else (BUDGET, SIZE)
    texts = (load_text(budget.num_evaluation_blocks, size), load_code(budget.num_evaluation_blocks, size))
    kinds = [replace(text, peak_lrs=text.peak_lrs[:3]) for text in texts]
    estimate_or_measure([rows(kinds, budget, size, arguments.output, arguments.half)], arguments)


if __name__ == "__main__":
    main()
