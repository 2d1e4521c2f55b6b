"""Write what comes from commands into the README and pages in docs/: figures, the help of commands, the reference.

The picture of docs/speed.md is drawn, too.

    accelerate launch examples/accelerate_finetune.py --output_dir output
    cp output/all_results.json benchmarks/results/accelerate_finetune.json
    python -m benchmarks.speed.step_cost --output benchmarks/results
    python -m benchmarks.speed.curve --output benchmarks/results
    python -m benchmarks.optimizers
    python -m benchmarks.readme

Each section of figures stands between two comments that name it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import hf_warmcos
from benchmarks import migration
from benchmarks.documents import markdown_table, write_figures
from benchmarks.optimizers import (
    lightning_frequency,
    optimizers_as_expected,
    optimizers_by_kind,
)
from benchmarks.pictures import GRAY, new_figure, save, style
from benchmarks.reference import reference
from benchmarks.speed.step_cost import (
    BARE_LOOP,
    OURS,
    OURS_IN_WARMUP,
    PYTORCH_OPTIMIZER,
    TIMM,
    TORCH,
    TORCH_SEQUENTIAL,
    TRANSFORMERS,
    counted_groups,
)
from benchmarks.speed.timing import describe, rounded
from hf_warmcos.plotting import BLUE, GREEN, ORANGE, PURPLE, VERMILLION

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def finetuning() -> str:
    """What the main job comes to."""
    before, *ends = json.loads((RESULTS / "accelerate_finetune.json").read_text())
    *earlier, last = [f"{end['eval_loss']:.2f}" for end in ends]
    return (
        f"The cross entropy on held-out text falls from {before['eval_loss']:.2f} nats per byte, untrained, to "
        f"{', '.join(earlier)} and {last} at the ends of the {len(ends)} cycles ({ends[-1]['step']:,} updates)."
    )


# What each part of the record has timed, as the head of its table says it. Parts that were not timed are left out.
PARTS = {
    "update": "µs per update: `step()`, `at_cycle_end`, `get_last_lr()`",
    "num_groups": "µs per `step()`, learning rates are floats",
    "tensor_rates": "µs per `step()`, learning rates are tensors",
}


def timed(record: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By part, number of groups and contender: the timings."""
    return {
        part: {counted_groups(key) if key.isdigit() else key: of for key, of in record[part].items()}
        for part in PARTS
        if part in record
    }


def step_cost() -> str:
    """The medians, for each contender and number of groups. The picture also shows `step()` alone."""
    record = read("step_cost")
    parts = []
    for part, columns in timed(record).items():
        if part == "num_groups":
            continue
        names = [*next(iter(columns.values()))]
        rows = [[name, *(rounded(of[name]["median"]) for of in columns.values())] for name in names]
        parts.append(markdown_table([PARTS[part], *columns], rows))
    missing = "".join(f" Not available: {name}." for name in record["unavailable"])
    return "\n\n".join([*parts, f"Medians. {describe(record['surroundings'])}.{missing}"])


# The color, marker and line of each contender in the picture, and its name there.
LOOKS = {
    OURS: (BLUE, "o-", OURS),
    OURS_IN_WARMUP: (BLUE, "o:", OURS_IN_WARMUP),
    BARE_LOOP: (GRAY, "s--", BARE_LOOP),
    TORCH: (VERMILLION, "^-", TORCH),
    TORCH_SEQUENTIAL: (VERMILLION, "v:", "torch SequentialLR(LinearLR, …)"),
    TRANSFORMERS: (GREEN, "D-", "transformers, hard restarts"),
    TIMM: (PURPLE, "P-", TIMM),
    PYTORCH_OPTIMIZER: (ORANGE, "X-", "pytorch_optimizer"),
}


def draw_step_cost() -> Figure:
    """The medians over the number of groups: a panel for each part, a line for each contender."""
    parts = timed(read("step_cost"))
    figure = new_figure(2.2 * len(parts) + 1.8)
    lines = {}
    for axes, (part, columns) in zip(figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0], parts.items()):
        counted = {int(key.split()[0]): of for key, of in columns.items() if "share" not in key}
        for name, (color, line, label) in LOOKS.items():
            if all(name in of for of in counted.values()):
                medians = [of[name]["median"] for of in counted.values()]
                (lines[label],) = axes.plot([*counted], medians, line, color=color, markersize=5)
        axes.set(xscale="log", yscale="log", title=PARTS[part].replace("`", ""))
        axes.yaxis.set_major_formatter(lambda number, _: f"{number:,g}")
        axes.minorticks_off()
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks([1, 2, 50, 1000], ["1", "2", "50", "1000"])
    axes.set_xlabel("parameter groups")
    figure.legend([*lines.values()], [*lines], loc="outside lower left", frameon=False)
    return figure


def step_summary() -> str:
    """What an update costs, in one sentence."""
    record = read("step_cost")
    of = timed(record)["update" if "update" in record else "num_groups"]["1 group"]
    ours, torchs = (rounded(of[name]["median"]) for name in (OURS, TORCH))
    return (
        f"An update takes {ours} µs, with torch's `CosineAnnealingWarmRestarts` {torchs} µs "
        "([all timings](docs/speed.md))."
    )


def other_costs() -> str:
    """The curve and random access."""
    curve = read("curve")
    of_torch = curve["curves"]["T_0=10,000"]
    lines = [
        f"- A curve of {curve['num_steps']:,} steps takes {of_torch['curve']['median'] / 1000:.0f} ms; stepping "
        f"torch's scheduler over them {of_torch['torch']['median'] / 1e6:.1f} s."
    ]
    for name, cycles in (("lr_at", "equal cycles"), ("lr_at, T_mult=2", "`T_mult=2`")):
        near, far = (rounded(curve["access"][name][where]["median"]) for where in ("near", "far"))
        lines.append(f"- With {cycles}, `lr_at` takes {near} µs at step 100 and {far} µs at step 10**15.")
    return "\n".join(lines)


def help_of(*command: str) -> str:
    """What a command prints for `--help` in a terminal of 80 columns."""
    arguments = [sys.executable, "-m", "hf_warmcos", *command, "--help"]
    return subprocess.check_output(arguments, cwd=ROOT, env={**os.environ, "COLUMNS": "80"}, text=True).rstrip()


def shown_help(*command: str, help_text: str | None = None) -> str:
    return f"```text\n$ {' '.join(['hf-warmcos', *command, '--help'])}\n{help_text or help_of(*command)}\n```"


def without_options_of_plot(*command: str) -> str:
    """The help of a command, where one line stands for the options that `plot` has too."""
    option = re.compile(r"^  -.*\n(?:   .*\n)*", re.MULTILINE)
    known = {*option.findall(help_of("plot") + "\n")}
    place = "  …                     as in `hf-warmcos plot`\n"
    text = option.sub(lambda found: place if found[0] in known else found[0], help_of(*command) + "\n")
    return shown_help(*command, help_text=re.sub(f"({place})+", place, text).rstrip())


def plot_help() -> str:
    return shown_help("plot")


def table_help() -> str:
    return without_options_of_plot("table")


def run_help() -> str:
    return without_options_of_plot("run")


DOCUMENTS: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (finetuning, step_summary),
    "docs/speed.md": (step_cost, other_costs),
    "docs/optimizers.md": (optimizers_by_kind, lightning_frequency, optimizers_as_expected),
    "docs/command-line.md": (plot_help, table_help, run_help),
    "docs/migrate.md": (migration.schedulers, migration.commands),
}
REFERENCE = [page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs" / "reference").glob("*.md"))]


def with_figures(document: str) -> str:
    """Return a document of this repository with its figures as they are now."""
    if document in REFERENCE:
        figures = {name: reference(name) for name in hf_warmcos.__all__}
    else:
        figures = {section.__name__: section() for section in DOCUMENTS[document]}
    return write_figures((ROOT / document).read_text(), figures)


def main() -> None:
    for document in (*DOCUMENTS, *REFERENCE):
        (ROOT / document).write_text(with_figures(document))
    with style():
        save(draw_step_cost(), RESULTS / "step_cost.svg")


if __name__ == "__main__":
    main()
