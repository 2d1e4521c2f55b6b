"""The main example through kills, full disks, spoiled checkpoints and changes of size."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from example_runs import (
    EXAMPLES,
    Machine,
    Run,
    children_of,
    free_port,
    living_processes,
    make_text,
    make_tiny_model,
    processes_of_group,
    read_metrics,
    run_example,
    wait_until,
    warm_context,
)
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from hf_warmcos import CosineRestartSchedule, find_incomplete_file

pytestmark = [pytest.mark.slow, pytest.mark.needs("datasets")]

NUM_UPDATES = 100  # more than twelve runs do before they are killed
SCHEDULE = CosineRestartSchedule.fit(NUM_UPDATES, num_cycles=3, warmup_steps=5, decay=0.75)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Arguments of a small run with a checkpoint at every other update, without --output_dir."""
    folder = tmp_path_factory.mktemp("small")
    model, text = make_tiny_model(folder / "model"), make_text(folder / "text.txt")
    return [f"--model_name_or_path={model}", f"--train_file={text}", "--block_size=16",
            '--lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75}',
            f"--max_train_steps={NUM_UPDATES}", "--per_device_train_batch_size=4",
            "--num_warmup_steps=5", "--checkpointing_steps=2"]  # fmt: skip


@pytest.fixture(scope="module")
def left_alone(small, tmp_path_factory):
    """The folder of a run on two processes that nothing happened to."""
    output_dir = tmp_path_factory.mktemp("left_alone")
    Run(output_dir / "log", [*small, f"--output_dir={output_dir}"], num_processes=2).succeed()
    return output_dir


def assert_each_update_stands_once_at_its_rate(output_dir: Path, num_updates: int = NUM_UPDATES) -> None:
    metrics = read_metrics(output_dir)
    assert [line["step"] for line in metrics] == list(range(1, num_updates + 1))
    assert [line["learning_rate"] for line in metrics] == [SCHEDULE.lr_at(step, 2e-3) for step in range(num_updates)]
    assert [line["cycle"] for line in metrics] == [SCHEDULE.cycle_at(step).index for step in range(num_updates)]


def assert_same_bits(output_dir: Path, other: Path) -> None:
    assert read_metrics(output_dir) == read_metrics(other)
    weights, others = load_file(output_dir / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def updates_so_far(output_dir: Path) -> int:
    metrics = output_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_worker(run: Run, chance: random.Random) -> None:
    os.kill(chance.choice(run.worker_pids()), signal.SIGKILL)


def kill_launcher(run: Run, chance: random.Random) -> None:
    os.kill(run.process.pid, signal.SIGKILL)


def kill_all(run: Run, chance: random.Random) -> None:
    os.killpg(run.process.pid, signal.SIGKILL)


def wait_for_start(run: Run, output_dir: Path, chance: random.Random) -> None:
    """Until some moment before the first update."""
    wait_until(lambda: len(run.worker_pids()) >= 2)
    time.sleep(chance.uniform(0, 0.5))


def wait_for_training(run: Run, output_dir: Path, chance: random.Random) -> None:
    """Until an update, or one of the next, was done."""
    wait_until_it_trains(run)
    start, updates = updates_so_far(output_dir), chance.randint(0, 3)
    wait_until(lambda: updates_so_far(output_dir) > start + updates)


def wait_for_save(run: Run, output_dir: Path, chance: random.Random) -> None:
    """Until a checkpoint is being written."""
    wait_until_it_trains(run)
    wait_until(lambda: (output_dir / "unfinished").exists())


def wait_until_it_trains(run: Run) -> None:
    """Until the run has cleaned up after the last kill."""
    wait_until(lambda: re.search("Beginning a new run|Continuing from", run.output))


def run_and_kill(
    arguments: list[str],
    num_processes: int,
    output_dir: Path,
    wait: Callable[..., None],
    kill: Callable[..., None],
    chance: random.Random,
) -> None:
    run = Run(output_dir.parent / "log", arguments, num_processes=num_processes)
    wait(run, output_dir, chance)
    assert run.process.exitcode is None, f"The run ended before the kill:\n{run.output}"
    kill(run, chance)
    assert run.wait() != 0
    # The launcher ends its processes where it can; where it is gone, the kernel does.
    wait_until(lambda: not processes_of_group(run.process.pid))


def test_twelve_kills_in_a_row_change_nothing(small, left_alone, tmp_path):
    """One worker, the launcher or all of them, before, in and between saves: the end is the same to the last bit."""
    chance, output_dir, killed_in_save = random.Random(0), tmp_path / "run", 0
    arguments = [*small, f"--output_dir={output_dir}"]
    waits = (wait_for_save, wait_for_training, wait_for_save, wait_for_start)
    kills = (kill_all, kill_worker, kill_launcher)
    for number in range(12):  # each way to wait with each way to kill
        run_and_kill(arguments, 2, output_dir, waits[number % 4], kills[number % 3], chance)
        killed_in_save += (output_dir / "unfinished").exists()
    print(f"{killed_in_save} of 12 kills hit a save")
    assert killed_in_save >= 3
    assert 0 < updates_so_far(output_dir) < NUM_UPDATES
    Run(tmp_path / "log", arguments, num_processes=2).succeed()
    assert_each_update_stands_once_at_its_rate(output_dir)
    assert_same_bits(output_dir, left_alone)
    assert not (output_dir / "unfinished").exists()


def test_the_processes_of_accelerate_launch_end_when_it_is_killed(small, left_alone, tmp_path):
    """Left to themselves they would train on, beside the run that resumes theirs."""
    arguments = [*small, f"--output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
               "--main_process_port=0", EXAMPLES / "accelerate_finetune.py", *arguments]  # fmt: skip
    workers: list[int] = []
    with (tmp_path / "launch_log").open("w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: updates_so_far(tmp_path / "run") > 3)
        workers = children_of(launcher.pid)
        assert len(workers) == 2
        launcher.kill()
        launcher.wait()
        wait_until(lambda: not living_processes().keys() & set(workers))
        assert updates_so_far(tmp_path / "run") < NUM_UPDATES
    finally:
        for pid in living_processes().keys() & {launcher.pid, *workers}:
            os.kill(pid, signal.SIGKILL)
    Run(tmp_path / "log", arguments, num_processes=2).succeed()
    assert_same_bits(tmp_path / "run", left_alone)


def test_a_killed_run_goes_on_with_more_and_with_fewer_processes(small, tmp_path):
    """Killed on 2, on 4 and on 2 processes again, it ends on 1, on 2 and on 4."""
    chance, output_dir = random.Random(1), tmp_path / "run"
    arguments = [*small, f"--output_dir={output_dir}"]
    for num_processes in (2, 4, 2):
        run_and_kill(arguments, num_processes, output_dir, wait_for_training, kill_all, chance)
    stopped_at = updates_so_far(output_dir)
    assert 0 < stopped_at < NUM_UPDATES
    for num_processes in (1, 2, 4):
        copy = tmp_path / f"on_{num_processes}"
        shutil.copytree(output_dir, copy)
        Run(tmp_path / "log", [*small, f"--output_dir={copy}"], num_processes=num_processes).succeed()
        assert_each_update_stands_once_at_its_rate(copy)


def test_a_worker_that_dies_ends_the_run_says_so_and_loses_nothing_that_was_saved(small, tmp_path):
    chance, output_dir = random.Random(2), tmp_path / "run"
    arguments = [*small, f"--output_dir={output_dir}"]
    run = Run(tmp_path / "log", arguments, num_processes=2)
    wait_until(lambda: updates_so_far(output_dir) > 6)
    saved = max(int(path.name.removeprefix("step_")) for path in output_dir.glob("step_*"))
    worker = chance.choice(run.worker_pids())
    os.kill(worker, signal.SIGKILL)
    assert run.wait() != 0
    assert f"(pid: {worker})" in run.output
    assert "SIGKILL" in run.output
    output = Run(tmp_path / "log", arguments).succeed()
    (resumed_at,) = re.findall(r"Continuing from \S+step_(\d+)", output)
    assert int(resumed_at) >= saved >= 4
    assert_each_update_stands_once_at_its_rate(output_dir)


def test_two_launchers_of_which_one_is_killed_go_on_with_another_number_of_processes(small, tmp_path):
    """With 1 process each, with 2 each and with 1 each again; the last run is one launcher with 3."""
    chance, output_dir = random.Random(3), tmp_path / "run"
    arguments = [*small, f"--output_dir={output_dir}"]
    for num_processes in (1, 2, 1):
        port, all_started = free_port(), warm_context().Barrier(2 * num_processes)
        machines = [Machine(rank, 2, port, all_started) for rank in range(2)]
        launchers = [
            Run(tmp_path / f"log_{machine.rank}", arguments, num_processes=num_processes, machine=machine)
            for machine in machines
        ]
        wait_for_training(launchers[0], output_dir, chance)
        killed, other = chance.sample(launchers, 2)
        killed.kill()
        assert other.wait() != 0
        assert re.search("Connection (closed|reset) by peer|ChildFailedError", other.output), other.output
        wait_until(lambda: not any(processes_of_group(run.process.pid) for run in launchers))  # noqa: B023
    assert 0 < updates_so_far(output_dir) < NUM_UPDATES
    assert "Continuing from" in Run(tmp_path / "log", arguments, num_processes=3).succeed()
    assert_each_update_stands_once_at_its_rate(output_dir)


def run_example_and_write_samples(folder: Path, arguments: list[str]) -> None:
    """Write the samples that each process trains on, a line for each batch."""
    forward, path = GPT2LMHeadModel.forward, folder / f"samples_{os.environ.get('RANK', 0)}.jsonl"

    def forward_and_write(self, input_ids, **inputs):
        if self.training:
            with path.open("a") as file:
                file.write(json.dumps(input_ids.tolist()) + "\n")
        return forward(self, input_ids, **inputs)

    GPT2LMHeadModel.forward = forward_and_write
    run_example(arguments)


def test_each_sample_of_an_epoch_is_trained_on_once_whatever_the_number_of_processes(tmp_path):
    """60 lines of random digits are about 210 blocks: a run on 2, 4, 1 and 2 processes sees some of them twice."""
    chance, text = random.Random(4), tmp_path / "text.txt"
    text.write_text("".join("".join(chance.choices("0123456789", k=57)) + "\n" for _ in range(60)))
    arguments = [f"--model_name_or_path={make_tiny_model(tmp_path / 'model')}", f"--train_file={text}",
                 "--block_size=16", "--per_device_train_batch_size=4", f"--output_dir={tmp_path / 'run'}",
                 "--checkpointing_steps=1", "--num_warmup_steps=0", '--lr_scheduler_kwargs={"T_0": 100}']  # fmt: skip
    seen: list[tuple[int, ...]] = []
    for num_processes, end in ((2, 5), (4, 11), (1, 20), (2, 40)):
        folder = tmp_path / f"samples_until_{end}"
        folder.mkdir()
        entry = functools.partial(run_example_and_write_samples, folder)
        run = Run(tmp_path / "log", [*arguments, f"--max_train_steps={end}"], num_processes=num_processes, entry=entry)
        run.succeed()
        files = [map(json.loads, path.read_text().splitlines()) for path in sorted(folder.glob("*.jsonl"))]
        assert len(files) == num_processes
        seen += [tuple(sample) for batches in zip(*files) for batch in batches for sample in batch]
    state = json.loads((tmp_path / "run" / "step_40" / "training_state.json").read_text())
    first_epoch = len(seen) - state["samples_seen"]
    assert len(seen) == 4 * (5 * 2 + 6 * 4 + 9 * 1 + 20 * 2)
    assert state["epoch"] == 1
    assert 196 < first_epoch == len({*seen[:first_epoch]})
    assert len({*seen[first_epoch:]}) == state["samples_seen"]
    assert seen[first_epoch:] != seen[: state["samples_seen"]]


@pytest.fixture
def stopped(left_alone, tmp_path):
    """The folder of a run that got to update 20 and has the checkpoints of updates 18 and 20."""
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    for name in ("step_18", "step_20"):
        shutil.copytree(left_alone / name, output_dir / name)
    return output_dir


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, bool]]:
    """A folder on a file system of 8 MB of its own, and whether it was permitted to make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True)
    yield disk, mounted.returncode == 0
    if mounted.returncode == 0:
        subprocess.run(["umount", disk], check=True)


def run_example_with_small_files(arguments: list[str]) -> None:
    """Where no file system can be mounted, writes fail by their size instead."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    run_example(arguments)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint_usable_and_says_so(
    small, left_alone, stopped, small_disk, tmp_path, num_processes
):
    disk, is_disk = small_disk
    output_dir = disk / "run"
    shutil.copytree(stopped, output_dir)
    arguments = [*small, f"--output_dir={output_dir}"]
    filler = disk / "filler"
    if is_disk:
        space = os.statvfs(disk)
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - 60_000))  # less than a checkpoint takes
    run = Run(
        tmp_path / "log",
        arguments,
        num_processes=num_processes,
        entry=run_example if is_disk else run_example_with_small_files,
    )
    assert run.wait() != 0
    (error,) = [line for line in run.output.splitlines() if "error: " in line]
    assert f"Could not save {output_dir / 'step_22'}" in error
    if is_disk:
        free = re.search(r"([\d,]+) bytes were free", error)
        assert free is not None
        assert int(free[1].replace(",", "")) < 60_000
        filler.unlink()
    Run(tmp_path / "log", arguments, num_processes=2).succeed()
    assert_same_bits(output_dir, left_alone)


def test_every_checkpoint_of_a_run_left_alone_is_whole_and_says_where_it_stands(left_alone):
    steps = {
        path.name: torch.load(path / "scheduler.bin")["last_epoch"]
        for path in left_alone.glob("step_*")
        if find_incomplete_file(path, 0) is find_incomplete_file(path, 1) is None
    }
    ends = SCHEDULE.restarts(NUM_UPDATES)
    assert steps == {f"step_{step}": step for step in [*range(2, NUM_UPDATES + 1, 2), *ends]}
    assert_each_update_stands_once_at_its_rate(left_alone)
