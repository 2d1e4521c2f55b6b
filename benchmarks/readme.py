"""Write the figures of the README and of docs/speed.md, and the help on docs/command-line.md, into these documents.

    accelerate launch examples/accelerate_finetune.py --output_dir output
    cp output/all_results.json benchmarks/results/accelerate_finetune.json
    python -m benchmarks.speed.step_cost --output benchmarks/results
    python -m benchmarks.speed.curve --output benchmarks/results
    python -m benchmarks.readme

Each section of figures stands between two comments that name it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.documents import markdown_table, write_figures
from benchmarks.speed.step_cost import BARE_LOOP, OURS, OURS_AT_RESTART, TORCH, counted_groups
from benchmarks.speed.timing import describe, rounded

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def finetuning() -> str:
    """What the main job comes to."""
    results = read("accelerate_finetune")
    ends = [f"{cycle['eval_loss']:.2f}" for cycle in results["cycles"]]
    return (
        f"The cross entropy on held-out text falls from {results['untrained_eval_loss']:.2f} per byte, untrained, to "
        f"{results['eval_loss']:.2f} after {results['completed_steps']:,} updates "
        f"(at the ends of the cycles: {', '.join(ends)})."
    )


def step_cost() -> str:
    """The medians of one step, for each contender and number of groups, and for each kind of rate."""
    record = read("step_cost")
    columns = {counted_groups(num_groups): of for num_groups, of in record["num_groups"].items()}
    parts = []
    for kind, timings in (("floats", columns), ("tensors", record.get("tensor_rates"))):
        if timings:
            names = [name for name in next(iter(timings.values())) if name != OURS_AT_RESTART]
            rows = [[name, *(rounded(of[name]["median"]) for of in timings.values())] for name in names]
            parts.append(markdown_table([f"µs per `step()`, median; rates are {kind}", *timings], rows))
    missing = "".join(f" Not available: {name}." for name in record["unavailable"])
    return "\n\n".join([*parts, f"{describe(record['surroundings'])}.{missing}"])


def step_summary() -> str:
    """What a step costs, in one sentence."""
    of = read("step_cost")["num_groups"]["1"]
    ours, loop, torchs = (rounded(of[name]["median"]) for name in (OURS, BARE_LOOP, TORCH))
    return (
        f"One `step()` with one parameter group takes {ours} µs, a loop written by hand for the same rates {loop} µs, "
        f"and torch's `CosineAnnealingWarmRestarts` {torchs} µs."
    )


def other_costs() -> str:
    """The curve and random access."""
    curve = read("curve")
    of_torch, lr_at = curve["curves"]["T_0=10,000"], curve["access"]["lr_at"]
    return "\n".join(
        [
            f"- A curve of {curve['num_steps']:,} steps takes {of_torch['curve']['median'] / 1000:.0f} ms; stepping "
            f"torch's scheduler over them {of_torch['torch']['median'] / 1e6:.1f} s.",
            f"- `lr_at` takes {rounded(lr_at['near']['median'])} µs at step 100 and {rounded(lr_at['far']['median'])} "
            "µs at step 10**15.",
        ]
    )


def help_of(*command: str) -> str:
    """What a command prints for `--help` in a terminal of 80 columns."""
    arguments = [sys.executable, "-m", "hf_warmcos", *command, "--help"]
    help_text = subprocess.check_output(arguments, cwd=ROOT, env={**os.environ, "COLUMNS": "80"}, text=True)
    return f"```text\n$ {' '.join(['hf-warmcos', *command, '--help'])}\n{help_text.rstrip()}\n```"


def command_help() -> str:
    return help_of()


def plot_help() -> str:
    return help_of("plot")


def table_help() -> str:
    return help_of("table")


def run_help() -> str:
    return help_of("run")


DOCUMENTS: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (finetuning, step_summary),
    "docs/speed.md": (step_cost, other_costs),
    "docs/command-line.md": (command_help, plot_help, table_help, run_help),
}


def with_figures(document: str) -> str:
    """Return a document of this repository with its figures as they are now."""
    figures = {section.__name__: section() for section in DOCUMENTS[document]}
    return write_figures((ROOT / document).read_text(), figures)


def main() -> None:
    for document in DOCUMENTS:
        (ROOT / document).write_text(with_figures(document))


if __name__ == "__main__":
    main()
