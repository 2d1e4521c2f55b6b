"""Fine-tune a causal language model with a Trainer that restarts its learning rate, and save at the end of each cycle.

    python examples/trainer_finetune.py --output_dir /tmp/run
    accelerate launch examples/trainer_finetune.py --output_dir /tmp/run

The model and the text are those of accelerate_finetune.py. All options of `TrainingArguments` work. The schedule is one
of them, as JSON. A warmup below 1 is a fraction of all steps (transformers 4: `--warmup_steps 0 --warmup_ratio 0.05`):

    --warmup_steps 0.05 --lr_scheduler_kwargs '{"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8, "min_lr_rate": 0.1}'

As with any Trainer, the same command trains anew. To continue a run, add `--resume_from_checkpoint true`.
"""

from __future__ import annotations

import math

from accelerate_finetune import add_model_and_data_options, load_blocks, load_model_and_tokenizer
from transformers import HfArgumentParser, TrainingArguments, set_seed

from hf_warmcos import CycleEndCallback, WarmCosTrainer


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]
    add_model_and_data_options(parser)
    # These defaults suit the small model and take about a minute on two CPU cores.
    parser.set_defaults(num_train_epochs=1, per_device_train_batch_size=16, per_device_eval_batch_size=16)
    parser.set_defaults(learning_rate=2e-3, weight_decay=0.01, warmup_steps=10, logging_steps=10)
    # CycleEndCallback saves and evaluates at the end of each cycle, in addition to --save_strategy and --eval_strategy.
    parser.set_defaults(lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8}, save_strategy="no")
    training_args, data_args = parser.parse_args_into_dataclasses(arguments)
    set_seed(training_args.seed)

    # 1. The model and the data. The first process prepares them and the others find them in the cache.
    with training_args.main_process_first():
        model, tokenizer = load_model_and_tokenizer(data_args)
        blocks = load_blocks(data_args, tokenizer)

    # 2. The trainer. It knows the number of updates and fits the cycles into it.
    trainer = WarmCosTrainer(
        model=model,
        args=training_args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        callbacks=[CycleEndCallback(evaluate=True, save=True)],
    )

    # 3. Train. `--resume_from_checkpoint true` takes the newest checkpoint that is whole: a kill can leave a torn one.
    checkpoint = training_args.resume_from_checkpoint
    result = trainer.train({"true": True, "false": False}.get(str(checkpoint).lower(), checkpoint))
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)

    # 4. The results at the end of each cycle. snapshot_ensemble.py averages the checkpoints that were saved there.
    metrics = {
        f"perplexity_at_step_{entry['step']:05}": math.exp(min(entry["eval_loss"], 700))
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
