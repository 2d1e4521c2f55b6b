"""The loop to copy: it needs no other file, runs on one process and on two, and continues where it stopped."""

from __future__ import annotations

import functools
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from example_runs import EXAMPLES, Run, children_of, living_processes, wait_until
from safetensors.torch import load_file
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule, find_cycle_end_checkpoints

LOOP = EXAMPLES / "accelerate_loop.py"
pytestmark = pytest.mark.slow


def run_loop(output_dir: Path, num_epochs: int = 2, overflows_at: tuple[int, ...] = ()) -> None:
    sys.path.insert(0, str(EXAMPLES))
    import accelerate_loop

    if overflows_at:
        accelerate_loop.Accelerator = functools.partial(WithGradientScaler, overflows_at)
    accelerate_loop.main(output_dir, num_epochs)


class WithGradientScaler(Accelerator):
    """What Accelerate is under fp16 on a GPU, and losses that are infinite at some attempts, counted from 0."""

    def __init__(self, overflows_at, **kwargs):
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        self.attempt, self.overflows_at = 0, overflows_at

    def backward(self, loss, **kwargs):
        super().backward(loss * float("inf") if self.attempt in self.overflows_at else loss, **kwargs)
        self.attempt += self.sync_gradients


def train(output_dir: Path, num_processes: int, num_epochs: int = 2, overflows_at: tuple[int, ...] = ()) -> str:
    log = output_dir.parent / "log"
    return Run(log, output_dir, num_epochs, overflows_at, num_processes=num_processes, entry=run_loop).succeed()


def newest_weights(output_dir: Path) -> tuple[str, dict[str, torch.Tensor]]:
    newest = max(output_dir.glob("update_*"), key=lambda path: int(path.name.removeprefix("update_")))
    return newest.name, load_file(newest / "model.safetensors")


def assert_same_end(output_dir: Path, other: Path) -> None:
    (name, weights), (other_name, others) = newest_weights(output_dir), newest_weights(other)
    assert name == other_name
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def whole_run(request, tmp_path_factory):
    """The number of processes, the folder and the output of a run of two epochs."""
    output_dir = tmp_path_factory.mktemp("whole_run") / "run"
    return request.param, output_dir, train(output_dir, request.param)


def test_it_says_its_number_of_processes_and_its_device(whole_run):
    num_processes, _, output = whole_run
    assert f"Processes: {num_processes}, device: " in output


def test_it_saves_and_evaluates_where_cycles_end(whole_run):
    _, output_dir, output = whole_run
    ends = [int(update) for update in re.findall(r"update (\d+): a cycle has ended", output)]
    schedule = CosineRestartSchedule.fit(
        ends[-1], num_cycles=3, T_mult=2, warmup_steps=ends[-1] // 15, stable_ratio=0.8
    )
    assert ends == [*schedule.restarts(ends[-1]), ends[-1]]
    assert {path.name for path in output_dir.iterdir()} == {f"update_{update}" for update in ends}
    losses = [float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", output)]
    assert losses[-1] < losses[0] < 4, "an untrained network has log(256) = 5.55"


def test_the_same_command_continues_to_the_same_bits(whole_run, tmp_path):
    num_processes, output_dir, output = whole_run
    ends = [int(update) for update in re.findall(r"update (\d+): a cycle has ended", output)]
    assert ends[0] % (ends[-1] // 2), "the first cycle ends inside an epoch"
    shutil.copytree(output_dir / f"update_{ends[0]}", tmp_path / "run" / f"update_{ends[0]}")
    (tmp_path / "run" / "unfinished").mkdir()
    resumed_output = train(tmp_path / "run", num_processes)
    assert f"update_{ends[0]}, with {ends[0]} of {ends[-1]} updates done" in resumed_output
    assert [int(update) for update in re.findall(r"update (\d+): a cycle", resumed_output)] == ends[1:]
    assert_same_end(tmp_path / "run", output_dir)


def cycle_ends(output: str) -> list[int]:
    return [int(update) for update in re.findall(r"update (\d+): a cycle has ended", output)]


def test_updates_that_mixed_precision_skips_take_no_cycle_end_repeat_none_and_end_in_the_same_bits_when_resumed(
    whole_run, tmp_path
):
    num_processes, _, output = whole_run
    ends = cycle_ends(output)
    # At the start, right behind the first cycle end, which is two attempts later then, and in the last cycle.
    overflows_at = (0, 3, ends[0] + 2, ends[1] + 5)
    skipping = train(tmp_path / "run", num_processes, overflows_at=overflows_at)
    assert cycle_ends(skipping) == ends
    assert [path.name for path in find_cycle_end_checkpoints(tmp_path / "run")] == [f"update_{end}" for end in ends]
    assert [int((tmp_path / "run" / f"update_{end}" / "attempts").read_text()) for end in ends] == [
        ends[0] + 2,
        ends[1] + 3,
        ends[2] + 4,
    ]
    first = f"update_{ends[0]}"
    shutil.copytree(tmp_path / "run" / first, tmp_path / "resumed" / first)
    resumed = train(
        tmp_path / "resumed", num_processes, overflows_at=tuple(at - (ends[0] + 2) for at in overflows_at[2:])
    )
    assert cycle_ends(resumed) == ends[1:]
    assert_same_end(tmp_path / "resumed", tmp_path / "run")


def test_another_number_of_processes_is_refused_in_one_line_that_says_both(whole_run, tmp_path):
    num_processes, output_dir, _ = whole_run
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    run = Run(tmp_path / "log", output_dir, num_processes=3 - num_processes, entry=run_loop)
    assert run.wait() != 0
    name, _ = newest_weights(output_dir)
    expected = f"Expected as many processes as saved {output_dir / name}, {num_processes}, but got {3 - num_processes}"
    assert run.output.splitlines().count(expected) == 1
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """A function that gives the folder of a run of six epochs that nothing stopped, for a number of processes."""

    @functools.cache
    def folder(num_processes: int) -> Path:
        output_dir = tmp_path_factory.mktemp("left_alone") / "run"
        train(output_dir, num_processes, num_epochs=6)
        return output_dir

    return folder


@pytest.fixture
def copied(tmp_path):
    """A function that starts a command of the docstring in a folder with nothing but a copy of the loop."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(LOOP, project)
    started = []

    def start(program: str) -> subprocess.Popen:
        (command,) = re.findall(rf"^    {program} .*? output(?= |$)", LOOP.read_text(), re.MULTILINE)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {"PATH": path, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
        process = subprocess.Popen(
            command.split(), cwd=project, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A shell starts the tests with SIGINT ignored if they run in its background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        started.append(process)
        return process

    yield project / "output", start
    for process in started:
        for pid in living_processes().keys() & {process.pid, *children_of(process.pid)}:
            os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("program", "num_processes", "stop"),
    [
        ("python", 1, lambda process: process.send_signal(signal.SIGINT)),
        ("torchrun", 2, lambda process: os.killpg(process.pid, signal.SIGINT)),
        ("torchrun", 2, lambda process: process.kill()),
    ],
    ids=["Ctrl-C", "Ctrl-C on two processes", "its launcher is killed"],
)
def test_a_copy_stops_and_the_same_command_of_its_docstring_continues_it(
    copied, left_alone, program, num_processes, stop
):
    output_dir, start = copied
    process = start(program)
    wait_until(lambda: any(output_dir.glob("update_*")))
    workers = children_of(process.pid)
    assert len(workers) == (num_processes if num_processes > 1 else 0)
    stop(process)
    assert process.wait(HANGS_AFTER) != 0
    wait_until(lambda: not living_processes().keys() & set(workers))
    saved = len(list(output_dir.glob("update_*")))
    assert saved < 3

    again = start(program)
    output, _ = again.communicate(timeout=HANGS_AFTER)
    assert again.returncode == 0, output
    assert f"Processes: {num_processes}, device: " in output
    assert "Continuing from output/update_" in output
    assert output.count("a cycle has ended") == 3 - saved
    assert_same_end(output_dir, left_alone(num_processes))


@pytest.mark.parametrize("arguments", [["--help"], ["--output_dir=run"], ["run", "more"]])
def test_a_command_line_with_more_than_a_folder_trains_nothing(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(LOOP), *arguments])
    with pytest.raises(SystemExit, match="0" if "--help" in arguments else "2"):
        runpy.run_path(str(LOOP), run_name="__main__")
    assert not list(tmp_path.iterdir())
    assert ("torchrun --nproc_per_node 2 accelerate_loop.py output" in capsys.readouterr().out) == (
        "--help" in arguments
    )


def test_the_loop_is_one_file_of_at_most_120_lines():
    source = LOOP.read_text()
    assert len(source.splitlines()) <= 120
    siblings = {path.stem for path in EXAMPLES.glob("*.py")}
    assert not siblings & set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
