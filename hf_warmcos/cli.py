"""The command line: `plot` and `table` show a schedule before training, `run` runs a script with it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from hf_warmcos.arguments import eta_min_from_arguments, misfit, schedule_from_arguments
from hf_warmcos.checks import MOST_STEPS, real_number
from hf_warmcos.options import Parser, add_schedule_options, add_training_options, schedule_arguments
from hf_warmcos.past_run import PastRun
from hf_warmcos.schedule import CosineRestartSchedule

_DESCRIPTION = """\
Cosine annealing with warm restarts: the learning rate falls from a peak to a minimum along a cosine, then restarts
at a peak that has decayed, after one linear warmup. All lengths are in steps: optimizer updates.
"""

_EXAMPLES = """\
examples:
  Four cycles in 10,000 steps, after a warmup of 500, each peak 0.75 of the one before, in the terminal:
    hf-warmcos plot --num_training_steps 10000 --num_cycles 4 --decay 0.75 --num_warmup_steps 500

  A first cycle of 1,000 steps, each one twice as long as the one before, as a picture:
    hf-warmcos plot --T_0 1000 --T_mult 2 --lr 3e-4 --output schedule.png

  The cycles as CSV, and where a past run's rates part from them:
    hf-warmcos table --num_training_steps 10000 --num_cycles 4 --lr 3e-4 --format csv --from trainer_state.json

  A transformers script as it is, with this schedule:
    hf-warmcos run --num_cycles 4 --decay 0.75 run_clm.py --lr_scheduler_type cosine_with_restarts ...
"""

_COMMANDS = {
    "plot": "draw the learning rate of each step",
    "table": "list the cycles: the step at which each starts, its length in steps, its peak, the rate of its last step",
    "run": 'run a script or a module in which "cosine_with_restarts" means this schedule',
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`list[str]`, *optional*): The arguments. Defaults to the process's own.

    Returns:
        `int`: The exit code 0.

    Raises:
        SystemExit: With code 2, after one line on stderr, where the arguments are wrong; with code 0 after `--help`.

    Example:

    ```python
    >>> main(["table", "--T_0", "10", "--T_mult", "2", "--decay", "0.5", "--num_cycles", "3"])
    cycle  start  length      peak_lr       end_lr
        0      0      10            1    0.0244717
        1     10      20          0.5   0.00307791
        2     30      40         0.25  0.000385333
    0

    ```
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["run"]:
        from hf_warmcos.run import run

        return run(arguments[1:])
    parser, commands = parsers()
    options = parser.parse_args(arguments)
    try:
        past_run = None if options.past_run is None else PastRun.read(options.past_run)
        if options.command == "plot":
            _plot(options.output, _plan(options), past_run)
        else:
            _table(options.format, _plan(options), past_run)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, such as `head`, has seen enough; nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        commands[options.command].error(f"{error}: pip install 'hf_warmcos[plot]'")
    except (ValueError, TypeError, ArithmeticError, OSError) as error:
        commands[options.command].error(str(error))
    return 0


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each command."""
    parser = Parser(prog="hf-warmcos", description=_DESCRIPTION, epilog=_EXAMPLES)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {
        name: subparsers.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        for name, does in _COMMANDS.items()
    }
    for name in ("plot", "table"):
        schedule = commands[name].add_argument_group(
            "the schedule",
            "Give --num_training_steps, --T_0 or --cycles. With --T_0 alone the restarts never end, and five cycles\n"
            "are shown. Hyphens do as well as underscores.",
        )
        add_training_options(schedule)
        add_schedule_options(schedule)
        commands[name].add_argument(
            "--from",
            dest="past_run",
            metavar="FILE",
            help="a Trainer's trainer_state.json, or a metrics.jsonl with step and learning_rate on each line: lay the "
            "rates of this past run over the schedule and say where they part",
        )
    commands["plot"].add_argument(
        "--output",
        metavar="FILE",
        help="the picture to write, .png, .pdf or .svg; by default it is drawn in the terminal",
    )
    commands["table"].add_argument(
        "--format", choices=("text", "csv", "json"), default="text", help="how to write the table (default: text)"
    )
    return parser, commands


class _Plan(NamedTuple):
    """What the options say: the schedule, how many steps of it to show, and the rates that it is for."""

    schedule: CosineRestartSchedule
    num_steps: int
    base_lr: float
    eta_min: float


def _plan(options: Namespace) -> _Plan:
    """Read the plan; what is possible but hardly meant is a warning on stderr."""
    from hf_warmcos.plotting import default_num_steps  # here, as numpy is nothing that `run` should load

    base_lr = real_number("lr", options.lr, (">=", 0))
    arguments = schedule_arguments(options)
    min_lr, min_lr_rate = arguments.pop("min_lr", None), arguments.pop("min_lr_rate", None)
    eta_min_from_arguments(min_lr, min_lr_rate)
    eta_min = base_lr * min_lr_rate if min_lr_rate is not None else min_lr or 0.0
    schedule = schedule_from_arguments(**({"num_warmup_steps": 0} | arguments))
    warnings: list[str | None] = []
    if eta_min > base_lr:
        warnings.append(f"min_lr={eta_min} is above lr={base_lr}: each cycle rises to it")
    num_steps = default_num_steps(schedule)
    if options.num_training_steps is not None:
        num_steps = int(options.num_training_steps)
        warnings.append(misfit(schedule, num_steps, [base_lr], [eta_min]))
    for warning in filter(None, warnings):
        print(f"hf-warmcos {options.command}: warning: {warning}", file=sys.stderr)
    return _Plan(schedule, num_steps, base_lr, eta_min)


def _plot(output: str | None, plan: _Plan, past_run: PastRun | None) -> None:
    from hf_warmcos.plotting import save_picture, terminal_picture

    comparison = None if past_run is None else past_run.compare(plan.schedule, plan.base_lr, plan.eta_min)
    logged = None if comparison is None else (comparison.positions, comparison.logged)
    if past_run is not None:
        plan = plan._replace(num_steps=max(plan.num_steps, past_run.steps[-1]))
    if output is not None:
        save_picture(output, *plan, logged=logged)
    else:
        columns, lines = shutil.get_terminal_size()
        draw = partial(terminal_picture, *plan, logged=logged, width=columns, height=min(24, lines - 1))
        try:
            picture = draw()
            picture.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            picture = draw(ascii_only=True)
        print(picture)
    if comparison is not None:
        print(comparison.verdict)


class CycleRow(NamedTuple):
    """A line of the table.

    Attributes:
        cycle: The cycle's index.
        start: The step at which it starts.
        length: How many steps it has.
        peak_lr: The rate at its peak.
        end_lr: The rate of its last step.
    """

    cycle: int
    start: int
    length: int
    peak_lr: float
    end_lr: float


def cycle_table(
    schedule: CosineRestartSchedule, num_steps: int, base_lr: float = 1.0, eta_min: float = 0.0
) -> Iterator[CycleRow]:
    """Yield a row for each cycle that starts within the first `num_steps` steps.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_steps (`int`): How many steps to look at.
        base_lr, eta_min (`float`, *optional*): As in [`CosineRestartSchedule.lr_at`].

    Yields:
        [`CycleRow`]: The cycle, its start and length in steps, its peak and the rate of its last step.

    Example:

    ```python
    >>> [*cycle_table(CosineRestartSchedule(T_0=2, decay=0.5), 3)][1]
    CycleRow(cycle=1, start=2, length=2, peak_lr=0.5, end_lr=0.25)

    ```
    """
    for index in range(schedule.cycle_at(num_steps - 1).index + 1):
        cycle = schedule.cycle(index)
        if cycle.start < num_steps:  # otherwise a warmup takes all steps
            end_lr = schedule.lr_at(min(cycle.end - 1, MOST_STEPS), base_lr, eta_min)
            yield CycleRow(*cycle, schedule.peak_lr(index, base_lr, eta_min), end_lr)


def _table(form: str, plan: _Plan, past_run: PastRun | None) -> None:
    """Print each row as soon as it is known: there may be more of them than anybody waits for."""
    rows = cycle_table(*plan)
    if form == "json":
        print("[", end="")
        for row in rows:
            print("," * (row.cycle > 0), json.dumps(row._asdict()), sep="\n  ", end="")
        print("\n]")
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(CycleRow._fields)
        writer.writerows(rows)
    else:
        # No cell is wider than a rate of six digits or the last step.
        widths = [max(len(name), len(str(plan.num_steps))) for name in CycleRow._fields[:3]] + [11, 11]
        lines: Iterator[tuple[Any, ...]] = chain([CycleRow._fields], rows)
        for line in lines:
            cells = (f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in line)
            print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths)))
    if past_run is not None:
        # Beside a CSV or JSON that a program reads, the verdict is a message.
        comparison = past_run.compare(plan.schedule, plan.base_lr, plan.eta_min)
        print(comparison.verdict, file=sys.stdout if form == "text" else sys.stderr)
