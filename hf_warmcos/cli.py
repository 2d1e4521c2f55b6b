"""Show a learning-rate schedule before training, or run a command with it.

The schedule: cosine annealing with warm restarts, after one linear warmup.
All lengths are in steps: optimizer updates.
Option names take hyphens in place of underscores, too.

examples:
  Three cycles in 10,000 steps, each twice as long as the one before:
    hf-warmcos plot --num_training_steps 10000 --num_warmup_steps 500 \\
      --num_cycles 3 --T_mult 2 --stable_ratio 0.8

  The same with a learning rate and a minimum, as a picture:
    hf-warmcos plot --max_steps 10000 --warmup_steps 0.05 --num_cycles 3 \\
      --T_mult 2 --stable_ratio 0.8 --learning_rate 3e-4 --min_lr 3e-5 \\
      --output schedule.png

  The cycles as CSV; the exit code is 1 if a past run had other learning rates:
    hf-warmcos table --num_training_steps 10000 --num_cycles 3 --T_mult 2 \\
      --stable_ratio 0.8 --lr 3e-4 --format csv --from output/checkpoint-500

  Your training script as it is, with this schedule:
    hf-warmcos run --num_cycles 3 --T_mult 2 --stable_ratio 0.8 train.py \\
      --lr_scheduler_type cosine_with_restarts ...
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_warmcos import __version__
from hf_warmcos.options import (
    Parser,
    add_schedule_options,
    add_training_options,
    drop_output,
    number,
    schedule_arguments,
)
from hf_warmcos.overview import YSCALES, CycleRow, Plan, cycle_table, plan

if TYPE_CHECKING:
    from hf_warmcos.past_run import Comparison, PastRun

_LENGTHS = {"T_0", "cycles"}
_COMMANDS = {
    "plot": "draw the learning rate at each step, in the terminal or into a file",
    "table": "list the cycles: start, length, peak and last learning rate",
    "run": "run a command with this schedule as its cosine_with_restarts",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`list[str]`, *optional*): The arguments. Defaults to those of the process.

    Returns:
        `int`: The exit code: 0, 1 if a past run's learning rates are not the schedule's, or 130 after Ctrl-C.

    Raises:
        SystemExit: With code 2, after one line on stderr, if an argument is wrong; with code 0 after `--help`.

    Example:

    ```python
    >>> main(["table", "--T_0", "10", "--T_mult", "2", "--decay", "0.5", "--num_cycles", "3"])
         cycle       start      length     peak_lr      end_lr
             0           0          10           1   0.0244717
             1          10          20         0.5  0.00307791
             2          30          40        0.25  0.000385333
    0

    ```
    """
    arguments = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it, as with `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if arguments[:1] == ["run"]:
        from hf_warmcos.run import run

        return run(arguments[1:])
    parser, commands = parsers()
    options = parser.parse_args(arguments or ["--help"])
    comparisons: list[Comparison] = []
    try:
        if options.past_run is None and options.logging_steps is not None:
            raise ValueError("give --from with --logging_steps")
        past_runs: list[PastRun] = []
        if options.past_run is not None:
            from hf_warmcos.past_run import PastRun

            past_runs = PastRun.read(options.past_run, options.logging_steps)
        planned = _plan(options, past_runs)
        comparisons = [run.compare(planned.schedule, planned.base_lr) for run in past_runs]
        if options.command == "plot":
            _plot(options, planned, comparisons)
        else:
            _table(options.format, planned)
        for comparison in comparisons:
            # Beside a CSV or JSON that a program reads, the verdict is a message.
            is_for_programs = getattr(options, "format", "text") != "text"
            print(comparison.verdict, file=sys.stderr if is_for_programs else sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()  # whoever reads it, such as `head`, has seen enough
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        commands[options.command].error(f"{error}: pip install 'hf_warmcos[plot]'")
    except (ValueError, TypeError, ArithmeticError, OSError) as error:
        commands[options.command].error(str(error))
    return 0 if all(comparison.factor == 1 for comparison in comparisons) else 1


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each command."""
    parser = Parser(prog="hf-warmcos", description=__doc__)
    parser.add_argument("--version", action="version", version=f"hf-warmcos {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    commands = {
        name: subparsers.add_parser(name, help=does, usage="%(prog)s [options]", description=f"{does.capitalize()}.")
        for name, does in _COMMANDS.items()
    }
    past_run = (
        "compare with the learning rates that a past run logged, and exit with code 1 if they differ: an output "
        "folder, a checkpoint, a trainer_state.json, a file or folder of TensorBoard, the saved output of a Trainer, "
        "or a log as CSV, JSON or JSON lines, as experiment trackers write or export it"
    )
    logging_steps = "steps between two entries, for a log that does not have the step of each"
    for name in ("plot", "table"):
        lengths = "Give one of --num_training_steps, --T_0, --cycles. Lengths are in steps."
        schedule = commands[name].add_argument_group("schedule options", lengths)
        add_training_options(schedule)
        add_schedule_options(schedule)
        commands[name].add_argument("--from", dest="past_run", metavar="PATH", help=past_run)
        commands[name].add_argument("--logging_steps", type=number, metavar="N", help=logging_steps)
    add = commands["plot"].add_argument
    add("--output", metavar="FILE", help="the picture to write, .png, .pdf or .svg (default: draw in the terminal)")
    add("--yscale", choices=YSCALES, default="linear", help="scale of the learning rate (default: linear)")
    add, formats = commands["table"].add_argument, ("text", "csv", "json")
    add("--format", choices=formats, default="text", help="format of the table (default: text)")
    return parser, commands


def _plan(options: Namespace, past_runs: list[PastRun]) -> Plan:
    """The schedule to show; for a past run, in the length that it was planned for."""
    given = schedule_arguments(options)
    max_steps = next((run.max_steps for run in past_runs), None)
    if given.setdefault("num_training_steps", max_steps) is None and not given.keys() & _LENGTHS:
        raise ValueError("give one of --num_training_steps, --T_0, --cycles")
    planned = plan(given, options.lr)
    for doubt in planned.doubts:
        print(f"hf-warmcos {options.command}: warning: {doubt}", file=sys.stderr)
    return planned


def _plot(options: Namespace, planned: Plan, comparisons: list[Comparison]) -> None:
    schedule, num_steps, base_lr, _ = planned
    positions = [position for comparison in comparisons for position in comparison.positions]
    logged = (positions, [rate for comparison in comparisons for rate in comparison.logged]) if positions else None
    num_steps = max([num_steps, *(position + 1 for position in positions)])
    if options.output is not None:
        from hf_warmcos.plotting import save_picture

        save_picture(options.output, schedule, num_steps, base_lr, yscale=options.yscale, logged=logged)
        print(f"wrote {options.output}")
        return
    from hf_warmcos.terminal import terminal_picture

    width, height = shutil.get_terminal_size()
    how = {"yscale": options.yscale, "logged": logged, "width": width, "height": min(24, height - 1)}
    picture, encoding = terminal_picture(schedule, num_steps, base_lr, **how), sys.stdout.encoding or "utf-8"
    print(picture.encode(encoding, "replace").decode(encoding))  # with ? in place of what cannot be printed


def _table(form: str, planned: Plan) -> None:
    """Print each row as soon as it is known: there may be more of them than anybody waits for."""
    rows = cycle_table(planned.schedule, planned.num_steps, planned.base_lr)
    lines: Iterator[tuple[Any, ...]] = chain([CycleRow._fields], rows)
    if form == "json":
        for row in rows:
            print("," if row.cycle else "[", json.dumps(row._asdict()), sep="\n  ", end="")
        print("\n]")
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
    else:
        width = max(10, len(str(planned.num_steps)))
        for line in lines:
            print(*(f"{cell:{width}.6g}" if isinstance(cell, float) else f"{cell:>{width}}" for cell in line), sep="  ")
