"""The model and the text that the examples use: your own by name, or a small offline model and text by default."""

from __future__ import annotations

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
    """Which model to train, and on which text."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model on the Hub or in a folder. Default: a small new GPT-2."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub. Default: the reference of the Python language."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    train_file: str | None = field(default=None, metadata={"help": "Training text: a txt, csv or json file."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Held-out percentage of the training data, if there is no validation split."}
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


def load_model_and_tokenizer(arguments: ModelAndDataArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model and its tokenizer: a pretrained one by name, or a small untrained GPT-2."""
    if (name := arguments.model_name_or_path) is not None:
        model: Any = AutoModelForCausalLM.from_pretrained(name)
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    else:
        tokenizer = ByT5Tokenizer()
        end = tokenizer.eos_token_id
        tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=128, n_layer=4, n_head=4, **tokens)
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # transformers cannot tell it from the name of this class, and would warn
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    if 0 < positions < arguments.block_size:
        raise ValueError(f"Expected --block_size <= {positions}, the model's positions, but got {arguments.block_size}")
    return model, tokenizer


def load_text(arguments: ModelAndDataArguments) -> DatasetDict:
    """Return the text in the splits "train" and "validation".

    The default text is the reference of the Python language. It comes with Python (`pydoc_data.topics`).
    """
    if arguments.dataset_name is not None:
        text = load_dataset(arguments.dataset_name, arguments.dataset_config_name)
    elif (file := arguments.train_file) is not None:
        kind = {"txt": "text", "jsonl": "json"}.get(file.rpartition(".")[2], file.rpartition(".")[2])
        text = load_dataset(kind, data_files={"train": file})
    else:
        text = DatasetDict(train=Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]}))
    if "validation" not in text:
        split = text["train"].train_test_split(test_size=arguments.validation_split_percentage / 100, seed=0)
        text = DatasetDict(train=split["train"], validation=split["test"])
    return text


def load_blocks(arguments: ModelAndDataArguments, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Return the text as blocks of `block_size` tokens, in the splits "train" and "validation".

    The text is the column "text", or the first column if there is no "text".
    """
    text, block_size = load_text(arguments), arguments.block_size
    columns = text["train"].column_names
    text_column = "text" if "text" in columns else columns[0]

    def tokenize(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(rows[text_column])["input_ids"]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, Any]:
        tokens = [token for row in rows["input_ids"] for token in row]
        starts = range(0, len(tokens) - block_size + 1, block_size)
        blocks = [tokens[start : start + block_size] for start in starts]
        return {"input_ids": blocks, "labels": blocks}

    tokenized = text.map(tokenize, batched=True, remove_columns=columns, desc="Tokenizing")
    return tokenized.map(group, batched=True, desc=f"Grouping into blocks of {block_size} tokens")
