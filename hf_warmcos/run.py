"""Run a command as it is, with this schedule in each Python process of it.

There, "cosine_with_restarts" means this schedule wherever transformers or
diffusers looks a scheduler up by its name: give the command this name.
The command supplies the learning rate, the number of steps and the warmup.
The options given here replace the values that the command passes.
SCRIPT.py and -m MODULE run with this Python.

examples:
  hf-warmcos run --num_cycles 3 --T_mult 2 --stable_ratio 0.8 \\
    axolotl train config.yml
  hf-warmcos run --num_cycles 3 --T_mult 2 --stable_ratio 0.8 train.py \\
    --lr_scheduler_type cosine_with_restarts ...
  hf-warmcos run --num_cycles 3 --T_mult 2 --stable_ratio 0.8 \\
    accelerate launch train.py --lr_scheduler cosine_with_restarts ...

  Checkpoints at cycle ends, from each Trainer of the command:
    hf-warmcos run --num_cycles 3 --T_mult 2 --stable_ratio 0.8 \\
      --at_cycle_ends save axolotl train config.yml

  On several machines, inside the launcher:
    accelerate launch ... -m hf_warmcos run --num_cycles 3 --T_mult 2 \\
      --stable_ratio 0.8 train.py --lr_scheduler cosine_with_restarts ...
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path

from hf_warmcos.arguments import check_arguments
from hf_warmcos.checks import shown
from hf_warmcos.options import Parser, add_schedule_options, schedule_arguments

# How launchers tell a process which one it is: torchrun and Accelerate, several kinds of MPI, Slurm.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")


AT_CYCLE_ENDS = ("evaluate", "save")


def at_cycle_ends(text: str) -> str:
    """Read what to do at cycle ends: `evaluate`, `save` or both with a comma between."""
    if not text or not {*text.split(",")} <= {*AT_CYCLE_ENDS}:
        raise ArgumentTypeError(f"expected evaluate, save or evaluate,save, but got {shown(text)}")
    return text


def run_parser() -> Parser:
    """The parser of what stands between `run` and the command."""
    usage = "hf-warmcos run [options] {COMMAND, SCRIPT.py, -m MODULE} [ARGS ...]"
    parser = Parser(prog="hf-warmcos run", usage=usage, description=__doc__)
    options = parser.add_argument_group("schedule options")
    add_schedule_options(options)
    what = "evaluate, save or evaluate,save: what each Trainer of the command does in addition where a cycle ends"
    options.add_argument("--at_cycle_ends", type=at_cycle_ends, metavar="WHAT", help=what)
    return parser


def run(arguments: list[str]) -> int:
    """Become the command, with [`register`] in each Python process that it starts.

    Args:
        arguments (`list[str]`): The schedule's options, then the command. This Python runs `SCRIPT.py` and `-m MODULE`.

    Returns:
        `int`: On Windows, the command's exit code. Elsewhere this process becomes the command and does not return.

    Raises:
        SystemExit: After one line on stderr: with code 2 if an option is wrong, with 127 if the command does not exist
            or cannot be executed. Nothing has started then.
    """
    parser = run_parser()
    own, command = _split(arguments)
    options = parser.parse_args(own)
    schedule = schedule_arguments(options)
    try:
        check_arguments(**schedule)
    except (ValueError, TypeError, ArithmeticError) as error:
        parser.error(str(error))
    if not any(command[:1]):
        parser.error("Expected COMMAND, SCRIPT.py or -m MODULE, but got none")
    if command[0] == "-m" or command[0].endswith(".py"):
        command = [sys.executable, *_python_flags(), *command]
    # Through PYTHONPATH, and not a file in site-packages: it reaches what runs below this command, and nothing else.
    python_path = [str(Path(__file__).with_name("startup")), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(python_path), "HF_WARMCOS_REGISTER": json.dumps(schedule)}
    os.environ.pop("HF_WARMCOS_AT_CYCLE_ENDS", None)  # of a prefix around this one
    if options.at_cycle_ends is not None:
        os.environ["HF_WARMCOS_AT_CYCLE_ENDS"] = options.at_cycle_ends
    if "HF_WARMCOS_UNUSED" not in os.environ and all(os.environ.get(name, "0") == "0" for name in _RANKS):
        # The command's first process makes this folder, the first use of the schedule in any process removes it.
        os.environ["HF_WARMCOS_UNUSED"] = tempfile.mktemp(prefix=f"hf-warmcos-{os.getpid()}-")
    try:
        if os.name == "nt":  # where a process cannot become another one
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which gets it as well
            return subprocess.call(command)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and so would what it becomes
        os.execvp(command[0], command)
    except OSError as error:
        parser.exit(127, f"{parser.prog}: error: {command[0]}: {error.strerror}\n")


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `run`, each with a value of its own but for `--help`, and what follows them."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-") and arguments[end] not in ("-m", "--"):
        end += 1 if "=" in arguments[end] or arguments[end] in ("-h", "--help") else 2
    return arguments[:end], arguments[end + (arguments[end : end + 1] == ["--"]) :]


def _python_flags() -> list[str]:
    """The flags that this Python was called with: launchers give their processes a `-u`."""
    flags = sys.orig_argv[1 : -len(sys.argv)]
    return flags[:-1] if flags[-1:] == ["-m"] else flags
