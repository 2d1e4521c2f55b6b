"""The tasks that the schedules are compared on: real data and small models that train in seconds on one core.

All have the same form: inputs, one label per prediction, and a model that returns logits.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

# The libraries' 0.02 is for wide layers; in layers this narrow, signals and gradients start out too small.
INITIALIZER_RANGE = 0.1  # at a width of 64


class Size(NamedTuple):
    """The size of a text model, of the blocks of text that it reads, and of its batches."""

    block_size: int = 64
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    batch_size: int = 8


SMALL = Size()


class Split(NamedTuple):
    """Inputs of a model, and the labels of its predictions."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """Data in three splits, a model, and the peak learning rates of the tuning grid.

    Attributes:
        name: What the results call it.
        train, validation, test: Learning rates are tuned on `validation`; the results are on `test`.
        make_model: A function that makes the model, untrained, from torch's random state.
        input_name: The argument by which the model takes its inputs.
        batch_size: Rows per update.
        peak_lrs: The grid of peak learning rates, ascending.
        budget_factor: How many times the others' number of updates it is trained for.
        weight_decay: AdamW's; 0.01 is torch's default.
        outputs: The first and the end of the model's outputs that are its classes, where a model serves two tasks.
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
    weight_decay: float = 0.01
    outputs: tuple[int, int | None] = (0, None)

    def logits(self, model: torch.nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits, a row per prediction."""
        logits: Tensor = model(**{self.input_name: inputs}).logits
        return logits.flatten(0, -2)[:, slice(*self.outputs)]


class InBfloat16(torch.nn.Module):
    """A model whose weights are in float32, and which computes in bfloat16, as with `bf16=True` of a Trainer.

    Where padding is given, the model does not attend to it.
    """

    def __init__(self, model: torch.nn.Module, pad_token_id: int | None = None) -> None:
        super().__init__()
        self.model, self.pad_token_id = model, pad_token_id

    def forward(self, input_ids: Tensor) -> Any:
        mask = {} if self.pad_token_id is None else {"attention_mask": (input_ids != self.pad_token_id).long()}
        with torch.autocast(input_ids.device.type, torch.bfloat16):
            output = self.model(input_ids=input_ids, **mask)
        output.logits = output.logits.float()
        return output


def on_device(task: Task, device: str) -> Task:
    """The same task, its data and its models on this device."""
    train, validation, test = (
        Split(*(tensor.to(device) for tensor in split)) for split in (task.train, task.validation, task.test)
    )
    return replace(task, train=train, validation=validation, test=test, make_model=lambda: task.make_model().to(device))


def byte_splits(documents: Sequence[str], num_evaluation_blocks: int, block_size: int) -> tuple[Split, Split, Split]:
    """Blocks of bytes, and the byte after each as its label: train, validation and test, of whole documents.

    No text of the test split lies beside text that was trained on. Validation and test take `num_evaluation_blocks`
    blocks, spread evenly over theirs.
    """
    tokenizer = ByT5Tokenizer()

    def split(rows: Dataset, num_blocks: int | None = None) -> Split:
        tokens = torch.tensor([token for row in rows["text"] for token in tokenizer(row)["input_ids"]])
        blocks = tokens[: len(tokens) // block_size * block_size].view(-1, block_size)
        if num_blocks is not None:
            blocks = blocks[torch.linspace(0, len(blocks) - 1, num_blocks).long()]
        return Split(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous())

    parts = Dataset.from_dict({"text": list(documents)}).train_test_split(test_size=0.25, seed=0)
    held_out = parts["test"].train_test_split(test_size=0.5, seed=0)
    return (
        split(parts["train"]),
        split(held_out["train"], num_evaluation_blocks),
        split(held_out["test"], num_evaluation_blocks),
    )


def text_task(name: str, documents: Sequence[str], num_evaluation_blocks: int, size: Size) -> Task:
    """Predict the next byte of these documents with a GPT-2."""
    tokenizer = ByT5Tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=size.block_size,
        n_embd=size.width,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        use_cache=False,
        # Trained on the text once or a few times, it has nothing to regularize: no dropout.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=INITIALIZER_RANGE * math.sqrt(64 / size.width),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    train, validation, test = byte_splits(documents, num_evaluation_blocks, size.block_size)
    return Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        make_model=lambda: GPT2LMHeadModel(config),
        input_name="input_ids",
        batch_size=size.batch_size,
        peak_lrs=(1e-3, 2e-3, 4e-3, 8e-3),
    )


def load_text(num_evaluation_blocks: int, size: Size = SMALL) -> Task:
    """The examples' text: the reference of the Python language."""
    return text_task("text", [topics[name] for name in sorted(topics)], num_evaluation_blocks, size)


def load_code(num_evaluation_blocks: int, size: Size = SMALL) -> Task:
    """The same with other text: source code, every eighth module at the top of Python's standard library."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::8]
    texts = [module.read_text(encoding="utf-8") for module in modules]
    return text_task("code", texts, num_evaluation_blocks, size)


def load_images() -> Task:
    """Name the handwritten digits that scikit-learn carries (8 x 8 pixels), with a small vision transformer."""
    digits = load_digits()
    inputs = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    # Half to train on, a fifth to tune on, three tenths to test on, each with the same fraction of every digit.
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


def turned(task: Task) -> Task:
    """The same images, turned by a quarter."""
    train, validation, test = (
        Split(split.inputs.rot90(1, (-2, -1)).contiguous(), split.labels)
        for split in (task.train, task.validation, task.test)
    )
    return replace(task, name=f"{task.name}, turned", train=train, validation=validation, test=test)
