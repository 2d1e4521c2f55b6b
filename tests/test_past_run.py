"""The rates that a run logged, held against a schedule."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, WarmCosTrainer
from hf_warmcos.cli import main
from hf_warmcos.past_run import PastRun

PLAN = ["--num_training_steps", "30", "--num_cycles", "3", "--num_warmup_steps", "6", "--lr", "1e-3"]
SCHEDULE = CosineRestartSchedule.fit(30, 3, warmup_steps=6, decay=0.75)


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
    comparison = PastRun.read(str(state)).compare(SCHEDULE, 1e-3)
    assert comparison.positions == [5, 10, 15, 20, 25, 30]
    assert "all 6 logged rates" in comparison.verdict


@pytest.fixture
def metrics(tmp_path):
    """JSON lines as a training loop writes them, in single precision, with the rate that each update really used."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 31):
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
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


@given(
    T_0=st.integers(3, 20),
    decay=st.floats(0.5, 1),
    factor=st.floats(1e-6, 0.5),
    wrong=st.none() | st.integers(0, 39),
)
def test_rates_that_are_all_the_plans_times_one_factor_are_told_from_rates_that_part(T_0, decay, factor, wrong):
    schedule = CosineRestartSchedule(T_0=T_0, decay=decay)
    rates = schedule.curve(40, factor).tolist()
    if wrong is not None:
        rates[wrong] *= 1.5
    run = PastRun("run", list(range(1, 41)), rates, is_trainer_state=False)
    comparison = run.compare(schedule)
    assert comparison.first_difference == 0
    assert comparison.factor == (pytest.approx(factor) if wrong is None else None)
    assert ("--lr" in comparison.verdict) == (wrong is None)
    assert run.compare(schedule, factor).first_difference == (40 if wrong is None else wrong)


def test_where_the_rate_was_forgotten_the_verdict_says_so(metrics, trainer_state, capsys):
    for path in (metrics, trainer_state):
        main(["table", *PLAN[:-2], "--decay", "0.75", "--from", str(path)])
        assert "are the schedule's times 0.001: --lr 0.001 was probably forgotten" in capsys.readouterr().out
    main(["table", *PLAN[:-2], "--lr=5e-4", "--decay", "0.75", "--from", str(metrics)])
    assert "times 2: --lr 0.001 was probably meant, not --lr 0.0005" in capsys.readouterr().out


def test_a_single_rate_is_not_taken_for_a_forgotten_rate():
    run = PastRun("run", [1], [0.3], is_trainer_state=True)
    assert "parts from the schedule at logged step 1" in run.compare(CosineRestartSchedule(T_0=10)).verdict


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no learning_rate is logged"),
        (b"{}", "no learning_rate is logged"),
        (b"[1, 2]", "no learning_rate is logged"),
        (b'{"log_history": []}', "no learning_rate is logged"),
        (b'{"log_history": 5}', "Expected log_history to be a list, but got log_history=5"),
        (b'{"step": 0, "learning_rate": 1.0}', "Expected step >= 1, but got step=0"),
        (b'{"step": true, "learning_rate": 1.0}', "Expected step to be a number, but got step=True"),
        (b'{"learning_rate": 1.0}', "Expected step to be a number, but got step=None"),
        (b'{"step": 1, "learning_rate": "x"}', "Expected learning_rate to be a number, but got learning_rate='x'"),
        (b'{"step": 1, "learning_rate": [1.0]}', "Expected learning_rate to be a number, but got learning_rate=[1.0]"),
        (b'{"step": 1, "learning_rate": NaN}', "Expected learning_rate to be finite, but got learning_rate=nan"),
        (b'{"step": 1, "learning_rate": 1.0}\n\nEpoch 2', "line 3 is not JSON"),
        (b"\x89PNG\xff\x00", "can't decode byte 0x89"),
    ],
)
def test_a_file_that_is_no_log_is_an_error_of_one_line_that_names_it(content, message, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        main(["table", *PLAN, "--from", str(path)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert f"Expected {path} to be a Trainer's trainer_state.json, or JSON lines" in error
