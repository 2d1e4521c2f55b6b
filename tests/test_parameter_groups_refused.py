"""Groups, steps and states that a scheduler refuses by name, and what it warns of."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from optimizers import advance, make_optimizer, parameter_group, rates_of

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)

SCHEDULE = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5, warmup_steps=4)


def expected(step: int, *base_lrs: float) -> list[float]:
    return [SCHEDULE.lr_at(step, base_lr) for base_lr in base_lrs]


class TestRefusals:
    @pytest.mark.parametrize(
        "lr",
        [None, "0.1", float("nan"), 1e200, torch.tensor([0.1, 0.2]), torch.tensor(1)],
        ids=["none", "text", "nan", "large", "two", "whole"],
    )
    def test_a_learning_rate_that_cannot_be_scheduled_is_named_and_changes_nothing(self, lr):
        optimizer = make_optimizer(0.1, 0.02)
        optimizer.param_groups[1]["lr"] = lr
        before, attributes = [dict(group) for group in optimizer.param_groups], set(vars(optimizer))
        with pytest.raises((TypeError, ValueError), match=r"Expected param_groups\[1\]\['lr'\]"):
            CosineRestartLR(optimizer, SCHEDULE)
        assert [{**group, "params": 0} for group in optimizer.param_groups] == [
            {**group, "params": 0} for group in before
        ]
        assert set(vars(optimizer)) == attributes

    def test_adafactor_with_relative_steps_is_refused_by_name(self):
        from transformers.optimization import Adafactor

        optimizer = Adafactor([torch.nn.Parameter(torch.zeros(1))], lr=None, relative_step=True)
        with pytest.raises(TypeError, match=r"param_groups\[0\]\['lr'\] to be a number, but got .*None"):
            get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 5, 100)
        assert "initial_lr" not in optimizer.param_groups[0]
        assert "step" not in vars(optimizer)

    @pytest.mark.parametrize("epoch", [2**63, 1e300, -1, float("nan"), "3"])
    def test_a_step_that_is_refused_moves_nothing(self, epoch):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        with pytest.raises((TypeError, ValueError), match="epoch"):
            scheduler.step(epoch)
        assert (scheduler.last_epoch, rates_of(optimizer)) == (3, expected(3, 0.1))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"base_lrs": [torch.tensor([0.1, 0.2])]}, "base_lrs"),
            ({"saved_at": torch.tensor([1, 2])}, "saved_at"),
            ({"saved_at": torch.ones(3).numpy()}, "saved_at"),
            ({"last_epoch": -2}, "last_epoch >= -1"),
            ({"schedule": 7}, "schedule to be a dict"),
        ],
    )
    def test_a_state_that_is_refused_names_the_entry(self, change, message):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        with pytest.raises((TypeError, ValueError), match=message):
            scheduler.load_state_dict({**scheduler.state_dict(), **change})

    def test_a_state_whose_schedule_has_no_minimum_means_zero(self, caplog):
        scheduler = CosineRestartLR(make_optimizer(0.1), SCHEDULE)
        advance(scheduler.optimizer, scheduler, 5)
        state = scheduler.state_dict()
        del state["schedule"]["eta_min"], state["schedule"]["eta_min_rate"]
        resumed = CosineRestartLR(make_optimizer(0.1), SCHEDULE)
        resumed.load_state_dict(state)
        assert not caplog.records
        with_minimum = replace(SCHEDULE, eta_min=0.01)
        CosineRestartLR(make_optimizer(0.1), with_minimum).load_state_dict(state)
        assert "eta_min was 0.0, is 0.01" in caplog.text


class TestWarnings:
    @pytest.mark.parametrize("change", ["added", "removed"])
    def test_a_run_that_changes_its_groups_before_it_resumes_as_the_saved_one_did_gives_none(self, change, caplog):
        def started():
            optimizer = make_optimizer(0.1, 0.02)
            scheduler = CosineRestartLR(optimizer, SCHEDULE)
            if change == "added":
                optimizer.add_param_group(parameter_group(0.4))
            else:
                del optimizer.param_groups[1]
            return optimizer, scheduler

        run, resumed = started(), started()
        advance(*run, 5)
        for of, state in zip(resumed, copy.deepcopy([of.state_dict() for of in run])):
            of.load_state_dict(state)
        assert not caplog.records
        assert advance(*resumed, 20) == advance(*run, 20)

    def test_an_initial_learning_rate_that_a_resumed_run_does_not_use_is_named_with_what_to_do(self, caplog):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 5)
        state = scheduler.state_dict()
        optimizer = make_optimizer(0.3, 0.02)
        resumed = CosineRestartLR(optimizer, SCHEDULE)
        resumed.load_state_dict(state)
        (record,) = caplog.records
        assert record.getMessage() == (
            "This run was given the initial learning rates [0.02, 0.3], but continues with the saved ones, [0.02, 0.1]."
            " To use others, set scheduler.base_lrs after loading."
        )
        assert rates_of(optimizer) == expected(5, 0.1, 0.02)
        resumed.base_lrs = [0.3, 0.02]
        advance(optimizer, resumed)
        assert rates_of(optimizer) == expected(6, 0.3, 0.02)
        assert resumed.state_dict()["base_lrs"] == [0.3, 0.02]

    def test_a_run_past_its_end_says_so_once(self, caplog):
        schedule = CosineRestartSchedule.fit(20, 2, eta_min_rate=0.1)
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, schedule)
        advance(optimizer, scheduler, 20)
        assert not caplog.records
        advance(optimizer, scheduler, 5)
        (record,) = caplog.records
        assert record.getMessage() == (
            "Training continues after the end of the schedule at step 20: the learning rate stays at its minimum. "
            "To add cycles, use scheduler.schedule.extend(...)."
        )
        caplog.clear()
        resumed = CosineRestartLR(make_optimizer(0.1), schedule)
        resumed.load_state_dict(scheduler.state_dict())
        advance(resumed.optimizer, resumed, 3)
        assert len(caplog.records) == 1
