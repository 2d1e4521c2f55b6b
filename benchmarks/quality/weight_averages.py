"""Averages of weights and averages of predictions at cycle ends: some runs of study 1, made again.

    python -m benchmarks.quality.weight_averages    # after study 1, whose tuned learning rates it uses

For the last 1, 2, … cycle ends of a run: the model that has the mean of their weights, and the ensemble that has the
mean of their probabilities.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.quality import known_end
from benchmarks.quality.known_end import Budget, Run, ensembles, settings, train, tuned_peak_lr
from benchmarks.quality.tasks import Task, load_images, load_images_for_long, load_text
from benchmarks.quality.training import Records, log_probabilities, loss_and_accuracy

RESULTS = Path(__file__).parent.parent / "results" / "weight_averages.jsonl"
# With warmup: each decay with equal cycles, and doubling ones without decay.
CYCLES = [(1, 1.0), (1, 0.75), (1, 0.5), (2, 1.0)]


def measure(task: Task, run: Run) -> dict[str, Any]:
    """Loss and accuracy of both averages, by the number of the last cycle ends that they are made of."""
    ends = [
        (copy.deepcopy(model.state_dict()), log_probabilities(task, model, run.split))
        for _, model in train(task, run.setting, run.peak_lr, run.seed, run.setting.cycle_ends())
    ]
    labels = getattr(task, run.split).labels
    model = task.make_model().eval()
    weights = {}
    for size in range(1, len(ends) + 1):
        last = [state for state, _ in ends[-size:]]
        model.load_state_dict({name: torch.stack([state[name] for state in last]).mean(0) for name in last[0]})
        weights[size] = loss_and_accuracy(log_probabilities(task, model, run.split), labels)
    return {"weights": weights, "predictions": ensembles([log_probs for _, log_probs in ends], labels)}


def main() -> None:
    torch.set_num_threads(1)
    budget = Budget()
    tasks = [load_text(budget.num_evaluation_blocks), load_images(), load_images_for_long()]
    first_study = known_end.Results(known_end.RESULTS, tasks, budget.evaluations)
    runs = [
        (task, Run(task.name, setting, tuned_peak_lr(first_study, task, setting, budget), seed, "test"))
        for seed in budget.seeds
        for task in tasks
        for setting in settings(budget.num_training_steps, task.budget_factor)
        if setting.schedule == "hf_warmcos" and setting.num_warmup_steps and (setting.T_mult, setting.decay) in CYCLES
    ]
    records = Records(RESULTS)
    for task, run in tqdm(runs, unit="run"):
        records.of(asdict(run), lambda task=task, run=run: measure(task, run))  # type: ignore[misc]


if __name__ == "__main__":
    main()
