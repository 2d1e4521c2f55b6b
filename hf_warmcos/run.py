"""The command `run`: a script or a module as Python runs it, with the schedule in the tables of its tools."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from hf_warmcos.arguments import check_arguments
from hf_warmcos.options import Parser, add_schedule_options, schedule_arguments
from hf_warmcos.registry import NAME, register

_DESCRIPTION = f"""\
Run a script or a module as Python does, while "{NAME}" means this schedule in the tables of
transformers and diffusers: where the script has an option for the name of a schedule, give it this one.
"""

_EXAMPLES = f"""\
examples:
  hf-warmcos run --decay 0.75 run_clm.py --lr_scheduler_type {NAME} ...
  accelerate launch -m hf_warmcos run --num_cycles 4 --decay 0.75 train_dreambooth.py --lr_scheduler {NAME} ...
  torchrun --nproc_per_node 2 -m hf_warmcos run --decay 0.75 -m trl.scripts.sft --lr_scheduler_type {NAME} ...
"""

# How launchers tell a process which one it is: torchrun and Accelerate, several kinds of MPI, Slurm.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")


def run_parser() -> Parser:
    """The parser of what stands between `run` and the script."""
    parser = Parser(
        prog="hf-warmcos run",
        usage="hf-warmcos run [schedule options] SCRIPT [ARGS ...]\n"
        "       hf-warmcos run [schedule options] -m MODULE [ARGS ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    schedule = parser.add_argument_group(
        "the schedule",
        "What is given here holds, whatever the script passes. The learning rate and the steps of the training and\n"
        "of the warmup are the script's. Hyphens do as well as underscores.",
    )
    add_schedule_options(schedule)
    return parser


def run(arguments: list[str]) -> int:
    """Run a script or a module as `python SCRIPT ARGS…` and `python -m MODULE ARGS…` do, with [`register`].

    Args:
        arguments (`list[str]`): The schedule's options, then SCRIPT or `-m MODULE`; all that follows is the script's.

    Returns:
        `int`: The exit code 0. What the script raises, `SystemExit` and `KeyboardInterrupt` too, is raised.

    Raises:
        SystemExit: With code 2, after one line on stderr, if an option is wrong or there is no such script or module.
            Nothing of the script has run then.
    """
    parser = run_parser()
    own, command = _split(arguments)
    options = parser.parse_args(own)
    is_module = command[:1] == ["-m"]
    target, script_arguments = (command[is_module:] or [""])[0], command[is_module + 1 :]
    sys.argv = [target, *script_arguments]
    if not getattr(sys.flags, "safe_path", False):  # where it is set, Python puts no folder of its own there
        sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.realpath(target))
    schedule = schedule_arguments(options)
    try:
        check_arguments(**schedule)
        _check_module(target) if is_module else _check_script(target)
    except (ValueError, TypeError, ArithmeticError) as error:
        parser.error(str(error))
    with register(**schedule) as registration:
        try:
            if is_module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            else:
                _run_script(target)
        finally:
            interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)
            if not registration.used and not interrupted and _is_first_process():
                print(
                    f'{parser.prog}: no schedule was asked for by the name "{NAME}". Either {target} has no option '
                    "for it or was given another name, or it starts processes of its own: then its launcher goes "
                    "outside, as in accelerate launch -m hf_warmcos run -m trl.scripts.sft",
                    file=sys.stderr,
                )
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `run`, each with a value of its own but for `--help`, and what follows them."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-") and arguments[end] != "-m":
        end += 1 if "=" in arguments[end] or arguments[end] in ("-h", "--help") else 2
    return arguments[:end], arguments[end:]


def _check_script(path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"Expected SCRIPT to be a file, or -m MODULE, but got {path or 'none'}")


def _check_module(name: str) -> None:
    expected = f"Expected -m to be followed by a module that can be run, but got {name or 'none'}"
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:
        raise ValueError(f"{expected}: {error}") from error
    if spec is None:
        raise ValueError(expected)


def _run_script(path: str) -> None:
    """Run a script in a `__main__` like the one that Python makes for it.

    `runpy.run_path` would give it a `__file__` that is not absolute, or else another `sys.argv[0]`, and take its
    `__main__` away before its threads and exit functions have ended.
    """
    loader = SourceFileLoader("__main__", os.path.abspath(path))
    main = ModuleType("__main__")
    main.__file__, main.__loader__ = loader.path, loader
    sys.modules["__main__"] = main
    exec(loader.source_to_code(loader.get_data(loader.path), loader.path), main.__dict__)


def _is_first_process() -> bool:
    ranks = [os.environ[name] for name in _RANKS if name in os.environ]
    return ranks[:1] in ([], ["0"])
