"""Parameter groups that are added, removed, replaced or wrapped: each update has the learning rate of the schedule."""

from __future__ import annotations

import copy
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from example_runs import Run
from hypothesis import given
from hypothesis import strategies as st
from optimizers import advance, make_optimizer, parameter_group, rates_of
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_runs import causal_lm, token_rows, training_arguments
from transformers import TrainerCallback

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    WarmCosTrainer,
)

SCHEDULE = CosineRestartSchedule(T_0=10, T_mult=2, decay=0.5, warmup_steps=4)


def expected(step: int, *base_lrs: float) -> list[float]:
    return [SCHEDULE.lr_at(step, base_lr) for base_lr in base_lrs]


def without_parameters(lr: float) -> dict:
    return {"params": [], "lr": lr}


class TestRemovedGroups:
    """DeepSpeed removes groups without parameters; LoRA without biases has one."""

    @pytest.mark.parametrize("empty", [0, 1, 2])
    def test_each_group_that_is_left_keeps_its_own_learning_rate(self, empty):
        base_lrs = [0.1, 0.02, 0.003]
        groups = [
            without_parameters(lr) if index == empty else parameter_group(lr) for index, lr in enumerate(base_lrs)
        ]
        optimizer = torch.optim.SGD(groups)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        del base_lrs[empty]
        for step in range(25):
            assert advance(optimizer, scheduler) == [expected(step, *base_lrs)]
        assert scheduler.base_lrs == base_lrs
        assert scheduler.get_last_lr() == rates_of(optimizer)

    @given(st.sets(st.integers(0, 4), max_size=4), st.integers(0, 30))
    def test_any_groups_can_go_at_any_step(self, removed, step):
        base_lrs = [0.1, 0.02, 0.003, 0.4, 5.0]
        optimizer = make_optimizer(*base_lrs)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, step)
        for index in sorted(removed, reverse=True):
            del optimizer.param_groups[index], base_lrs[index]
        assert scheduler.state_dict()["base_lrs"] == base_lrs
        assert advance(optimizer, scheduler, 12)[1:] == [expected(step + k, *base_lrs) for k in range(1, 12)]

    @pytest.mark.parametrize("steps", [0, 7])
    def test_the_state_loads_into_an_optimizer_without_the_group(self, steps):
        optimizer = torch.optim.SGD([without_parameters(0.1), parameter_group(0.02)])
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        del optimizer.param_groups[0]
        advance(optimizer, scheduler, steps)
        state = scheduler.state_dict()
        for groups in ([parameter_group(0.02)], [without_parameters(0.1), parameter_group(0.02)]):
            other = torch.optim.SGD(groups)
            resumed = CosineRestartLR(other, SCHEDULE)
            other.param_groups[:] = [group for group in other.param_groups if group["params"]]
            resumed.load_state_dict(state)
            assert advance(other, resumed, 5) == [expected(steps + k, 0.02) for k in range(5)]

    def test_a_state_that_is_saved_before_the_next_step_is_one_of_a_scheduler_in_charge(self):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        del optimizer.param_groups[0]
        fresh = make_optimizer(0.02)
        resumed = CosineRestartLR(fresh, SCHEDULE)
        resumed.load_state_dict(scheduler.state_dict())
        assert rates_of(fresh) == expected(7, 0.02)

    def test_all_groups_can_go_and_others_come(self):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        optimizer.param_groups.clear()
        scheduler.step()
        assert scheduler.get_last_lr() == []
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler, 3) == [expected(step, 0.4) for step in (4, 5, 6)]

    def test_groups_that_lost_their_initial_learning_rate_keep_the_one_that_is_in_use(self):
        optimizer = make_optimizer(0.1, 0.02, 0.003)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 5)
        del optimizer.param_groups[0], optimizer.param_groups[0]["initial_lr"]
        optimizer.param_groups[0]["lr"] = 7.0
        scheduler.step()
        assert rates_of(optimizer) == expected(6, 0.02, 0.003)

    def test_groups_that_lost_it_are_refused_where_nothing_tells_which_they_are(self):
        optimizer = make_optimizer(0.1, 0.02, 0.003)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 5)
        optimizer.param_groups[:] = [parameter_group(7.0), parameter_group(7.0)]
        with pytest.raises(ValueError, match=r"param_groups\[0\] to have its initial_lr, .* but got 2 of 3 groups"):
            scheduler.step()
        assert (rates_of(optimizer), scheduler.last_epoch) == ([7.0, 7.0], 5)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["deepspeed.initialize", "accelerate"])
    def test_under_deepspeed_each_group_has_its_own_learning_rate(self, tmp_path, way):
        Run(tmp_path / "log", str(tmp_path / "rates.json"), way, entry=train_with_deepspeed).succeed()
        # DeepSpeed steps the optimizer group by group.
        rates = json.loads((tmp_path / "rates.json").read_text())
        assert rates == [lr for step in range(6) for lr in expected(step, 0.1, 0.003)]


def train_with_deepspeed(output: str, way: str) -> None:
    import deepspeed

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # Its collectives over shared memory would be compiled for a minute first. Without them it uses gloo.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(
        [
            {"params": [model.weight], "lr": 0.1},
            without_parameters(0.02),
            {"params": [model.bias], "lr": 0.003},
        ]
    )
    scheduler = CosineRestartLR(optimizer, SCHEDULE)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.extend(rates_of(optimizer)))
    if way == "accelerate":
        os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
        accelerator = Accelerator()
        loader = torch.utils.data.DataLoader(torch.randn(6, 2))
        model, wrapped, loader, prepared = accelerator.prepare(model, optimizer, loader, scheduler)
        for batch in loader:
            accelerator.backward(model(batch).square().mean())
            wrapped.step()
            prepared.step()
            wrapped.zero_grad()
        accelerator.free_memory(model, wrapped, loader, prepared)
    else:
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "torch_autocast": {"enabled": False},
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
        for batch in torch.randn(6, 1, 2):
            engine.backward(engine(batch).square().mean())
            engine.step()
        engine.destroy()
    Path(output).write_text(json.dumps(rates))


class TestAddedGroups:
    def test_a_group_added_to_an_optimizer_that_accelerate_prepared_joins_before_its_first_update(self):
        accelerator = Accelerator(cpu=True)
        optimizer = accelerator.prepare(make_optimizer(0.1))
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler, 5) == [expected(step, 0.1, 0.4) for step in range(7, 12)]

    @pytest.mark.slow
    def test_a_group_added_in_a_trainer_joins_before_its_first_update(self, tmp_path):
        class Unfreeze(TrainerCallback):
            def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
                if state.global_step == 5:
                    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})

        used: list[list[float]] = []

        class Record(TrainerCallback):
            def on_train_begin(self, args, state, control, optimizer, **kwargs):
                inner = optimizer.optimizer
                inner.register_step_post_hook(lambda *_: used.append(rates_of(inner)))

        args = training_arguments(tmp_path, max_steps=9, learning_rate=0.1, warmup_steps=2, save_strategy="no")
        trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(32), callbacks=[Unfreeze(), Record()])
        trainer.train()
        schedule = trainer.lr_scheduler.schedule
        for step, rates in enumerate(used):
            base_lrs = [0.1, 0.1, 0.4][: len(rates)]
            assert rates == [schedule.lr_at(step, base_lr) for base_lr in base_lrs]
        assert [len(rates) for rates in used] == [2] * 5 + [3] * 4

    @pytest.mark.parametrize("kind", [float, torch.tensor])
    @pytest.mark.parametrize("first", ["optimizer", "scheduler"])
    def test_it_joins_after_a_state_was_loaded_in_either_order(self, first, kind):
        optimizer = make_optimizer(kind(0.5))
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        states = {"optimizer": copy.deepcopy(optimizer.state_dict()), "scheduler": scheduler.state_dict()}
        optimizer = make_optimizer(kind(0.5))
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        for name in sorted(states, reverse=first == "scheduler"):
            {"optimizer": optimizer, "scheduler": scheduler}[name].load_state_dict(states[name])
        optimizer.add_param_group(parameter_group(0.4))
        used = advance(optimizer, scheduler, 3)
        assert used == [pytest.approx(expected(step, 0.5, 0.4)) for step in (7, 8, 9)]

    def test_it_joins_after_a_state_of_torchs_distributed_checkpoint(self):
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        state, position = get_optimizer_state_dict(model, optimizer), scheduler.state_dict()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        scheduler.load_state_dict(position)
        set_optimizer_state_dict(model, optimizer, state)
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler, 3) == [expected(step, 0.1, 0.4) for step in (7, 8, 9)]

    def test_it_joins_where_a_learning_rate_was_written_again_with_the_same_value(self):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        optimizer.param_groups[0]["lr"] *= 1.0
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler) == [expected(7, 0.1, 0.4)]

    def test_it_joins_where_the_optimizers_state_is_older_than_its_first_scheduler(self):
        older = make_optimizer(0.1, 0.02).state_dict()
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.load_state_dict(older)
        optimizer.add_param_group(parameter_group(0.4))
        advance(optimizer, scheduler)
        assert advance(optimizer, scheduler, 5) == [expected(step, 0.1, 0.02, 0.4) for step in range(1, 6)]

    @pytest.mark.parametrize("with_inner_optimizer", [False, True])
    def test_it_joins_in_optimizers_whose_hooks_are_a_plain_dict(self, with_inner_optimizer):
        class Lookahead(torch.optim.Optimizer):  # the shape of pytorch_optimizer's
            def __init__(self, optimizer):
                self.optimizer, self.defaults, self._optimizer_step_pre_hooks = optimizer, optimizer.defaults, {}

            param_groups = property(lambda self: self.optimizer.param_groups)

            def add_param_group(self, group):
                self.optimizer.add_param_group(group)

            def step(self, closure=None):
                self.optimizer.step(closure)

        optimizer = make_optimizer(0.1)
        if with_inner_optimizer:
            optimizer = Lookahead(optimizer)
        else:
            optimizer._optimizer_step_pre_hooks = {}
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler) == [expected(7, 0.1, 0.4)]
        hooks = optimizer._optimizer_step_pre_hooks
        del scheduler
        assert hooks == {}

    @pytest.mark.parametrize("steps_between", [0, 1])
    def test_initial_learning_rates_that_were_set_by_hand_stay_when_a_group_joins(self, steps_between):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        scheduler.base_lrs = [0.3, 0.02]
        if steps_between:
            scheduler.get_lr()
        advance(optimizer, scheduler, steps_between)
        optimizer.add_param_group(parameter_group(0.4))
        steps = range(3 + steps_between, 7)
        assert advance(optimizer, scheduler, len(steps)) == [expected(step, 0.3, 0.02, 0.4) for step in steps]

    def test_each_group_keeps_its_own_where_several_things_wait_for_the_next_step(self):
        optimizer = make_optimizer(0.5)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        optimizer.add_param_group(parameter_group(0.5))
        scheduler.base_lrs = [0.5, 0.25]
        optimizer.param_groups[0]["lr"] = 0.25
        optimizer.add_param_group(parameter_group(0.125))
        scheduler.step()
        assert rates_of(optimizer) == expected(4, 0.5, 0.25, 0.125)

    @pytest.mark.parametrize("kind", [float, torch.tensor])
    @pytest.mark.parametrize("change", ["reordered", "exchanged", "rolled back"])
    def test_the_learning_rates_in_use_stay_whatever_other_code_did_to_the_groups(self, change, kind):
        optimizer = make_optimizer(kind(0.5), kind(0.25))
        older = copy.deepcopy(optimizer.state_dict())
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        if change == "reordered":
            optimizer.param_groups.reverse()
        elif change == "exchanged":
            optimizer.param_groups[0] = {**optimizer.param_groups[0], **parameter_group(kind(0.125))}
            del optimizer.param_groups[0]["initial_lr"]
        else:
            optimizer.load_state_dict(older)
        scheduler.step()
        assert rates_of(optimizer) == pytest.approx(expected(4, 0.5, 0.25))
        optimizer.add_param_group(parameter_group(0.125))
        assert advance(optimizer, scheduler) == [pytest.approx(expected(4, 0.5, 0.25, 0.125))]
        del optimizer.param_groups[0]
        scheduler.step()
        assert rates_of(optimizer) == pytest.approx(expected(6, 0.25, 0.125))

    def test_each_group_keeps_its_loaded_initial_learning_rate_when_another_is_removed(self):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 2)
        optimizer.param_groups[0]["lr"] = 0.005  # the scheduler is not in charge
        state = scheduler.state_dict()
        optimizer = make_optimizer(0.5, 0.6)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        scheduler.load_state_dict(state)
        del optimizer.param_groups[0]
        advance(optimizer, scheduler)
        assert rates_of(optimizer) == expected(3, 0.02)

    def test_each_group_keeps_the_initial_learning_rate_that_was_set_by_hand_when_another_is_removed(self):
        optimizer = make_optimizer(0.1, 0.02)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        scheduler.base_lrs = [0.3, 0.2]
        del optimizer.param_groups[0]
        advance(optimizer, scheduler)
        assert rates_of(optimizer) == expected(1, 0.2)

    def test_a_state_saved_while_the_scheduler_is_not_in_charge_is_one_of_all_groups(self):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.add_param_group(parameter_group(0.4))
        states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        assert rates_of(optimizer) == [0.5 * expected(7, 0.1)[0], 0.4]
        optimizer = make_optimizer(0.1, 0.4)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.load_state_dict(states[0])
        scheduler.load_state_dict(states[1])
        assert rates_of(optimizer) == [0.5 * expected(7, 0.1)[0], 0.4]
        advance(optimizer, scheduler)
        assert rates_of(optimizer) == expected(8, 0.1, 0.4)

    def test_a_scheduler_that_waits_for_its_turn_leaves_it_alone(self):
        optimizer = make_optimizer(0.1)
        ours = CosineRestartLR(optimizer, SCHEDULE)
        sequence = SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1.0, 5), ours], [5])
        optimizer.add_param_group(parameter_group(0.4))
        optimizer.step()
        assert optimizer.param_groups[1]["lr"] == 0.4
        assert sequence.get_last_lr() == [pytest.approx(0.01)]

    def test_a_group_with_a_learning_rate_that_is_no_number_is_refused_by_name(self):
        optimizer = make_optimizer(0.1)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.param_groups.append({**parameter_group(None)})
        with pytest.raises(TypeError, match=r"Expected param_groups\[1\]\['lr'\] to be a number"):
            scheduler.step()
        assert scheduler.last_epoch == 0


class TestTensors:
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_a_tensor_put_into_any_group_is_filled_from_the_next_step_on(self, index):
        optimizer = make_optimizer(0.5, 0.25, 0.125)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 3)
        optimizer.param_groups[index]["lr"] = tensor = torch.tensor(7.0)
        advance(optimizer, scheduler)
        assert optimizer.param_groups[index]["lr"] is tensor
        assert advance(optimizer, scheduler, 9) == [
            pytest.approx(expected(step, 0.5, 0.25, 0.125)) for step in range(4, 13)
        ]
        assert [type(group["lr"]) for group in optimizer.param_groups].count(float) == 2

    def test_a_tensor_exchanged_for_an_equal_one_leaves_the_scheduler_in_charge(self):
        optimizer = make_optimizer(torch.tensor(0.5))
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        advance(optimizer, scheduler, 7)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"].clone()
        # A fresh optimizer then begins at the learning rate of the position.
        fresh = make_optimizer(torch.tensor(0.5))
        resumed = CosineRestartLR(fresh, SCHEDULE)
        resumed.load_state_dict(scheduler.state_dict())
        assert rates_of(fresh) == pytest.approx(expected(7, 0.5))

    def test_tensors_on_a_device_are_filled_by_two_operations_for_all_groups_and_never_read(self):
        class OnADevice(torch.Tensor):
            """A tensor of the CPU that says that it lies elsewhere."""

            is_cpu = False

        class Operations(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.names = []

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.names.append(str(func.overloadpacket))
                return func(*args, **(kwargs or {}))

        base_lrs = [0.5, *[0.25] * 500, 0.125]
        lrs = [torch.tensor(base_lr).as_subclass(OnADevice) for base_lr in base_lrs]
        optimizer = make_optimizer(*lrs, lrs[0])  # two groups share one tensor
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        optimizer.step()
        for step in range(1, 15):
            with Operations() as operations:
                scheduler.step()
            assert operations.names == ["aten._foreach_zero_", "aten._foreach_add_"]
            assert rates_of(optimizer) == pytest.approx(expected(step, *base_lrs, 0.5))
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs))

    def test_an_added_group_with_the_tensor_of_several_inherits_from_the_first_of_them(self):
        shared = torch.tensor(0.5)
        optimizer = make_optimizer(shared, shared)
        scheduler = CosineRestartLR(optimizer, SCHEDULE)
        scheduler.base_lrs = [0.5, 0.25]
        optimizer.add_param_group(parameter_group(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
        assert scheduler.base_lrs == [0.5, 0.25, 0.5]


class TestSubclasses:
    def test_what_get_lr_returns_is_what_is_written_logged_and_resumed(self):
        class Halved(CosineRestartLR):
            def get_lr(self):
                return [lr / 2 for lr in super().get_lr()]

        optimizer = make_optimizer(0.1, 0.02)
        scheduler = Halved(optimizer, SCHEDULE)
        for step, rates in enumerate(advance(optimizer, scheduler, 25)):
            assert rates == [lr / 2 for lr in expected(step, 0.1, 0.02)]
            assert scheduler.get_last_lr() == rates_of(optimizer)
        optimizer.add_param_group(parameter_group(0.4))
        assert advance(optimizer, scheduler) == [[lr / 2 for lr in expected(25, 0.1, 0.02, 0.4)]]
        fresh = make_optimizer(0.1, 0.02, 0.4)
        resumed = Halved(fresh, SCHEDULE)
        resumed.load_state_dict(scheduler.state_dict())
        assert rates_of(fresh) == rates_of(optimizer)
