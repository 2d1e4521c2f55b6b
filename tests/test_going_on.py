"""A run that has ended goes on with more cycles, through each door: its past stays, to the bit."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from example_runs import Run, make_text, make_tiny_model, read_evaluations, read_metrics
from hypothesis import given
from hypothesis import strategies as st
from optimizers import make_optimizer
from safetensors.torch import load_file
from trainer_runs import BASE_LR, causal_lm, logged_rates, token_rows, training_arguments
from transformers import Trainer, TrainerCallback

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    WarmCosTrainer,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)


@st.composite
def ending_schedules(draw) -> CosineRestartSchedule:
    """Schedules of a few short cycles, of every kind that ends."""
    shape = {
        "warmup_steps": draw(st.integers(0, 4)),
        "warmup_mode": draw(st.sampled_from(["overlap", "prefix", "every_cycle"])),
        "warmup_lr_rate": draw(st.sampled_from([0.0, 0.1])),
        "stable_ratio": draw(st.sampled_from([0.0, 0.3])),
        "eta_min": draw(st.sampled_from([0.0, 0.01])),
    }
    if draw(st.booleans()):
        cycles = draw(st.lists(st.tuples(st.integers(5, 20), st.floats(0.1, 2)), min_size=1, max_size=4))
        return CosineRestartSchedule(cycles=cycles, **shape)
    return CosineRestartSchedule(
        T_0=draw(st.floats(6, 20)),
        T_mult=draw(st.sampled_from([1, 1.5, 2])),
        decay=draw(st.floats(0.1, 1)),
        num_cycles=draw(st.integers(1, 4)),
        **shape,
    )


class TestOfASchedule:
    @given(ending_schedules(), st.integers(1, 3), st.floats(0.1, 1), st.sampled_from([None, 0.5]))
    def test_the_past_stays_to_the_bit_and_the_new_cycles_fill_the_steps(self, schedule, num_cycles, decay, peak):
        count = schedule.cycle_at(schedule.end).index + 1
        longer = schedule.extend(schedule.end + 60, num_cycles, decay=decay, T_mult=1, peak=peak)
        past = range(schedule.end)
        assert [longer.lr_at(step, 0.3) for step in past] == [schedule.lr_at(step, 0.3) for step in past]
        assert [longer.cycle(index) for index in range(count)] == [schedule.cycle(index) for index in range(count)]
        new = [longer.cycle(count + index) for index in range(num_cycles)]
        assert (new[0].start, new[-1].end, longer.end) == (schedule.end, schedule.end + 60, schedule.end + 60)
        assert max(cycle.length for cycle in new) - min(cycle.length for cycle in new) <= 1
        first = schedule.peak_lr(count - 1) * decay if peak is None else peak
        peaks = [longer.peak_lr(cycle.index) for cycle in new]
        expected = [max(first * decay**index, schedule.minimum()) for index in range(num_cycles)]
        assert peaks == pytest.approx(expected, rel=1e-12)

    def test_by_default_the_cycles_go_on_as_they_were(self):
        schedule = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5, num_cycles=2)
        longer = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5, num_cycles=4)
        assert schedule.extend(150, 2, T_mult=2).curve(150).tolist() == longer.curve(150).tolist()

    def test_it_can_be_extended_again(self):
        schedule = CosineRestartSchedule.fit(20, 2).extend(40, decay=0.5).extend(80, 2)
        assert schedule.cycles == ((10, 1), (10, 1), (20, 0.5), (20, 0.5), (20, 0.5))

    @pytest.mark.parametrize(
        ("schedule", "arguments", "message"),
        [
            (CosineRestartSchedule(T_0=10), {"num_training_steps": 100}, "num_cycles=None"),
            (CosineRestartSchedule(T_0=10, num_cycles=2), {"num_training_steps": 20}, "num_training_steps > 20"),
            (CosineRestartSchedule(T_0=10, num_cycles=2), {"num_training_steps": 22, "num_cycles": 3}, "num_cycles"),
            (CosineRestartSchedule(T_0=10, num_cycles=2), {"num_training_steps": 30, "decay": 2}, "decay <= 1"),
        ],
    )
    def test_what_cannot_be_appended_is_named(self, schedule, arguments, message):
        with pytest.raises(ValueError, match=message):
            schedule.extend(**arguments)


def train(scheduler, optimizer, num_steps: int) -> list[float]:
    """Train on a fixed loss; the rate of each update."""
    rates = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        (optimizer.param_groups[0]["params"][0] - 1).square().sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


class TestOfAScheduler:
    PAST = CosineRestartSchedule.fit(24, 3, decay=0.75, warmup_steps=4)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"cycles": PAST.extend(44, 2, decay=0.5).cycles},
            {"T_0": PAST.T_0, "num_cycles": 6, "decay": 0.75},
        ],
    )
    @pytest.mark.parametrize("stopped_at", [17, 24])
    def test_rates_and_the_optimizers_state_are_those_of_a_run_that_knew(self, caplog, arguments, stopped_at):
        longer = {"num_warmup_steps": 4, **arguments}
        optimizer = make_optimizer(0.1, optimizer_class=torch.optim.AdamW)
        scheduler = CosineRestartLR(optimizer, self.PAST)
        before = train(scheduler, optimizer, stopped_at)
        saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        parameter = optimizer.param_groups[0]["params"][0].detach().clone()

        optimizer = make_optimizer(0.1, optimizer_class=torch.optim.AdamW)
        optimizer.param_groups[0]["params"][0].data.copy_(parameter)
        scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **longer)
        with caplog.at_level(logging.WARNING, logger="hf_warmcos"):
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
        assert not caplog.records
        after = train(scheduler, optimizer, 44 - stopped_at)

        knew = make_optimizer(0.1, optimizer_class=torch.optim.AdamW)
        rates = train(get_cosine_restarts_with_decay_and_warmup_schedule(knew, **longer), knew, 44)
        assert before + after == rates
        assert rates[24] > 10 * rates[23], "a restart at the old end"
        assert torch.equal(optimizer.param_groups[0]["params"][0], knew.param_groups[0]["params"][0])

    def test_another_past_is_named(self, caplog):
        optimizer = make_optimizer()
        scheduler = CosineRestartLR(optimizer, self.PAST)
        train(scheduler, optimizer, 24)
        other = CosineRestartLR(make_optimizer(), CosineRestartSchedule.fit(48, 6, decay=0.75, warmup_steps=4))
        other.load_state_dict(scheduler.state_dict())
        assert "T_0 was" in caplog.text

    def test_a_fresh_optimizer_starts_without_its_moments_at_the_rate_of_the_restart(self):
        optimizer = make_optimizer(0.1, optimizer_class=torch.optim.AdamW)
        scheduler = CosineRestartLR(optimizer, self.PAST)
        train(scheduler, optimizer, 24)
        fresh = make_optimizer(0.1, optimizer_class=torch.optim.AdamW)
        longer = CosineRestartLR(fresh, self.PAST.extend(44, 2, decay=0.5))
        longer.load_state_dict(scheduler.state_dict())
        assert not fresh.state
        assert train(longer, fresh, 20) == [longer.schedule.lr_at(step, 0.1) for step in range(24, 44)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that trains for so many steps, and returns the trainer."""

    def run(trainer_class, num_steps, checkpoint=None, **arguments):
        folder = tmp_path_factory.mktemp("trainer")
        args = training_arguments(folder, max_steps=num_steps, save_strategy="steps", save_steps=8, **arguments)
        trainer = trainer_class(causal_lm(), args, train_dataset=token_rows(64))
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    return run


@pytest.fixture(scope="module")
def checkpoint(trained):
    """The checkpoint at the end of a run of two cycles in 8 steps."""
    trainer = trained(WarmCosTrainer, 8, lr_scheduler_kwargs={"num_cycles": 2})
    return f"{trainer.args.output_dir}/checkpoint-8"


class TestOfATrainer:
    def test_more_steps_and_more_cycles_go_on_at_the_bits_of_a_run_that_knew(self, trained, checkpoint, caplog):
        longer = CosineRestartSchedule.fit(8, 2).extend(16, decay=0.5)
        assert longer.cycles == ((4, 1), (4, 1), (8, 0.5))
        gone_on = trained(WarmCosTrainer, 16, checkpoint, lr_scheduler_kwargs={"cycles": longer.cycles})
        assert not [record for record in caplog.records if record.name == "hf_warmcos"]
        knew = trained(WarmCosTrainer, 16, lr_scheduler_kwargs={"cycles": longer.cycles})
        assert logged_rates(gone_on) == logged_rates(knew) == [longer.lr_at(step, BASE_LR) for step in range(16)]
        weights, others = gone_on.model.state_dict(), knew.model.state_dict()
        assert all(torch.equal(weights[name], others[name]) for name in weights)

    def test_as_does_a_larger_number_of_cycles_of_the_same_length(self, trained, checkpoint):
        gone_on = trained(WarmCosTrainer, 16, checkpoint, lr_scheduler_kwargs={"T_0": 4, "num_cycles": 4})
        assert logged_rates(gone_on) == [CosineRestartSchedule(T_0=4).lr_at(step, BASE_LR) for step in range(16)]

    @pytest.mark.parametrize("scheduler_type", ["cosine", "linear"])
    def test_a_plain_trainers_run_that_ended_at_rate_0_goes_on_with_a_restart(self, trained, scheduler_type):
        plain = trained(Trainer, 8, lr_scheduler_type=scheduler_type)
        assert plain.lr_scheduler.get_last_lr() == [0.0, 0.0]
        checkpoint = f"{plain.args.output_dir}/checkpoint-8"
        gone_on = trained(WarmCosTrainer, 16, checkpoint, lr_scheduler_kwargs={"cycles": [8, [8, 0.5]]})
        expected = CosineRestartSchedule(cycles=[8, [8, 0.5]])
        assert logged_rates(gone_on)[:8] == logged_rates(plain)
        assert logged_rates(gone_on)[8:] == [expected.lr_at(step, BASE_LR) for step in range(8, 16)]
        steps = {state["step"].item() for state in gone_on.optimizer.state.values()}
        assert steps == {16}, "the optimizer's state was kept"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the example on a tiny model into a folder, and returns what it printed."""
    folder = tmp_path_factory.mktemp("tiny")
    model, text = make_tiny_model(folder / "model"), make_text(folder / "text.txt")

    def run(output_dir: Path, *options: str, data: Path = text) -> str:
        arguments = [f"--model_name_or_path={model}", f"--train_file={data}", "--block_size=16",
                     "--per_device_train_batch_size=4", f"--output_dir={output_dir}", *options]  # fmt: skip
        return Run(output_dir.parent / "log", arguments).succeed()

    return run


@pytest.fixture(scope="module")
def three_cycles(run, tmp_path_factory):
    """The folder of a run of the example with three cycles in 24 updates."""
    output_dir = tmp_path_factory.mktemp("three_cycles") / "run"
    shape = {"num_cycles": 3, "decay": 0.75, "min_lr_rate": 0.1}
    run(output_dir, "--max_train_steps=24", "--num_warmup_steps=3", f"--lr_scheduler_kwargs={json.dumps(shape)}")
    return output_dir


@pytest.fixture
def output_dir(three_cycles, tmp_path):
    """A copy of it to go on with."""
    shutil.copytree(three_cycles, tmp_path / "run")
    return tmp_path / "run"


PAGE = Path(__file__).parent.parent / "docs" / "resume-and-extend.md"


@pytest.mark.slow
@pytest.mark.needs("datasets")
class TestOfTheAccelerateExample:
    EXTENDED = CosineRestartSchedule.fit(24, 3, decay=0.75, warmup_steps=3, eta_min_rate=0.1).extend(44, peak=0.5)

    def test_a_cycle_is_appended_to_its_past(self, run, three_cycles, output_dir, tmp_path):
        shape = {"num_cycles": 3, "decay": 0.75, "min_lr_rate": 0.1, "extend_from": 24, "extend_peak": 0.5}
        longer = (
            "--max_train_steps=44",
            "--num_warmup_steps=3",
            "--checkpointing_steps=34",
            f"--lr_scheduler_kwargs={json.dumps(shape)}",
        )
        output = run(output_dir, *longer)
        assert not re.search(r"\w+ was .*, is ", output), "a warning lists changes to the past"
        metrics = read_metrics(output_dir)
        assert metrics[:24] == read_metrics(three_cycles)
        assert [line["learning_rate"] for line in metrics] == [self.EXTENDED.lr_at(step, 2e-3) for step in range(44)]
        names = {f"step_{step}" for step in (10, 17, 24, 34, 44)}
        assert {path.name for path in output_dir.glob("step_*")} == names
        assert [entry["step"] for entry in read_evaluations(output_dir)] == [0, 10, 17, 24, 44]

        # The same bits come from a run with these cycles from its start, and from a run that was killed after it was
        # extended.
        knew = tmp_path / "knew"
        run(knew, *longer)
        shutil.rmtree(output_dir / "step_44")
        assert "step_34" in run(output_dir, *longer)
        assert read_metrics(output_dir) == read_metrics(knew)
        weights, others = (load_file(folder / "model.safetensors") for folder in (output_dir, knew))
        assert all(torch.equal(weights[name], others[name]) for name in weights)

    def test_it_keeps_its_number_of_updates_until_max_train_steps_changes_it(self, run, output_dir):
        output = run(output_dir, "--num_train_epochs=5", "--num_warmup_steps=3")
        assert "The run keeps its 24 updates: --max_train_steps changes them" in output
        assert len(read_metrics(output_dir)) == 24

    def test_only_the_newest_checkpoints_are_kept(self, run, tmp_path):
        output_dir = tmp_path / "run"
        options = ("--checkpointing_steps=2", "--save_total_limit=2", '--lr_scheduler_kwargs={"T_0": 100}')
        run(output_dir, *options, "--max_train_steps=12")
        assert {path.name for path in output_dir.glob("step_*")} == {"step_10", "step_12"}
        assert not (output_dir / "unfinished").exists()
        assert "step_12" in run(output_dir, *options, "--max_train_steps=14")
        assert {path.name for path in output_dir.glob("step_*")} == {"step_12", "step_14"}


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"language_model": causal_lm(), "train_dataset": token_rows(64), "output_dir": str(tmp_path / "run")}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), namespace)
    scheduler = namespace["scheduler"]
    assert (scheduler.last_epoch, scheduler.schedule.end) == (1000, 2000)
    assert scheduler.optimizer.param_groups[0]["lr"] == scheduler.schedule.lr_at(1000, 1e-3)
    assert not scheduler.optimizer.state, "the last one begins afresh"
    assert namespace["trainer"].state.global_step == namespace["trainer"].lr_scheduler.schedule.end == 40


def test_the_callback_of_the_page_resets_the_moments_at_each_cycle_end(tmp_path):
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "FreshMoments" in block
    )
    exec(compile(code, str(PAGE), "exec"), namespace := {})

    class Counts(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            counts.append(len(kwargs["optimizer"].state))

    counts = []
    args = training_arguments(tmp_path, max_steps=14, lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2})
    callbacks = [namespace["FreshMoments"](), Counts()]
    WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64), callbacks=callbacks).train()
    assert [step for step, count in enumerate(counts) if count == 0] == [0, 2, 6]


def test_the_listed_cycles_of_the_page_do_what_it_says_of_them():
    peaks, rewarmed, annealed = (
        CosineRestartSchedule(cycles=eval(cycles)) for cycles in re.findall(r"`cycles=(.*?)`", PAGE.read_text())
    )
    assert [peaks.peak_lr(index) for index in (0, 1)] == [1, 0.5]
    assert [rewarmed.lr_at(step) for step in (0, 1000, 1025, 1050)] == [1, 0, 0.25, 0.5]
    assert [annealed.lr_at(step) for step in (0, 600, 700)] == [1, 1, 0]
    assert annealed.lr_at(601) < 1
    assert annealed.end == 700


def test_the_steps_of_another_schedule_are_listed_as_one_cycle():
    (kwargs,) = re.findall(r'`(\{"cycles": .*?\})`', PAGE.read_text())
    schedule = get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), 4, **json.loads(kwargs)).schedule
    assert [(cycle.start, cycle.end) for cycle in map(schedule.cycle, (0, 1))] == [(4, 20), (20, 40)]
    assert schedule.peak_lr(1) == 0.5
