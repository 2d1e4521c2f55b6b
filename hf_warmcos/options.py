"""The schedule's arguments as options of a command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import Any, NoReturn

from hf_warmcos.arguments import ARGUMENTS, with_hints
from hf_warmcos.checks import shown
from hf_warmcos.schedule import WARMUP_MODES


class Parser(argparse.ArgumentParser):
    """An argument parser whose options take hyphens as well as underscores, and whose errors are one line with a hint.

    Example:

    ```python
    >>> parser = Parser(prog="example")
    >>> add_schedule_options(parser)
    >>> schedule_arguments(parser.parse_args(["--T-0=10", "--decay", "0.5"]))
    {'decay': 0.5, 'T_0': 10}
    >>> parser.error("unrecognized arguments: --nun_cycles 3")
    Traceback (most recent call last):
    SystemExit: 2

    ```
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def format_help(self) -> str:
        """Return the help, with the groups of options before the options that are in none."""
        self._action_groups.sort(key=lambda group: group is self._optionals)
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, with `--num-cycles` as `--num_cycles`. What is unknown is an error of this parser."""
        given = sys.argv[1:] if args is None else args
        arguments = [re.sub("(?<=^--)[^=]+", lambda name: name[0].replace("-", "_"), each) for each in given]
        options, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit, with one line on stderr where what was printed cannot be written."""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            drop_output()
            if not isinstance(error, BrokenPipeError):
                status, message = 2, f"{self.prog}: error: {error}\n"
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on stderr, which names the option, command or choice that may be meant."""
        if wrong := re.search(r"(?:unrecognized arguments: -*|invalid choice: '?)(\w+)", message):
            known = [name for action in self._actions for name in (*action.option_strings, *(action.choices or ()))]
            message += with_hints([wrong[1]], [name.lstrip("-") for name in known]).removeprefix(repr(wrong[1]))
        words = (word if len(word) <= 200 else f"{word[:197]}..." for word in message.split())
        self.exit(2, f"{self.prog}: error: {' '.join(words)}\n")


def drop_output() -> None:
    """Let what could not be written to stdout go: Python would try it again at exit, and report an error there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _FormatError(argparse.ArgumentTypeError, ValueError):
    """An error whose message argparse prints."""


def number(text: str) -> int | float:
    """Read any number. The library checks whether it has to be whole, and its range."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def cycles(text: str) -> list[Any]:
    """Read listed cycles: `1000,2000,4000:0.5`, steps or steps and the fraction at which a cycle peaks; or JSON.

    Raises:
        ValueError: If the text has another format.

    Example:

    ```python
    >>> cycles("1000,2000,4000:0.5")
    [1000, 2000, [4000, 0.5]]
    >>> cycles('[1000, {"steps": 4000, "stable_ratio": 0.9}]')
    [1000, {'steps': 4000, 'stable_ratio': 0.9}]

    ```
    """
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        listed = [[number(part) for part in cycle.split(":")] for cycle in text.split(",")]
    except (ValueError, RecursionError):
        expected = "STEPS or STEPS:FRACTION, as 1000,2000,4000:0.5, or a JSON list"
        raise _FormatError(f"expected {expected}, but got {shown(text)}") from None
    return [cycle[0] if len(cycle) == 1 else cycle for cycle in listed]


def numbers(text: str) -> int | float | list[int | float]:
    """Read one number, or several with commas between."""
    try:
        several = [number(part) for part in text.split(",")]
    except ValueError:
        raise _FormatError(f"expected a number, or several with commas between, but got {shown(text)}") from None
    return several[0] if len(several) == 1 else several


def add_training_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that a training script has itself: `--num_training_steps`, `--num_warmup_steps` and `--lr`.

    Args:
        parser (`argparse.ArgumentParser` or a group of its arguments): Where to add them.
    """
    add = parser.add_argument
    add("--num_training_steps", "--max_steps", type=number, metavar="N", help="length of the training")
    warmup = "length of the warmup; a number below 1 is a fraction of the training (default: 0)"
    add("--num_warmup_steps", "--warmup_steps", "--warmup_ratio", type=number, default=0, metavar="N", help=warmup)
    add("--lr", "--learning_rate", type=number, default=1.0, metavar="LR", help="initial learning rate (default: 1)")


def add_schedule_options(parser: argparse._ActionsContainer) -> None:
    """Add the schedule's options: the arguments of the factory that say what the schedule is like.

    An option that is not given is None: its default is the factory's.

    Args:
        parser (`argparse.ArgumentParser` or a group of its arguments): Where to add them.
    """
    add = parser.add_argument
    add("--num_cycles", type=number, metavar="N", help="number of cycles (default: 1; with --T_0: without end)")
    add("--T_mult", type=number, metavar="X", help="factor on the cycle's length at each restart (default: 1)")
    add("--decay", type=number, metavar="X", help="factor on the peak at each restart (default: 1)")
    add("--min_lr", type=number, metavar="LR", help="learning rate at the end of each cycle (default: 0)")
    add("--min_lr_rate", type=number, metavar="X", help="the same as a fraction of the initial learning rate")
    add("--T_0", type=number, metavar="N", help="length of the first cycle; default: the cycles fill the training")
    listed = "length of each cycle, or length:fraction of the initial learning rate at its peak, as 1000,2000,4000:0.5"
    listed += ", or JSON; not with --num_cycles, --T_0, --T_mult or --decay"
    add("--cycles", type=cycles, metavar="LIST", help=listed)
    ended = "continue a run: the steps at which it ended before; one more cycle goes from there to the new end"
    add("--extend_from", type=numbers, metavar="N", help=ended)
    peak = "fraction of the initial learning rate at which that cycle peaks (default: 1)"
    add("--extend_peak", type=numbers, metavar="X", help=peak)
    add("--stable_ratio", type=number, metavar="X", help="fraction of each cycle to stay at the peak (default: 0)")
    modes = f"where the warmup lies: {', '.join(WARMUP_MODES)} (default: prefix)"
    add("--warmup_mode", metavar="MODE", help=modes)
    start = "fraction of the initial learning rate at which the warmup starts (default: 0)"
    add("--warmup_lr_rate", type=number, metavar="X", help=start)


def schedule_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as the factory's arguments.

    Args:
        options (`argparse.Namespace`): What a parser with [`add_schedule_options`] returned; with those of
            [`add_training_options`] or without.

    Returns:
        `dict`: Keyword arguments of [`get_cosine_restarts_with_decay_and_warmup_schedule`].
    """
    return {name: value for name, value in vars(options).items() if name in ARGUMENTS and value is not None}
