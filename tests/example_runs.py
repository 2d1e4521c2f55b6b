"""Real runs of an example, quickly: a process that has imported the libraries forks the processes that run it.

Each run is a process of its own, or a launcher (torch's elastic agent, as under `torchrun` and `accelerate launch`)
with processes of its own, and a kill is a kill.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, set_seed
from work import HANGS_AFTER

EXAMPLES = Path(__file__).parent.parent / "examples"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def warm_context() -> Any:
    """Return the context whose processes begin with the example, the Trainer and all their libraries imported.

    There is one server for all processes that are forked, with one list of what it imports.
    """
    paths = [str(EXAMPLES), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        path for path in dict.fromkeys(os.pathsep.join(paths).split(os.pathsep)) if path
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "example_runs",
            "accelerate_finetune",
            "deepspeed",
            "torch.distributed.run",
            "hf_warmcos.trainer",
            "transformers.models.gpt2.modeling_gpt2",
        ]
    )
    return context


class Machine(NamedTuple):
    """One of several machines, each with a launcher of its own that finds the others at a port of the first.

    All processes of all machines wait for each other at the barrier before they begin.
    """

    rank: int
    num_machines: int
    port: int
    all_started: Barrier


def _run(
    entry: Callable[..., None], arguments: tuple[Any, ...], log: str, num_processes: int, machine: Machine
) -> None:
    os.setpgid(0, 0)  # a group of its own, so that one signal reaches the launcher and all its processes
    os.environ.update(_ENVIRONMENT)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if machine.all_started.parties == 1:
        entry(*arguments)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=machine.num_machines,
        max_nodes=machine.num_machines,
        nproc_per_node=num_processes,
        rdzv_backend="static",
        rdzv_configs={"rank": machine.rank},
        rdzv_endpoint=f"127.0.0.1:{machine.port}",
        run_id="tests",
        start_method="fork",
        max_restarts=0,
        monitor_interval=0.05,
    )
    elastic_launch(config, _run_in_group)(machine.all_started, entry, *arguments)


def _run_in_group(all_started: Barrier, entry: Callable[..., None], *arguments: Any) -> None:
    """Run an entry as one of several processes, without two faults that let some runs never end.

    A launcher looks up the address of each process that connects to it. One that it forks meanwhile inherits the lock
    of that look-up, and would wait for it when it connects itself.

    Many scripts leave their group of processes before their model goes, which then is the last to hold it. A model
    ends the group's threads with Python's lock held, for which one of these threads may be waiting.
    """
    import torch

    all_started.wait()
    held = []
    destroy = torch.distributed.destroy_process_group

    def destroy_but_hold(group: Any = None) -> None:
        held.append(group or torch.distributed.group.WORLD)
        destroy(group)

    torch.distributed.destroy_process_group = destroy_but_hold
    entry(*arguments)


def run_example(arguments: list[str]) -> None:
    """Run examples/accelerate_finetune.py with these arguments, in this process."""
    import accelerate_finetune

    accelerate_finetune.main(arguments)


class Run:
    """A function, or the example where `entry` is not given, running on `num_processes` processes.

    With more than one, or on one of several machines, `pid` is the launcher's.
    """

    def __init__(
        self,
        log: Path,
        *arguments: Any,
        num_processes: int = 1,
        entry: Callable[..., None] = run_example,
        machine: Machine | None = None,
    ) -> None:
        self.log, self.num_processes = log, num_processes
        log.unlink(missing_ok=True)
        self.machine = machine or Machine(0, 1, free_port(), warm_context().Barrier(num_processes))
        arguments = (entry, arguments, str(log), num_processes, self.machine)
        self.process = warm_context().Process(target=_run, args=arguments)
        self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self) -> int:
        """Wait until the run ends, and return its exit code."""
        self.process.join(HANGS_AFTER)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"The run did not end within {HANGS_AFTER} s:\n{self.output}")
        return self.process.exitcode

    def succeed(self) -> str:
        """Wait until the run ends, expect that it ended well, and return what it printed."""
        exit_code = self.wait()
        assert exit_code == 0, self.output
        return self.output

    def worker_pids(self) -> list[int]:
        """The processes that the launcher started."""
        return [pid for pid in processes_of_group(self.process.pid) if pid != self.process.pid]

    def kill(self) -> None:
        """Kill the run and all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def living_processes() -> dict[int, tuple[int, int]]:
    """The parent and the process group of each living process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if state not in "ZX":
            found[int(path.parent.name)] = int(parent), int(group)
    return found


def processes_of_group(group: int) -> list[int]:
    """The living processes of a process group."""
    return [pid for pid, (_, process_group) in living_processes().items() if process_group == group]


def children_of(parent: int) -> list[int]:
    """The living processes that a process started. Those of a launcher have process groups of their own."""
    return [pid for pid, (process_parent, _) in living_processes().items() if process_parent == parent]


def wait_until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition holds, and return what it returned."""
    end = time.monotonic() + HANGS_AFTER
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not come to hold within {HANGS_AFTER} s")
        time.sleep(0.005)
    return result


def make_tiny_model(folder: Path, n_embd: int = 16, dropout: float = 0.1) -> Path:
    """A GPT-2 on bytes that takes milliseconds per update, with dropout, so that random numbers matter."""
    set_seed(0)
    tokenizer = ByT5Tokenizer()
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=32,
            n_embd=n_embd,
            n_layer=1,
            n_head=2,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text(path: Path, num_lines: int = 60) -> Path:
    """A little text: with blocks of 16 tokens, 4 per line."""
    path.write_text(
        "".join(f"line {number:04d}: the quick brown fox jumps over the lazy dogs.\n" for number in range(num_lines))
    )
    return path


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """What each update logged."""
    entries = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if "loss" in entry]


def read_evaluations(output_dir: Path) -> list[dict[str, Any]]:
    return json.loads((output_dir / "all_results.json").read_text())
