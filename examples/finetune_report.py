"""What accelerate_finetune.py leaves to look at: a line per update, the results and their picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import METRICS, TrainingState
from matplotlib.figure import Figure

from hf_warmcos import CosineRestartLR, plot_schedule


class MetricsFile:
    """The file with a line for each update. Each line reaches it at once, so that a kill of this process loses none."""

    def __init__(self, output_dir: Path) -> None:
        self._file = (output_dir / METRICS).open("a", buffering=1)

    def write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")


def write_results(output_dir: Path, state: TrainingState, scheduler: CosineRestartLR) -> str:
    """Write `all_results.json` and `learning_rate.png`, and return what they come to in a line."""
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
    draw(metrics, results["cycles"], scheduler, output_dir / "learning_rate.png")
    return (
        f"Held-out loss {untrained['eval_loss']:.4f} before training, {final['eval_loss']:.4f} after "
        f"{state.completed_steps} updates; everything is in {output_dir}"
    )


def draw(
    metrics: list[dict[str, Any]], cycle_ends: list[dict[str, Any]], scheduler: CosineRestartLR, path: Path
) -> None:
    """Draw the schedule, and below it the loss of each update and the held-out loss at the ends of the cycles."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    rate_axes, loss_axes = figure.subplots(2, sharex=True)
    plot_schedule(scheduler, num_steps=metrics[-1]["step"], ax=rate_axes)
    steps = np.array([line["step"] for line in metrics])
    # Update k takes the rate of step k - 1.
    rates = np.array([line["learning_rate"] for line in metrics])
    planned = scheduler.schedule.curve(steps - 1, scheduler.base_lrs[0], scheduler.eta_mins[0])
    if not np.allclose(rates, planned, rtol=1e-6, atol=0):
        rate_axes.plot(steps - 1, rates, color="tab:red", linewidth=1.2, linestyle=":", zorder=4, label="as trained")
        rate_axes.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    rate_axes.set_xlabel("")
    loss_axes.plot(steps, [line["loss"] for line in metrics], color="0.7", linewidth=0.8, label="training")
    ends, losses = [end["step"] for end in cycle_ends], [end["eval_loss"] for end in cycle_ends]
    loss_axes.plot(ends, losses, "o", color="tab:orange", markersize=6, label="held out, at the ends of the cycles")
    for end, loss in zip(ends[-16:], losses[-16:]):
        loss_axes.annotate(
            f"{loss:.3f}", (end, loss), xytext=(-4, 8), textcoords="offset points", ha="right", fontsize="small"
        )
    loss_axes.set(xlabel="step", ylabel="loss")
    loss_axes.spines[["top", "right"]].set_visible(False)
    loss_axes.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    figure.savefig(path, dpi=120)
