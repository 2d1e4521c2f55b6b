"""The command line: `plot` and `table` show a schedule before training, `run` runs a script with it."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from hf_warmcos.checks import real_number
from hf_warmcos.run import run
from hf_warmcos.schedule import WARMUP_MODES, CosineRestartSchedule

if TYPE_CHECKING:
    from hf_warmcos.scheduler import CosineRestartLR

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
    hf-warmcos run run_clm.py --lr_scheduler_type cosine_with_restarts \\
        --lr_scheduler_kwargs '{"num_cycles": 4, "decay": 0.75}' ...
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage before them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


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
    cycle  start  length  peak_lr       end_lr
        0      0      10        1    0.0244717
        1     10      20      0.5   0.00307791
        2     30      40     0.25  0.000385333
    0

    ```
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["run"]:
        return run(arguments[1:])
    parser, commands = _parsers()
    options = parser.parse_args([_with_underscores(argument) for argument in arguments])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            scheduler = _scheduler(options)
            past_run = PastRun.read(options.past_run) if options.past_run else None
        for warning in caught:
            print(f"hf-warmcos {options.command}: warning: {warning.message}", file=sys.stderr)
        if options.command == "plot":
            _plot(options, scheduler, past_run)
        else:
            _table(options, scheduler, past_run)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, such as `head`, has seen enough; nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        commands[options.command].error(f"{error}: pip install 'hf_warmcos[plot]'")
    except (ValueError, TypeError, ArithmeticError, OSError) as error:
        commands[options.command].error(str(error))
    return 0


def _with_underscores(argument: str) -> str:
    """`--num-cycles=4` as `--num_cycles=4`; anything but the name of an option as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _number(text: str) -> int | float:
    """Any number: whether it has to be whole, and in which range, is for the library to say."""
    try:
        return int(text)
    except ValueError:
        return float(text)


_number.__name__ = "number"  # argparse's word for the type in its errors


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="hf-warmcos", description=_DESCRIPTION, epilog=_EXAMPLES)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {
        "plot": subparsers.add_parser(
            "plot", help="draw the learning rate of each step", description="Draw the learning rate of each step."
        ),
        "table": subparsers.add_parser(
            "table",
            help="list the cycles: start, length, peak, rate at the end",
            description="List the cycles: the step at which each starts, its length in steps, its peak, and the rate "
            "of its last step.",
        ),
        "run": subparsers.add_parser(
            "run",
            help='run a training script in which "cosine_with_restarts" means this schedule',
        ),
    }
    for name in ("plot", "table"):
        _add_schedule_options(commands[name])
    commands["plot"].add_argument(
        "--output", metavar="FILE", help="the picture to write, .png or .svg; by default it is drawn in the terminal"
    )
    commands["table"].add_argument(
        "--format", choices=("text", "csv", "json"), default="text", help="how to write the table (default: text)"
    )
    return parser, commands


def _add_schedule_options(parser: _Parser) -> None:
    schedule = parser.add_argument_group(
        "the schedule",
        "Give --num_training_steps, or --T_0, or both. With --T_0 alone the restarts never end, and five cycles\n"
        "are shown. Hyphens do as well as underscores.",
    )
    add = schedule.add_argument
    add("--num_training_steps", type=_number, metavar="N", help="steps of the training; the cycles are fitted into it")
    add("--num_cycles", type=_number, metavar="N", help="number of cycles (default: 1, or with --T_0 endless)")
    add("--T_0", type=_number, metavar="STEPS", help="steps of the first cycle, in place of fitted cycles")
    add("--T_mult", type=_number, default=1, metavar="X", help="factor on the length at each restart (default: 1)")
    add("--decay", type=_number, default=1.0, metavar="X", help="factor on the peak at each restart (default: 1)")
    add("--num_warmup_steps", type=_number, default=0, metavar="N", help="steps of the warmup (default: 0)")
    add(
        "--warmup_mode",
        default="prefix",
        metavar="MODE",
        help=f"where the warmup lies: {', '.join(WARMUP_MODES)} (default: prefix)",
    )
    add(
        "--warmup_lr_rate",
        type=_number,
        default=0.0,
        metavar="X",
        help="share of the rate at which the warmup starts (default: 0)",
    )
    add("--lr", type=_number, default=1.0, metavar="LR", help="the optimizer's learning rate (default: 1)")
    add("--min_lr", type=_number, metavar="LR", help="learning rate at the end of each cycle (default: 0)")
    add("--min_lr_rate", type=_number, metavar="X", help="the same as a share of --lr, in place of --min_lr")
    parser.add_argument(
        "--from",
        dest="past_run",
        metavar="FILE",
        help="a Trainer's trainer_state.json, or a metrics.jsonl with step and learning_rate on each line: lay the "
        "rates of this past run over the schedule and say where they part",
    )


def _scheduler(options: argparse.Namespace) -> CosineRestartLR:
    """The scheduler that training would have, so that what is wrong is said in the library's own words."""
    import torch

    from hf_warmcos.factory import get_cosine_restarts_with_decay_and_warmup_schedule

    lr = real_number("lr", options.lr, (">=", 0))
    return get_cosine_restarts_with_decay_and_warmup_schedule(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr),
        num_warmup_steps=options.num_warmup_steps,
        num_training_steps=options.num_training_steps,
        num_cycles=options.num_cycles,
        decay=options.decay,
        T_0=options.T_0,
        T_mult=options.T_mult,
        min_lr=options.min_lr,
        min_lr_rate=options.min_lr_rate,
        warmup_mode=options.warmup_mode,
        warmup_lr_rate=options.warmup_lr_rate,
    )


def _num_steps(options: argparse.Namespace, schedule: CosineRestartSchedule) -> int:
    from hf_warmcos.plotting import default_num_steps

    return default_num_steps(schedule) if options.num_training_steps is None else int(options.num_training_steps)


class PastRun(NamedTuple):
    """The learning rates that a past run logged.

    Attributes:
        path: The file they come from.
        updates: The optimizer updates at which they were logged, counted from 1, in ascending order.
        rates: The rate logged at each.
        is_trainer_state: Whether a Trainer logged them.
    """

    path: str
    updates: list[int]
    rates: list[float]
    is_trainer_state: bool

    @classmethod
    def read(cls, path: str) -> PastRun:
        """Read a Trainer's `trainer_state.json`, or JSON lines with `step` and `learning_rate`.

        Raises:
            OSError, ValueError: If it cannot be read, is neither, or logs no learning rate.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            state = json.loads(text)
        except ValueError:
            state = None
        is_trainer_state = isinstance(state, dict) and "log_history" in state
        if is_trainer_state:
            entries = state["log_history"]
        else:
            entries = []
            for number, line in enumerate(text.splitlines(), start=1):
                try:
                    entries.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"Expected {path} to hold JSON, but line {number} is not: {error}") from None
        logged = {
            entry["step"]: float(entry["learning_rate"])
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry.get("learning_rate") is not None
        }
        if not logged or min(logged) < 1:
            raise ValueError(
                f"Expected {path} to hold entries with a step >= 1 and a learning_rate, but got {len(logged)} of them"
                + (f", the first with step={min(logged)}" if logged else "")
            )
        updates = sorted(logged)
        return cls(path, updates, [logged[update] for update in updates], is_trainer_state)

    def positions(self, planned: CosineRestartLR) -> list[int]:
        """The step of the schedule that each logged rate belongs to.

        Update n uses the rate of step n - 1, and today's Trainer logs it. Up to transformers 4.48 it logged after the
        scheduler's step, so the rate of step n. A trainer_state.json does not say which version wrote it, so the
        schedule decides: the reading that agrees with it for longer.
        """
        readings = [[update - 1 for update in self.updates]]
        if self.is_trainer_state:
            readings.append(self.updates)
        return max(readings, key=lambda positions: self._agreeing(planned, positions))

    def _agreeing(self, planned: CosineRestartLR, positions: list[int]) -> int:
        """How many rates agree with the plan before the first that does not."""
        base_lr, eta_min = planned.base_lrs[0], planned.eta_mins[0]
        for index, (position, rate) in enumerate(zip(positions, self.rates)):
            # Logs may hold rates in single precision, or printed with six digits.
            if not isclose(
                rate, planned.schedule.lr_at(position, base_lr, eta_min), rel_tol=1e-5, abs_tol=1e-9 * base_lr
            ):
                return index
        return len(positions)

    def verdict(self, planned: CosineRestartLR) -> str:
        """Say whether the logged rates are the schedule's, or the first update at which they part."""
        positions = self.positions(planned)
        agreeing = self._agreeing(planned, positions)
        if agreeing == len(positions):
            span = f"steps {self.updates[0]} to {self.updates[-1]}"
            return f"{self.path}: all {agreeing} logged rates ({span}) are the schedule's"
        expected = planned.schedule.lr_at(positions[agreeing], planned.base_lrs[0], planned.eta_mins[0])
        return (
            f"{self.path}: parts from the schedule at logged step {self.updates[agreeing]} "
            f"(step {positions[agreeing]} of the schedule): logged {self.rates[agreeing]}, planned {expected}"
        )


def _plot(
    options: argparse.Namespace,
    scheduler: CosineRestartLR,
    past_run: PastRun | None,
) -> None:
    num_steps = _num_steps(options, scheduler.schedule)
    if past_run is not None:
        num_steps = max(num_steps, past_run.updates[-1])
    if options.output is None:
        print(_terminal_plot(scheduler, num_steps, past_run))
    else:
        _save_plot(options.output, scheduler, num_steps, past_run)
    if past_run is not None:
        print(past_run.verdict(scheduler))


def _terminal_plot(scheduler: CosineRestartLR, num_steps: int, past_run: PastRun | None) -> str:
    import plotille

    from hf_warmcos.plotting import sample_steps

    steps = sample_steps(scheduler.schedule, num_steps)
    rates = scheduler.schedule.curve(steps, scheduler.base_lrs[0], scheduler.eta_mins[0])
    columns, lines = shutil.get_terminal_size()
    figure = plotille.Figure()
    figure.width, figure.height = max(20, columns - 24), max(8, min(20, lines - 8))
    figure.with_colors = sys.stdout.isatty()
    figure.origin = False
    figure.x_label, figure.y_label = "step", "rate"
    figure.set_x_limits(min_=0, max_=max(1, num_steps - 1))
    highest = max(rates.max(), max(past_run.rates) if past_run else 0.0)
    figure.set_y_limits(min_=0, max_=float(highest) or 1.0)
    figure.register_label_formatter(float, lambda value, chars, delta, left=False: _short(value).rjust(chars))
    figure.plot(steps.tolist(), rates.tolist(), label="schedule", lc="blue")
    if past_run is not None:
        figure.scatter(past_run.positions(scheduler), past_run.rates, label=past_run.path, lc="red", marker="x")
    return str(figure.show(legend=past_run is not None))


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"


def _save_plot(
    path: str,
    scheduler: CosineRestartLR,
    num_steps: int,
    past_run: PastRun | None,
) -> None:
    if Path(path).suffix not in (".png", ".svg"):
        raise ValueError(f"Expected output to end in .png or .svg, but got output={path!r}")
    from matplotlib.figure import Figure

    from hf_warmcos.plotting import FIGURE_SIZE, plot_schedule

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    ax = plot_schedule(scheduler, num_steps, ax=figure.subplots())
    if past_run is not None:
        positions = past_run.positions(scheduler)
        ax.plot(positions, past_run.rates, ".", color="tab:red", markersize=4, zorder=5, label=Path(past_run.path).name)
        ax.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    # What the picture shows, inside it: from it the picture can be compared with the schedule of today.
    shown = {
        "schedule": asdict(scheduler.schedule),
        "base_lr": scheduler.base_lrs[0],
        "eta_min": scheduler.eta_mins[0],
        "num_steps": num_steps,
        "rates": scheduler.schedule.curve(
            [step * (num_steps - 1) // 100 for step in range(101)], scheduler.base_lrs[0], scheduler.eta_mins[0]
        ).tolist(),
    }
    figure.savefig(path, dpi=150, metadata={"Title": "hf_warmcos schedule", "Description": json.dumps(shown)})


def cycle_table(
    schedule: CosineRestartSchedule, num_steps: int, base_lr: float = 1.0, eta_min: float = 0.0
) -> Iterator[dict[str, int | float]]:
    """Yield a row for each cycle that starts within the first `num_steps` steps.

    Args:
        schedule ([`CosineRestartSchedule`]): The schedule.
        num_steps (`int`): How many steps to look at.
        base_lr, eta_min (`float`, *optional*): As in [`CosineRestartSchedule.lr_at`].

    Yields:
        `dict`: `cycle` (its index), `start` and `length` (in steps), `peak_lr`, and `end_lr` (the rate of its last
        step).

    Example:

    ```python
    >>> list(cycle_table(CosineRestartSchedule(T_0=2, decay=0.5), 3))[1]
    {'cycle': 1, 'start': 2, 'length': 2, 'peak_lr': 0.5, 'end_lr': 0.25}

    ```
    """
    for index in count() if schedule.num_cycles is None else range(schedule.num_cycles):
        cycle = schedule.cycle(index)
        if cycle.start >= num_steps:
            return
        yield {
            "cycle": index,
            "start": cycle.start,
            "length": cycle.length,
            "peak_lr": schedule.peak_lr(index, base_lr, eta_min),
            "end_lr": schedule.lr_at(cycle.end - 1, base_lr, eta_min),
        }


_COLUMNS = ("cycle", "start", "length", "peak_lr", "end_lr")


def _table(
    options: argparse.Namespace,
    scheduler: CosineRestartLR,
    past_run: PastRun | None,
) -> None:
    num_steps = _num_steps(options, scheduler.schedule)
    rows = list(cycle_table(scheduler.schedule, num_steps, scheduler.base_lrs[0], scheduler.eta_mins[0]))
    if options.format == "json":
        print(json.dumps(rows, indent=2))
    elif options.format == "csv":
        writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        cells = [
            _COLUMNS,
            *(
                [f"{row[column]:.6g}" if column.endswith("lr") else str(row[column]) for column in _COLUMNS]
                for row in rows
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for line in cells:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    if past_run is not None:
        # Beside a CSV or JSON that a program reads, the verdict is a message.
        print(past_run.verdict(scheduler), file=sys.stdout if options.format == "text" else sys.stderr)
