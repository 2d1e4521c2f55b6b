"""Write the figures of the README and of docs/speed.md into them, from the committed results.

    accelerate launch examples/accelerate_finetune.py --output_dir output
    cp output/all_results.json benchmarks/results/accelerate_finetune.json
    cp output/learning_rate.png docs/images/accelerate_finetune.png
    python benchmarks/step_cost.py --output benchmarks/results
    python benchmarks/curve.py --output benchmarks/results
    python benchmarks/training_overhead.py --output benchmarks/results
    python benchmarks/import_time.py --output benchmarks/results
    python benchmarks/readme.py

Each section of figures stands between two comments that name it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quality_report import write_sections
from step_cost import BARE_LOOP, OURS, OURS_AT_RESTART, TORCH, TRANSFORMERS, counted_groups
from timing import describe, markdown_table, rounded

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def finetuning() -> str:
    """What the main job comes to."""
    results = read("accelerate_finetune")
    ends = [f"{cycle['eval_loss']:.2f}" for cycle in results["cycles"]]
    return (
        f"The held-out loss falls from {results['untrained_eval_loss']:.2f} nats per byte, untrained, to "
        f"{results['eval_loss']:.2f} after {results['completed_steps']:,} updates "
        f"(at the ends of the cycles: {', '.join(ends)})."
    )


def step_cost() -> str:
    """The medians of one step, for each contender and number of groups."""
    record = read("step_cost")
    columns = list(record["num_groups"].values())
    names = [name for name in columns[0] if name != OURS_AT_RESTART] + list(record["unavailable"])
    rows = [
        [name, *(rounded(of[name]["median"]) if name in of else "not available" for of in columns)] for name in names
    ]
    header = ["µs per `step()`, median", *(counted_groups(int(num_groups)) for num_groups in record["num_groups"])]
    return f"{markdown_table(header, rows)}\n\n{describe(record['surroundings'])}."


def step_summary() -> str:
    """What a step costs, in one sentence."""
    of = read("step_cost")["num_groups"]["1"]
    ours, loop, torchs = (rounded(of[name]["median"]) for name in (OURS, BARE_LOOP, TORCH))
    return (
        f"One `step()` with one parameter group takes {ours} µs, a loop written by hand for the same rates {loop} µs, "
        f"and torch's `CosineAnnealingWarmRestarts` {torchs} µs."
    )


def other_costs() -> str:
    """The curve, random access, the import and the share of a training update."""
    curve, overhead, import_time = read("curve"), read("training_overhead"), read("import_time")
    (num_processes, *_), shares = overhead["num_processes"], overhead["shares"]
    of_torch = curve["curves"]["T_0=10,000"]
    lr_at = curve["access"]["lr_at"]
    return "\n".join(
        [
            f"- A curve of {curve['num_steps']:,} steps takes {of_torch['curve']['median'] / 1000:.0f} ms; stepping "
            f"torch's scheduler over them {of_torch['torch']['median'] / 1e6:.1f} s.",
            f"- `lr_at` takes {rounded(lr_at['near']['median'])} µs at step 100 and {rounded(lr_at['far']['median'])} "
            "µs at step 10**15.",
            f"- `import hf_warmcos` adds {import_time['imports']['import hf_warmcos after it']['median']:.0f} ms to "
            "`import torch`.",
            f"- Of an update of the example's model on {num_processes} CPU process, the scheduler takes "
            f"{100 * shares[f'{OURS}, {num_processes}']:.4f} %; transformers' takes "
            f"{100 * shares[f'{TRANSFORMERS}, {num_processes}']:.4f} %.",
        ]
    )


DOCUMENTS: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (finetuning, step_summary),
    "docs/speed.md": (step_cost, other_costs),
}


def with_figures(document: str) -> str:
    """Return a document of this repository with its figures as they are now."""
    figures = {section.__name__: section() for section in DOCUMENTS[document]}
    return write_sections((ROOT / document).read_text(), figures)


def main() -> None:
    for document in DOCUMENTS:
        (ROOT / document).write_text(with_figures(document))


if __name__ == "__main__":
    main()
