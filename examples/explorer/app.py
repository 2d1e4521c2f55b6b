"""An explorer of the schedule: move a slider, see the curve, take the code. `python app.py` serves it on this machine.

First come pure functions, from settings to a schedule, its curve and its code; then the page that shows them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
import pandas as pd
import torch

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)
from hf_warmcos.cli import cycle_table
from hf_warmcos.plotting import sample_steps
from hf_warmcos.schedule import WARMUP_MODES


@dataclass(frozen=True)
class Settings:
    """The optimizer's rate and the factory's arguments. 0 stands for an optional argument that is not given."""

    lr: float = 1e-3
    num_training_steps: int = 10_000
    num_warmup_steps: int = 500
    num_cycles: int = 4
    decay: float = 0.75
    T_mult: float = 1
    warmup_mode: str = "prefix"
    T_0: float = 0
    min_lr: float = 0
    min_lr_rate: float = 0
    warmup_lr_rate: float = 0

    def arguments(self) -> dict[str, Any]:
        """The factory's arguments, without those at their defaults."""
        arguments = asdict(self)
        del arguments["lr"]
        for name in ("num_cycles", "T_0", "min_lr", "min_lr_rate"):
            arguments[name] = arguments[name] or None
        return _without_defaults(get_cosine_restarts_with_decay_and_warmup_schedule, arguments)

    def scheduler(self) -> CosineAnnealingWarmRestartsWithDecayAndLinearWarmup:
        """The scheduler that training with these settings would have, or the library's error."""
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=self.lr)
        return get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **self.arguments())


def _without_defaults(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if value != parameters[name].default}


def settings_from_query(query: str) -> Settings:
    """The settings in the query of a shared link: what it leaves out, or what is no number, is at its default."""
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query):
        if name == "warmup_mode":
            given[name] = text
        elif name in asdict(Settings()):
            try:
                number = float(text)
            except ValueError:
                continue
            given[name] = int(number) if number.is_integer() else number
    return Settings(**given)


def query_from_settings(settings: Settings) -> str:
    """The query of a link to the settings: those that are not at their defaults."""
    return urlencode(_without_defaults(Settings, asdict(settings)))


def curve(settings: Settings) -> pd.DataFrame:
    """The learning rate at the steps that the picture shows."""
    scheduler = settings.scheduler()
    steps = sample_steps(scheduler.schedule, settings.num_training_steps, most=1_000)
    rates = scheduler.schedule.curve(steps, scheduler.base_lrs[0], scheduler.eta_mins[0])
    return pd.DataFrame({"step": steps, "learning rate": rates})


def table(settings: Settings, most: int = 200) -> pd.DataFrame:
    """The first cycles, as `hf-warmcos table` lists them, with the rates to six digits."""
    scheduler = settings.scheduler()
    rows = cycle_table(scheduler.schedule, settings.num_training_steps, scheduler.base_lrs[0], scheduler.eta_mins[0])
    return pd.DataFrame(
        [row | {name: f"{row[name]:.6g}" for name in ("peak_lr", "end_lr")} for row in islice(rows, most)]
    )


def class_code(settings: Settings) -> str:
    """Code that makes these rates with the torch scheduler."""
    schedule = settings.scheduler().schedule
    arguments = asdict(schedule) | {"eta_min": settings.min_lr, "eta_min_rate": settings.min_lr_rate or None}
    scheduler_class = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup
    return _OPTIMIZER_CODE.format(
        name=scheduler_class.__name__, lr=settings.lr, arguments=_lines(_without_defaults(scheduler_class, arguments))
    )


def factory_code(settings: Settings) -> str:
    """Code that makes these rates with the transformers-style factory."""
    name = get_cosine_restarts_with_decay_and_warmup_schedule.__name__
    return _OPTIMIZER_CODE.format(name=name, lr=settings.lr, arguments=_lines(settings.arguments()))


def trainer_code(settings: Settings) -> str:
    """Code that makes these rates with the Trainer, for a `model` and a `train_dataset`."""
    kwargs = settings.arguments()
    max_steps, warmup_steps = kwargs.pop("num_training_steps"), kwargs.pop("num_warmup_steps")
    return _TRAINER_CODE.format(lr=settings.lr, max_steps=max_steps, warmup_steps=warmup_steps, kwargs=_lines(kwargs))


def _lines(arguments: dict[str, Any]) -> str:
    values = {name: f'"{value}"' if isinstance(value, str) else repr(value) for name, value in arguments.items()}
    return "".join(f"    {name}={value},\n" for name, value in values.items())


_OPTIMIZER_CODE = """\
import torch
from hf_warmcos import {name}

model = torch.nn.Linear(1, 1)  # your model
optimizer = torch.optim.AdamW(model.parameters(), lr={lr!r})
scheduler = {name}(
    optimizer,
{arguments})
# In training, after each optimizer.step(): scheduler.step()
"""

_TRAINER_CODE = """\
from hf_warmcos import WarmCosTrainer
from transformers import TrainingArguments

schedule = dict(
{kwargs})
args = TrainingArguments(
    output_dir="output",
    max_steps={max_steps!r},
    learning_rate={lr!r},
    warmup_steps={warmup_steps!r},
    lr_scheduler_kwargs=schedule,
)
trainer = WarmCosTrainer(model, args, train_dataset=train_dataset)  # your model and data
trainer.train()
"""


def show(*values: Any) -> tuple[Any, ...]:
    """What the page shows for the values of its controls; an emptied box is at its default."""
    settings = Settings(**{name: value for name, value in zip(_CONTROLS, values) if value is not None})
    query = query_from_settings(settings)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            rates = curve(settings)
            cycles = table(settings).to_html(index=False, border=0)
            codes = [make(settings) for make in (class_code, factory_code, trainer_code)]
        notes = dict.fromkeys(str(warning.message) for warning in caught)
        return "".join(_message("note", note) for note in notes), rates, cycles, *codes, query
    except (TypeError, ValueError, ArithmeticError) as error:
        return _message("error", str(error)), None, "", "", "", "", query


def _message(kind: str, text: str) -> str:
    return f'<p class="{kind}" role="alert">{escape(text)}</p>'


def load(request: gr.Request) -> list[Any]:
    """The values of the controls for the settings in the page's address."""
    return [*asdict(settings_from_query(str(request.query_params))).values()]


# The range of a slider is what is worth exploring; a link takes any number, and the library judges it.
_CONTROLS: dict[str, Callable[..., Any]] = {
    "lr": partial(gr.Number, label="lr: the optimizer's learning rate"),
    "num_training_steps": partial(gr.Slider, 1, 200_000, step=1, label="num_training_steps"),
    "num_warmup_steps": partial(gr.Slider, 0, 20_000, step=1, label="num_warmup_steps"),
    "num_cycles": partial(gr.Slider, 0, 30, step=1, label="num_cycles (0: not given)"),
    "decay": partial(gr.Slider, 0.01, 1, step=0.01, label="decay: factor on the peak at each restart"),
    "T_mult": partial(gr.Slider, 0.1, 4, step=0.05, label="T_mult: factor on the length at each restart"),
    "warmup_mode": partial(gr.Radio, [*WARMUP_MODES], label="warmup_mode: where the warmup lies"),
    "T_0": partial(gr.Slider, 0, 50_000, step=1, label="T_0: steps of the first cycle (0: cycles are fitted)"),
    "min_lr": partial(gr.Number, label="min_lr: rate at the end of each cycle (0: not given)"),
    "min_lr_rate": partial(gr.Slider, 0, 1, step=0.01, label="min_lr_rate: the same as a share of lr (0: not given)"),
    "warmup_lr_rate": partial(gr.Slider, 0, 1, step=0.01, label="warmup_lr_rate: share at which the warmup starts"),
}

# The query goes into the address bar; inside a Hugging Face Space, that is the address bar of the page around it.
_WRITE_QUERY = """(query) => {
    const theme = new URLSearchParams(location.search).get("__theme");
    const search = new URLSearchParams(query);
    if (theme) search.set("__theme", theme);
    history.replaceState(null, "", `${location.pathname}?${search}`);
    if (window.parent !== window) window.parent.postMessage({queryString: query}, "https://huggingface.co");
}"""

# One column on a phone, under a curve that stays in sight; otherwise the controls stand beside everything else.
_CSS = """
.gradio-container { overflow: clip !important; }
#layout { display: grid; grid-template-columns: minmax(0, 1fr); }
#curve-column { position: sticky; top: 0; z-index: 1000; background: var(--body-background-fill); }
@media (min-width: 768px) {
    #layout { grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); grid-template-rows: auto 1fr; }
    #controls-column { grid-column: 2; grid-row: 1 / 3; }
    #curve-column { position: static; }
}
#cycles { max-height: 26rem; overflow-y: auto; }
#cycles table { width: 100%; border-collapse: collapse; font-size: small; font-variant-numeric: tabular-nums; }
#cycles :is(table, thead, tbody, tr, th, td) { border-width: 0 !important; }
#cycles :is(th, td) { text-align: right; white-space: nowrap; padding: 4px; }
#message p { margin: 0; font-size: small; }
#message:not(:has(p)) { display: none; }
#message .error { border-left: 4px solid #dc2626; padding-left: 8px; }
#message .note { border-left: 4px solid #d97706; padding-left: 8px; }
"""


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_warmcos explorer", analytics_enabled=False) as page:
        gr.Markdown(
            "# Cosine restarts with decay and warmup\n"
            "Each cycle falls from its peak along a cosine; each restart's peak is `decay` of the one before."
        )
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="curve-column"):
                message = gr.HTML(elem_id="message")
                plot = gr.LinePlot(x="step", y="learning rate", y_axis_format="~g", height=260, elem_id="curve")
            with gr.Column(elem_id="controls-column"):
                controls = [control(value=getattr(Settings(), name)) for name, control in _CONTROLS.items()]
            with gr.Column():
                cycles = gr.HTML(elem_id="cycles")
                codes = []
                with gr.Tabs():
                    for name in ("Scheduler class", "Factory", "Trainer"):
                        with gr.Tab(name):
                            codes.append(gr.Code(language="python", interactive=False, show_label=False))
                gr.Button("Copy link to these settings").click(
                    None, js="() => navigator.clipboard.writeText(location.href)"
                )
        query = gr.Textbox(visible=False)
        showing = {
            "fn": show,
            "inputs": controls,
            "outputs": [message, plot, cycles, *codes, query],
            # Gradio would refuse what lies outside a slider before the library can say why.
            "preprocess": False,
            "show_progress": "hidden",
        }
        page.load(load, None, controls).then(**showing)
        gr.on([control.change for control in controls], **showing, trigger_mode="always_last").then(
            None, query, None, js=_WRITE_QUERY
        )
    return page


if __name__ == "__main__":
    build().launch(css=_CSS)
