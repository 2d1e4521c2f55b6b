"""One step of the schedule per optimizer update: under every way that Accelerate has of running many processes.

Each test trains a small model on real processes and compares the rate that each update used with `lr_at`; the same
comparison fails without `count_optimizer_steps`, which is tested too.
"""

from __future__ import annotations

import doctest
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from example_runs import Run
from optimizers import make_optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule, count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule

NUM_UPDATES = 12
SCHEDULE = {"num_warmup_steps": 2, "num_training_steps": NUM_UPDATES, "num_cycles": 2, "decay": 0.5}


def expected_rates(num_updates: int = NUM_UPDATES) -> list[float]:
    schedule = CosineRestartSchedule.fit(NUM_UPDATES, num_cycles=2, decay=0.5, warmup_steps=2)
    return [schedule.lr_at(step, base_lr=0.1) for step in range(num_updates)]


def train(
    counted: bool = True,
    gradient_accumulation_steps: int = 1,
    batch_size: int = 4,
    num_samples: int = 4 * 8 * 2 + 2,
    overflowing_updates: tuple[int, ...] = (),
    deepspeed: bool = False,
    step_scheduler_with_optimizer: bool = True,
    **dataloader: Any,
) -> dict[str, Any]:
    """Train on the processes of this run; return the rate that each update used which took place in this one.

    Args:
        num_samples: By default as many that a last batch is left which not every process gets.
        overflowing_updates: Attempts at an update, counted from 0, whose loss is infinite.
        dataloader: How Accelerate is to divide the batches among the processes.
    """
    from accelerate import Accelerator, DataLoaderConfiguration, PartialState
    from torch.utils.data import DataLoader, TensorDataset

    PartialState(cpu=True)
    if deepspeed:
        import deepspeed as deepspeed_library

        os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
        # Its collectives over shared memory would be compiled for a minute first. Without them it uses gloo.
        deepspeed_library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(
        gradient_accumulation_steps=gradient_accumulation_steps,
        step_scheduler_with_optimizer=step_scheduler_with_optimizer,
        dataloader_config=DataLoaderConfiguration(**dataloader),
    )
    if overflowing_updates:
        # What Accelerate uses on a GPU under fp16. On the CPU it leaves it out, and torch does not.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **SCHEDULE)
    loader = DataLoader(TensorDataset(torch.randn(num_samples, 1)), batch_size=batch_size)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if counted:
        count_optimizer_steps(scheduler)
    assert (accelerator.distributed_type == "DEEPSPEED") == deepspeed

    rates: list[float] = []
    batch_sizes: set[int] = set()
    attempt = 0
    while len(rates) < NUM_UPDATES:
        for (batch,) in loader:
            batch_sizes.add(len(batch))
            with accelerator.accumulate(model):
                loss = model(batch).square().mean()
                accelerator.backward(loss * (float("inf") if attempt in overflowing_updates else 1.0))
                rate = optimizer.param_groups[0]["lr"]
                optimizer.step()
                if step_scheduler_with_optimizer or accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                attempt += 1
                if not accelerator.optimizer_step_was_skipped:
                    rates.append(rate)
            if len(rates) == NUM_UPDATES:
                break
    num_processes = accelerator.num_processes
    accelerator.free_memory(model, optimizer, loader, scheduler)
    return {
        "rates": rates,
        "num_processes": num_processes,
        "attempts": attempt,
        "batch_sizes": sorted(batch_sizes),
    }


def run_the_docstring(output: str) -> None:
    """Run the loop that the docstring shows as it stands; the main process writes the rate of each update."""
    from accelerate import PartialState

    PartialState(cpu=True)
    example = doctest.DocTestFinder().find(count_optimizer_steps, globs={})[0].examples
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    shown: dict[str, Any] = {}
    exec("".join(statement.source for statement in example), shown)
    hook.remove()
    if shown["accelerator"].is_main_process:
        Path(output).write_text(
            json.dumps(
                {
                    "rates": rates,
                    "num_processes": shown["accelerator"].num_processes,
                    "num_training_steps": shown["num_training_steps"],
                    "at_cycle_end": shown["scheduler"].scheduler.at_cycle_end,
                }
            )
        )
    # The model uses the group of processes, and goes before it: the other way round, some runs never end.
    accelerator = shown["accelerator"]
    shown.clear()
    accelerator.free_memory()
    accelerator.end_training()


def train_with(output: str, *settings: dict[str, Any]) -> None:
    """Train once with each of the settings, in one group of processes; each process writes what came of them."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    results = []
    for options in settings:
        results.append(train(**options))
        AcceleratorState._reset_state()
        GradientState._reset_state()
    state = PartialState()
    Path(output, f"{state.process_index}.json").write_text(json.dumps(results))
    state.wait_for_everyone()
    state.destroy_process_group()


def results_of_run(folder: Path, num_processes: int, *settings: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What came of each of the settings in each of the processes."""
    Run(folder / "log", str(folder), *settings, num_processes=num_processes, entry=train_with).succeed()
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]
    assert {result["num_processes"] for of_process in results for result in of_process} == {num_processes}
    return [list(of_setting) for of_setting in zip(*results)]


def result_of_run(tmp_path: Path, num_processes: int, **options: Any) -> dict[str, Any]:
    return results_of_run(tmp_path, num_processes, options)[0][0]


WAYS = {
    "as it comes": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    # A last batch of two samples, which falls to one process and is not filled up.
    "uneven last batch": {"even_batches": False, "num_samples": 4 * 8 - 2},
    "uneven last batch, accumulation": {
        "even_batches": False,
        "num_samples": 4 * 8 - 2,
        "gradient_accumulation_steps": 2,
    },
    "split_batches": {"split_batches": True, "batch_size": 16},
    "split_batches, accumulation": {"split_batches": True, "batch_size": 16, "gradient_accumulation_steps": 3},
    "dispatch_batches": {"dispatch_batches": True},
    "dispatch_batches, accumulation": {"dispatch_batches": True, "gradient_accumulation_steps": 3},
    "split_batches, dispatch_batches": {"split_batches": True, "dispatch_batches": True, "batch_size": 16},
    "step_scheduler_with_optimizer=False": {"step_scheduler_with_optimizer": False},
    "step_scheduler_with_optimizer=False, accumulation": {
        "step_scheduler_with_optimizer": False,
        "gradient_accumulation_steps": 3,
    },
    "not counted": {"counted": False},
}


@pytest.fixture(scope="module", params=[1, 2, 4])
def every_way(request, tmp_path_factory):
    """The number of processes, and by each way of running them what came of it in each of them."""
    results = results_of_run(tmp_path_factory.mktemp("every_way"), request.param, *WAYS.values())
    return request.param, dict(zip(WAYS, results))


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "not counted"])
def test_each_update_uses_its_rate_in_each_process(every_way, way):
    _, results = every_way
    for result in results[way]:
        assert result["rates"] == expected_rates()
    if "uneven" in way:
        assert sorted({size for result in results[way] for size in result["batch_sizes"]}) == [2, 4]
        assert sum(2 in result["batch_sizes"] for result in results[way]) == 1


@pytest.mark.slow
def test_without_count_optimizer_steps_the_schedule_runs_as_often_as_there_are_processes(every_way):
    num_processes, results = every_way
    for result in results["not counted"]:
        assert result["rates"] == expected_rates(num_processes * NUM_UPDATES)[::num_processes]
        assert (result["rates"] == expected_rates()) == (num_processes == 1)


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_updates"), [(1, 78), (2, 39), (4, 21)])
def test_the_loop_of_the_docstring_uses_each_rate_and_ends_where_the_schedule_ends(
    tmp_path, num_processes, num_updates
):
    output = tmp_path / "result.json"
    Run(tmp_path / "log", str(output), num_processes=num_processes, entry=run_the_docstring).succeed()
    schedule = CosineRestartSchedule.fit(num_updates, 3, T_mult=2, warmup_steps=2, stable_ratio=0.8)
    assert json.loads(output.read_text()) == {
        "rates": [schedule.lr_at(update, base_lr=0.1) for update in range(num_updates)],
        "num_processes": num_processes,
        "num_training_steps": num_updates,
        "at_cycle_end": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_update_that_overflows_does_not_advance_the_schedule(tmp_path, num_processes):
    result = result_of_run(tmp_path, num_processes, overflowing_updates=(0, 3, 4, 11))
    assert result["attempts"] == NUM_UPDATES + 4
    assert result["rates"] == expected_rates()


@pytest.mark.slow
def test_deepspeed_zero_2_uses_the_rate_of_each_update(tmp_path):
    assert result_of_run(tmp_path, 2, deepspeed=True)["rates"] == expected_rates()


@pytest.mark.slow
def test_deepspeed_zero_2_does_not_without_count_optimizer_steps(tmp_path):
    rates = result_of_run(tmp_path, 2, deepspeed=True, counted=False)["rates"]
    assert rates == expected_rates(2 * NUM_UPDATES)[::2]


@pytest.mark.slow
def test_two_machines_with_a_launcher_each_use_the_rates_of_one_process(tmp_path):
    """Two launchers on loopback, a process each, started as examples/accelerate_configs/multi_node.yaml says."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = Path(__file__).parent.parent / "examples" / "accelerate_configs" / "multi_node.yaml"
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}", f"--machine_rank={rank}",
             "--main_process_ip=127.0.0.1", f"--main_process_port={port}", __file__, tmp_path],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [launcher.communicate(timeout=HANGS_AFTER)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    for rank in range(2):
        (result,) = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["num_processes"] == 2
        assert result["rates"] == expected_rates()


def python_calls_per_update(prepared, num_processes: int, num_updates: int = 10) -> float:
    """The calls of functions in one update of a process among so many, as Accelerate's own record has their number."""
    from accelerate.state import PartialState

    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += event == "call"

    state, start = PartialState(), prepared.scheduler.last_epoch
    state.num_processes = num_processes
    sys.setprofile(count)
    try:
        for _ in range(num_updates):
            prepared.step()
    finally:
        sys.setprofile(None)
        state.num_processes = 1
    steps = 1 if prepared.split_batches else num_processes
    assert prepared.scheduler.last_epoch - start == num_updates * steps
    return calls / num_updates


def test_an_update_costs_each_of_16384_processes_what_it_costs_one():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = make_optimizer()
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, num_warmup_steps=0, T_0=10**9)
    optimizer, prepared = accelerator.prepare(optimizer, scheduler)
    optimizer.step()
    prepared.step()
    assert python_calls_per_update(prepared, 16_384) > 16_384
    count_optimizer_steps(prepared)
    assert python_calls_per_update(prepared, 16_384) == python_calls_per_update(prepared, 1) < 20
    assert optimizer.param_groups[0]["lr"] == scheduler.schedule.lr_at(scheduler.last_epoch, 0.1)


@pytest.mark.parametrize("wrong", [None, "scheduler", torch.optim.lr_scheduler.LRScheduler])
def test_a_scheduler_that_was_not_prepared_is_refused(wrong):
    with pytest.raises(TypeError, match=r"Expected prepared to be a scheduler that accelerator\.prepare returned"):
        count_optimizer_steps(wrong)


def test_the_prepared_scheduler_itself_is_returned():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = make_optimizer()
    _, prepared = accelerator.prepare(
        optimizer, get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **SCHEDULE)
    )
    assert count_optimizer_steps(prepared) is prepared


if __name__ == "__main__":
    train_with(sys.argv[1], {})
