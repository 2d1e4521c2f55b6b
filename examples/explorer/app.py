"""An explorer of the schedule: move a slider, see the curve, take the code. `python app.py` serves it on this machine.

`describe` answers the page with all that it shows; page.js asks it after each change, and draws.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, fields
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from hf_warmcos import CosineRestartSchedule
from hf_warmcos.arguments import eta_min_from_arguments, misfit, schedule_from_arguments
from hf_warmcos.checks import real_number
from hf_warmcos.cli import CycleRow, cycle_table
from hf_warmcos.options import cycles, number
from hf_warmcos.plotting import arcs, default_num_steps, number_text, round_ticks, sample_steps
from hf_warmcos.schedule import WARMUP_MODES

MOST_ROWS = 200
MOST_MARKS = 40
FOLDER = Path(__file__).parent


class Control(NamedTuple):
    """A number that can be set: by a slider from `low` to `high`, evenly or by powers, or by typing any number.

    At its left end the slider says `leftmost`, where that is not `low`; "" leaves the argument out.
    """

    name: str
    meaning: str
    low: float
    high: float
    step: float | None = None  # None: by powers
    leftmost: str | None = None
    default: str = ""  # what an empty field means


CONTROLS = [
    Control("lr", "the optimizer's learning rate", 1e-6, 1, default="1e-3"),
    Control("num_training_steps", "steps of the training", 10, 1e6),
    Control("num_warmup_steps", "steps of the warmup", 1, 1e5, leftmost="0", default="0"),
    Control("num_cycles", "number of cycles", 1, 30, 1, leftmost=""),
    Control("decay", "factor on the peak at each restart", 0.01, 1, 0.01, default="1"),
    Control("T_mult", "factor on the length at each restart", 0.1, 4, 0.05, default="1"),
    Control("stable_ratio", "share of each cycle spent at its peak", 0, 0.95, 0.05, default="0"),
    Control("T_0", "steps of the first cycle, in place of fitted cycles", 1, 1e6, leftmost=""),
    Control("min_lr", "learning rate at the end of each cycle", 1e-9, 1, leftmost="", default="0"),
    Control("min_lr_rate", "the same as a share of lr", 0, 1, 0.01, leftmost=""),
    Control("warmup_lr_rate", "share of the rate at which the warmup starts", 0, 1, 0.01, default="0"),
]
NAMES = [control.name for control in CONTROLS] + ["warmup_mode", "cycles"]

# Each is the query of a link: what is not in it is not given.
PRESETS = {
    "three cycles, each twice as long": "lr=1e-3&num_training_steps=10000&num_warmup_steps=500&num_cycles=3&T_mult=2",
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
    """What the settings say: the factory's arguments, and what they make."""

    arguments: dict[str, Any]
    schedule: CosineRestartSchedule
    num_steps: int
    base_lr: float
    eta_min: float


def plan(settings: dict[str, str]) -> Plan:
    """Read settings as they stand in the page's fields or in a link; empty ones are not given."""
    arguments: dict[str, Any] = {"lr": 1e-3, "num_warmup_steps": 0}
    for name in NAMES:
        text = settings.get(name, "").strip()
        try:
            if text:
                arguments[name] = text if name == "warmup_mode" else cycles(text) if name == "cycles" else number(text)
        except ValueError:
            kind = "a list such as 1000,2000:0.5" if name == "cycles" else "a number"
            raise ValueError(f"Expected {name} to be {kind}, but got {text}") from None
    base_lr = real_number("lr", arguments["lr"], (">=", 0))
    shape = {name: value for name, value in arguments.items() if name not in ("lr", "min_lr", "min_lr_rate")}
    schedule = schedule_from_arguments(**shape)
    minimum = eta_min_from_arguments(arguments.get("min_lr"), arguments.get("min_lr_rate"))
    rate = minimum["eta_min_rate"]
    eta_min = (minimum["eta_min"] or 0.0) if rate is None else base_lr * rate
    num_steps = int(arguments.get("num_training_steps") or default_num_steps(schedule))
    return Plan(arguments, schedule, num_steps, base_lr, eta_min)


def describe(chosen: list[dict[str, str]]) -> dict[str, Any]:
    """All that the page shows for its settings and, where there are others to compare with, for those too."""
    try:
        plans = [plan(settings) for settings in chosen]
        curves = [_curve(*each[1:]) for each in plans]
    except (TypeError, ValueError, ArithmeticError) as error:
        return {"error": str(error), "argument": argument_in(str(error))}
    arguments, schedule, num_steps, base_lr, eta_min = plans[0]
    width = max(each.num_steps for each in plans)
    top = max(max(curve["rates"]) for curve in curves) or 1.0
    note = misfit(schedule, num_steps, [base_lr], [eta_min]) if "num_training_steps" in arguments else None
    rows = list(islice(cycle_table(schedule, num_steps, base_lr, eta_min), MOST_ROWS))
    return {
        "curves": curves,
        "width": width,
        "top": top,
        "x_ticks": [(tick, number_text(tick)) for tick in round_ticks(width, 5)],
        "y_ticks": [(tick, number_text(tick)) for tick in round_ticks(top, 5)],
        "note": note,
        "columns": CycleRow._fields,
        "rows": [[f"{cell:.6g}" if isinstance(cell, float) else f"{cell:,}" for cell in row] for row in rows],
        "codes": {name: code(plans[0]) for name, code in CODES.items()},
    }


def _curve(schedule: CosineRestartSchedule, num_steps: int, base_lr: float, eta_min: float) -> dict[str, Any]:
    steps = sample_steps(schedule, num_steps, most=1_000)
    marks: dict[str, list[tuple[float, float]]] = {"warmup": [], "plateau": [], "restart": []}
    if schedule.cycle_at(num_steps - 1).index < MOST_MARKS:
        for arc in arcs(schedule, num_steps, MOST_MARKS):
            rise_stop = arc.rise_start + arc.rise
            if arc.rise and arc.rise_start >= arc.start:
                marks["warmup"].append((arc.rise_start, min(rise_stop, num_steps)))
            peak_start = max(arc.cycle.start, rise_stop) if schedule.warmup_mode == "every_cycle" else arc.cycle.start
            if peak_start < min(arc.fall_start, num_steps):
                marks["plateau"].append((peak_start, min(arc.fall_start, num_steps)))
        marks["restart"] = [(step, step) for step in schedule.restarts(num_steps)]
    rates = schedule.curve(steps, base_lr, eta_min)
    return {"steps": steps.tolist(), "rates": rates.tolist(), "marks": marks}


def argument_in(message: str) -> str | None:
    """The control that an error of the library is about: the one whose argument it names first."""
    of_argument = {name: name for name in NAMES} | {"warmup_steps": "num_warmup_steps", "eta_min": "min_lr"}
    found = re.search(rf"\b({'|'.join(of_argument)})\b", message)
    return of_argument[found[1]] if found else None


def _lines(arguments: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Keyword arguments, one a line, without those that are at their defaults."""
    given = {name: value for name, value in arguments.items() if value != defaults.get(name)}
    return "".join(f"    {name}={value!r},\n" for name, value in given.items()).replace("'", '"')


def _of_factory(made: Plan, *without: str) -> str:
    defaults = {name: each.default for name, each in inspect.signature(schedule_from_arguments).parameters.items()}
    return _lines({name: value for name, value in made.arguments.items() if name not in without}, defaults)


def factory_code(made: Plan) -> str:
    """Code that makes these rates with the transformers-style factory, for a `model`."""
    return f"""\
import torch
from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule

optimizer = torch.optim.AdamW(model.parameters(), lr={made.base_lr!r})
scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    optimizer,
{_of_factory(made, "lr")})
# In training, after each optimizer.step(): scheduler.step()
"""


def scheduler_code(made: Plan) -> str:
    """Code that makes these rates with the torch scheduler, for a `model`."""
    defaults = {field.name: field.default for field in fields(CosineRestartSchedule)}
    return f"""\
import torch
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

optimizer = torch.optim.AdamW(model.parameters(), lr={made.base_lr!r})
schedule = CosineRestartSchedule(
{_lines(asdict(made.schedule), defaults)})
scheduler = CosineRestartLR(optimizer, schedule, eta_min={made.eta_min!r})
# In training, after each optimizer.step(): scheduler.step()
"""


def trainer_code(made: Plan) -> str:
    """Code that makes these rates with the Trainer, for a `model` and a `train_dataset`."""
    return f"""\
from hf_warmcos import WarmCosTrainer
from transformers import TrainingArguments

schedule = dict(
{_of_factory(made, "lr", "num_training_steps", "num_warmup_steps")})
args = TrainingArguments(
    output_dir="output",
    max_steps={made.num_steps},
    learning_rate={made.base_lr!r},
    warmup_steps={made.schedule.warmup_steps},
    lr_scheduler_kwargs=schedule,
)
trainer = WarmCosTrainer(model, args, train_dataset=train_dataset)
trainer.train()
"""


CODES = {"Factory": factory_code, "Scheduler": scheduler_code, "Trainer": trainer_code}


def page_html() -> str:
    """The page's elements: the controls out of their list, in what page.html has around them."""
    controls = []
    for name, meaning, low, high, step, leftmost, default in CONTROLS:
        positions = 1000 if step is None else round((high - low) / step)
        data = {"low": low, "high": high, "step": step, "leftmost": leftmost}
        attributes = " ".join(f'data-{key}="{value}"' for key, value in data.items() if value is not None)
        controls.append(f"""
<div class="control">
  <label for="{name}">{name} <small>{escape(meaning)}</small></label>
  <input type="range" aria-label="{name}, slider" min="0" max="{positions}" {attributes}>
  <input id="{name}" inputmode="decimal" autocomplete="off" placeholder="{default}" aria-describedby="{name}-error">
  <p class="error" id="{name}-error" role="alert"></p>
</div>""")
    modes = "".join(f"<option>{mode}</option>" for mode in WARMUP_MODES)
    presets = "".join(f'<option value="{escape(query)}">{escape(name)}</option>' for name, query in PRESETS.items())
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name, html in {"controls": "".join(controls), "modes": modes, "presets": presets}.items():
        page = page.replace(f"<!-- {name} -->", html)
    return page


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_warmcos explorer", analytics_enabled=False) as page:
        gr.HTML(
            html_template=page_html(),
            js_on_load=(FOLDER / "page.js").read_text(encoding="utf-8"),
            server_functions=[describe],
            apply_default_css=False,
        )
    return page


if __name__ == "__main__":
    build().launch(css_paths=FOLDER / "page.css")
