"""The command line."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from hf_warmcos import (
    CosineRestartSchedule,
    WarmCosTrainer,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)
from hf_warmcos.cli import PastRun, _parsers, cycle_table, main

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
    parameters = inspect.signature(get_cosine_restarts_with_decay_and_warmup_schedule).parameters
    arguments = {name: parameter.default for name, parameter in parameters.items()}
    del arguments["optimizer"], arguments["last_epoch"]
    arguments["num_warmup_steps"] = 0
    for command in ("plot", "table"):
        options = vars(_parsers()[0].parse_args([command]))
        assert arguments.items() <= options.items()


def test_the_table_lists_each_cycle_in_each_format(capsys):
    expected = list(cycle_table(SCHEDULE, 30, 1e-3))
    assert [(row["cycle"], row["start"], row["length"]) for row in expected] == [(0, 6, 8), (1, 14, 8), (2, 22, 8)]
    assert [row["peak_lr"] for row in expected] == pytest.approx([1e-3, 7.5e-4, 5.625e-4])
    assert [row["end_lr"] for row in expected] == [SCHEDULE.lr_at(step, 1e-3) for step in (13, 21, 29)]
    plan = ["table", *PLAN, "--decay", "0.75"]
    assert main([*plan, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*plan, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [{name: float(cell) for name, cell in row.items()} for row in rows] == expected
    assert main(plan) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["cycle", "start", "length", "peak_lr", "end_lr"]
    assert [[float(cell) for cell in line.split()] for line in lines] == [
        pytest.approx([*row.values()], rel=1e-5) for row in expected
    ]


def test_hyphens_do_as_well_as_underscores(capsys):
    main(["table", *PLAN, "--decay=0.75"])
    underscores = capsys.readouterr().out
    main(
        [
            "table",
            "--num-training-steps=30",
            "--num-cycles",
            "3",
            "--num-warmup-steps",
            "6",
            "--lr",
            "1e-3",
            "--decay",
            ".75",
        ]
    )
    assert capsys.readouterr().out == underscores


def test_restarts_without_end_are_listed_for_five_cycles_or_as_far_as_training_goes(capsys):
    main(["table", "--T_0", "10", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == 5
    main(["table", "--T_0", "10", "--num_training_steps", "80", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == 8


def test_the_librarys_warning_is_one_line_on_stderr(capsys):
    assert main(["table", "--T_0", "10", "--num_training_steps", "85", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 9
    assert err.startswith("hf-warmcos table: warning: Training ends inside a cycle")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["plot", "table"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_training_steps": 10, "num_cycles": 11},
        {"num_training_steps": 10, "num_warmup_steps": 11},
        {"num_training_steps": 10, "num_cycles": 2.5},
        {"T_0": 10, "T_mult": 0.5},
        {"T_0": 10, "decay": 0},
        {"T_0": 10, "decay": float("nan")},
        {"T_0": 10, "warmup_mode": "sideways"},
        {"T_0": 10, "min_lr": 0.1, "min_lr_rate": 0.1},
    ],
)
def test_wrong_arguments_are_the_librarys_error_in_one_line(command, arguments, make_optimizer, capsys):
    with pytest.raises((TypeError, ValueError)) as raised:
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), **({"num_warmup_steps": 0} | arguments))
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    assert error_of([command, *options], capsys) == f"hf-warmcos {command}: error: {raised.value}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["draw"], "invalid choice: 'draw'"),
        (["table", "--T_0", "ten"], "argument --T_0: invalid number value: 'ten'"),
        (["table", "--num_cycle", "3"], "unrecognized arguments: --num_cycle 3"),
        (["table", "--T_0", "10", "--lr", "-1"], "Expected lr >= 0, but got lr=-1"),
        (["table", "--T_0", "10", "--format", "xml"], "invalid choice: 'xml'"),
        (["plot", "--T_0", "10", "--output", "picture.gif"], "Expected output to end in .png or .svg"),
        (["plot", "--T_0", "10", "--output", "no/such/folder.png"], "No such file or directory"),
        (["plot", "--T_0", "10", "--from", "nothing.json"], "No such file or directory: 'nothing.json'"),
        (["run"], "the following arguments are required: SCRIPT"),
        (["run", "nothing.py", "--lr", "1"], "Expected SCRIPT to be a file, but got nothing.py"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert message in error_of(arguments, capsys)


def test_output_that_is_cut_off_is_no_error():
    table = subprocess.Popen(
        [sys.executable, "-m", "hf_warmcos", "table", "--T_0", "1", "--num_training_steps", "20000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with table:
        table.stdout.readline()
        table.stdout.close()
        assert table.stderr.read() == b""
    assert table.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["plot", "--help"], ["table", "-h"], ["run", "--help"]])
def test_help_is_printed_and_explains_each_option(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage: hf-warmcos")
    for parser in _parsers()[1].values():
        assert all(action.help for action in parser._actions)


def test_the_examples_of_the_help_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "learning_rate": 3e-4}]}))
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    hf-warmcos ((?:plot|table) .*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0


# plot


def test_the_plot_in_the_terminal_fits_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "20")
    assert main(["plot", *PLAN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 70
    assert any("⡇" in line or "⠉" in line for line in lines)


def test_an_svg_is_written_by_its_suffix(tmp_path):
    assert main(["plot", *PLAN, "--output", str(tmp_path / "schedule.svg")]) == 0
    assert "<svg" in (tmp_path / "schedule.svg").read_text()


def shown_by(picture):
    return json.loads(Image.open(picture).text["Description"])


def commands_in(document):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    return re.findall(r"^python -m hf_warmcos (plot .*--output docs/images/\S+)$", text, re.MULTILINE)


COMMANDS = [command for document in ("README.md", "docs/images/README.md") for command in commands_in(document)]


def test_each_picture_is_listed_and_each_picture_of_a_schedule_has_its_command():
    pictures = sorted((ROOT / "docs/images").glob("*.png"))
    listed = (ROOT / "docs/images/README.md").read_text()
    assert [path.name for path in pictures if path.name not in listed] == []
    of_schedules = {path.name for path in pictures if Image.open(path).text.get("Title") == "hf_warmcos schedule"}
    assert of_schedules == {Path(command.split()[-1]).name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_committed_picture_shows_what_its_command_shows_today(command, tmp_path):
    *arguments, picture = shlex.split(command)
    assert main([*arguments, str(tmp_path / "today.png")]) == 0
    shown, expected = shown_by(ROOT / picture), shown_by(tmp_path / "today.png")
    assert shown.pop("rates") == pytest.approx(expected.pop("rates"), rel=1e-9, abs=1e-15)
    assert shown == expected


# plot and table --from


class Model(torch.nn.Linear):
    def forward(self, x, labels=None):
        return {"loss": super().forward(x).sum()}


@pytest.fixture(scope="module")
def trainer_state(tmp_path_factory):
    """What a real Trainer leaves behind, and the rate that each of its optimizer steps used."""
    folder = tmp_path_factory.mktemp("run")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=30,
        logging_steps=1,
        learning_rate=1e-3,
        warmup_steps=6,
        lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75},
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    trainer = WarmCosTrainer(Model(1, 1), arguments, train_dataset=data)
    trainer.train()
    trainer.save_state()
    return folder / "trainer_state.json"


def test_a_trainers_log_of_the_planned_schedule_is_the_schedules(trainer_state, capsys):
    assert main(["table", *PLAN, "--decay", "0.75", "--from", str(trainer_state)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{trainer_state}: all 30 logged rates (steps 1 to 30) are the schedule's"
    )


@pytest.mark.parametrize("command", ["plot", "table"])
def test_where_a_trainers_log_parts_from_another_plan_is_said_with_both_rates(command, trainer_state, capsys):
    assert main([command, *PLAN, "--decay", "0.5", "--from", str(trainer_state)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{trainer_state}: parts from the schedule at logged step 15 (step 14 of the schedule): "
        "logged 0.00075, planned 0.0005"
    )


def test_a_log_that_an_older_trainer_wrote_after_the_schedulers_step_is_the_schedules_too(tmp_path):
    log = [{"step": step, "learning_rate": SCHEDULE.lr_at(step, 1e-3)} for step in range(5, 31, 5)]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": [*log, {"step": 30, "train_runtime": 1.0}]}))
    past_run = PastRun.read(str(state))
    assert past_run.positions(planned()) == [5, 10, 15, 20, 25, 30]
    assert "all 6 logged rates" in past_run.verdict(planned())


def planned():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    return get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 6, 30, num_cycles=3, decay=0.75)


@pytest.fixture
def metrics(tmp_path):
    """JSON lines as a training loop writes them, in single precision, with the rate that each update really used."""
    scheduler = planned()
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 31):
            rate = scheduler.optimizer.param_groups[0]["lr"]
            scheduler.optimizer.step()
            entry = {"step": step, "cycle": scheduler.cycle, "learning_rate": float(f"{rate:.7g}"), "loss": 1.0}
            file.write(json.dumps(entry) + "\n")
            scheduler.step()
    return path


def test_json_lines_of_the_planned_schedule_are_the_schedules(metrics, capsys):
    assert main(["table", *PLAN, "--decay", "0.75", "--from", str(metrics)]) == 0
    assert "all 30 logged rates (steps 1 to 30) are the schedule's" in capsys.readouterr().out


def test_json_lines_are_never_read_as_one_step_late(metrics, capsys):
    lines = metrics.read_text().splitlines()
    late = [json.dumps(json.loads(line) | {"step": step}) for step, line in enumerate(lines[1:], start=1)]
    metrics.write_text("\n".join(late))
    main(["table", *PLAN, "--decay", "0.75", "--from", str(metrics)])
    assert "parts from the schedule at logged step 1 (step 0 of the schedule)" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["csv", "json"])
def test_beside_a_table_for_programs_the_verdict_is_on_stderr(format, metrics, capsys):
    main(["table", *PLAN, "--decay", "0.75", "--format", format, "--from", str(metrics)])
    out, err = capsys.readouterr()
    assert "logged" not in out
    assert "all 30 logged rates" in err


def test_the_picture_holds_the_logged_rates(metrics, tmp_path, capsys):
    main(["plot", *PLAN, "--decay", "0.75", "--output", str(tmp_path / "plan.svg")])
    main(["plot", *PLAN, "--decay", "0.75", "--from", str(metrics), "--output", str(tmp_path / "both.svg")])
    assert "all 30 logged rates" in capsys.readouterr().out
    dots = [(tmp_path / name).read_text().count("<use ") for name in ("plan.svg", "both.svg")]
    assert dots[1] - dots[0] >= 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "to hold entries with a step >= 1 and a learning_rate, but got 0 of them"),
        ("{}", "but got 0 of them"),
        ('{"log_history": []}', "but got 0 of them"),
        ('{"step": 0, "learning_rate": 1.0}', "the first with step=0"),
        ('{"step": 1, "learning_rate": 1.0}\nEpoch 2', "line 2 is not"),
    ],
)
def test_a_file_without_logged_rates_is_an_error_that_names_it(text, message, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    error = error_of(["table", *PLAN, "--from", str(path)], capsys)
    assert message in error
    assert str(path) in error


# run

SCRIPT = """
import json, os, sys
import neighbour
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
line = json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "main": sys.modules["__main__"].__file__,
    "schedule": TYPE_TO_SCHEDULER_FUNCTION["cosine_with_restarts"].__name__, "rank": os.environ.get("RANK"),
})
os.write(1, f"{line}\\n".encode())  # in one piece: two processes write to one pipe
sys.exit(5)
"""
ARGUMENTS = ["--lr", "3", "--help", "--", "--num-cycles=4", "-x", ""]


@pytest.fixture
def script(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "neighbour.py").write_text("")
    (tmp_path / "scripts" / "train.py").write_text(SCRIPT)
    return Path("scripts", "train.py")


def run(command, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)


def said(ran):
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_run_runs_a_script_as_python_does_with_its_own_arguments_and_exit_code(script, tmp_path):
    ran = run(["hf_warmcos", "run", str(script), *ARGUMENTS], tmp_path)
    assert ran.returncode == 5, ran.stderr
    assert said(ran) == [
        {
            "argv": [str(script), *ARGUMENTS],
            "path": str(tmp_path / "scripts"),
            "name": "__main__",
            "main": str(script),
            "schedule": "get_cosine_restarts_with_decay_and_warmup_schedule",
            "rank": None,
        }
    ]


@pytest.mark.slow
def test_run_runs_under_accelerate_launch_in_each_process(script, tmp_path):
    script_path = tmp_path / script
    script_path.write_text(SCRIPT.replace("sys.exit(5)", ""))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    ran = run([*launch, "-m", "hf_warmcos", "run", str(script), *ARGUMENTS], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(process["rank"] for process in said(ran)) == ["0", "1"]
    assert {process["schedule"] for process in said(ran)} == {"get_cosine_restarts_with_decay_and_warmup_schedule"}
    assert all(process["argv"] == [str(script), *ARGUMENTS] for process in said(ran))


def test_importing_the_package_and_the_command_line_loads_nothing_heavy():
    code = """
import sys
import hf_warmcos, hf_warmcos.cli
print([name for name in ("accelerate", "datasets", "matplotlib", "plotille", "transformers") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"
