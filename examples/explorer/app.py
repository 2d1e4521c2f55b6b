"""An explorer of the schedule: move a slider, see the curve, take the code. `python app.py` serves it on this machine.

`describe` answers the page with all that it shows; page.js asks it after each change.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
import re
import shlex
import tempfile
import textwrap
import threading
from dataclasses import asdict, fields
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import matplotlib
import torch
from matplotlib.figure import Figure

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, overview, plot_schedule
from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule as factory
from hf_warmcos.options import cycles, number
from hf_warmcos.past_run import PastRun

MOST_ROWS = 200
MOST_LOGGED = 1_000  # learning rates of an imported run that the page keeps
FOLDER = Path(__file__).parent
matplotlib.rcParams["svg.hashsalt"] = "hf_warmcos"  # so that the same picture is the same file
FIGURE_SIZE = (9, 3.4)  # inches
DRAWING = threading.Lock()  # matplotlib may draw in one thread at a time


class Control(NamedTuple):
    """A number that can be set: by a slider from `low` to `high`, or by typing any number.

    At its left end the slider says `leftmost`, where there is one; "" leaves the argument out.
    """

    name: str
    meaning: str
    low: float
    high: float
    step: float | None = None  # None: to each number of two digits
    leftmost: str | None = None
    default: str = ""  # what an empty field means

    @property
    def stops(self) -> list[str]:
        """What the slider says at each of its positions: each is another, so that one key press changes it."""
        if self.step is None:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            numbers = [float(f"{digits}e{power - 1}") for power in powers for digits in range(10, 100)]
        else:
            count = round((self.high - self.low) / self.step)
            numbers = [round(self.low + index * self.step, 9) for index in range(count + 1)]
        whole = self.step is None and self.low >= 1
        kept = [each for each in numbers if self.low <= each <= self.high and not (whole and each % 1)]
        texts = [str(int(each)) if each == int(each) else overview.number_text(each) for each in kept]
        return texts if self.leftmost is None else [self.leftmost, *texts]


CONTROLS = [
    Control("lr", "the optimizer's learning rate", 1e-6, 1, default="1e-3"),
    Control("num_training_steps", "steps of the training", 10, 1e6),
    Control("num_warmup_steps", "steps of the warmup", 1, 1e5, leftmost="0", default="0"),
    Control("num_cycles", "number of cycles", 1, 30, 1, leftmost=""),
    Control("T_mult", "factor on the length at each restart", 0.1, 4, 0.05, default="1"),
    Control("decay", "factor on the peak at each restart", 0.01, 1, 0.01, default="1"),
    Control("min_lr", "learning rate at the end of each cycle", 1e-9, 1, leftmost="", default="0"),
    Control("min_lr_rate", "the same as a fraction of lr", 0, 1, 0.01, leftmost=""),
    Control("stable_ratio", "fraction of each cycle spent at its peak", 0, 0.95, 0.05, default="0"),
    Control("T_0", "steps of the first cycle, in place of fitted cycles", 1, 1e6, leftmost=""),
    Control("warmup_lr_rate", "fraction of lr at which the warmup starts", 0, 1, 0.01, default="0"),
]
NAMES = [control.name for control in CONTROLS] + ["warmup_mode", "cycles"]

# Each is the query of a link: what is not in it is not given. The first one is what the page opens with.
PRESETS = {
    "three cycles, each twice as long": "lr=1e-3&num_training_steps=10000&num_warmup_steps=500&num_cycles=3&T_mult=2"
    "&stable_ratio=0.8",
    "plain cosine": "lr=1e-3&num_training_steps=10000&num_warmup_steps=500",
    "SGDR: each cycle twice as long": "lr=0.05&num_training_steps=63000&T_0=1000&T_mult=2",
    "this project's figure": "lr=1&num_training_steps=120000&num_warmup_steps=2000&T_0=10000&decay=0.75"
    "&warmup_mode=overlap",
    "like WSD-S: plateaus that decay": "lr=6e-4&num_training_steps=51000&num_warmup_steps=1000&stable_ratio=0.9"
    "&cycles=12500,12500,25000",
    "katsura's CosineAnnealingWarmupRestarts": "lr=0.1&num_training_steps=1000&num_warmup_steps=50&T_0=200&decay=0.5"
    "&min_lr=0.001&warmup_mode=every_cycle",
}


class Plan(NamedTuple):
    """What the settings say: the factory's arguments, what they make, how many steps of it to show, and doubts."""

    arguments: dict[str, Any]
    scheduler: CosineRestartLR
    num_steps: int
    doubts: list[str]

    @property
    def base_lr(self) -> float:
        """The initial learning rate."""
        return self.scheduler.base_lrs[0]

    def given(self, *without: str) -> dict[str, Any]:
        """The factory's arguments that are not at their defaults."""
        defaults = {name: each.default for name, each in inspect.signature(factory).parameters.items()}
        given = {name: value for name, value in self.arguments.items() if name not in without}
        return {name: value for name, value in given.items() if value != defaults.get(name)}


def _number(text: str) -> int | float:
    """Read a number as it is typed or as the page prints it: 10000 or 10,000."""
    return number(text.replace(",", "") if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", text) else text)


def plan(settings: dict[str, str]) -> Plan:
    """Read settings as they stand in the page's fields or in a link; empty ones are not given."""
    arguments: dict[str, Any] = {"lr": 1e-3, "num_warmup_steps": 0}
    for name in NAMES:
        text = settings.get(name, "").strip()
        try:
            if text:
                arguments[name] = text if name == "warmup_mode" else cycles(text) if name == "cycles" else _number(text)
        except ValueError:
            kind = "a list such as 1000,2000:0.5" if name == "cycles" else "a number"
            raise ValueError(f"Expected {name} to be {kind}, but got {text}") from None
    shape = {name: value for name, value in arguments.items() if name != "lr"}
    schedule, num_steps, lr, doubts = overview.plan(shape, arguments["lr"])
    arguments["num_warmup_steps"] = schedule.warmup_steps  # a fraction was given
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    return Plan(arguments, CosineRestartLR(optimizer, schedule), num_steps, doubts)


def describe(asked: dict[str, Any]) -> dict[str, Any]:
    """Return all that the page shows, or an error and the argument that it is about.

    What is asked: the `settings`, others `kept` to compare with, a logged `run` (both may be None), and the `size` of
    the picture in pixels.
    """
    try:
        width, height = asked["size"]
        with DRAWING:
            figure, notes = draw(asked, (width / 96, height / 96))
            picture = _saved(figure, "svg", transparent=True).decode()
        made = plan(asked["settings"])
    except (ValueError, ArithmeticError) as error:
        return {"error": str(error), "argument": argument_in(str(error))}
    schedule, base_lr = made.scheduler.schedule, made.base_lr
    count = schedule.cycle_at(made.num_steps - 1).index + 1
    rows = list(islice(overview.cycle_table(schedule, made.num_steps, base_lr), MOST_ROWS))
    peaks = " to ".join(f"{schedule.peak_lr(index, base_lr):.6g}" for index in (0, count - 1))
    steps = overview.sample_steps(schedule, made.num_steps, most=1_000)
    (ax,) = figure.axes
    return {
        "picture": picture[picture.index("<svg") :],
        "description": f"Learning rate over {made.num_steps:,} steps: {count:,} cycles, peaks from {peaks}",
        # Where the picture's steps lie, from its left edge, for the pointer to read them.
        "across": [ax.get_position().x0, ax.get_position().x1, *ax.get_xlim()],
        "steps": steps.tolist(),
        "rates": schedule.curve(steps, base_lr).tolist(),
        "notes": notes,
        "columns": rows[0]._fields,
        "rows": [[f"{cell:.6g}" if isinstance(cell, float) else f"{cell:,}" for cell in row] for row in rows],
        "more": f"The first {MOST_ROWS} of {count:,} cycles" if count > MOST_ROWS else "",
        "codes": {name: code(made) for name, code in CODES.items()},
    }


def draw(asked: dict[str, Any], size: tuple[float, float] = FIGURE_SIZE) -> tuple[Figure, list[str]]:
    """The picture of what is asked, of a size in inches, and what there is to say about it."""
    plans = [plan(settings) for settings in (asked["settings"], asked["kept"]) if settings is not None]
    notes = [*plans[0].doubts]
    logged, most_steps = None, max(each.num_steps for each in plans)
    if asked["run"] is not None:
        comparison = PastRun(*asked["run"]).compare(plans[0].scheduler.schedule, plans[0].base_lr)
        logged, most_steps = (comparison.positions, comparison.logged), max(most_steps, comparison.positions[-1] + 1)
        notes.append(comparison.verdict)
    names = ["learning rate"] if len(plans) == 1 else ["these settings", "kept to compare"]
    figure = Figure(size, layout="constrained")
    ax = figure.subplots()
    yscale = asked["settings"].get("yscale", "linear")
    plot_schedule(dict(zip(names, [each.scheduler for each in plans])), most_steps, ax=ax, yscale=yscale, logged=logged)
    return figure, notes


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None, **options)
    return file.getvalue()


def download(asked: dict[str, Any]) -> str:
    """A link that holds the picture as a file: on white, of the same size on every page.

    What is asked: as in `describe`, and the `form`, "svg" or "png".
    """
    kind = {"svg": "image/svg+xml", "png": "image/png"}[asked["form"]]
    with DRAWING:
        content = _saved(draw(asked)[0], asked["form"], dpi=200)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_run(file: dict[str, str]) -> dict[str, Any]:
    """Read the learning rates that a run logged, from its `trainer_state.json` or another file that `PastRun` reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(file["name"]).name)
        path.write_text(file["text"], encoding="utf-8")
        try:
            run = PastRun.read(str(path))[0]  # with several groups of parameters, the first
        except (OSError, ValueError) as error:
            return {"error": str(error).replace(f"{folder}/", "")}
    count = len(run.steps)
    kept = sorted({index * (count - 1) // (MOST_LOGGED - 1) for index in range(MOST_LOGGED)})
    name = path.name if len(kept) == count else f"{path.name} ({len(kept):,} of its {count:,} learning rates)"
    columns: list[Any] = [run.steps, run.rates, *run.counts]
    steps, rates, *counts = ([column[index] for index in kept] for column in columns)
    return {"run": run._replace(path=name, steps=steps, rates=rates, counts=counts)}


def argument_in(message: str) -> str | None:
    """The control that an error of the library is about: the one whose argument it names first."""
    of_argument = {name: name for name in [*NAMES, "yscale"]} | {
        "warmup_steps": "num_warmup_steps",
        "eta_min": "min_lr",
    }
    found = re.search(rf"\b({'|'.join(of_argument)})\b", message)
    return of_argument[found[1]] if found else None


# The code for what is shown.


def _lines(arguments: dict[str, Any]) -> str:
    return "".join(f"    {name}={value!r},\n" for name, value in arguments.items()).replace("'", '"')


def factory_code(made: Plan) -> str:
    """Code that makes these learning rates with the transformers-style factory, for a `model`."""
    return f"""\
import torch
from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule

optimizer = torch.optim.AdamW(model.parameters(), lr={made.base_lr!r})
scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    optimizer,
{_lines(made.given("lr"))})
# In training, after each optimizer.step(): scheduler.step()
"""


def accelerate_code(made: Plan) -> str:
    """Code that makes these learning rates under Accelerate, for a `model` and a `loader`."""
    return f"""\
import torch
from accelerate import Accelerator
from hf_warmcos import (
    count_optimizer_steps,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)

accelerator = Accelerator()
optimizer = torch.optim.AdamW(model.parameters(), lr={made.base_lr!r})
scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    optimizer,
{_lines(made.given("lr"))})
model, optimizer, loader, scheduler = accelerator.prepare(
    model, optimizer, loader, scheduler
)
scheduler = count_optimizer_steps(scheduler)
# In training, after each optimizer.step(): scheduler.step()
"""


def scheduler_code(made: Plan) -> str:
    """Code that makes these learning rates with the torch scheduler, for a `model`."""
    schedule, base_lr = made.scheduler.schedule, made.base_lr
    defaults = {field.name: field.default for field in fields(CosineRestartSchedule)}
    given = {name: value for name, value in asdict(schedule).items() if value != defaults[name]}
    return f"""\
import torch
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

optimizer = torch.optim.AdamW(model.parameters(), lr={base_lr!r})
schedule = CosineRestartSchedule(
{_lines(given)})
scheduler = CosineRestartLR(optimizer, schedule)
# In training, after each optimizer.step(): scheduler.step()
"""


def _shape(made: Plan) -> dict[str, Any]:
    """The arguments that a training script has no options of its own for."""
    return made.given("lr", "num_training_steps", "num_warmup_steps")


def trainer_code(made: Plan) -> str:
    """Code that makes these learning rates with the Trainer, for a `model` and a `train_dataset`."""
    lines = "".join(f"        {json.dumps(name)}: {json.dumps(value)},\n" for name, value in _shape(made).items())
    return f"""\
from hf_warmcos import WarmCosTrainer
from transformers import TrainingArguments

args = TrainingArguments(
    output_dir="output",
    learning_rate={made.base_lr!r},
    max_steps={made.num_steps},
    warmup_steps={made.scheduler.schedule.warmup_steps},
    lr_scheduler_kwargs={{
{lines}    }},
)
trainer = WarmCosTrainer(model, args, train_dataset=train_dataset)
trainer.train()
"""


def kwargs_code(made: Plan) -> str:
    """The value of `lr_scheduler_kwargs`, for a configuration file or a command line."""
    return json.dumps(_shape(made))


def run_code(made: Plan) -> str:
    """A command line that makes these learning rates in a training script that takes TrainingArguments."""

    def text(value: Any) -> str:
        """As an option takes it: a list of cycles is 1000,2000:0.5."""
        if not isinstance(value, list):
            return str(value)
        if any(isinstance(cycle, dict) for cycle in value):
            return shlex.quote(json.dumps(value, separators=(",", ":")))
        return ",".join(":".join(map(str, cycle)) if isinstance(cycle, list) else str(cycle) for cycle in value)

    options = "".join(f" --{name} {text(value)}" for name, value in _shape(made).items())
    command = (
        f"hf-warmcos run{options} train.py --lr_scheduler_type cosine_with_restarts --learning_rate {made.base_lr} "
        f"--max_steps {made.num_steps} --warmup_steps {made.scheduler.schedule.warmup_steps}"
    )
    return " \\\n    ".join(textwrap.wrap(command, 80, break_long_words=False, break_on_hyphens=False))


CODES = {
    "Trainer": trainer_code,
    "lr_scheduler_kwargs (JSON)": kwargs_code,
    "Factory": factory_code,
    "Accelerate": accelerate_code,
    "hf-warmcos run": run_code,
    "PyTorch scheduler": scheduler_code,
}


def page_html() -> str:
    """The page's elements: the controls out of their list, in what page.html has around them."""
    controls = "".join(
        f"""
<div class="control">
  <label for="{control.name}">{control.name} <small>{escape(control.meaning)}</small></label>
  <input type="range" aria-label="{control.name}, slider" max="{len(control.stops) - 1}"
    data-stops="{" ".join(control.stops)}">
  <input id="{control.name}" inputmode="decimal" autocomplete="off" placeholder="{control.default}"
    aria-describedby="{control.name}-error">
  <p class="error" id="{control.name}-error" role="alert"></p>
</div>"""
        for control in CONTROLS
    )
    modes = "".join(f"<option>{mode}</option>" for mode in ("overlap", "prefix", "every_cycle"))
    presets = "".join(f'<option value="{escape(query)}">{escape(name)}</option>' for name, query in PRESETS.items())
    kinds = "".join(f"<option>{kind}</option>" for kind in CODES)
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name, html in {"controls": controls, "modes": modes, "presets": presets, "kinds": kinds}.items():
        page = page.replace(f"<!-- {name} -->", html)
    return page


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_warmcos explorer", analytics_enabled=False) as page:
        gr.HTML(
            html_template=page_html(),
            js_on_load=(FOLDER / "page.js").read_text(encoding="utf-8"),
            server_functions=[describe, download, read_run],
            apply_default_css=False,
        )
    return page


if __name__ == "__main__":
    build().launch(css_paths=FOLDER / "page.css")
