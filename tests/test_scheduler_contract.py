"""Wherever torch's own `CosineAnnealingWarmRestarts` is right, the scheduler is: torch's class is the oracle here."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import warnings
import weakref

import numpy as np
import optimizers
import pytest
import torch
from optimizers import advance, parameter_group, rates_of
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from hf_warmcos import CosineAnnealingWarmRestartsWithDecayAndLinearWarmup as Scheduler
from hf_warmcos import CosineRestartLR, CosineRestartSchedule

NUM_STEPS = 24


class InTurn:
    """Two schedulers on one optimizer, of which the second one is stepped from a step on, as in SWA's recipe."""

    def __init__(self, first, second, turn):
        self.schedulers, self.turn, self.steps = (first, second), turn, 0

    def step(self):
        self.steps += 1
        self.schedulers[self.steps > self.turn].step()

    def state_dict(self):
        return {"states": [scheduler.state_dict() for scheduler in self.schedulers], "steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        for scheduler, its_state in zip(self.schedulers, state["states"]):
            scheduler.load_state_dict(its_state)


# How the class R is combined with others on the optimizer o.
COMBINATIONS = {
    "alone": lambda o, R: R(o, 7, 2, 0.001),
    "first of a sequence": lambda o, R: SequentialLR(o, [R(o, 7), ExponentialLR(o, 0.9)], [5]),
    "first of a sequence, to its restart": lambda o, R: SequentialLR(o, [R(o, 7), ExponentialLR(o, 0.9)], [7]),
    "last of a sequence": lambda o, R: SequentialLR(o, [LinearLR(o, 0.1, 1.0, 5), R(o, 10)], [5]),
    "in the middle of a sequence": lambda o, R: SequentialLR(
        o, [LinearLR(o, 0.1, 1.0, 4), R(o, 5), StepLR(o, 3, 0.5)], [4, 13]
    ),
    "twice in a sequence": lambda o, R: SequentialLR(o, [R(o, 7), R(o, 5, 2)], [9]),
    "in a sequence in a sequence": lambda o, R: SequentialLR(
        o, [SequentialLR(o, [LinearLR(o, 0.1, 1.0, 3), R(o, 5)], [3]), ExponentialLR(o, 0.9)], [12]
    ),
    "first in a chain": lambda o, R: ChainedScheduler([R(o, 7), ConstantLR(o, 0.3, 8)]),
    "last in a chain": lambda o, R: ChainedScheduler([StepLR(o, 4, 0.5), R(o, 7)]),
    "first in a chain in a sequence": lambda o, R: SequentialLR(
        o, [ChainedScheduler([R(o, 6), ConstantLR(o, 0.3, 5)]), ExponentialLR(o, 0.9)], [9]
    ),
    "followed by SWALR": lambda o, R: InTurn(R(o, 7), SWALR(o, 0.05, 4), 9),
    "followed by another of it": lambda o, R: InTurn(R(o, 7), R(o, 4), 9),
}


def make_optimizer(kind="float"):
    rates = {"float": (0.5, 0.02), "tensor": (torch.tensor(0.5), torch.tensor(0.02))}[kind]
    return optimizers.make_optimizer(*rates)


def assert_same_rates(ours, torchs, kind):
    if kind == "float":
        assert ours == torchs
    else:  # torch computes in the precision of the tensors
        np.testing.assert_allclose(ours, torchs, rtol=1e-5)


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps its schedulers in a way that torch has deprecated
        yield


def torchs_rates(combine, kind):
    """The rates with torch's class, where this release of torch can combine its own schedulers so."""
    optimizer = make_optimizer(kind)
    tensors = [group["lr"] for group in optimizer.param_groups if kind == "tensor"]
    rates = advance(optimizer, combine(optimizer, CosineAnnealingWarmRestarts), NUM_STEPS)
    if any(group["lr"] is not tensor for group, tensor in zip(optimizer.param_groups, tensors)):
        pytest.skip(f"torch {torch.__version__} puts other tensors in the place of the rates")
    return rates


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=COMBINATIONS)
def test_combined_with_other_schedulers_it_has_the_rates_of_torchs_class(combine, kind):
    expected = torchs_rates(combine, kind)
    optimizer = make_optimizer(kind)
    assert_same_rates(advance(optimizer, combine(optimizer, Scheduler), NUM_STEPS), expected, kind)


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=COMBINATIONS)
def test_saved_and_loaded_at_any_step_a_combination_goes_on_as_if_it_had_not_been(combine, kind, order):
    torchs_rates(combine, kind)
    optimizer = make_optimizer(kind)
    whole = advance(optimizer, combine(optimizer, Scheduler), NUM_STEPS)
    for cut in range(NUM_STEPS):
        optimizer = make_optimizer(kind)
        scheduler = combine(optimizer, Scheduler)
        advance(optimizer, scheduler, cut)
        optimizer_state, state = saved_and_loaded((optimizer.state_dict(), scheduler.state_dict()))
        optimizer = make_optimizer(kind)
        scheduler = combine(optimizer, Scheduler)
        if order == "optimizer first":
            optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(state)
        if order == "scheduler first":
            optimizer.load_state_dict(optimizer_state)
        assert advance(optimizer, scheduler, NUM_STEPS - cut) == whole[cut:]


@pytest.mark.parametrize("kind", ["float", "tensor"])
def test_a_rate_that_was_halved_by_hand_stays_halved_through_save_and_load_until_the_next_step(kind):
    for halved in ([0], [1], [0, 1]):
        optimizer = make_optimizer(kind)
        scheduler = Scheduler(optimizer, 10)
        advance(optimizer, scheduler, 4)
        for index in halved:
            optimizer.param_groups[index]["lr"] *= 0.5
        expected = rates_of(optimizer)
        optimizer_state, state = saved_and_loaded((optimizer.state_dict(), scheduler.state_dict()))
        for order in (1, -1):
            optimizer = make_optimizer(kind)
            scheduler = Scheduler(optimizer, 10)
            for thing, its_state in [(optimizer, optimizer_state), (scheduler, state)][::order]:
                thing.load_state_dict(copy.deepcopy(its_state))
            assert rates_of(optimizer) == expected
            advance(optimizer, scheduler, 1)
            assert rates_of(optimizer) == pytest.approx([scheduler.schedule.lr_at(5, lr) for lr in (0.5, 0.02)])


def exchange_one(groups, optimizer):
    groups[0] = dict(groups[0])


def exchange_one_without_a_base_rate(groups, optimizer):
    groups[0] = {name: value for name, value in groups[0].items() if name != "initial_lr"} | {"lr": 7.0}


def exchange_a_slice(groups, optimizer):
    groups[:] = [copy.copy(group) for group in groups]


def exchange_the_list(groups, optimizer):
    optimizer.param_groups = [copy.copy(group) for group in groups]


def load_the_optimizers_state(groups, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def put_another_tensor_in(groups, optimizer):
    groups[0]["lr"] = torch.tensor(7.0)


def put_numbers_in(groups, optimizer):
    for group in groups:
        group["lr"] = 7.0


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize(
    "operate",
    [
        exchange_one,
        exchange_one_without_a_base_rate,
        exchange_a_slice,
        exchange_the_list,
        load_the_optimizers_state,
        put_another_tensor_in,
        put_numbers_in,
    ],
)
def test_each_step_writes_into_what_the_optimizer_has_then(operate, kind):
    for cut in range(15):
        optimizers = [make_optimizer(kind) for _ in range(2)]
        schedulers = [CosineAnnealingWarmRestarts(optimizers[0], 6), Scheduler(optimizers[1], 6)]
        rates = []
        for optimizer, scheduler in zip(optimizers, schedulers):
            advance(optimizer, scheduler, cut)
            operate(optimizer.param_groups, optimizer)
            scheduler.step()
            rates.append([rates_of(optimizer), *advance(optimizer, scheduler, 10)])
        assert_same_rates(rates[1], rates[0], "tensor" if operate is put_another_tensor_in else kind)


def test_a_wrapper_that_builds_its_list_anew_at_each_access_is_served():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer, self.defaults = optimizer, optimizer.defaults

        @property
        def param_groups(self):
            return [*self.optimizer.param_groups]

        def step(self, closure=None):
            self.optimizer.step(closure)

    inner = make_optimizer()
    scheduler = Scheduler(Wrapper(inner), 10, decay=0.5)
    for step in range(30):
        assert rates_of(inner) == [scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.5, 0.02)]
        inner.step()
        scheduler.step()


def test_an_optimizer_may_have_an_attribute_of_the_name_optimizer_that_is_none():
    optimizer = make_optimizer()
    optimizer.optimizer = "sgd"
    scheduler = Scheduler(optimizer, 10)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.4})
    optimizer.step()
    assert rates_of(optimizer) == [scheduler.schedule.lr_at(0, base_lr) for base_lr in (0.5, 0.02, 0.4)]


@pytest.mark.parametrize("add", ["add_param_group", "append", "extend", "new list"])
def test_a_group_that_is_added_joins_at_the_current_position_with_the_next_update(add):
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, 10, decay=0.5, eta_min_rate=0.1)
    advance(optimizer, scheduler, 13)
    group = {**optimizer.param_groups[0], **parameter_group(0.4)}
    del group["initial_lr"]
    if add == "add_param_group":
        optimizer.add_param_group(parameter_group(0.4))
    elif add == "new list":
        optimizer.param_groups = [*optimizer.param_groups, group]
    else:
        getattr(optimizer.param_groups, add)(group if add == "append" else [group])
    expected = [[scheduler.schedule.lr_at(step, lr) for lr in (0.5, 0.02, 0.4)] for step in range(13, 40)]
    assert advance(optimizer, scheduler, 27) == expected
    assert scheduler.base_lrs == [group["initial_lr"] for group in optimizer.param_groups] == [0.5, 0.02, 0.4]


def test_a_scheduler_that_is_not_in_charge_leaves_added_groups_alone():
    for finish in (
        lambda o: [Scheduler(o, 10), ExponentialLR(o, 0.9)],
        lambda o: [SequentialLR(o, [LinearLR(o, 0.1, 1.0, 5), Scheduler(o, 10)], [5])],
        lambda o: [SequentialLR(o, [LinearLR(o, 0.1, 1.0, 5), Scheduler(o, 10, warmup_steps=3)], [5])],
    ):
        optimizer = make_optimizer()
        schedulers = finish(optimizer)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-4
        optimizer.add_param_group(parameter_group(1e-4))
        optimizer.step()
        assert rates_of(optimizer) == [1e-4, 1e-4, 1e-4]
        assert schedulers


def test_base_rates_that_are_set_by_hand_hold_from_the_next_step_on_as_with_torchs_class():
    for change in (lambda s: s.base_lrs.__setitem__(1, 0.3), lambda s: setattr(s, "base_lrs", [0.3, 0.4])):
        used = []
        for R in (CosineAnnealingWarmRestarts, Scheduler):
            optimizer = make_optimizer()
            scheduler = R(optimizer, 10)
            advance(optimizer, scheduler, 3)
            change(scheduler)
            used.append(advance(optimizer, scheduler, 12))
        assert used[0] == used[1]


def test_what_is_fixed_at_construction_cannot_be_set_in_silence():
    scheduler = Scheduler(make_optimizer(), 10)
    for name in ("schedule", "T_0", "T_mult", "eta_min", "eta_min_rate"):
        with pytest.raises(AttributeError):
            setattr(scheduler, name, 5)


def test_a_scheduler_that_waits_has_its_first_rate_as_last_rate_and_the_position_before_the_first():
    optimizer = make_optimizer()
    ours = Scheduler(optimizer, 10, warmup_steps=5, warmup_mode="prefix", warmup_lr_rate=0.1)
    SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1.0, 5), ours], [5])
    assert ours.last_epoch == -1
    assert ours.get_last_lr() == pytest.approx([0.05, 0.002])
    assert (ours.cycle_index, ours.T_i, ours.at_cycle_end) == (0, 10, False)


def test_optimizer_and_scheduler_go_with_their_last_names_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        for R in (CosineAnnealingWarmRestarts, Scheduler):
            optimizer = make_optimizer()
            scheduler = R(optimizer, 10)
            advance(optimizer, scheduler, 15)
            optimizer.add_param_group(parameter_group(0.4))
            references = [weakref.ref(optimizer), weakref.ref(scheduler)]
            del optimizer, scheduler
            assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_thousand_schedulers_one_after_the_other_leave_nothing_behind():
    optimizer = make_optimizer()
    before = {name: getattr(type(optimizer), name) for name in ("add_param_group", "step", "load_state_dict")}
    for _ in range(1000):
        scheduler = Scheduler(optimizer, 10)
        optimizer.step()
        scheduler.step()
    del scheduler
    assert not optimizer._optimizer_step_pre_hooks
    assert "add_param_group" not in vars(optimizer)
    assert before == {name: getattr(type(optimizer), name) for name in before}
    optimizer.add_param_group(parameter_group(0.4))
    assert rates_of(optimizer)[2] == 0.4


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("kind", ["float", "tensor"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_optimizer_and_scheduler_goes_its_own_way(copied, kind):
    optimizer = make_optimizer(kind)
    scheduler = Scheduler(optimizer, 10, decay=0.5, warmup_steps=3)
    advance(optimizer, scheduler, 12)
    other_optimizer, other = copied((optimizer, scheduler))
    assert other.optimizer is other_optimizer
    other_optimizer.add_param_group(parameter_group(0.4))
    ahead = advance(other_optimizer, other, 25)
    assert scheduler.last_epoch == 12
    assert advance(optimizer, scheduler, 25) == [rates[:2] for rates in ahead]
    assert [rates[2] for rates in ahead] == [other.schedule.lr_at(12 + step, 0.4) for step in range(25)]


def test_the_copy_of_a_scheduler_that_is_not_in_charge_is_not_either():
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, 10)
    optimizer.param_groups[0]["lr"] = 0.25
    for copied in COPIES.values():
        other_optimizer, other = copied((optimizer, scheduler))
        other_optimizer.add_param_group(parameter_group(0.4))
        other_optimizer.step()
        assert rates_of(other_optimizer) == [0.25, 0.02, 0.4]
        assert not other.state_dict()["in_charge"]


def used_rates(pair, steps, queue):
    queue.put(advance(*pair, steps))


@pytest.mark.slow
def test_a_spawned_process_goes_on_with_a_scheduler_that_was_sent_to_it():
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, 10, decay=0.5)
    advance(optimizer, scheduler, 7)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=used_rates, args=((optimizer, scheduler), 10, queue))
    process.start()
    assert queue.get() == advance(optimizer, scheduler, 10)
    process.join()


def test_two_schedulers_on_one_optimizer_take_turns_as_two_of_torchs_do():
    used = []
    for R in (CosineAnnealingWarmRestarts, Scheduler):
        optimizer = make_optimizer()
        first, second = R(optimizer, 7), R(optimizer, 4, 2)
        rates = []
        for step in range(40):
            optimizer.step()
            rates.append(rates_of(optimizer))
            (first if step % 3 else second).step()
        used.append(rates)
    assert used[0] == used[1]


@pytest.mark.parametrize("exchanged", [(0, 1, 2, 3, 4), (4,), ()])
def test_a_group_with_another_initial_learning_rate_leaves_the_tensor_that_others_share(exchanged):
    shared = torch.tensor(0.5)
    optimizer = torch.optim.SGD([parameter_group(shared) for _ in range(5)])
    scheduler = Scheduler(optimizer, 10, decay=0.5)
    advance(optimizer, scheduler, 4)
    assert float(shared) == pytest.approx(scheduler.schedule.lr_at(4, 0.5))
    other = torch.tensor(7.0)
    for index in exchanged:
        optimizer.param_groups[index]["lr"] = other
    scheduler.base_lrs[4] = 0.25
    for step in range(5, 25):
        scheduler.step()
        expected = [scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.5, 0.5, 0.5, 0.5, 0.25)]
        assert rates_of(optimizer) == pytest.approx(expected)
        assert len({id(group["lr"]) for group in optimizer.param_groups}) == 2


@pytest.mark.parametrize("warmup_steps", [0, 20])
def test_tensors_that_are_put_in_the_place_of_floats_are_filled_from_the_next_step_on(warmup_steps):
    for cut in range(4):
        optimizer = make_optimizer()
        scheduler = Scheduler(optimizer, 40, warmup_steps=warmup_steps)
        advance(optimizer, scheduler, cut)
        tensors = [torch.tensor(group["lr"]) for group in optimizer.param_groups]
        for group, tensor in zip(optimizer.param_groups, tensors):
            group["lr"] = tensor
        advance(optimizer, scheduler, 5)
        assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors))
        expected = [scheduler.schedule.lr_at(cut + 5, base_lr) for base_lr in (0.5, 0.02)]
        assert rates_of(optimizer) == pytest.approx(expected, rel=1e-6)


def test_a_group_that_was_just_added_is_part_of_the_state():
    optimizer = make_optimizer()
    scheduler = Scheduler(optimizer, 10)
    advance(optimizer, scheduler, 4)
    optimizer.add_param_group(parameter_group(0.4))
    state = scheduler.state_dict()
    assert state["base_lrs"] == [0.5, 0.02, 0.4]
    expected = [scheduler.schedule.lr_at(4, lr) for lr in (0.5, 0.02, 0.4)]
    assert state["_last_lr"] == expected
    assert rates_of(optimizer) == [*expected[:2], 0.4]  # nothing was written
    assert advance(optimizer, scheduler) == [expected]


def test_groups_that_share_a_tensor_but_not_their_initial_learning_rate_each_have_their_own():
    shared = torch.tensor(0.5)
    optimizer = torch.optim.SGD([parameter_group(shared), parameter_group(0.1), parameter_group(shared)])
    optimizer.param_groups[2]["initial_lr"] = 0.25
    scheduler = Scheduler(optimizer, 10)
    for step, rates in enumerate(advance(optimizer, scheduler, 15)):
        expected = [scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.5, 0.1, 0.25)]
        assert rates == pytest.approx(expected, rel=1e-6)


def test_the_groups_know_floats_and_tensors_side_by_side():
    optimizer = torch.optim.SGD([parameter_group(torch.tensor(0.5)), parameter_group(0.02)])
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=10, decay=0.5, warmup_steps=3))
    tensor = optimizer.param_groups[0]["lr"]
    for step, rates in enumerate(advance(optimizer, scheduler, 30)):
        assert rates == pytest.approx([scheduler.schedule.lr_at(step, base_lr) for base_lr in (0.5, 0.02)], rel=1e-6)
    assert optimizer.param_groups[0]["lr"] is tensor
    assert type(optimizer.param_groups[1]["lr"]) is float
