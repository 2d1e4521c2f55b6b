"""Fine-tune a causal language model under Accelerate, and save a checkpoint at the end of each cycle.

    python examples/accelerate_finetune.py --output_dir /tmp/run
    accelerate launch examples/accelerate_finetune.py --output_dir /tmp/run

The same command continues the run in that folder where its newest checkpoint stands. Pick another folder to begin anew.

The script runs on one process or many, on CPUs and GPUs. By default it works offline: a small GPT-2 learns the
reference of the Python language, byte by byte. All lengths are in updates of the weights.

By default there are three cycles, each twice as long as the one before. If you know the length of training and need
only the last checkpoint, a single cycle does as well: `--num_cycles 1`. With several cycles you have a finished
checkpoint at the end of each. You can also train a finished run for longer:

    python examples/accelerate_finetune.py --output_dir /tmp/run --max_train_steps 400 --extend_cycles 1
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from causal_lm_data import load_blocks, load_model_and_tokenizer
from checkpoints import METRICS, ResumableSampler
from datasets.fingerprint import Hasher
from finetune_arguments import one_line_errors, parse_arguments, plan_schedule
from finetune_report import write_results
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, dataloader: DataLoader[Any]) -> dict[str, float]:
    """Return the mean held-out loss per token, and the perplexity."""
    model.eval()
    losses = []
    for batch in dataloader:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
        token_losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        # Each process gets equally many samples. gather_for_metrics leaves out those that came twice for this.
        losses.append(accelerator.gather_for_metrics(token_losses.mean(dim=1)))
    model.train()
    eval_loss = torch.cat(losses).mean().item()
    return {"eval_loss": eval_loss, "perplexity": math.exp(min(eval_loss, 700))}


@one_line_errors(OSError)
def main(arguments: list[str] | None = None) -> None:
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        # If the launcher is killed, this process ends too. 1 is PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    data_args, args, schedule_args = parse_arguments(arguments)
    output_dir = Path(args.output_dir)

    # Without a GPU, Accelerate joins its processes only if you ask for the CPU. Asked for in Accelerator(cpu=True), it
    # would ignore DeepSpeed.
    if not torch.accelerator.is_available():
        PartialState(cpu=True)
    with one_line_errors(ValueError, TypeError):
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to.split(",") if args.report_to else None,  # type: ignore[arg-type]
            project_dir=output_dir,
        )
        accelerator.print(f"Processes: {accelerator.num_processes}, device: {accelerator.device.type}")

        # 1. Continue from a checkpoint, or begin anew.
        checkpoint, state = checkpoints.find(output_dir)

        # 2. The model and the data. All processes begin with the same weights, but each has a dropout of its own.
        set_seed(args.seed)
        model, tokenizer = load_model_and_tokenizer(data_args)
        with accelerator.main_process_first():
            blocks: Any = load_blocks(data_args, tokenizer)
        set_seed(args.seed, device_specific=True)

        train_data, held_out_data = blocks["train"], blocks["validation"]
        samples_per_batch = args.per_device_train_batch_size * accelerator.num_processes
        if len(train_data) < samples_per_batch or len(held_out_data) == 0:
            raise ValueError(
                f"Expected at least {samples_per_batch} blocks of --block_size {data_args.block_size} tokens to train "
                f"on and 1 held out, but got {len(train_data)} and {len(held_out_data)}"
            )
        if state.data not in (None, data := Hasher.hash([len(train_data), train_data[0], train_data[-1]])):
            accelerator.print("These are other training data than before: training begins with their first sample")
            state.epoch, state.samples_seen, state.evaluations = state.epoch + 1, 0, []
        state.data = data
        if len(train_data) - state.samples_seen < samples_per_batch:  # too few are left in this epoch
            state.epoch, state.samples_seen = state.epoch + 1, 0

        # With a generator of their own the loaders leave the random numbers of dropout alone.
        loading: dict[str, Any] = {"collate_fn": default_data_collator, "generator": torch.Generator()}
        sampler = ResumableSampler(len(train_data), args.seed, state)
        batch_size = args.per_device_train_batch_size
        train_dataloader: Any = DataLoader(train_data, batch_size, sampler=sampler, drop_last=True, **loading)
        eval_dataloader: Any = DataLoader(held_out_data, args.per_device_eval_batch_size, **loading)

        # 3. The number of updates. Each takes gradient_accumulation_steps batches on each process.
        updates_per_epoch = math.ceil(len(train_data) // samples_per_batch / args.gradient_accumulation_steps)
        updates = max(1, round((args.num_train_epochs or 1) * updates_per_epoch))
        state.max_train_steps = args.max_train_steps or state.max_train_steps or updates
        if args.num_train_epochs and not args.max_train_steps and state.max_train_steps != updates:
            accelerator.print(f"The run keeps its {state.max_train_steps} updates: --max_train_steps changes them")

        # 4. The optimizer and its schedule. Biases and norms do not decay.
        without_decay = re.compile("bias|ln_|norm")
        weights = [parameter for name, parameter in model.named_parameters() if not without_decay.search(name)]
        others = [parameter for name, parameter in model.named_parameters() if without_decay.search(name)]
        groups: list[Any] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
        state.schedule = plan_schedule(args, schedule_args, state)
        scheduler: Any = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **state.schedule)
        if (end := scheduler.schedule.end or math.inf) < state.max_train_steps:
            accelerator.print(f"After update {end} the learning rate is at its minimum: --extend_cycles appends cycles")
        model, optimizer, train_dataloader, eval_dataloader, scheduler = accelerator.prepare(
            model, optimizer, train_dataloader, eval_dataloader, scheduler
        )
        count_optimizer_steps(scheduler)  # Accelerate would step the schedule once per process at each update

        checkpoints.make_portable(accelerator)
        if checkpoint is not None:
            checkpoints.load(accelerator, checkpoint)
        if accelerator.is_main_process:
            lock = checkpoints.prepare_output_dir(output_dir, checkpoint)
            print(f"Continuing from {checkpoint}" if checkpoint else f"Beginning a new run in {output_dir}")
        if args.report_to is not None:
            accelerator.init_trackers("accelerate_finetune", asdict(data_args) | asdict(args) | schedule_args)

    # 5. Train.
    is_main_process = accelerator.is_main_process
    progress_bar = tqdm(total=state.max_train_steps, initial=state.completed_steps, disable=not is_main_process)
    accelerator.wait_for_everyone()
    metrics_file = (output_dir / METRICS if is_main_process else Path(os.devnull)).open("a", buffering=1)

    def evaluate_at(cycle: int | None, moment: str) -> None:
        result = evaluate(accelerator, model, eval_dataloader)
        state.evaluations.append({"cycle": cycle, "step": state.completed_steps, **result})
        accelerator.log(result, step=state.completed_steps)
        if is_main_process:
            progress_bar.write(f"Held-out loss {result['eval_loss']:.4f} {moment}")

    if not state.evaluations:
        evaluate_at(None, "before training")
    model.train()
    losses: list[torch.Tensor] = []
    while state.completed_steps < state.max_train_steps:
        completed_before_epoch = state.completed_steps
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                losses.append(loss.detach())
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                learning_rate, cycle = scheduler.get_last_lr()[0], scheduler.scheduler.cycle_index
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            state.samples_seen += samples_per_batch
            if not accelerator.sync_gradients:
                continue
            train_loss, losses = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item(), []
            if accelerator.gradient_state.end_of_dataloader:
                state.epoch, state.samples_seen = state.epoch + 1, 0
            if accelerator.optimizer_step_was_skipped:
                continue  # the gradients overflowed in mixed precision: this was no update

            state.completed_steps += 1
            logs = {"learning_rate": learning_rate, "loss": train_loss}
            metrics_file.write(json.dumps({"step": state.completed_steps, "cycle": cycle, **logs}) + "\n")
            accelerator.log(logs, step=state.completed_steps)
            progress_bar.set_postfix(loss=f"{train_loss:.3f}", lr=f"{learning_rate:.2e}", refresh=False)
            progress_bar.update()

            # At the end of a cycle the learning rate is at its minimum: the moment to evaluate and to save.
            is_due = args.checkpointing_steps is not None and state.completed_steps % args.checkpointing_steps == 0
            if scheduler.scheduler.at_cycle_end:
                evaluate_at(cycle, f"at the end of cycle {cycle}, update {state.completed_steps}")
            if is_due or scheduler.scheduler.at_cycle_end:
                checkpoints.save(accelerator, state, output_dir, args.save_total_limit)
            if state.completed_steps >= state.max_train_steps:
                break
        if state.completed_steps == completed_before_epoch:
            raise RuntimeError("The gradients overflowed in every update of an epoch")
    progress_bar.close()

    # 6. The results.
    if state.evaluations[-1]["step"] != state.completed_steps:
        evaluate_at(None, "at the end of training")
    state_dict = accelerator.get_state_dict(model)
    if is_main_process:
        accelerator.unwrap_model(model).save_pretrained(output_dir, state_dict=state_dict)
        tokenizer.save_pretrained(output_dir)
        print(write_results(output_dir, state))
        lock.release()
    # Free the model before the process group ends: otherwise some runs on CPUs hang at exit.
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
