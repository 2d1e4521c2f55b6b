"""The share of a real training update that the scheduler takes, on 1 and on 2 processes.

    pip install -e ".[bench]"
    python benchmarks/training_overhead.py --output benchmarks/results

The model and the text are those of examples/: a small GPT-2 on bytes, so that the share is an upper bound for larger
models on the same hardware. Each update is forward, backward, `optimizer.step()`, `scheduler.step()` and
`optimizer.zero_grad()`. Two optimizers with a scheduler each take turns on one model: this scheduler, prepared by
Accelerate and made to count optimizer steps, and transformers' cosine with hard restarts, prepared as it is, which
Accelerate steps once per process. This command starts the processes itself, by `accelerate launch`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from step_cost import OURS, TRANSFORMERS
from timing import Timing, argument_parser, describe, finish, markdown_table, rounded, surroundings

NUM_PROCESSES = (1, 2)


def launch(num_processes: int, num_updates: int, block_size: int) -> dict[str, dict[str, Timing]]:
    """Measure in as many processes; the main one's times."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
        command += ["--num_processes", str(num_processes), "--dynamo_backend", "no", "--main_process_port", "0"]
        command += ["--multi_gpu"] if num_processes > 1 else []
        command += [__file__, "--measure", str(result), str(num_updates), str(block_size)]
        # Without GPUs Accelerate starts several processes on the CPU only where it is told to use it.
        use_cpu = "false" if torch.cuda.is_available() else "true"
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": use_cpu} | os.environ
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            raise RuntimeError(f"Expected {' '.join(command)} to succeed, but it ended with:\n{run.stdout}")
        measured = json.loads(result.read_text())
    if measured.pop("num_processes") != num_processes:
        raise RuntimeError(f"Expected {num_processes} processes, but accelerate launch started another number of them")
    return {name: {part: Timing.of(times) for part, times in of.items()} for name, of in measured.items()}


def measure(result: Path, num_updates: int, block_size: int) -> None:
    """Train in this process, one of those that `launch` started, and write the main process's times."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from accelerate import Accelerator
    from causal_lm_data import group_into_blocks, load_model_and_tokenizer, load_raw_datasets
    from torch.utils.data import DataLoader
    from transformers import default_data_collator, get_cosine_with_hard_restarts_schedule_with_warmup

    from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule

    accelerator = Accelerator()
    torch.manual_seed(0)
    model, tokenizer = load_model_and_tokenizer()
    with accelerator.main_process_first():
        blocks: Any = group_into_blocks(load_raw_datasets(), tokenizer, block_size)["train"]
    batches: Any = DataLoader(blocks, batch_size=8, shuffle=True, collate_fn=default_data_collator)
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3) for name in (OURS, TRANSFORMERS)}
    schedulers: dict[str, Any] = {
        OURS: get_cosine_restarts_with_decay_and_warmup_schedule(
            optimizers[OURS], 5, 100_000, num_cycles=10, decay=0.75
        ),
        TRANSFORMERS: get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizers[TRANSFORMERS], 5, 100_000, num_cycles=10
        ),
    }
    model, batches = accelerator.prepare(model, batches)
    for name in optimizers:
        optimizers[name], schedulers[name] = accelerator.prepare(optimizers[name], schedulers[name])
    count_optimizer_steps(schedulers[OURS])

    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "update": []} for name in optimizers}
    batch_iterator = iter(batches)
    for update in range(num_updates + 2):  # the first two only warm up
        for name, optimizer in optimizers.items():
            batch = next(batch_iterator)
            start = perf_counter_ns()
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            before_step = perf_counter_ns()
            schedulers[name].step()
            after_step = perf_counter_ns()
            optimizer.zero_grad()
            if update >= 2:
                times[name]["step"].append((after_step - before_step) / 1000)
                times[name]["update"].append((perf_counter_ns() - start) / 1000)
    if accelerator.is_main_process:
        result.write_text(json.dumps({"num_processes": accelerator.num_processes, **times}))
    accelerator.end_training()


def main() -> None:
    if "--measure" in sys.argv:
        result, *sizes = sys.argv[sys.argv.index("--measure") + 1 :]
        return measure(Path(result), *map(int, sizes))
    arguments = argument_parser(__doc__).parse_args()
    num_updates, block_size = (2, 16) if arguments.quick else (100, 128)
    measured = {num_processes: launch(num_processes, num_updates, block_size) for num_processes in NUM_PROCESSES}

    where = surroundings("transformers", "accelerate")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(f"Median (quartiles) of {num_updates} updates of 8 blocks of {block_size} bytes per process, on {device}.")
    print(f"{describe(where)}.\n")
    rows, shares = [], {}
    for num_processes, of in measured.items():
        for name, timings in of.items():
            shares[f"{name}, {num_processes}"] = share = timings["step"].median / timings["update"].median
            update = Timing(*(time / 1000 for time in timings["update"]))
            cells = [str(num_processes), str(timings["step"]), str(update), f"{rounded(100 * share)} %"]
            rows.append([name, *cells])
    header = ["", "processes", "scheduler, µs per update", "update, ms", "share"]
    print(markdown_table(header, rows))
    record = {
        "surroundings": where,
        "device": device,
        "num_updates": num_updates,
        "block_size": block_size,
        "unit": "microseconds",
        "num_processes": {
            num_processes: {
                name: {part: timing._asdict() for part, timing in timings.items()} for name, timings in of.items()
            }
            for num_processes, of in measured.items()
        },
        "shares": shares,
    }
    finish(arguments, "training_overhead", record)


if __name__ == "__main__":
    main()
