"""The learning rates that a run logged, compared with a schedule."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.scalar import scalars_plugin
from torch.utils.tensorboard import SummaryWriter
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
def run(tmp_path_factory):
    """The folder of a real Trainer's run, with a checkpoint, its final state and what TensorBoard makes of it."""
    folder = tmp_path_factory.mktemp("run")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=30,
        logging_steps=1,
        learning_rate=1e-3,
        warmup_steps=6,
        lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75},
        report_to="tensorboard",
        save_steps=20,
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    trainer = WarmCosTrainer(Model(1, 1), arguments, train_dataset=data)
    trainer.train()
    trainer.save_state()
    (folder / "log_history.json").write_text(json.dumps(trainer.state.log_history))
    of_tensorboard = scalars_plugin.OutputFormat
    (folder / "tensorboard.csv").write_text(exported(folder, "train/learning_rate", of_tensorboard.CSV))
    (folder / "tensorboard.json").write_text(json.dumps(exported(folder, "train/learning_rate", of_tensorboard.JSON)))
    return folder


def exported(folder, tag, form):
    """What TensorBoard's page offers for download."""
    (events,) = folder.glob("**/events.out.tfevents.*")
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRun(str(events.parent), "train").Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(events.parent))
    context = base_plugin.TBContext(multiplexer=multiplexer, data_provider=provider)
    plugin = scalars_plugin.ScalarsPlugin(context)
    values, _ = plugin.scalars_impl(RequestContext(), tag, "train", "", form)
    return values


@pytest.fixture
def trainer_state(run):
    return run / "trainer_state.json"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("trainer_state.json", 30),
        ("checkpoint-20", 20),
        ("log_history.json", 30),
        ("tensorboard.csv", 30),
        ("tensorboard.json", 30),
    ],
)
def test_a_trainers_log_of_the_planned_schedule_matches_it_in_each_form(name, count, run, capsys):
    assert main(["table", *PLAN, "--decay", "0.75", "--from", str(run / name)]) == 0
    file = run / name if count == 30 else run / name / "trainer_state.json"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{file}: all {count} logged learning rates (steps 1 to {count}) match the schedule"
    )


@pytest.mark.parametrize("command", ["plot", "table"])
def test_the_first_difference_is_named_with_both_learning_rates_and_the_exit_code_is_1(command, trainer_state, capsys):
    assert main([command, *PLAN, "--decay", "0.5", "--from", str(trainer_state)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{trainer_state}: differs from the schedule at logged step 15 (step 14 of the schedule): "
        "logged 0.00075, planned 0.0005"
    )


def test_the_state_knows_the_length_of_the_training_where_none_is_given(run, capsys):
    plan = ["--num_cycles", "3", "--num_warmup_steps", "6", "--lr", "1e-3", "--decay", "0.75"]
    for name in ("trainer_state.json", "checkpoint-20"):
        assert main(["table", *plan, "--from", str(run / name)]) == 0
    with pytest.raises(SystemExit):
        main(["table", *plan, "--from", str(run / "tensorboard.csv")])
    assert "give one of --num_training_steps, --T_0, --cycles" in capsys.readouterr().err
    assert main(["table", *PLAN, "--num_training_steps", "60", "--decay", "0.75", "--from", str(run)]) == 1


RATES = [(step, SCHEDULE.lr_at(step - 1, 1e-3)) for step in range(1, 31)]
LOGS = {
    "TensorBoard's CSV": "Wall time,Step,Value\n" + "".join(f"1.7e9,{step},{rate}\n" for step, rate in RATES),
    "the CSV of a panel of Weights & Biases": (
        '"train/global_step","swift-sun-1 - train/learning_rate","swift-sun-1 - train/learning_rate__MIN",'
        '"swift-sun-1 - train/learning_rate__MAX"\n' + "".join(f'"{s}","{r}","{r}","{r}"\n' for s, r in RATES)
    ),
    "the CSV of a history of Weights & Biases": (
        "_step,train/loss,train/learning_rate,train/global_step,eval/loss\n"
        + "".join(f"{2 * step},0.5,{rate},{step},\n{2 * step + 1},,,{step},0.4\n" for step, rate in RATES)
    ),
    "the JSON lines of a history of Weights & Biases": "\n".join(
        json.dumps({"_step": 2 * step, "train/learning_rate": rate, "train/global_step": step}) for step, rate in RATES
    ),
    "a loop's CSV with the mark of spreadsheets": "\ufeffstep,lr\n"
    + "".join(f"{step},{rate}\n" for step, rate in RATES),
    "JSON lines with others' learning rates": "\n".join(
        json.dumps({"step": step, "micro_step": 8 * step, "text_lr": 1.0, "lr": rate, "min_lr": 0.0})
        for step, rate in RATES
    ),
    "steps in disorder": "step,lr\n" + "".join(f"{step}.0,{rate}\n" for step, rate in reversed(RATES)),
    "a step logged twice, by a run and its continuation": "step,lr\n5,7\n"
    + "".join(f"{step},{rate}\n" for step, rate in RATES),
}


@pytest.mark.parametrize("form", LOGS)
def test_logs_of_other_tools_are_read(form, tmp_path):
    (tmp_path / "log").write_text(LOGS[form], encoding="utf-8")
    (past_run,) = PastRun.read(str(tmp_path / "log"))
    assert (past_run.steps, past_run.rates) == tuple(map(list, zip(*RATES)))
    assert past_run.compare(SCHEDULE, 1e-3).factor == 1


@pytest.mark.parametrize("first", [0, 5])
def test_a_log_written_after_the_schedulers_step_matches_too_and_the_verdict_says_so(first, tmp_path):
    log = [{"step": step, "learning_rate": SCHEDULE.lr_at(step, 1e-3)} for step in range(first, 31, 5)]
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [*log, {"step": 30, "train_runtime": 1.0}]})
    )
    (past_run,) = PastRun.read(str(tmp_path))
    comparison = past_run.compare(SCHEDULE, 1e-3)
    assert comparison.positions == [*range(first, 31, 5)]
    where = f"(steps {first} to 30; step k has the learning rate after k updates)"
    assert f"{where} match the schedule" in comparison.verdict


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
            entry = {"step": step, "cycle": scheduler.cycle_index, "learning_rate": float(f"{rate:.7g}"), "loss": 1.0}
            file.write(json.dumps(entry) + "\n")
            scheduler.step()
    return path


def test_a_scheduler_that_is_one_step_early_is_a_difference(metrics, capsys):
    lines = metrics.read_text().splitlines()
    early = [json.dumps(json.loads(line) | {"step": step - 2}) for step, line in enumerate(lines, start=1)]
    metrics.write_text("\n".join(early[2:]))
    assert main(["table", *PLAN, "--decay", "0.75", "--from", str(metrics)]) == 1
    assert "differs from the schedule at logged step 1 (step 0 of the schedule)" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["csv", "json"])
def test_beside_a_table_for_programs_the_verdict_is_on_stderr(format, metrics, capsys):
    main(["table", *PLAN, "--decay", "0.75", "--format", format, "--from", str(metrics)])
    out, err = capsys.readouterr()
    assert "logged" not in out
    assert "all 30 logged learning rates" in err


def test_the_picture_holds_the_logged_learning_rates(metrics, tmp_path, capsys):
    main(["plot", *PLAN, "--decay", "0.75", "--output", str(tmp_path / "plan.svg")])
    main(["plot", *PLAN, "--decay", "0.75", "--from", str(metrics), "--output", str(tmp_path / "both.svg")])
    assert "all 30 logged learning rates" in capsys.readouterr().out
    dots = [(tmp_path / name).read_text().count("<use ") for name in ("plan.svg", "both.svg")]
    assert dots[1] - dots[0] >= 30


def test_a_run_that_is_longer_than_the_plan_is_shown_to_its_end(metrics, capsys):
    assert main(["plot", "--T_0", "8", "--num_cycles", "1", "--from", str(metrics)]) == 1
    assert capsys.readouterr().out.count("x") > 10


def test_the_picture_ends_with_the_plan_where_the_run_does(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("hf_warmcos.plotting.save_picture", lambda path, schedule, steps, *_, **__: drawn.append(steps))
    for steps in ("30", "10"):
        plan = ["plot", "--T_0", "8", "--num_training_steps", steps, "--output", str(tmp_path / "plan.svg")]
        main([*plan, "--from", str(run / "trainer_state.json")])
    assert drawn == [30, 30]


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
    run = PastRun("run", list(range(1, 41)), rates)
    comparison = run.compare(schedule)
    assert comparison.first_difference < 40
    assert comparison.factor == (pytest.approx(factor) if wrong is None else None)
    assert ("--lr" in comparison.verdict) == (wrong is None)
    assert run.compare(schedule, factor).first_difference == (40 if wrong is None else wrong)


def test_where_the_learning_rate_was_forgotten_the_verdict_says_so(metrics, trainer_state, capsys):
    for path in (metrics, trainer_state):
        assert main(["table", *PLAN[:-2], "--decay", "0.75", "--from", str(path)]) == 1
        assert "match the schedule times 0.001: did you mean --lr 0.001?" in capsys.readouterr().out
    assert main(["table", *PLAN[:-2], "--lr=5e-4", "--decay", "0.75", "--from", str(metrics)]) == 1
    assert "times 2: did you mean --lr 0.001?" in capsys.readouterr().out


def test_a_single_learning_rate_is_not_taken_for_a_forgotten_one():
    run = PastRun("run", [1], [0.3])
    assert "differs from the schedule at logged step 1" in run.compare(CosineRestartSchedule(T_0=10)).verdict


def test_a_log_of_zeros_and_one_other_learning_rate_is_the_plan_times_no_factor():
    schedule = CosineRestartSchedule(T_0=10, warmup_steps=1, warmup_mode="prefix")
    comparison = PastRun("run", [1, 2], [0.0, 0.3]).compare(schedule)
    assert comparison.planned == [0.0, 1.0]
    assert comparison.factor is None


RATE_COLUMN = "expected a column of learning rates, whose name ends in learning_rate or lr, or is Value"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", RATE_COLUMN),
        (b"{}", RATE_COLUMN),
        (b"[1, 2]", RATE_COLUMN),
        (b"hello", RATE_COLUMN),
        (b"step,loss\n1,2", RATE_COLUMN),
        (b"a_step,b_step,lr\n1,2,3", "expected one column of steps, but got a_step, b_step"),
        (b'{"metric": "train/loss", "values": [{"step": 1, "value": 1.0}]}', RATE_COLUMN),
        (b'{"log_history": []}', RATE_COLUMN),
        (b'{"log_history": 5}', "not iterable"),
        (b'{"step": 1, "learning_rate": null}', "no learning_rate is logged"),
        (b"step,lr\n1,\n", "no lr is logged"),
        (b'{"step": -1, "learning_rate": 1.0}', "Expected step >= 0, but got step=-1"),
        (b'{"step": 1.5, "learning_rate": 1.0}', "Expected step to be a whole number, but got step=1.5"),
        (b'{"step": null, "learning_rate": 1.0}', "expected step to be a finite number, but got None"),
        (b'{"step": 1, "learning_rate": 1}\n{"learning_rate": 1}', "expected step to be a finite number, but got None"),
        (b'{"step": 1, "learning_rate": "x"}', "expected learning_rate to be a finite number, but got 'x'"),
        (b'{"step": 1, "learning_rate": [1.0]}', "expected learning_rate to be a finite number, but got [1.0]"),
        (b'{"step": 1, "learning_rate": NaN}', "expected learning_rate to be a finite number, but got nan"),
        (b"step,lr\n1,high", "expected lr to be a finite number, but got 'high'"),
        (b"[" * 100_000, "recursion"),
        (b"a" * 200_000, "larger than field limit"),
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
    expected = "a trainer_state.json, an event file of TensorBoard, or a log as CSV, JSON or text"
    assert f"Expected {path} to be {expected}" in error


def test_a_folder_without_a_trainers_state_is_an_error_that_names_the_file(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["table", *PLAN, "--from", str(tmp_path)])
    assert f"No such file or directory: '{tmp_path / 'trainer_state.json'}'" in capsys.readouterr().err


# What tools write: 30 steps with a warmup of 6 and cycles of 8, if nothing else is said. The plans are those of `main`.

RIGHT = [*PLAN, "--decay", "0.75"]
WRONG = [*PLAN, "--decay", "0.75", "--num_cycles", "2"]


def outcome(path, plan=RIGHT, *options, capsys):
    """The exit code for a plan, and the verdict."""
    code = main(["table", *plan, *options, "--from", str(path)])
    return code, capsys.readouterr().out.splitlines()[-1]


class LightningModel(lightning.LightningModule):
    def __init__(self, groups):
        super().__init__()
        self.layers, self.groups = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in groups), groups

    def training_step(self, batch, index):
        loss = sum(layer(batch).mean() for layer in self.layers)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        groups = [{"params": layer.parameters(), **group} for layer, group in zip(self.layers, self.groups)]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        if any("frozen" in group for group in self.groups):
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, [lambda step: SCHEDULE.lr_at(step), lambda step: 1 - step / 60]
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.fixture
def lightning_run(tmp_path):
    """Run Lightning with these parameter groups, and return the folder of its logs."""

    def start(*groups, log_every_n_steps=1):
        loggers = [CSVLogger(tmp_path, "csv", ""), TensorBoardLogger(tmp_path, "tensorboard", "")]
        trainer = lightning.Trainer(
            max_steps=30,
            accelerator="cpu",
            logger=loggers,
            callbacks=[LearningRateMonitor(log_momentum=True, log_weight_decay=True)],
            log_every_n_steps=log_every_n_steps,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(LightningModel(groups), torch.utils.data.DataLoader(torch.ones(40, 1), batch_size=4))
        return tmp_path

    return start


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
class TestLightning:
    @pytest.mark.parametrize("every", [1, 4])
    @pytest.mark.parametrize("log", ["csv/metrics.csv", "tensorboard"])
    def test_its_logs_match(self, log, every, lightning_run, capsys):
        path = lightning_run({}, log_every_n_steps=every) / log
        code, verdict = outcome(path, capsys=capsys)
        count, first, last = 30 // every, every - 1, 30 // every * every - 1
        where = f"(steps {first} to {last}; step k has the learning rate after k updates)"
        assert (code, verdict) == (0, f"{path}: all {count} logged learning rates {where} match the schedule")
        assert outcome(path, WRONG, capsys=capsys)[0] == 1

    def test_parameter_groups_that_are_equal_up_to_a_factor_are_one(self, lightning_run, capsys):
        path = lightning_run({}, {"lr": 1e-4}, {"lr": 0.0}) / "csv" / "metrics.csv"
        for lr in ("1e-3", "1e-4"):
            code, verdict = outcome(path, RIGHT, "--lr", lr, capsys=capsys)
            assert (code, "all 30 logged learning rates of 3 parameter groups (steps 0" in verdict) == (0, True)
        code, verdict = outcome(path, RIGHT, "--lr", "1e-2", capsys=capsys)
        assert (code, "match the schedule times 0.1: did you mean --lr 0.001?" in verdict) == (1, True)

    def test_parameter_groups_that_differ_are_named(self, lightning_run, capsys):
        path = lightning_run({}, {"frozen": True}) / "csv" / "metrics.csv"
        assert main(["table", *RIGHT, "--from", str(path)]) == 1
        one, other = capsys.readouterr().out.splitlines()[-2:]
        assert one.startswith(f"{path}, lr-AdamW/pg1: all 30 logged learning rates")
        assert other.startswith(f"{path}, lr-AdamW/pg2: differs from the schedule at logged step 0")


class TestTensorBoard:
    def test_the_folder_and_the_file_that_a_trainer_writes_match(self, run, capsys):
        (events,) = (run / "runs").glob("*/events*")
        for path in (run / "runs", events.parent, events):
            assert outcome(path, capsys=capsys)[0] == 0
            assert outcome(path, WRONG, capsys=capsys)[0] == 1

    def test_values_that_are_written_as_tensors_are_read_too(self, tmp_path, capsys):
        with SummaryWriter(str(tmp_path)) as writer:
            for step, rate in RATES:
                writer.add_scalar("lr", rate, step, new_style=True)
                writer.add_text("note", "text", step)
                writer.add_histogram("weights", torch.ones(3), step)
        assert outcome(tmp_path, capsys=capsys) == (
            0,
            f"{tmp_path}: all 30 logged learning rates (steps 1 to 30) match the schedule",
        )

    def test_several_runs_in_one_folder_are_an_error_that_names_them(self, run, tmp_path, capsys):
        for name in ("a", "b"):
            shutil.copytree(run / "runs", tmp_path / name)
        with pytest.raises(SystemExit):
            main(["table", *RIGHT, "--from", str(tmp_path)])
        assert re.search(r"it holds several runs, expected one of .*/a/.*, .*/b/", capsys.readouterr().err)

    def test_without_tensorboard_the_error_says_what_to_install(self, run, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
        with pytest.raises(SystemExit):
            main(["table", *RIGHT, "--from", str(run / "runs")])
        assert "reading it needs tensorboard: pip install tensorboard" in capsys.readouterr().err


def test_an_output_folder_without_a_state_is_that_of_its_newest_complete_checkpoint(run, tmp_path, capsys):
    for step in (10, 20):
        shutil.copytree(run / "checkpoint-20", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-30").mkdir()
    assert outcome(tmp_path, capsys=capsys)[1].startswith(f"{tmp_path}/checkpoint-20/trainer_state.json: all 20 ")
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text('{"log_hi')
    assert outcome(tmp_path, capsys=capsys)[1].startswith(f"{tmp_path}/checkpoint-10/trainer_state.json: all 20 ")


@pytest.mark.parametrize(("every", "disable_tqdm"), [(1, False), (4, False), (4, True)])
def test_what_a_trainer_prints_matches(every, disable_tqdm, tmp_path, capsys):
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=30,
        warmup_steps=6,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        lr_scheduler_kwargs={"num_cycles": 3, "decay": 0.75},
        logging_steps=every,
        logging_first_step=True,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="no",
        disable_tqdm=disable_tqdm,
    )
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 64
    path, options = tmp_path / "train.log", ["--logging_steps", str(every)]
    with path.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        print("Loading weights: {}")
        WarmCosTrainer(Model(1, 1), arguments, train_dataset=data, eval_dataset=data).train()
    given = outcome(path, RIGHT, *options, capsys=capsys)
    how = f"(the steps are not in the log; read as one entry at {'each step' if every == 1 else 'every 4 steps'})"
    assert (given[0], given[1].endswith(f"match the schedule {how}")) == (0, True)
    assert outcome(path, capsys=capsys) == given
    code, verdict = outcome(path, WRONG, *options, capsys=capsys)
    assert (code, verdict.endswith(f"{how[:-1]}; --logging_steps says otherwise)")) == (1, True)
    if every == 4:
        assert outcome(path, RIGHT, "--logging_steps", "5", capsys=capsys)[0] == 1
