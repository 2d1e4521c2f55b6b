"""Fine-tune a causal language model under Accelerate, and save a checkpoint at the end of each cycle.

    python examples/accelerate_finetune.py --output_dir /tmp/run
    accelerate launch examples/accelerate_finetune.py --output_dir /tmp/run

The same command continues the run in that folder from its newest checkpoint: to the same bits, or on another number of
processes. Pick another folder to begin a new run. All lengths are in updates of the weights.

By default it works offline: a small GPT-2 learns the reference of the Python language, byte by byte. There are three
cycles, each twice as long as the one before, with a plateau at the peak. If you know the length of training and need
only the last checkpoint, one cycle does as well: --lr_scheduler_kwargs '{"num_cycles": 1}'
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, set_seed
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from filelock import FileLock
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

from hf_warmcos import (
    count_optimizer_steps,
    find_incomplete_file,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)


def at_least(minimum: float, kind: type = int) -> Callable[[str], float]:
    def number(text: str) -> Any:
        if not kind(text) >= minimum:
            raise argparse.ArgumentTypeError(f"expected a number >= {minimum}, but got {text}")
        return kind(text)

    return number


def json_object(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


def add_model_and_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name_or_path", help="a model on the Hub or in a folder (default: a small new GPT-2)")
    add("--dataset_name", help="a data set on the Hub (default: the reference of the Python language)")
    add("--dataset_config_name", help="the configuration of the data set")
    add("--train_file", help="a text, or a .csv, .json, .jsonl or .parquet file, in place of a data set")
    add("--block_size", type=at_least(2), default=128, help="tokens per sample")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "%(prog)s --output_dir DIR [options]"
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="the folder of the run; the same command continues it")
    add_model_and_data_options(parser)
    add("--per_device_train_batch_size", type=at_least(1), default=16, help="samples per process and micro-batch")
    add("--gradient_accumulation_steps", type=at_least(1), default=1, help="micro-batches per update")
    add("--num_train_epochs", type=at_least(1), default=1, help="the length of a new run")
    add("--max_train_steps", type=at_least(1), help="updates, in place of --num_train_epochs")
    add("--learning_rate", type=float, default=2e-3, help="the initial learning rate: the peak of the first cycle")
    add("--num_warmup_steps", type=at_least(0), default=10, help="updates of the warmup")
    three_cycles = {"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8}
    add("--lr_scheduler_kwargs", type=json_object, default=three_cycles, help="the schedule's arguments, as JSON")
    add("--weight_decay", type=float, default=0.01, help="of all but biases and norms")
    add("--max_grad_norm", type=at_least(0, float), default=1.0, help="clip gradients to this norm; 0: no clipping")
    add("--seed", type=int, default=42, help="seed of new weights, of the order of samples and of dropout")
    add("--checkpointing_steps", type=at_least(1), help="save every N updates, too")
    add("--save_total_limit", type=at_least(1), help="keep only the newest N checkpoints")
    add("--report_to", type=lambda text: text.split(","), help="trackers of Accelerate: tensorboard, wandb, all, …")
    return parser.parse_args(arguments)


@contextmanager
def one_line_errors(prefix: str = "") -> Iterator[None]:
    """Where this block fails on one process, end all processes, with one line and without a traceback."""
    error = None
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, DatasetsError) as caught:
        error = " ".join(f"{prefix}{caught}".split())
    errors = [error for error in gather_object([error]) if error is not None]  # waits for all processes
    if errors:
        if PartialState().is_main_process:
            print(f"accelerate_finetune.py: error: {errors[0]}", file=sys.stderr, flush=True)
        sys.exit(2)


def end_with_one_line(number: int, _: Any) -> None:
    """Also for SIGTERM: a launcher that was interrupted ends its processes by it."""
    if os.environ.get("RANK", "0") == "0":
        print(
            "\nInterrupted. The same command continues the run from its newest checkpoint.", file=sys.stderr, flush=True
        )
    os._exit(128 + number)


def load_model_and_tokenizer(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return a causal language model and its tokenizer: pretrained, or a small untrained GPT-2 on bytes."""
    tokenizer: Any
    model: Any
    if args.model_name_or_path is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path)
    else:
        tokenizer = ByT5Tokenizer()
        end = tokenizer.eos_token_id
        tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=128, n_layer=4, n_head=4, **tokens)
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # transformers cannot tell it from the name of this class, and would warn
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if positions < args.block_size:
        raise ValueError(f"Expected --block_size <= {positions}, the model's positions, but got {args.block_size}")
    return model, tokenizer


def load_blocks(args: argparse.Namespace, tokenizer: Any) -> DatasetDict:
    """Return text as blocks of `block_size` tokens, in the splits "train" and "validation"."""
    if args.dataset_name is not None:
        text = load_dataset(args.dataset_name, args.dataset_config_name)
    elif args.train_file is not None:
        kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
        kind = kinds.get(Path(args.train_file).suffix, "text")
        text = load_dataset(kind, data_files={"train": args.train_file})
    else:  # it comes with Python
        text = DatasetDict(train=Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]}))
    if "validation" not in text:
        split = text["train"].train_test_split(test_size=0.05, seed=0)
        text = DatasetDict(train=split["train"], validation=split["test"])
    columns = text["train"].column_names
    text_column = "text" if "text" in columns else columns[0]

    def group(rows: dict[str, list[str]]) -> dict[str, Any]:
        tokens = [token for row in tokenizer(rows[text_column])["input_ids"] for token in row]
        starts = range(0, len(tokens) - args.block_size + 1, args.block_size)
        blocks = [tokens[start : start + args.block_size] for start in starts]
        return {"input_ids": blocks, "labels": blocks}

    return text.map(group, batched=True, remove_columns=columns, desc="Grouping the text").with_format("torch")


@dataclass
class TrainingState:
    """What a checkpoint says of the run, beside weights, optimizer, scheduler and random numbers."""

    num_training_steps: int = 0  # the updates of the whole run
    epoch: int = 0
    samples_seen: int = 0  # in this epoch, on all processes together
    log: list[dict[str, Any]] = field(default_factory=list)  # each update and each evaluation
    files: list[str] = field(default_factory=lambda: ["training_state.json"])  # of the checkpoint


def list_checkpoints(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def find_checkpoint(accelerator: Accelerator, output_dir: Path) -> tuple[Path | None, TrainingState]:
    """Return the newest complete checkpoint and its state; without checkpoints, None and the state of a new run."""
    checkpoints = list_checkpoints(output_dir)
    for folder in checkpoints:
        file, state = find_incomplete_file(folder), TrainingState()
        if file is None and (folder / "training_state.json").exists():
            state = TrainingState(**json.loads((folder / "training_state.json").read_bytes()))
        file = file or next((folder / name for name in state.files if not (folder / name).exists()), None)
        if file is None:
            return folder, state
        accelerator.print(f"Skipping {folder}: {file} is missing or incomplete")
    if checkpoints:
        raise ValueError(f"Expected a complete checkpoint in {output_dir}, but all {len(checkpoints)} are incomplete")
    return None, TrainingState()


def save_checkpoint(accelerator: Accelerator, state: TrainingState, folder: Path, save_total_limit: int | None) -> None:
    """Write a checkpoint under another name, and rename it when it is whole: a kill cannot leave half of it."""
    unfinished = folder.parent / "unfinished"
    with one_line_errors(f"Could not save {folder} ({shutil.disk_usage(folder.parent).free:,} bytes were free): "):
        accelerator.save_state(str(unfinished))
    with one_line_errors(f"Could not save {folder}: "):
        if accelerator.is_main_process:
            state.files = ["training_state.json", *(path.name for path in unfinished.iterdir())]
            (unfinished / "training_state.json").write_text(json.dumps(asdict(state)))
            shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
            unfinished.rename(folder)
            for old in list_checkpoints(folder.parent)[save_total_limit:] if save_total_limit else []:
                shutil.rmtree(old.rename(unfinished))


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: Any) -> float:
    """Return the mean held-out loss per token."""
    model.eval()
    losses = []
    for batch in loader:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none").mean(dim=1)
        losses.append(accelerator.gather_for_metrics(loss))  # without the samples that only fill up the last batch
    model.train()
    return torch.cat(losses).mean().item()


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_with_one_line)
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: if the launcher is killed, end with it
    # Without a GPU, Accelerate joins its processes only if you ask for the CPU. Accelerator(cpu=True) omits DeepSpeed.
    if not torch.accelerator.is_available():
        PartialState(cpu=True)

    # 1. The checkpoint to continue from, the model and the data.
    accumulation_steps, batch_size = args.gradient_accumulation_steps, args.per_device_train_batch_size
    with one_line_errors("--report_to: "):
        accelerator = Accelerator(
            gradient_accumulation_steps=accumulation_steps, log_with=args.report_to, project_dir=args.output_dir
        )
    accelerator.print(f"Processes: {accelerator.num_processes}, device: {accelerator.device.type}")
    with one_line_errors(f"Cannot continue in {args.output_dir}: "):
        checkpoint, state = find_checkpoint(accelerator, args.output_dir)
    with one_line_errors(f"Cannot use the model {args.model_name_or_path or 'by default'}: "):
        set_seed(args.seed)
        model, tokenizer = load_model_and_tokenizer(args)
    for turn in (accelerator.is_local_main_process, not accelerator.is_local_main_process):
        with one_line_errors(f"Cannot read {args.dataset_name or args.train_file}: "):
            if turn:  # one process of each machine prepares the text, and the others find it in the cache
                blocks = load_blocks(args, tokenizer)
    set_seed(args.seed, device_specific=True)  # the same weights on each process, but a dropout of its own

    with one_line_errors():
        train_data: Any = blocks["train"]
        held_out_data: Any = blocks["validation"]
        num_samples, samples_per_batch = len(train_data), batch_size * accelerator.num_processes
        if num_samples < samples_per_batch or len(held_out_data) == 0:
            raise ValueError(
                f"Expected at least {samples_per_batch} blocks of --block_size {args.block_size} tokens to train on "
                f"and 1 held out, but got {num_samples} and {len(held_out_data)}"
            )
        # With a generator of their own the loaders leave the random numbers of dropout alone.
        remaining: list[int] = []  # the samples of the epoch that were not seen yet
        own = torch.Generator()
        train_loader: Any = DataLoader(train_data, batch_size, sampler=remaining, drop_last=True, generator=own)
        eval_loader: Any = DataLoader(held_out_data, batch_size, generator=own)

        # 2. The number of updates, the optimizer and its schedule.
        updates = args.num_train_epochs * math.ceil(num_samples // samples_per_batch / accumulation_steps)
        if args.max_train_steps is None and state.num_training_steps not in (0, updates):
            accelerator.print(f"The run keeps its {state.num_training_steps} updates: --max_train_steps changes them")
        state.num_training_steps = args.max_train_steps or state.num_training_steps or updates
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        groups: list[Any] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
        scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
            optimizer, args.num_warmup_steps, state.num_training_steps, **args.lr_scheduler_kwargs
        )
        model, optimizer, train_loader, eval_loader, prepared_scheduler = accelerator.prepare(
            model, optimizer, train_loader, eval_loader, scheduler
        )
        count_optimizer_steps(prepared_scheduler)  # Accelerate would step it once per process at each update

    # 3. Continue where the checkpoint stands. Any number of processes can load weights that are saved unwrapped.
    def unwrap_before_saving(models: list[Any], weights: list[Any], folder: str) -> None:
        weights[:] = [accelerator.unwrap_model(model).state_dict() for model, _ in zip(models, weights)]

    def unwrap_before_loading(models: list[Any], folder: str) -> None:
        models[:] = map(accelerator.unwrap_model, models)

    accelerator.register_save_state_pre_hook(unwrap_before_saving)
    accelerator.register_load_state_pre_hook(unwrap_before_loading)
    with one_line_errors(f"Expected {checkpoint} to fit this model and optimizer, but loading failed: "):
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))
            accelerator.step = 0  # it counts micro-batches, and gradient_accumulation_steps may have changed

    is_main_process = accelerator.is_main_process
    with one_line_errors(f"Cannot train in {args.output_dir}: "):
        if is_main_process:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            lock = FileLock(args.output_dir / ".lock")  # the operating system releases it when this process ends
            lock.acquire(timeout=0)
            shutil.rmtree(args.output_dir / "unfinished", ignore_errors=True)
            metrics_file = (args.output_dir / "metrics.jsonl").open("w", buffering=1)
            metrics_file.writelines(json.dumps(entry) + "\n" for entry in state.log)
            print(f"Continuing from {checkpoint}" if checkpoint else f"Beginning a new run in {args.output_dir}")
        if args.report_to is not None:
            accelerator.init_trackers("accelerate_finetune", {name: str(value) for name, value in vars(args).items()})

    def log(**values: Any) -> None:
        state.log.append({"step": scheduler.last_epoch, **values})
        accelerator.log(values, step=scheduler.last_epoch)
        if is_main_process:
            metrics_file.write(json.dumps(state.log[-1]) + "\n")

    def evaluate_and_log(moment: str, cycle: int | None = None) -> None:
        log(cycle=cycle, eval_loss=evaluate(accelerator, model, eval_loader))
        if is_main_process:
            progress_bar.write(f"Held-out loss {state.log[-1]['eval_loss']:.4f} {moment}")

    # 4. Train until the schedule has ended. An update that mixed precision skips is no step of it.
    progress_bar = tqdm(total=state.num_training_steps, initial=scheduler.last_epoch, disable=not is_main_process)
    if not state.log:
        evaluate_and_log("before training")
    model.train()
    losses: list[torch.Tensor] = []
    while (before_epoch := scheduler.last_epoch) < state.num_training_steps:
        if num_samples - state.samples_seen < samples_per_batch:
            state.epoch, state.samples_seen = state.epoch + 1, 0
        # The order depends on the seed and the epoch alone, so that any number of processes can continue it.
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(args.seed + state.epoch))
        remaining[:] = order[state.samples_seen :].tolist()
        for batch in train_loader:
            before, learning_rate, cycle = scheduler.last_epoch, scheduler.get_last_lr()[0], scheduler.cycle_index
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                losses.append(loss.detach())
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                prepared_scheduler.step()
                optimizer.zero_grad()
            state.samples_seen += samples_per_batch
            if not accelerator.sync_gradients:
                continue
            train_loss, losses = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item(), []
            if (update := scheduler.last_epoch) == before:
                continue  # skipped
            log(cycle=cycle, learning_rate=learning_rate, loss=train_loss)
            progress_bar.set_postfix(loss=f"{train_loss:.3f}", lr=f"{learning_rate:.2e}", refresh=False)
            progress_bar.update()
            # At the end of a cycle, the update that was just made had its lowest learning rate: evaluate and save.
            if scheduler.at_cycle_end:
                evaluate_and_log(f"at the end of cycle {cycle}, update {update}", cycle)
            if scheduler.at_cycle_end or (args.checkpointing_steps and update % args.checkpointing_steps == 0):
                save_checkpoint(accelerator, state, args.output_dir / f"step_{update}", args.save_total_limit)
            if update == state.num_training_steps:
                break
        if scheduler.last_epoch == before_epoch:
            raise RuntimeError("The gradients overflowed in every update of an epoch")
    progress_bar.close()

    # 5. The results.
    if "eval_loss" not in state.log[-1]:
        evaluate_and_log("at the end of training")
    evaluations = [entry for entry in state.log if "eval_loss" in entry]
    weights = accelerator.get_state_dict(model)
    with one_line_errors(f"Could not save the model in {args.output_dir}: "):
        if is_main_process:
            accelerator.unwrap_model(model).save_pretrained(args.output_dir, state_dict=weights)
            tokenizer.save_pretrained(args.output_dir)
            (args.output_dir / "all_results.json").write_text(json.dumps(evaluations, indent=2) + "\n")
    accelerator.print(
        f"Held-out loss {evaluations[0]['eval_loss']:.4f} before training, {evaluations[-1]['eval_loss']:.4f} after "
        f"{scheduler.last_epoch} updates. The results are in {args.output_dir}."
    )
    # Free the model before the process group ends: otherwise some runs on CPUs hang at exit.
    model, optimizer, prepared_scheduler = accelerator.free_memory(model, optimizer, prepared_scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
