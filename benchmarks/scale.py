"""What scheduling costs each process at one update, from 1 process to 16,384.

    python benchmarks/scale.py --output benchmarks/results

A real scheduler that `accelerator.prepare` returned, on a real prepared optimizer, is stepped as at each update: as
Accelerate prepares it, and with `count_optimizer_steps`. The other processes are simulated: Accelerate's own record of
their number is set, which is all that a prepared scheduler reads of them. Nothing is sent between processes in a step
of a schedule, so that this is what each of them pays.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import PartialState
from timing import Bar, Timing, argument_parser, describe, finish, interleave, markdown_table, repeated, surroundings

from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule

NUM_PROCESSES = (1, 8, 64, 512, 4096, 16_384)
NUM_GROUPS = (2, 200)
AS_PREPARED = "as accelerator.prepare returns it"
COUNTED = "with count_optimizer_steps"


def prepare_scheduler(num_groups: int) -> AcceleratedScheduler:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)])
    # Endless cycles, so that a schedule that runs too fast does not cost less because it has come to its end.
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
        optimizer, num_warmup_steps=10, T_0=10_000, decay=0.9
    )
    optimizer.step()
    _, prepared = accelerator.prepare(optimizer, scheduler)
    return prepared


def measure(num_processes: int, num_groups: int, quick: bool) -> dict[str, Timing]:
    """Microseconds per update on each of as many processes."""
    schedulers = {AS_PREPARED: prepare_scheduler(num_groups)}
    schedulers[COUNTED] = count_optimizer_steps(prepare_scheduler(num_groups))
    rounds = 2 if quick else 15
    state: Any = PartialState()
    state.num_processes = num_processes
    try:
        timings: dict[str, Timing] = {}
        # Hundreds of scheduler steps in each round, so that the first ones after something else do not count.
        for name, steps_per_update in ((AS_PREPARED, num_processes), (COUNTED, 1)):
            updates, scheduler = max(1, 200 // steps_per_update), schedulers[name]
            timings |= interleave({name: repeated(scheduler.step)}, rounds, calls=updates)
            assert scheduler.scheduler.last_epoch == rounds * updates * steps_per_update
    finally:
        state.num_processes = 1
    return timings


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    timings = {
        num_groups: {processes: measure(processes, num_groups, arguments.quick) for processes in NUM_PROCESSES}
        for num_groups in NUM_GROUPS
    }
    where = surroundings("accelerate")
    print(f"Microseconds of scheduling per update on each process: median (quartiles). {describe(where)}.\n")
    header = ["processes"] + [f"{name}, {num_groups} groups" for num_groups in NUM_GROUPS for name in timings[2][1]]
    rows = [
        [
            f"{processes:,}",
            *(str(timing) for num_groups in NUM_GROUPS for timing in timings[num_groups][processes].values()),
        ]
        for processes in NUM_PROCESSES
    ]
    print(markdown_table(header, rows))
    most = NUM_PROCESSES[-1]
    bars = [
        Bar(
            f"counted, {num_groups} groups: {most:,} processes over 1",
            timings[num_groups][most][COUNTED].median / timings[num_groups][1][COUNTED].median,
            "<=",
            3,
        )
        for num_groups in NUM_GROUPS
    ]
    record = {
        "surroundings": where,
        "unit": "microseconds per update on each process",
        "num_groups": {
            num_groups: {
                processes: {name: timing._asdict() for name, timing in of.items()}
                for processes, of in by_processes.items()
            }
            for num_groups, by_processes in timings.items()
        },
    }
    finish(arguments, "scale", record, bars)


if __name__ == "__main__":
    main()
