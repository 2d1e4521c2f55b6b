"""Logs in the formats of many tools: with evaluations, lost lines, rounding and skipped updates."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_warmcos import CosineRestartLR, CosineRestartSchedule
from hf_warmcos.cli import main
from hf_warmcos.past_run import PastRun

PLAN = ["--num_training_steps", "30", "--num_cycles", "3", "--num_warmup_steps", "6", "--lr", "1e-3"]
SCHEDULE = CosineRestartSchedule.fit(30, 3, warmup_steps=6, decay=0.75)


# Formats. A log is a list of entries: the step and its learning rate, which is None in an evaluation.


def json_lines(entries):
    return "\n".join(
        json.dumps({name: value for name, value in entry.items() if value is not None}) for entry in entries
    )


def numbered(log):
    """As trackers number the calls of log(), evaluations included."""
    return [(number, rate) for number, (_, rate) in enumerate(log) if rate is not None]


def printed(log):
    lines = []
    for step, rate in log:
        epoch = f"{step / 40:.4g}"
        entry = {"eval_loss": "1.5"} if rate is None else {"loss": "1.5", "learning_rate": f"{rate:.4g}"}
        lines += [str(entry | {"epoch": epoch}), f"{step}%|███   | {step}/100 [00:01<00:10, 3.00it/s]\r"]
    return "\n".join(lines)


def ms_swift(log):
    length = log[-1][0]
    entries = [
        {
            "learning_rate": rate if rate is None else round(rate, 8),
            "eval_loss": 1.5 if rate is None else None,
            "global_step/max_steps": f"{step}/{length}",
        }
        for step, rate in log
    ]
    return json_lines([*entries, {"train_loss": 1.5, "global_step/max_steps": f"{length}/{length}"}])


def llama_factory(log):
    return json_lines(
        {"current_steps": step, "total_steps": log[-1][0], "lr": rate, "eval_loss": 1.5} for step, rate in log
    )


def lightning_csv(log):
    rows = [f",{'' if rate is None else rate},{step},\n0,,{step},0.2\n" for step, rate in log]
    return "epoch,lr-AdamW,step,train_loss\n" + "".join(rows)


def trackio(log):
    values = [{"timestamp": "2026-01-01T00:00:00+00:00", "step": step, "value": rate} for step, rate in numbered(log)]
    metric = {"project": "example", "run": "run-1", "metric": "train/learning_rate", "values": values}
    return json.dumps(metric, indent=2)


def mlflow(log):
    return "".join(f"1796075386562 {rate} {step}\n" for step, rate in log if rate is not None)


def table(header, rows, delimiter=","):
    return "\n".join(delimiter.join(map(str, row)) for row in [header, *rows])


BY_STEP = {
    "LLaMA-Factory": llama_factory,
    "Lightning": lightning_csv,
    "MLflow": mlflow,
    "TensorBoard, in single precision": lambda log: table(
        ["Wall time", "Step", "Value"],
        [[1.7e9, step, torch.tensor(rate).item()] for step, rate in log if rate is not None],
    ),
    "ms-swift, to 8 decimal places": ms_swift,
}
BY_CALL = {
    "DVCLive": lambda log: table(["step", "learning_rate"], numbered(log), "\t"),
    "Trackio": trackio,
    "Weights & Biases": lambda log: table(['"Step"', '"run-1 - train/learning_rate"'], numbered(log)),
}
BY_ORDER = {"a Trainer's output, to 4 digits": printed}


def log_of(schedule, steps, lr, evaluations=0, skipped=()):
    """A log at these steps of a run that skipped these updates, with evaluations after every so many of its entries."""
    log = []
    for index, step in enumerate(steps, start=1):
        log.append((step, schedule.lr_at(step - 1 - sum(update < step for update in skipped), lr)))
        if evaluations and index % evaluations == 0:
            log.append((step, None))
    return log


@st.composite
def runs(draw):
    cycles, every = draw(st.integers(2, 4)), draw(st.integers(1, 7))
    warmup = draw(st.integers(1, 9))
    length = warmup + cycles * draw(st.integers(6, 30)) * every
    schedule = CosineRestartSchedule.fit(length, cycles, warmup_steps=warmup, decay=draw(st.sampled_from([1, 0.7])))
    lr = draw(st.sampled_from([3e-4, 1e-3, 2.5e-5]))
    last = draw(st.integers(max(every * 4, length // 2), length))  # a run may have been stopped
    # An evaluation after each step is told from a scheduler that steps too rarely only with --logging_steps 1.
    evaluations = draw(st.sampled_from([0, 2, 3, 4, *[1] * (every > 1)]))
    log = log_of(schedule, range(every, last + 1, every), lr, evaluations)
    return schedule, lr, every, log


def read(form, log, folder, logging_steps=None):
    path = folder / "log"
    path.write_text({**BY_STEP, **BY_CALL, **BY_ORDER}[form](log))
    (run,) = PastRun.read(str(path), logging_steps)
    return run


@pytest.mark.parametrize("form", [*BY_STEP, *BY_CALL, *BY_ORDER])
@settings(max_examples=25)
@given(case=runs(), data=st.data())
def test_a_log_matches_its_own_schedule_and_no_other_in_each_form(form, case, data, tmp_path_factory):
    schedule, lr, every, log = case
    folder = tmp_path_factory.mktemp("log", numbered=True)
    if form in BY_STEP:  # lines may be lost
        lost = data.draw(st.sets(st.integers(0, len(log) - 1), max_size=len(log) // 2))
        log = [entry for index, entry in enumerate(log) if index not in lost]
        assume(any(rate is not None for _, rate in log))
    run, told = read(form, log, folder), read(form, log, folder, every)
    for each in (run, told):
        comparison = each.compare(schedule, lr)
        assert comparison.factor == 1, comparison.verdict
        assert not comparison.reading.skipped
    shape = {"num_cycles": schedule.num_cycles, "decay": schedule.decay, "warmup_mode": "prefix"}
    entries = [(step, rate) for step, rate in log if rate is not None]
    for factor, delay in ((1, 2), (1.3, 0)):
        T_0, warmup_steps = schedule.T_0 * factor, schedule.warmup_steps + delay
        other = CosineRestartSchedule(T_0=T_0, warmup_steps=warmup_steps, **shape)
        far = [sum(abs(other.lr_at(step - late, lr) - rate) > 0.02 * lr for step, rate in entries) for late in (0, 1)]
        assert told.compare(other, lr).factor != 1 or min(far) < 3, other


def test_where_the_steps_number_the_calls_of_log_the_verdict_says_so(tmp_path):
    log = log_of(SCHEDULE, range(5, 31, 5), 1e-3, evaluations=2)
    run = read("DVCLive", log, tmp_path)
    assert run.steps == [0, 1, 3, 4, 6, 7]
    how = "(the steps number the calls of log(), not the updates; read as one entry at every 5 steps)"
    assert run.compare(SCHEDULE, 1e-3).verdict.endswith(f"(steps 5 to 30) match the schedule {how}")
    advice = "export the column global_step with the learning rates, or give --logging_steps"
    assert run.compare(CosineRestartSchedule.fit(30, 2), 1e-3).verdict.endswith(advice)


@pytest.mark.parametrize("form", [*BY_CALL, *BY_ORDER])
@pytest.mark.parametrize("too_often", [2, 4])
def test_a_scheduler_that_steps_too_often_is_not_taken_for_rare_logging(form, too_often, tmp_path):
    log = [(step, SCHEDULE.lr_at((step - 1) * too_often, 1e-3)) for step in range(1, 30 // too_often)]
    assert read(form, log, tmp_path).compare(SCHEDULE, 1e-3).factor is None


def scaled_training(overflows, logging_steps):
    """What a loop with torch's gradient scaler logs, where these updates overflow; the scheduler skips them."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scheduler, scaler = CosineRestartLR(optimizer, SCHEDULE), torch.amp.GradScaler("cpu")
    for update in range(1, 31):
        rate, scale = scheduler.get_last_lr()[0], scaler.get_scale()
        scaler.scale(parameter.sum() * (torch.inf if update in overflows else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() >= scale:
            scheduler.step()
        if update % logging_steps == 0:
            yield update, rate


@pytest.mark.parametrize("form", ["LLaMA-Factory", "Lightning", "ms-swift, to 8 decimal places", "Weights & Biases"])
@pytest.mark.parametrize(
    ("overflows", "logging_steps", "where"),
    [
        ({8}, 1, "1 skipped update{} (seen at step 9)"),
        ({1, 2, 9}, 1, "3 skipped updates{} (seen at step 2, 3, 10)"),
        ({1, 14, 15}, 4, "3 skipped updates{} (seen at step 4, 16)"),
    ],
)
def test_updates_that_mixed_precision_skipped_are_told(form, overflows, logging_steps, where, tmp_path):
    run = read(form, [*scaled_training(overflows, logging_steps)], tmp_path, logging_steps)
    comparison = run.compare(SCHEDULE, 1e-3)
    assert comparison.factor == 1
    assert max(comparison.reading.skipped) == len(overflows)
    assert comparison.logged == pytest.approx(comparison.planned, abs=6e-9)
    if form == "LLaMA-Factory":
        assert comparison.verdict.endswith(f"match the schedule, with {where.format(', as in mixed precision')}")
    assert run.compare(CosineRestartSchedule.fit(30, 2, warmup_steps=6), 1e-3).factor is None


@pytest.mark.parametrize("logging_steps", [1, 3, 10])
@pytest.mark.parametrize(
    "position",
    [lambda step: 0, lambda step: step // 2, lambda step: step // 40 * 40, lambda step: max(0, step - 60)],
    ids=["never steps", "steps at every second update", "steps once per epoch", "starts after half of the training"],
)
def test_a_scheduler_that_steps_too_rarely_is_not_taken_for_skipped_updates(position, logging_steps):
    schedule = CosineRestartSchedule.fit(120, 3, warmup_steps=6)
    steps = [*range(logging_steps, 121, logging_steps)]
    run = PastRun("run", steps, [schedule.lr_at(position(step - 1)) for step in steps])
    assert run.compare(schedule).factor is None


@given(
    length=st.integers(60, 200_000),
    other=st.floats(1.01, 1.5),
    count=st.integers(12, 200),
    digits=st.sampled_from([4, 6, 17]),
)
def test_another_length_of_the_training_is_not_taken_for_skipped_updates(length, other, count, digits):
    schedule, true = (CosineRestartSchedule.fit(steps, 2) for steps in (length, round(length * other)))
    steps = [*range(max(1, true.end // count), true.end + 1, max(1, true.end // count))]
    run = PastRun("run", steps, [float(f"{true.lr_at(step - 1, 3e-4):.{digits}g}") for step in steps])
    assume(round(length * other) > length)
    assert run.compare(schedule, 3e-4).factor is None


def test_the_log_knows_the_length_of_the_training_in_other_forms(tmp_path, capsys):
    plan = ["table", "--num_cycles", "3", "--num_warmup_steps", "6", "--lr", "1e-3", "--decay", "0.75"]
    for form in ("LLaMA-Factory", "ms-swift, to 8 decimal places"):
        read(form, log_of(SCHEDULE, range(1, 31), 1e-3), tmp_path)
        assert main([*plan, "--from", str(tmp_path / "log")]) == 0


def test_a_line_that_a_killed_run_left_unfinished_is_left_out(tmp_path):
    lines = llama_factory(log_of(SCHEDULE, range(1, 31), 1e-3))
    (tmp_path / "log").write_text(lines[:-20])
    (past_run,) = PastRun.read(str(tmp_path / "log"))
    assert past_run.steps == [*range(1, 30)]


def test_what_older_trainers_print_is_read_too(tmp_path):
    rates = [SCHEDULE.lr_at(step, 1e-3) for step in range(30)]
    entries = [{"loss": 0.1, "grad_norm": float("nan"), "learning_rate": rate, "epoch": 0.1} for rate in rates]
    (tmp_path / "log").write_text("\n".join(map(str, entries)))
    (past_run,) = PastRun.read(str(tmp_path / "log"))
    assert past_run.rates == rates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--logging_steps", "0", "--from", "log"], "Expected logging_steps >= 1, but got logging_steps=0"),
        (["--logging_steps", "2.5", "--from", "log"], "Expected logging_steps to be a whole number"),
        (["--logging_steps", "2"], "give --from with --logging_steps"),
    ],
)
def test_logging_steps_is_a_whole_number_for_a_log(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["table", *PLAN, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", [*BY_STEP, *BY_CALL, *BY_ORDER])
def test_a_forgotten_learning_rate_is_told_in_each_form(form, tmp_path):
    comparison = read(form, log_of(SCHEDULE, range(1, 31), 3e-4, evaluations=5), tmp_path).compare(SCHEDULE)
    assert "match the schedule times 0.0003: did you mean --lr 0.0003?" in comparison.verdict
