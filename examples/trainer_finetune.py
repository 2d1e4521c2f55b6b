"""Fine-tune a causal language model with a Trainer, warm restarts, a decaying peak and one warmup.

    python examples/trainer_finetune.py --output_dir /tmp/run
    accelerate launch examples/trainer_finetune.py --output_dir /tmp/run

The model and the data are those of accelerate_finetune.py, offline without names. All arguments of `TrainingArguments`
are there; those of the schedule go into one of them, as JSON:

    --warmup_steps 100 --lr_scheduler_kwargs '{"num_cycles": 4, "decay": 0.75, "T_mult": 2, "min_lr_rate": 0.1}'
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from causal_lm_data import ModelAndDataArguments, load_blocks, load_model_and_tokenizer
from transformers import HfArgumentParser, TrainingArguments, default_data_collator, set_seed

from hf_warmcos import CycleEndCallback, WarmCosTrainer


@dataclass
class FinetuneArguments(TrainingArguments):
    """The arguments of a Trainer, with defaults for the small model: about a minute on two CPU cores."""

    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    num_train_epochs: float = 1
    warmup_steps: int = 10
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"num_cycles": 4, "decay": 0.75},
        metadata={
            "help": "The schedule, as JSON: num_cycles, decay, T_0, T_mult, min_lr, min_lr_rate, warmup_mode, cycles, …"
        },
    )
    logging_steps: float = 10
    # The callback below saves, and evaluates, where cycles end. --save_strategy and --eval_strategy add to it.
    save_strategy: str = "no"


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser([ModelAndDataArguments, FinetuneArguments])  # type: ignore[list-item]
    data_args, training_args = parser.parse_args_into_dataclasses(arguments)
    set_seed(training_args.seed)

    # 1. The model and the data. The first process prepares what the others then find in the cache.
    with training_args.main_process_first():
        model, tokenizer = load_model_and_tokenizer(data_args.model_name_or_path)
        blocks = load_blocks(data_args, tokenizer)

    # 2. The trainer. It knows how many updates there will be, and fits the cycles into them.
    trainer = WarmCosTrainer(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[CycleEndCallback(evaluate=True, save=True)],
    )

    # 3. Training, from the beginning, from --resume_from_checkpoint OUTPUT_DIR/checkpoint-N, or with
    # --resume_from_checkpoint true from the newest checkpoint that is whole: a run that was killed while it saved has
    # left one that is not.
    checkpoint = training_args.resume_from_checkpoint
    result = trainer.train(resume_from_checkpoint=True if checkpoint == "true" else checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)

    # 4. The perplexity at each cycle end. The checkpoints are there too; snapshot_ensemble.py compares them.
    metrics = {
        f"perplexity_at_step_{entry['step']:05}": math.exp(min(entry["eval_loss"], 700))
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
