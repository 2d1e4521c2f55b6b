"""The text and the model that the examples train: from the Hub or a file by name, and offline without names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pydoc_data.topics import topics
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


@dataclass
class ModelAndDataArguments:
    """What is trained on what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model on the Hub or in a folder. Default: a small untrained GPT-2 on bytes."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub. Default: the reference of the Python language."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    train_file: str | None = field(default=None, metadata={"help": "Training text: a txt, csv or json file."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Share of the training data that is held out where there is no validation split."}
    )
    block_size: int = field(default=128, metadata={"help": "Tokens per sample."})

    def __post_init__(self) -> None:
        expect_at_least(self, block_size=2, validation_split_percentage=1)
        if self.dataset_name is not None and self.train_file is not None:
            raise ValueError("Expected one of --dataset_name and --train_file, but got both")


def expect_at_least(arguments: Any, **minimums: float) -> None:
    """Raise a ValueError that names the first of these options that is below its minimum."""
    for name, minimum in minimums.items():
        value = getattr(arguments, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"Expected --{name} >= {minimum}, but got {value}")


def load_raw_datasets(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | None = None,
    validation_split_percentage: int = 5,
) -> DatasetDict:
    """Return the splits "train" and "validation".

    Without names this is the reference of the Python language, English technical text that Python's standard library
    carries (`pydoc_data.topics`), a row per topic.
    """
    if dataset_name is not None:
        raw_datasets = load_dataset(dataset_name, dataset_config_name)
    elif train_file is not None:
        extension = "json" if train_file.endswith((".json", ".jsonl")) else train_file.rsplit(".", 1)[-1]
        raw_datasets = load_dataset("text" if extension == "txt" else extension, data_files={"train": train_file})
    else:
        raw_datasets = DatasetDict(train=Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]}))
    if "validation" not in raw_datasets:
        split = raw_datasets["train"].train_test_split(test_size=validation_split_percentage / 100, seed=0)
        raw_datasets = DatasetDict(train=split["train"], validation=split["test"])
    return raw_datasets


def load_model_and_tokenizer(
    model_name_or_path: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model with its tokenizer: pretrained by name, or a small untrained GPT-2 on bytes."""
    if model_name_or_path is not None:
        model = AutoModelForCausalLM.from_pretrained(model_name_or_path)
        return model, AutoTokenizer.from_pretrained(model_name_or_path)
    tokenizer = ByT5Tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    small_gpt2 = GPT2LMHeadModel(config)
    small_gpt2.loss_type = "ForCausalLM"  # transformers reads it off a class's name, but not off this one's, and warns
    return small_gpt2, tokenizer


def group_into_blocks(raw_datasets: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """Tokenize the text, join it, and cut it into blocks of `block_size` tokens, labels being the tokens.

    The text is the column "text", or the first one where there is none of that name.
    """
    columns = raw_datasets["train"].column_names
    text_column = "text" if "text" in columns else columns[0]

    def tokenize(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(rows[text_column])["input_ids"]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, Any]:
        tokens = [token for row in rows["input_ids"] for token in row]
        starts = range(0, len(tokens) - block_size + 1, block_size)
        blocks = [tokens[start : start + block_size] for start in starts]
        return {"input_ids": blocks, "labels": blocks}

    tokenized = raw_datasets.map(tokenize, batched=True, remove_columns=columns, desc="Tokenizing")
    return tokenized.map(group, batched=True, desc=f"Grouping into blocks of {block_size} tokens")


def load_blocks(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Return the blocks of tokens that the arguments ask for, in the splits "train" and "validation"."""
    raw_datasets = load_raw_datasets(
        arguments.dataset_name,
        arguments.dataset_config_name,
        arguments.train_file,
        arguments.validation_split_percentage,
    )
    return group_into_blocks(raw_datasets, tokenizer, arguments.block_size)


def fingerprint(blocks: Dataset) -> str:
    """Return what tells these blocks of tokens from others: their number, the first and the last one."""
    return hashlib.sha256(repr((len(blocks), blocks[0], blocks[-1])).encode()).hexdigest()


def expect_enough(blocks: DatasetDict, samples_per_batch: int, block_size: int) -> None:
    """Raise a ValueError where there are too few blocks to train on or to evaluate on."""
    if len(blocks["train"]) < samples_per_batch or len(blocks["validation"]) == 0:
        raise ValueError(
            f"Expected at least {samples_per_batch} blocks of --block_size {block_size} tokens to train on and 1 held "
            f"out, but got {len(blocks['train'])} and {len(blocks['validation'])}"
        )


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: weights, which decay, and biases and norms, which do not."""

    def is_weight(parameter: Any) -> bool:
        return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2  # DeepSpeed's ZeRO-3 leaves an empty shape

    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if is_weight(parameter)], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if not is_weight(parameter)], "weight_decay": 0.0},
    ]
