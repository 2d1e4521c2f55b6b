"""The results of accelerate_finetune.py, and a picture of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import METRICS, TrainingState
from matplotlib.figure import Figure


def write_results(output_dir: Path, state: TrainingState) -> str:
    """Write `all_results.json` and `learning_rate.png`, and return a summary of one line."""
    metrics = [json.loads(line) for line in (output_dir / METRICS).read_text().splitlines()]
    untrained, final = state.evaluations[0], state.evaluations[-1]
    results = {
        "completed_steps": state.completed_steps,
        "train_loss": sum(line["loss"] for line in metrics) / len(metrics),
        "untrained_eval_loss": untrained["eval_loss"],
        "untrained_perplexity": untrained["perplexity"],
        "eval_loss": final["eval_loss"],
        "perplexity": final["perplexity"],
        "cycles": [result for result in state.evaluations if result["cycle"] is not None],
    }
    (output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(metrics, results["cycles"], output_dir / "learning_rate.png")
    return (
        f"Held-out loss {untrained['eval_loss']:.4f} before training, {final['eval_loss']:.4f} after "
        f"{state.completed_steps} updates. The results are in {output_dir}."
    )


def draw(metrics: list[dict[str, Any]], cycle_ends: list[dict[str, Any]], path: Path) -> None:
    """Draw the learning rate and the loss of each update, and the held-out loss at the end of each cycle."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    rate_axes, loss_axes = figure.subplots(2, sharex=True)
    steps = [line["step"] for line in metrics]
    rate_axes.plot(steps, [line["learning_rate"] for line in metrics], color="#0072B2")
    loss_axes.plot(steps, [line["loss"] for line in metrics], color="0.6", linewidth=0.8, label="training")
    ends, losses = [end["step"] for end in cycle_ends], [end["eval_loss"] for end in cycle_ends]
    loss_axes.plot(ends, losses, "o", color="#D55E00", label="held out, at the end of each cycle")
    rate_axes.set(ylabel="learning rate")
    loss_axes.set(xlabel="update", ylabel="loss")
    loss_axes.legend(frameon=False)
    for axes in (rate_axes, loss_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
