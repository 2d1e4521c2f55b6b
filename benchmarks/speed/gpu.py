"""What the schedule costs on a GPU: its share of an update of a GPT-2 with 124M parameters, and what it launches.

    python -m benchmarks.speed.gpu --output benchmarks/results

The model has GPT-2's own shape and random weights. An update is forward, backward, `optimizer.step()`,
`scheduler.step()` and `optimizer.zero_grad()`, with the device waited for at its end; the scheduler's part is what
`step()` takes on the host, which never waits for the device. Launches are counted by torch's profiler.

Where there is no GPU, nothing is measured and the tables say "not run". `--quick` runs the same code there with a tiny
model, as the tests do; its figures mean nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.profiler import ProfilerActivity, profile

from benchmarks.documents import markdown_table
from benchmarks.speed.timing import Timing, argument_parser, describe, finish, rounded, surroundings
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

OURS = "hf_warmcos"
TORCH = "torch CosineAnnealingWarmRestarts"
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    OURS: lambda optimizer: CosineRestartLR(optimizer, CosineRestartSchedule(T_0=1000, decay=0.9)),
    TORCH: lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=1000),
}
RATES = ("float", "tensor")
NUM_GROUPS = (1, 2, 100, 1000)
NOT_RUN = "not run"


def make_lr(rates: str, device: torch.device) -> Any:
    return torch.tensor(6e-4, device=device) if rates == "tensor" else 6e-4


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_updates(device: torch.device, name: str, rates: str, num_updates: int, **sizes: Any) -> dict[str, Timing]:
    """Microseconds of an update, and of the scheduler's step in it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(**sizes)
    model: Any = GPT2LMHeadModel(config)
    model.to(device)
    parameters = list(model.parameters())
    optimizer = AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1, "lr": make_lr(rates, device)},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "lr": make_lr(rates, device)},
        ],
        capturable=device.type == "cuda",
    )
    scheduler = SCHEDULERS[name](optimizer)
    tokens = torch.randint(config.vocab_size, (4, config.n_positions), device=device)
    autocast = torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    times: dict[str, list[float]] = {"step": [], "update": []}
    for update in range(num_updates + 3):  # the first three only warm up
        wait_for(device)
        start = perf_counter_ns()
        with autocast:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        before_step = perf_counter_ns()
        scheduler.step()
        after_step = perf_counter_ns()
        optimizer.zero_grad()
        wait_for(device)
        if update >= 3:
            times["step"].append((after_step - before_step) / 1000)
            times["update"].append((perf_counter_ns() - start) / 1000)
    return {part: Timing.of(of_part) for part, of_part in times.items()}


def count_launches(device: torch.device, name: str, num_groups: int) -> int:
    """The kernels that a step with a tensor rate for each group launches, by torch's profiler."""
    optimizer = AdamW(
        [
            {"params": [torch.nn.Parameter(torch.zeros(1, device=device))], "lr": make_lr("tensor", device)}
            for _ in range(num_groups)
        ],
        capturable=device.type == "cuda",
    )
    scheduler = SCHEDULERS[name](optimizer)
    optimizer.step()
    for _ in range(3):
        scheduler.step()
    wait_for(device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        scheduler.step()
        wait_for(device)
    return sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)


def measure(device: torch.device, num_updates: int, num_groups: tuple[int, ...], **sizes: Any) -> dict[str, Any]:
    updates = {
        f"{name}, {rates} rates": measure_updates(device, name, rates, num_updates, **sizes)
        for name in SCHEDULERS
        for rates in RATES
    }
    return {
        "updates": {
            row: {part: timing._asdict() for part, timing in of.items()}
            | {"share": of["step"].median / of["update"].median}
            for row, of in updates.items()
        },
        "launches": {name: {str(num): count_launches(device, name, num) for num in num_groups} for name in SCHEDULERS},
    }


def tables(record: dict[str, Any] | None) -> str:
    """The figures as tables, which say that they were not run where there is no record."""

    def update_cells(row: str) -> list[str]:
        if record is None:
            return [NOT_RUN] * 3
        of = record["updates"][row]
        in_milliseconds = Timing(*(time / 1000 for time in of["update"].values()))
        return [str(Timing(**of["step"])), str(in_milliseconds), f"{rounded(100 * of['share'])} %"]

    def launch_cells(name: str) -> list[str]:
        return [NOT_RUN if record is None else str(record["launches"][name].get(str(num), "")) for num in NUM_GROUPS]

    rows = [f"{name}, {rates} rates" for name in SCHEDULERS for rates in RATES]
    of_updates = markdown_table(
        ["GPT-2, 124M parameters", "`step()`, µs", "update, ms", "share"], [[row, *update_cells(row)] for row in rows]
    )
    of_launches = markdown_table(
        ["launches of a `step()`, tensor rates", *(f"{num} group{'s' if num > 1 else ''}" for num in NUM_GROUPS)],
        [[name, *launch_cells(name)] for name in SCHEDULERS],
    )
    return f"{of_updates}\n\n{of_launches}"


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.quick:
        print(f"Not run: there is no GPU here.\n\n{tables(None)}")
        return
    run = partial(measure, device, num_updates=100, num_groups=NUM_GROUPS)
    if arguments.quick:
        tiny: dict[str, Any] = {"vocab_size": 64, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        run = partial(measure, device, num_updates=3, num_groups=NUM_GROUPS[:2], **tiny)
    where = surroundings("transformers")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    record = {"surroundings": where, "device": name, "unit": "microseconds", **run()}
    print(f"Medians (quartiles) on {name}. {describe(where)}.\n\n{tables(record)}")
    finish(arguments, "gpu", record)


if __name__ == "__main__":
    main()
