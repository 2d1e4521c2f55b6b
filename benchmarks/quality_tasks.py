"""The tasks that the schedules are compared on: real data and small models that train in seconds on one core.

They are all the same to whoever trains them: inputs, one label per prediction, and a model that returns logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import DatasetDict, disable_progress_bars
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from causal_lm_data import group_into_blocks, load_model_and_tokenizer, load_raw_datasets

BLOCK_SIZE = 64
# The libraries' 0.02 is for wide layers; in layers this narrow, signals and gradients start out too small.
INITIALIZER_RANGE = 0.1


class Split(NamedTuple):
    """Inputs of a model, and the labels of its predictions."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """Data in three splits, a model, and the rates that every schedule is tuned on.

    Attributes:
        name: What the results call it.
        train, validation, test: The rates are tuned on `validation`; the results are on `test`.
        make_model: A function that makes the model, untrained, from torch's random state.
        input_name: The argument by which the model takes its inputs.
        batch_size: Rows per update.
        peak_lrs: The grid of peak rates, ascending.
        budget_factor: How many times the others' number of updates it is trained for.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    make_model: Callable[[], torch.nn.Module]
    input_name: str
    batch_size: int
    peak_lrs: tuple[float, ...]
    budget_factor: int = 1

    def logits(self, model: torch.nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits, a row per prediction."""
        logits: Tensor = model(**{self.input_name: inputs}).logits
        return logits.flatten(0, -2)


def load_text(num_evaluation_blocks: int) -> Task:
    """Predict the next byte of the examples' text, with a smaller version of the examples' GPT-2.

    The splits are of whole topics, so that no text of the test split lies beside text that was trained on. Validation
    and test take `num_evaluation_blocks` blocks, spread evenly over theirs.
    """
    disable_progress_bars()
    model, tokenizer = load_model_and_tokenizer()
    raw_datasets = load_raw_datasets(validation_split_percentage=25)
    held_out = raw_datasets["validation"].train_test_split(test_size=0.5, seed=0)
    raw_datasets = DatasetDict(train=raw_datasets["train"], validation=held_out["train"], test=held_out["test"])
    blocks = group_into_blocks(raw_datasets, tokenizer, BLOCK_SIZE)
    config = model.config
    assert isinstance(config, GPT2Config)
    # Trained on less than the whole text, it has nothing to regularize: no dropout.
    config.update({"n_positions": BLOCK_SIZE, "n_embd": 64, "n_layer": 2, "n_head": 4, "use_cache": False})
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": INITIALIZER_RANGE})

    def split(name: str, num_blocks: int | None = None) -> Split:
        rows = torch.tensor(blocks[name]["input_ids"])
        if num_blocks is not None:
            rows = rows[torch.linspace(0, len(rows) - 1, num_blocks).long()]
        return Split(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    return Task(
        name="text",
        train=split("train"),
        validation=split("validation", num_evaluation_blocks),
        test=split("test", num_evaluation_blocks),
        make_model=lambda: GPT2LMHeadModel(config),
        input_name="input_ids",
        batch_size=8,
        peak_lrs=(1e-3, 2e-3, 4e-3, 8e-3),
    )


def load_images() -> Task:
    """Name the handwritten digits that scikit-learn carries (8 x 8 pixels), with a small vision transformer."""
    digits = load_digits()
    inputs = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    # Half to train on, a fifth to tune on, three tenths to test on, each with the same share of every digit.
    train, held_out = train_test_split(range(len(labels)), train_size=0.5, stratify=labels, random_state=0)
    validation, test = train_test_split(held_out, train_size=0.4, stratify=labels[held_out], random_state=0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=INITIALIZER_RANGE,
    )
    config.num_labels = 10
    return Task(
        name="digits",
        train=Split(inputs[train], labels[train]),
        validation=Split(inputs[validation], labels[validation]),
        test=Split(inputs[test], labels[test]),
        make_model=lambda: ViTForImageClassification(config),
        input_name="pixel_values",
        batch_size=32,
        peak_lrs=(1e-3, 2e-3, 4e-3, 8e-3),
    )


def load_images_for_long() -> Task:
    """The same, trained three times as long: what more updates change in the comparison."""
    return replace(load_images(), name="digits-long", budget_factor=3)
