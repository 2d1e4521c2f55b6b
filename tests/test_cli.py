"""The command line."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from optimizers import make_optimizer
from PIL import Image
from transformers import TrainingArguments

import hf_warmcos
from hf_warmcos import CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.cli import main, parsers
from hf_warmcos.overview import cycle_table

ROOT = Path(__file__).parents[1]
PLAN = ["--num_training_steps", "30", "--num_cycles", "3", "--num_warmup_steps", "6", "--lr", "1e-3"]
SCHEDULE = CosineRestartSchedule.fit(30, 3, warmup_steps=6, decay=0.75)


def error_of(arguments, capsys):
    """The one line that a wrong command line prints, with exit code 2 and nothing on stdout."""
    with pytest.raises(SystemExit) as exit:
        raise SystemExit(main(arguments))
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.strip()


# table


def test_the_options_are_the_arguments_of_the_factory():
    arguments = {*inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters}
    for command in ("plot", "table"):
        options = {*vars(parsers()[0].parse_args([command]))}
        assert options - {"command", "lr", "past_run", "logging_steps", "output", "yscale", "format"} == arguments - {
            "optimizer",
            "last_epoch",
        }


def test_the_table_lists_each_cycle_in_each_format(capsys):
    rows = list(cycle_table(SCHEDULE, 30, 1e-3))
    assert [row[:3] for row in rows] == [(0, 6, 8), (1, 14, 8), (2, 22, 8)]
    assert [row.peak_lr for row in rows] == pytest.approx([1e-3, 7.5e-4, 5.625e-4])
    assert [row.end_lr for row in rows] == [SCHEDULE.lr_at(step, 1e-3) for step in (13, 21, 29)]
    expected = [row._asdict() for row in rows]
    plan = ["table", *PLAN, "--decay", "0.75"]
    assert main([*plan, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*plan, "--format", "csv"]) == 0
    written = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [{name: float(cell) for name, cell in row.items()} for row in written] == expected
    assert main(plan) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["cycle", "start", "length", "peak_lr", "end_lr"]
    assert [[float(cell) for cell in line.split()] for line in lines] == [pytest.approx(row, rel=1e-5) for row in rows]


def test_listed_cycles_and_a_plateau_are_listed(capsys):
    main(["table", "--cycles", "10,20:0.5", "--stable_ratio", "0.9", "--num_warmup_steps", "5", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["start"], row["length"], row["peak_lr"]) for row in rows] == [(5, 10, 1), (15, 20, 0.5)]
    assert rows[1]["end_lr"] == pytest.approx(0.25)  # in the middle of its two steps of cosine


def test_hyphens_do_as_well_as_underscores(capsys):
    main(["table", *PLAN, "--decay=0.75"])
    underscores = capsys.readouterr().out
    hyphens = [option.replace("_", "-") for option in PLAN]
    main(["table", *hyphens, "--decay", ".75"])
    assert capsys.readouterr().out == underscores


def test_names_that_users_of_hugging_face_type_are_aliases(capsys):
    main(["table", "--num_training_steps", "100", "--num_warmup_steps", "10", "--lr", "3e-4"])
    expected = capsys.readouterr().out
    for names in (["max_steps", "warmup_steps", "learning_rate"], ["max-steps", "warmup_ratio", "learning-rate"]):
        values = ["100", "10" if names[1] == "warmup_steps" else "0.1", "3e-4"]
        assert main(["table", *(f"--{name}={value}" for name, value in zip(names, values))]) == 0
        assert capsys.readouterr().out == expected


def test_min_lr_rate_is_a_fraction_of_lr(capsys):
    tables = []
    for minimum in (["--min_lr_rate", "0.1"], ["--min_lr", "1e-4"]):
        main(["table", *PLAN, *minimum, "--format", "json"])
        tables.append(json.loads(capsys.readouterr().out))
    last_step = CosineRestartSchedule.fit(30, 3, warmup_steps=6, eta_min=1e-4).lr_at(13, 1e-3)
    assert [row["end_lr"] for row in tables[0]] == pytest.approx([last_step] * 3)
    assert tables[0] == [pytest.approx(row) for row in tables[1]]


@pytest.mark.parametrize(("warmup", "steps"), [("0.03", 31), ("0.0001", 1), ("0", 0), ("1", 1), ("7", 7)])
def test_a_warmup_below_1_is_a_fraction_of_the_training_as_in_training_arguments(warmup, steps, tmp_path, capsys):
    assert TrainingArguments(str(tmp_path), warmup_steps=float(warmup)).get_warmup_steps(1001) == steps
    main(["table", "--num_training_steps", "1001", "--num_warmup_steps", warmup, "--format", "json"])
    assert json.loads(capsys.readouterr().out)[0]["start"] == steps


def test_restarts_without_end_are_listed_for_five_cycles_or_as_far_as_training_goes(capsys):
    main(["table", "--T_0", "10", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == 5
    main(["table", "--T_0", "10", "--num_training_steps", "80", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == 8


@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_where_the_warmup_takes_all_steps_the_table_has_the_cycle_after_it(form, capsys):
    plan = ["table", "--T_0", "10", "--num_warmup_steps", "9", "--num_training_steps", "9"]
    assert main([*plan, "--format", form]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert [int(number) for number in re.findall(r"\b\d+\b", row)[:3]] == [0, 9, 10]


def test_the_librarys_warning_is_one_line_on_stderr(capsys):
    assert main(["table", "--T_0", "10", "--num_training_steps", "85", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 9
    assert err.startswith("hf-warmcos table: warning: Training ends inside a cycle")
    assert err.count("\n") == 1


def test_a_minimum_above_the_rate_is_a_warning(capsys):
    assert main(["table", "--T_0", "10", "--lr", "1e-4", "--min_lr", "1e-3"]) == 0
    assert "warning: The minimum 0.001 is above the initial learning rate 0.0001" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plot", "table"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_training_steps": 10, "num_cycles": 11},
        {"num_training_steps": 10, "num_warmup_steps": 11},
        {"num_training_steps": 10, "num_cycles": 2.5},
        {"T_0": 10, "T_mult": 0.5},
        {"T_0": 10, "decay": 0},
        {"T_0": 10, "decay": float("nan")},
        {"T_0": 10, "warmup_mode": "sideways"},
        {"T_0": 10, "min_lr": 0.1, "min_lr_rate": 0.1},
        {"T_0": 10, "stable_ratio": 1},
        {"T_0": 1e300},
        {"T_0": 10, "num_training_steps": 1e300},
    ],
)
def test_wrong_arguments_are_the_librarys_error_in_one_line(command, arguments, capsys):
    with pytest.raises((TypeError, ValueError)) as raised:
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), **({"num_warmup_steps": 0} | arguments))
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    assert error_of([command, *options], capsys) == f"hf-warmcos {command}: error: {raised.value}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw"], "invalid choice: 'draw'"),
        (["plto"], "(did you mean 'plot'?)"),
        (["plot"], "hf-warmcos plot: error: give one of --num_training_steps, --T_0, --cycles"),
        (["table", "--num_cycles", "3"], "hf-warmcos table: error: give one of --num_training_steps, --T_0, --cycles"),
        (["table", "--T_0", "9", "--num_warmup_steps", "0.1"], "Expected num_warmup_steps to be a whole number"),
        (["table", "--T_0", "ten"], "argument --T_0: invalid number value: 'ten'"),
        (
            ["table", "--nun-cycles", "3"],
            "hf-warmcos table: error: unrecognized arguments: --nun_cycles 3 (did you mean 'num_cycles'?)",
        ),
        (["plot", "--t_0=3"], "hf-warmcos plot: error: unrecognized arguments: --t_0=3 (did you mean 'T_0'?)"),
        (["table", "--T_0", "3", "--colour", "red"], "unrecognized arguments: --colour red"),
        (
            ["table", "--cycles", "1000,2000:a"],
            "argument --cycles: expected STEPS or STEPS:FRACTION, as 1000,2000,4000:0.5, or a JSON list, but got",
        ),
        (["plot", "--min-lr-ratio", "0.1"], "--min_lr_ratio 0.1 (did you mean 'min_lr_rate'?)"),
        (["plot", "--gamma", "0.5"], "--gamma 0.5 (did you mean 'decay'?)"),
        (["plot", "--learning_rates", "1"], "(did you mean 'learning_rate'?)"),
        (["plot", "--T_0", "10", "--yscale", "liner"], "(did you mean 'linear'?)"),
        (["table", "--cycles", "10,20:0.5:3"], "but got cycles[1]=[20, 0.5, 3]"),
        (["table", "--cycles", "10,20", "--T_0", "5"], "Expected cycles in place of T_0"),
        (["table", "--T_0", "10", "--lr", "-1"], "Expected lr >= 0, but got lr=-1"),
        (["table", "--T_0", "10", "--lr", "1e200"], "Expected lr <= 1e+150, but got lr=1e+200"),
        (["table", "--num_training_steps", "10", "--decay", "0.5"], "Expected num_cycles with decay or T_mult"),
        (["table", "--T_0", "10", "--format", "xml"], "invalid choice: 'xml'"),
        (["plot", "--T_0", "10", "--output", "picture.gif"], "Expected output to end in .png, .pdf or .svg"),
        (["plot", "--T_0", "10", "--output", "no/such/folder.png"], "No such file or directory"),
        (["plot", "--T_0", "10", "--yscale", "cubic"], "invalid choice: 'cubic'"),
        (["plot", "--T_0", "10", "--from", "nothing.json"], "No such file or directory: 'nothing.json'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert message in error_of(arguments, capsys)


@pytest.mark.parametrize("argument", ["--output x", "--colour red", "--epochs 3", "--logging_dir x"])
def test_what_is_near_to_no_option_gets_no_hint(argument, capsys):
    error = error_of(["table", "--T_0", "3", *argument.split()], capsys)
    assert error == f"hf-warmcos table: error: unrecognized arguments: {argument}"


@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_a_table_of_10_to_the_11_cycles_begins_at_once_and_may_be_cut_off(form):
    command = [sys.executable, "-m", "hf_warmcos", "table", "--T_0=10", "--num_training_steps=1e12", "--format", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as table:
        assert b"cycle" in table.stdout.readline() + table.stdout.readline()
        table.stdout.close()
        assert table.stderr.read() == b""
    assert table.returncode == 0


def in_a_shell(arguments, redirected):
    """The command with its output redirected by a shell, as a user's Python runs it: with a buffer."""
    command = f"set -o pipefail; {sys.executable} -m hf_warmcos {arguments} {redirected}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)


PRINTING = ["table --T_0 10", "plot --T_0 10", "--help", "table --help", "run --help", "--version"]


@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-", "2>&- | tail -c 0", "| true"])
@pytest.mark.parametrize("arguments", PRINTING)
def test_where_nobody_reads_the_output_nothing_is_said(arguments, redirected):
    ran = in_a_shell(arguments, redirected)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("arguments", [*PRINTING, "table --T_0 10 --num_training_steps 1e9"])
def test_output_that_does_not_fit_onto_the_disk_is_one_line_and_exit_code_2(arguments):
    ran = in_a_shell(arguments, "> /dev/full")
    assert ran.returncode == 2
    assert re.fullmatch(r"hf-warmcos( \w+)?: error: .*No space left on device\n", ran.stderr)


def test_a_wrong_argument_is_named_also_where_the_output_fits_nowhere():
    ran = in_a_shell("table --T_0 0", "> /dev/full")
    assert (ran.returncode, ran.stderr) == (2, "hf-warmcos table: error: Expected T_0 > 0, but got T_0=0\n")


def test_a_warning_goes_nowhere_but_to_stderr():
    ran = in_a_shell("table --T_0 10 --num_training_steps 85 --format json", "2>&-")
    assert len(json.loads(ran.stdout)) == 9


def test_a_verdict_is_the_exit_code_also_where_nobody_reads_it(tmp_path):
    for logged, code in ((1.0, 0), (0.5, 1)):
        (tmp_path / "log.json").write_text(json.dumps([{"step": 1, "learning_rate": logged}]))
        assert in_a_shell(f"table --T_0 10 --from {tmp_path}/log.json", ">&-").returncode == code


def test_a_table_that_is_interrupted_ends_without_a_traceback():
    # A shell lets what it runs in the background ignore Ctrl-C, also these tests.
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    table = "import sys; from hf_warmcos.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", f"{reset}; {table}", "table", "--T_0=10", "--num_training_steps=1e12"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as table:
        table.stdout.readline()
        table.send_signal(signal.SIGINT)
        table.stdout.read()
        assert table.stderr.read() == b""
    assert table.returncode == 130


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"hf-warmcos {hf_warmcos.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["plot", "--help"], ["table", "-h"], ["run", "--help"]])
def test_help_is_printed_fits_a_terminal_and_explains_each_option(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: hf-warmcos")
    assert max(map(len, printed.splitlines())) <= 80
    for parser in parsers()[1].values():
        assert all(action.help for action in parser._actions)


def test_without_arguments_the_help_is_printed(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 0
    assert capsys.readouterr().out == parsers()[0].format_help()


@pytest.mark.parametrize("command", [[], ["plot"], ["table"]])
def test_the_help_fits_80_columns_with_the_schedules_options_first(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    if command:
        assert 0 < printed.index("schedule options:") < printed.index("--T_mult") < printed.index("\noptions:")


def test_the_examples_of_the_help_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("output/checkpoint-500").mkdir(parents=True)
    Path("output/checkpoint-500/trainer_state.json").write_text('{"log_history": [{"step": 1, "learning_rate": 3e-4}]}')
    text = parsers()[0].format_help().replace("\\\n", " ")
    commands = re.findall(r"^    hf-warmcos ((?:plot|table) .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert Path("schedule.png").exists()


def test_the_longest_cycles_that_can_be_counted_are_shown(capsys):
    for command in ("table", "plot"):
        assert main([command, "--T_0", "9e18"]) == 0
    assert "9000000000000000000" in capsys.readouterr().out


# plot


@pytest.mark.parametrize(("columns", "lines"), [(70, 20), (10, 10)])
def test_the_plot_in_the_terminal_fits_it(columns, lines, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    assert main(["plot", *PLAN]) == 0
    picture = capsys.readouterr().out.splitlines()
    assert len(picture) < lines
    assert max(map(len, picture)) <= columns
    assert any("\u2800" < character < "\u2900" for line in picture for character in line)


def test_an_output_that_knows_only_ascii_gets_question_marks_where_the_curve_is(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    assert main(["plot", *PLAN]) == 0
    assert output.getvalue().count(b"?") > 50


def test_the_scale_is_the_users_in_the_terminal_and_in_a_file(tmp_path, capsys):
    plan = ["plot", *PLAN, "--min_lr", "1e-6", "--decay", "0.25", "--yscale"]
    for scale in ("linear", "log"):
        assert main([*plan, scale]) == 0
        assert main([*plan, scale, "--output", str(tmp_path / f"{scale}.svg")]) == 0
    linear, log = capsys.readouterr().out.split("wrote")[:2]
    assert "1e-5┤" not in linear
    assert "1e-5┤" in log
    assert (tmp_path / "linear.svg").read_text() != (tmp_path / "log.svg").read_text()


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF")])
def test_a_picture_is_written_by_its_suffix_and_its_name_is_printed(suffix, begins, tmp_path, capsys):
    path = tmp_path / f"schedule{suffix}"
    assert main(["plot", *PLAN, "--output", str(path)]) == 0
    assert path.read_bytes().startswith(begins)
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_a_svg_says_what_it_shows_as_a_png_does(tmp_path):
    for name in ("schedule.svg", "schedule.png"):
        main(["plot", *PLAN, "--output", str(tmp_path / name)])
    svg = ElementTree.parse(tmp_path / "schedule.svg")
    (description,) = svg.iter("{http://purl.org/dc/elements/1.1/}description")
    assert json.loads(description.text) == json.loads(Image.open(tmp_path / "schedule.png").text["Description"])


@pytest.mark.parametrize("arguments", ["--help", "table --T_0 10", "plot --T_0 10"])
def test_a_command_imports_few_modules_and_no_torch(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "hf_warmcos", *arguments.split()]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in ran.stderr.splitlines()}
    assert "hf_warmcos.schedule" in imported
    assert len(imported) < 300
    assert not imported & {"torch", "transformers", "accelerate", "matplotlib"}
