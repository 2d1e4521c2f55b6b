"""The schedule's arguments as options of a command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from hf_warmcos.arguments import ARGUMENTS
from hf_warmcos.schedule import WARMUP_MODES


class Parser(argparse.ArgumentParser):
    """An argument parser whose options take hyphens as well as underscores, and whose errors are one line.

    Example:

    ```python
    >>> parser = Parser(prog="example")
    >>> add_schedule_options(parser)
    >>> schedule_arguments(parser.parse_args(["--T-0=10", "--decay", "0.5"]))
    {'T_0': 10, 'decay': 0.5}

    ```
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse the arguments, with `--num-cycles` as `--num_cycles`. What is unknown is an error, of a subparser too.

        Example:

        ```python
        >>> parser = Parser(prog="example")
        >>> add_schedule_options(parser)
        >>> parser.error = print
        >>> _ = parser.parse_known_args(["--nun-cycles", "3"])
        unrecognized arguments: --nun_cycles 3 (did you mean --num_cycles?)

        ```
        """
        arguments = [_with_underscores(arg) for arg in (sys.argv[1:] if args is None else args)]
        options, unknown = super().parse_known_args(arguments, namespace)
        if unknown:
            known = {option.lower(): option for action in self._actions for option in action.option_strings}
            nearest = get_close_matches(unknown[0].partition("=")[0].lower(), known, n=1)
            hint = f" (did you mean {known[nearest[0]]}?)" if nearest else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 after one line on stderr, without the usage before it."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _with_underscores(argument: str) -> str:
    """`--num-cycles=4` as `--num_cycles=4`; anything but the name of an option as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def number(text: str) -> int | float:
    """Read any number: whether it has to be whole, and in which range, is for the library to say."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def cycles(text: str) -> list[int | float | list[int | float]]:
    """Read listed cycles: steps, or steps and share of the base rate, as `1000,2000,4000:0.5`.

    Example:

    ```python
    >>> cycles("1000,2000,4000:0.5")
    [1000, 2000, [4000, 0.5]]

    ```
    """
    listed = [[number(part) for part in cycle.split(":")] for cycle in text.split(",")]
    return [cycle[0] if len(cycle) == 1 else cycle for cycle in listed]


def add_training_options(parser: argparse._ActionsContainer) -> None:
    """Add what a training script knows of its own: `--num_training_steps`, `--num_warmup_steps` and `--lr`.

    Args:
        parser (`argparse.ArgumentParser` or a group of its arguments): Where to add them.
    """
    add = parser.add_argument
    add("--num_training_steps", type=number, metavar="N", help="steps of the training; the cycles are fitted into it")
    add("--num_warmup_steps", type=number, default=0, metavar="N", help="steps of the warmup (default: 0)")
    add("--lr", type=number, default=1.0, metavar="LR", help="the optimizer's learning rate (default: 1)")


def add_schedule_options(parser: argparse._ActionsContainer) -> None:
    """Add the schedule's options: the arguments of the factory that say what the schedule is like.

    An option that is not given is None: its default is the factory's.

    Args:
        parser (`argparse.ArgumentParser` or a group of its arguments): Where to add them.
    """
    add = parser.add_argument
    add("--num_cycles", type=number, metavar="N", help="number of cycles (default: 1, or with --T_0 endless)")
    add("--T_0", type=number, metavar="STEPS", help="steps of the first cycle, in place of fitted cycles")
    add("--T_mult", type=number, metavar="X", help="factor on the length at each restart (default: 1)")
    add("--decay", type=number, metavar="X", help="factor on the peak at each restart (default: 1)")
    add(
        "--cycles",
        type=cycles,
        metavar="LIST",
        help="each cycle's steps, or steps and share of the rate at its peak, as 1000,2000,4000:0.5, "
        "in place of --num_cycles, --T_0, --T_mult and --decay",
    )
    modes = ", ".join(WARMUP_MODES)
    add("--warmup_mode", metavar="MODE", help=f"where the warmup lies: {modes} (default: prefix)")
    add("--warmup_lr_rate", type=number, metavar="X", help="share of the rate at which the warmup starts (default: 0)")
    add("--stable_ratio", type=number, metavar="X", help="share of each cycle spent at its peak (default: 0)")
    add("--min_lr", type=number, metavar="LR", help="learning rate at the end of each cycle (default: 0)")
    add("--min_lr_rate", type=number, metavar="X", help="the same as a share of the rate, in place of --min_lr")


def schedule_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as the factory's arguments.

    Args:
        options (`argparse.Namespace`): What a parser with [`add_schedule_options`] returned; with those of
            [`add_training_options`] or without.

    Returns:
        `dict`: Keyword arguments of [`get_cosine_restarts_with_decay_and_warmup_schedule`].
    """
    return {name: value for name, value in vars(options).items() if name in ARGUMENTS and value is not None}
