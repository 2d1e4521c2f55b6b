"""The explorer: what it computes and writes, without a page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from explorer import APP, FOLDER, PLAN, ROOT, app, ask, trained
from hypothesis import given, reject
from hypothesis import strategies as st
from trainer_runs import logged_rates
from work import at_most

from hf_warmcos.options import Parser, add_schedule_options, schedule_arguments
from hf_warmcos.schedule import WARMUP_MODES


def sometimes(strategy):
    """What may be in a field of the page: text of a value, or nothing."""
    return st.just("") | strategy.map(str)


some_settings = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-6, 1).map(str),
        "num_training_steps": st.integers(50, 500).map(str),
        "num_warmup_steps": sometimes(st.integers(0, 40)),
        "num_cycles": sometimes(st.integers(1, 5)),
        "decay": sometimes(st.floats(0.1, 1)),
        "T_mult": sometimes(st.sampled_from([0.75, 1, 1.5, 2])),
        "warmup_mode": sometimes(st.sampled_from(WARMUP_MODES)),
        "stable_ratio": sometimes(st.floats(0, 0.95)),
        "T_0": sometimes(st.integers(1, 100) | st.floats(10, 100)),
        "min_lr": sometimes(st.floats(0, 1e-3)),
        "warmup_lr_rate": sometimes(st.floats(0, 1)),
    }
) | st.fixed_dictionaries(
    {"num_training_steps": st.just("100"), "cycles": st.sampled_from(["30,70", "50:2,100:0.5", "7"])}
)


def planned(chosen):
    """What the explorer makes of settings. Those that it refuses name an argument, and are no example."""
    try:
        return app.plan(chosen)
    except ValueError as error:
        if app.argument_in(str(error)) not in chosen:
            raise
        reject()


@given(some_settings)
@pytest.mark.filterwarnings("ignore:Training ends inside a cycle", "ignore:The learning rate stays at its minimum")
def test_the_code_of_the_scheduler_and_of_the_factory_makes_the_learning_rates_of_the_settings(chosen):
    made = planned(chosen)
    rates = made.scheduler.schedule.curve(made.num_steps, made.base_lr)
    for code in (app.scheduler_code(made), app.factory_code(made)):
        names = {"model": torch.nn.Linear(1, 1)}
        exec(code, names)
        scheduler = names["scheduler"]
        assert scheduler.base_lrs == [made.base_lr]
        np.testing.assert_array_equal(scheduler.schedule.curve(made.num_steps, made.base_lr), rates)


@given(some_settings)
def test_lr_scheduler_kwargs_and_the_options_of_run_are_the_arguments_of_the_settings(chosen):
    made = planned(chosen)
    arguments = json.loads(app.kwargs_code(made))
    asked = {name: value for name, value in made.arguments.items() if name in arguments}
    assert arguments == asked
    words = shlex.split(app.run_code(made).replace("\\\n", ""))
    parser = Parser()
    add_schedule_options(parser)
    assert schedule_arguments(parser.parse_args(words[2 : words.index("train.py")])) == arguments


@pytest.mark.parametrize("query", app.PRESETS.values(), ids=app.PRESETS)
def test_each_preset_is_a_schedule_that_fits_its_training_and_its_code_fits_88_columns(query):
    answer = app.describe(ask(dict(parse_qsl(query))))
    assert answer["notes"] == []
    assert {name for name, _ in parse_qsl(query)} <= {*app.NAMES}
    assert max(len(line) for code in answer["codes"].values() for line in code.splitlines()) <= 88


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"num_warmup_steps": "10001"}, "num_warmup_steps"),
        ({"T_0": "100", "T_mult": "0.5"}, "num_cycles"),
        ({"min_lr": "1e-5", "min_lr_rate": "0.1"}, "min_lr"),
        ({"num_cycles": "4", "warmup_mode": "every_cycle", "num_warmup_steps": "2500"}, "num_warmup_steps"),
        ({"decay": "0", "num_cycles": "2"}, "decay"),
        ({"decay": "0.5"}, "num_cycles"),
        ({"lr": "-1"}, "lr"),
        ({"T_0": "many"}, "T_0"),
        ({"cycles": "10,x"}, "cycles"),
        ({"cycles": "10", "T_0": "5"}, "cycles"),
        ({"warmup_mode": "sideways"}, "warmup_mode"),
        ({"num_training_steps": ""}, "T_0"),
        ({"yscale": "cubic"}, "yscale"),
    ],
)
def test_an_error_of_the_library_is_about_an_argument(change, argument):
    answer = app.describe(ask({"num_training_steps": "10000"} | change))
    assert answer["error"].startswith("Expected ")
    assert answer["argument"] == argument


def test_numbers_are_read_as_they_are_printed_and_a_decimal_comma_is_refused():
    assert app.plan({"num_training_steps": "1,210,000", "T_0": "10,000"}).arguments == {
        "lr": 1e-3,
        "num_warmup_steps": 0,
        "num_training_steps": 1_210_000,
        "T_0": 10_000,
    }
    for text in ("0,125", "1,5", "12,34", "1234,567"):
        with pytest.raises(ValueError, match=f"Expected T_0 to be a number, but got {text}"):
            app.plan({"T_0": text})


@pytest.mark.parametrize("control", app.CONTROLS, ids=lambda control: control.name)
def test_a_slider_stops_at_numbers_that_rise_each_of_which_can_be_typed(control):
    stops = [stop for stop in control.stops if stop]
    assert len(stops) >= 20
    assert len(control.stops) - len(stops) <= 1
    numbers = [float(stop) for stop in stops]
    assert numbers == sorted(set(numbers))
    assert (numbers[-1], max(control.low, numbers[0])) == (control.high, control.low)
    assert all(re.fullmatch(r"\d+|0\.\d+|\d\.\d+|\d(\.\d)?e-\d", stop) for stop in stops)


def test_10_to_the_11_cycles_are_shown_in_some_million_lines_and_the_table_says_that_it_is_cut():
    with at_most(10_000_000):
        answer = app.describe(ask({"num_training_steps": "1e12", "T_0": "10"}))
    assert len(answer["rows"]) == app.MOST_ROWS
    assert answer["more"] == "The first 200 of 100,000,000,000 cycles"
    assert "100,000,000,000 cycles" in answer["description"]
    assert app.describe(ask({"T_0": "10", "num_cycles": "200"}))["more"] == ""


@pytest.mark.parametrize("minimum", [{"min_lr": "0.02"}, {"min_lr": "0.02", "decay": "0.5"}])
def test_a_minimum_above_the_learning_rate_is_a_note(minimum):
    chosen = {"num_training_steps": "100", "num_cycles": "2", "lr": "0.01"}
    (note,) = app.describe(ask(chosen | minimum))["notes"]
    assert (
        note == "The minimum 0.02 is above the initial learning rate 0.01: the learning rate rises to it in each cycle."
    )
    assert app.describe(ask(chosen | {"min_lr": "0.01"}))["notes"] == []


# The picture.


def drawn_texts(figure):
    (ax,) = figure.axes
    return {ax.get_xlabel(), ax.get_ylabel(), *(text.get_text() for text in ax.get_legend().get_texts())}


def test_the_picture_is_that_of_plot_schedule_with_titles_legend_log_axis_and_what_was_kept():
    figure, _ = app.draw(ask(PLAN))
    assert {"step", "learning rate"} <= drawn_texts(figure)
    assert figure.axes[0].get_yscale() == "linear"
    rates = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(rates, app.plan(PLAN).scheduler.schedule.curve(100, 0.01))
    kept = PLAN | {"lr": "0.005", "num_training_steps": "150"}
    figure, _ = app.draw(ask(PLAN | {"yscale": "log"}, kept=kept))
    assert {"these settings", "kept to compare"} <= drawn_texts(figure)
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_xlim()[1] >= 149
    peaks = [line.get_ydata().max() for line in figure.axes[0].lines if len(line.get_ydata()) == 150]
    assert peaks == [0.01, 0.005]


def test_an_imported_run_is_drawn_on_the_plan_and_compared_with_it(tmp_path):
    trainer, state = trained(
        tmp_path, max_steps=100, warmup_steps=10, logging_steps=5, lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2}
    )
    run = json.loads(
        json.dumps(app.read_run({"name": "trainer_state.json", "text": state})["run"])
    )  # as the page keeps it
    figure, notes = app.draw(ask(PLAN, run=run))
    assert re.fullmatch(r"trainer_state\.json: all 20 logged .*\(steps 5 to 100\).* the schedule.*", *notes)
    logged = next(line for line in figure.axes[0].lines if len(line.get_ydata()) == 20)
    np.testing.assert_array_equal(logged.get_ydata(), logged_rates(trainer))
    np.testing.assert_array_equal(logged.get_xdata(), np.arange(4, 100, 5))
    figure, notes = app.draw(ask(PLAN | {"T_mult": "1", "num_training_steps": "50"}, run=run))
    assert "logged step 25" in notes[-1]
    assert figure.axes[0].get_xlim()[1] >= 99


def test_of_a_long_run_as_many_learning_rates_are_kept_as_a_page_can_hold_and_the_note_says_so():
    lines = "\n".join(json.dumps({"step": step, "learning_rate": 0.01}) for step in range(1, 2502))
    run = app.read_run({"name": "metrics.jsonl", "text": lines})["run"]
    assert (len(run.steps), run.steps[0], run.steps[-1]) == (app.MOST_LOGGED, 1, 2501)
    _, notes = app.draw(ask(PLAN, run=run))
    assert notes[-1].startswith("metrics.jsonl (1,000 of its 2,501 learning rates): ")


@pytest.mark.parametrize("text", ["", "not JSON", "[" * 100_000, '{"log_history": [{"step": 1, "loss": 2.0}]}'])
def test_a_file_that_logs_no_learning_rate_is_an_error_that_names_it(text):
    error = app.read_run({"name": "../some/trainer_state.json", "text": text})["error"]
    assert error.startswith("Expected trainer_state.json to be")
    assert "\n" not in error


def test_the_front_matter_names_the_app():
    front_matter = (FOLDER / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front_matter
    assert (FOLDER / re.search(r"app_file: (\S+)", front_matter)[1]).is_file()


def test_the_commands_of_the_readme_work_in_a_clone_and_a_space_installs_from_the_repository():
    install, serve = re.search(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)[1].splitlines()
    # Without an index, and without the packages that this one asks for: whether the clone is what is installed.
    dry = install.replace("pip install -e", "-m pip install --dry-run --no-index --no-deps --no-build-isolation")
    ran = subprocess.run([sys.executable, *shlex.split(dry)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Would install hf_warmcos" in ran.stdout
    extra = re.search(r"\[(\w+)\]", install)[1]
    needs = re.search(rf"^{extra} = (.*)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert ("gradio" in needs, "hf_warmcos[plot]" in needs) == (True, True)
    assert serve == f"python {APP}"  # as the tests below serve it
    repository = re.search(r'Repository = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert (FOLDER / "requirements.txt").read_text().split() == ["hf_warmcos[explorer]", "@", f"git+{repository}"]
