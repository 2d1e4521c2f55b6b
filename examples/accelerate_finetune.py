"""Fine-tune a causal language model under Accelerate, with a checkpoint at the end of each cycle.

    python examples/accelerate_finetune.py --output_dir /tmp/run
    accelerate launch examples/accelerate_finetune.py --output_dir /tmp/run

The script is the same for one process and for many, on CPU and on GPU. Without a model and a data set it runs offline:
a small GPT-2 learns the reference of the Python language, byte by byte. Every length is in optimizer updates.

By default there are three cycles, each twice as long as the one before, without decay. Where the length of training is
known and only the last weights count, a single cycle (`--num_cycles 1`) comes to the same. The cycles are for the rest:
each of their ends is a finished checkpoint, and a run that has ended goes on with more of them:

    --resume_from_checkpoint latest --max_train_steps 400 --extend_cycles 1 --extend_decay 0.5
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from causal_lm_data import expect_enough, fingerprint, load_blocks, load_model_and_tokenizer, parameter_groups
from checkpoints import (
    ResumableSampler,
    begin_run_at,
    find_checkpoint,
    keep_checkpoints_portable,
    load_checkpoint,
    save_checkpoint,
)
from finetune_arguments import one_line_errors, parse_arguments, plan_schedule
from finetune_report import MetricsFile, write_results
from processes import end_with_the_launcher, on_main_process
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.arguments import misfit


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, dataloader: DataLoader[Any]) -> dict[str, float]:
    """Return the mean held-out loss per token and its exponential, the perplexity."""
    model.eval()
    losses = []
    for batch in dataloader:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
        token_losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        # The processes get equally many samples, some of them twice; gather_for_metrics leaves out the second ones.
        losses.append(accelerator.gather_for_metrics(token_losses.mean(dim=1)))
    model.train()
    eval_loss = torch.cat(losses).mean().item()
    return {"eval_loss": eval_loss, "perplexity": math.exp(min(eval_loss, 700))}


def main(arguments: list[str] | None = None) -> None:
    end_with_the_launcher()
    data_args, args, schedule_args = parse_arguments(arguments)
    output_dir = Path(args.output_dir)

    # Accelerate joins processes without an accelerator to one run only if it is told that they are on the CPU. Told
    # here, and not to Accelerator, that leaves DeepSpeed its place.
    if not torch.accelerator.is_available():
        PartialState(cpu=True)
    with one_line_errors():
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to.split(",") if args.report_to else None,  # type: ignore[arg-type]
            project_dir=output_dir,
        )
    accelerator.print(f"Processes: {accelerator.num_processes}, device: {accelerator.device.type}")

    with one_line_errors(lambda: accelerator.is_main_process):
        # 1. Where does the run begin? At the beginning, or where a checkpoint of it stands.
        checkpoint, state = on_main_process(accelerator, find_checkpoint, args.resume_from_checkpoint, output_dir)

        # 2. The model and the data. The processes have to begin with the same weights, but not with the same dropout.
        set_seed(args.seed)
        model, tokenizer = load_model_and_tokenizer(data_args.model_name_or_path)
        with accelerator.main_process_first():
            blocks = load_blocks(data_args, tokenizer)
        set_seed(args.seed, device_specific=True)

        samples_per_batch = args.per_device_train_batch_size * accelerator.num_processes
        expect_enough(blocks, samples_per_batch, data_args.block_size)
        if state.take_data(fingerprint(blocks["train"])):
            accelerator.print("The training data are not those of the checkpoint: they begin with their first sample")

        # Samples that no longer fill a batch are left out, a different few in each epoch. A generator of their own
        # keeps the loaders from drawing on the random numbers of dropout, so that a resumed run draws the same ones.
        if len(blocks["train"]) - state.samples_seen < samples_per_batch:
            state.epoch, state.samples_seen = state.epoch + 1, 0
        train_dataloader: Any = DataLoader(
            blocks["train"],  # type: ignore[arg-type]
            batch_size=args.per_device_train_batch_size,
            sampler=ResumableSampler(len(blocks["train"]), args.seed, state),
            drop_last=True,
            collate_fn=default_data_collator,
            generator=torch.Generator(),
        )
        eval_dataloader: Any = DataLoader(
            blocks["validation"],  # type: ignore[arg-type]
            batch_size=args.per_device_eval_batch_size,
            collate_fn=default_data_collator,
            generator=torch.Generator(),
        )

        # 3. How many updates? An update is gradient_accumulation_steps batches, on all processes together.
        batches_per_epoch = len(blocks["train"]) // samples_per_batch
        updates_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
        updates = max(1, round(args.num_train_epochs * updates_per_epoch))
        state.max_train_steps = args.max_train_steps or state.max_train_steps or updates

        # 4. The optimizer and its schedule.
        optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.learning_rate)
        state.schedule = on_main_process(accelerator, plan_schedule, schedule_args, state)
        scheduler: Any = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **state.schedule)
        if advice := misfit(scheduler.schedule, state.max_train_steps):
            accelerator.print(f"{advice} A resumed run takes more cycles with --extend_cycles.")

        model, optimizer, train_dataloader, eval_dataloader, scheduler = accelerator.prepare(
            model, optimizer, train_dataloader, eval_dataloader, scheduler
        )
        # Accelerate steps a schedule once per process at each update. This one counts updates.
        count_optimizer_steps(scheduler)

        keep_checkpoints_portable(accelerator)
        if checkpoint is not None:
            load_checkpoint(accelerator, checkpoint)
        on_main_process(accelerator, begin_run_at, state.completed_steps, checkpoint, output_dir)
        if args.report_to is not None:
            config = asdict(data_args) | asdict(args) | asdict(schedule_args)
            accelerator.init_trackers("accelerate_finetune", config=config)

    # 5. Train.
    progress_bar = tqdm(
        total=state.max_train_steps, initial=state.completed_steps, disable=not accelerator.is_main_process
    )
    metrics_file = MetricsFile(output_dir) if accelerator.is_main_process else None

    def evaluate_at(cycle: int | None, name: str) -> None:
        result = evaluate(accelerator, model, eval_dataloader)
        state.evaluations.append({"cycle": cycle, "step": state.completed_steps, **result})
        accelerator.log(result, step=state.completed_steps)
        if accelerator.is_main_process:
            progress_bar.write(f"{name}: loss {result['eval_loss']:.4f}, perplexity {result['perplexity']:.3f}")

    if not state.evaluations:
        evaluate_at(None, "Held-out data before training")
    model.train()
    losses: list[torch.Tensor] = []
    while state.completed_steps < state.max_train_steps:
        completed_before_epoch = state.completed_steps
        train_dataloader.set_epoch(state.epoch)
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                losses.append(loss.detach())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                learning_rate, cycle = scheduler.get_last_lr()[0], scheduler.scheduler.cycle
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            state.samples_seen += samples_per_batch
            if not accelerator.sync_gradients:
                continue
            update_loss = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
            losses, ended_epoch = [], None
            if accelerator.gradient_state.end_of_dataloader:
                ended_epoch, state.epoch, state.samples_seen = state.epoch, state.epoch + 1, 0
            if accelerator.optimizer_step_was_skipped:
                continue  # the gradients overflowed in mixed precision: no update, and the schedule stays

            state.completed_steps += 1
            if metrics_file is not None:
                metrics_file.write(
                    step=state.completed_steps, cycle=cycle, learning_rate=learning_rate, loss=update_loss
                )
            accelerator.log({"train_loss": update_loss, "learning_rate": learning_rate}, step=state.completed_steps)
            progress_bar.set_postfix(loss=f"{update_loss:.3f}", lr=f"{learning_rate:.2e}", refresh=False)
            progress_bar.update()

            # The end of a cycle is where this schedule's weights are worth looking at, and keeping.
            ended_cycle = cycle if scheduler.scheduler.at_cycle_end else None
            if ended_cycle is not None:
                evaluate_at(cycle, f"Held-out data at the end of cycle {cycle}, step {state.completed_steps}")
            name = args.checkpoint_name(state.completed_steps, ended_epoch, ended_cycle)
            if name is not None:
                with one_line_errors(lambda: accelerator.is_main_process):
                    save_checkpoint(accelerator, state, output_dir, name, args.save_total_limit)
            if state.completed_steps >= state.max_train_steps:
                break
        if state.completed_steps == completed_before_epoch:
            raise RuntimeError(f"Every update of epoch {state.epoch - 1} was skipped: its gradients overflow")
    progress_bar.close()

    # 6. The results.
    if state.evaluations[-1]["step"] != state.completed_steps:
        evaluate_at(None, "Held-out data at the end of training")
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(output_dir, state_dict=weights)
        tokenizer.save_pretrained(output_dir)
        print(write_results(output_dir, state, scheduler.scheduler))
    # The model uses the group of processes, and goes before it: the other way round, some runs never end.
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
