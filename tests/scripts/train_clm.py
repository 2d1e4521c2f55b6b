"""A script of the shape of transformers' run_clm.py: a plain Trainer behind dataclasses of arguments."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


@dataclass
class ModelArguments:
    n_embd: int = field(default=16, metadata={"help": "Width of the model."})


@dataclass
class DataTrainingArguments:
    train_file: str = field(metadata={"help": "Training text."})
    block_size: int = field(default=16, metadata={"help": "Tokens per sample."})


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    tokenizer = ByT5Tokenizer()
    vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=model_args.n_embd, n_layer=1, n_head=2, n_positions=data_args.block_size, **vocabulary)
    )

    def blocks_of(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokens = tokenizer("\n".join(rows["text"]))["input_ids"]
        size = data_args.block_size
        blocks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    with training_args.main_process_first():
        text = load_dataset("text", data_files={"train": data_args.train_file})["train"]
        blocks = text.map(blocks_of, batched=True, remove_columns=["text"])
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=blocks,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_state()
    print(f"Started as {sys.argv[0]} on {training_args.world_size} processes")


if __name__ == "__main__":
    main()
