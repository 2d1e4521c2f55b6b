"""What the documentation says of other libraries, with the releases that are installed.

`.ci/versions` runs this file with the lowest and the newest releases.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import warnings
from functools import partial

import pytest
import torch
import transformers
from code_blocks import ROOT
from optimizers import advance, make_optimizer, parameter_group
from packaging.version import Version
from torch._dynamo.testing import CompileCounter
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, SequentialLR
from transformers import (
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_wsd_schedule,
)
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from hf_warmcos import CosineRestartLR, CosineRestartSchedule, get_cosine_restarts_with_decay_and_warmup_schedule

sys.path.insert(0, str(ROOT))

from benchmarks import optimizers as page

INSTALLED = [name for name in ("torch", "transformers", "schedulefree") if importlib.util.find_spec(name)]
COMMITTED = {(record["package"], record["name"]): record for record in page.read()["optimizers"] if "half" in record}


# docs/optimizers.md


@pytest.mark.parametrize(
    ("package", "name", "factory"), [of for of in page.optimizers(*INSTALLED) if of[:2] in COMMITTED]
)
def test_an_optimizer_does_with_the_learning_rate_what_the_page_says(package, name, factory):
    record, again = COMMITTED[package, name], page.measured(factory)
    assert page.kind_of(again | {"name": name}) == page.kind_of(record)
    assert again["half"] == pytest.approx(record["half"], abs=0.02)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("torch.optim", "Rprop"),
        ("torch.optim", "AdamW"),
        pytest.param("schedulefree", "SGDScheduleFree", marks=pytest.mark.needs("schedulefree")),
    ],
)
def test_a_warning_names_an_optimizer_that_does_not_follow_the_schedule(package, name):
    module = importlib.import_module(package)
    optimizer = getattr(module, name)([parameter_group()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 2, 10)
    assert [str(of.message).split(",")[0] for of in caught] == [f"With {name}"] * (name != "AdamW")


@pytest.mark.parametrize("fact", [page.cap_of_adafactor, page.rounded_decay, page.groups_of_post_local_sgd])
def test_a_fact_about_torch_is_the_one_on_the_page(fact):
    assert fact() == page.read()["facts"][fact.__name__]


@pytest.mark.needs("schedulefree")
def test_schedule_free_counts_an_update_at_learning_rate_0_in_full():
    assert page.weight_in_the_average() == {"zero": 1.0}


@pytest.mark.needs("lightning")
def test_lightning_counts_its_frequency_within_an_epoch():
    assert page.steps_under_lightning() == page.read()["facts"]["steps_under_lightning"]


# README, docs/README.md, docs/troubleshooting.md


def test_the_other_schedules_of_the_readme_have_no_argument_for_what_they_lack():
    arguments = {*inspect.signature(get_cosine_with_hard_restarts_schedule_with_warmup).parameters}
    assert arguments == {"optimizer", "num_warmup_steps", "num_training_steps", "num_cycles", "last_epoch"}
    arguments = {*inspect.signature(get_wsd_schedule).parameters}
    assert not arguments & {"T_0", "T_mult", "decay", "cycles"}
    assert {"num_stable_steps", "num_decay_steps", "min_lr_ratio"} <= arguments
    arguments = {*inspect.signature(CosineAnnealingWarmRestarts).parameters} - {"verbose"}
    assert arguments == {"optimizer", "T_0", "T_mult", "eta_min", "last_epoch"}


def test_t_cur_of_torchs_scheduler_is_0_where_a_cycle_ended():
    optimizer = make_optimizer()
    scheduler = CosineAnnealingWarmRestarts(optimizer, 3, 2)
    ended = []
    for step in range(1, 12):
        optimizer.step()
        scheduler.step()
        ended += [step] if scheduler.T_cur == 0 else []
    assert ended == [3, 9]


def test_one_cycle_gives_the_learning_rates_of_the_built_in_cosine():
    built_in, here = make_optimizer(), make_optimizer()
    arguments = {"num_warmup_steps": 10, "num_training_steps": 100}
    theirs = advance(built_in, get_cosine_schedule_with_warmup(built_in, **arguments), 100)
    ours = advance(here, get_cosine_restarts_with_decay_and_warmup_schedule(here, **arguments), 100)
    assert ours == [pytest.approx(of, rel=1e-9, abs=1e-12) for of in theirs]


@pytest.mark.parametrize(("num_cycles", "differ"), [(1, 0), (3, 0), (9, 0), (7, 88)])
def test_built_in_restarts_give_these_learning_rates_where_the_cycles_divide_the_steps(num_cycles, differ):
    built_in, here = make_optimizer(), make_optimizer()
    arguments = {"num_warmup_steps": 10, "num_training_steps": 100, "num_cycles": num_cycles}
    theirs = advance(built_in, get_cosine_with_hard_restarts_schedule_with_warmup(built_in, **arguments), 100)
    ours = advance(here, get_cosine_restarts_with_decay_and_warmup_schedule(here, **arguments), 100)
    close = [one == pytest.approx(other, rel=1e-9, abs=1e-12) for one, other in zip(theirs, ours)]
    assert close.count(False) == pytest.approx(differ, abs=6)


@pytest.mark.parametrize(
    "arguments",
    [{"num_cycles": 0}, {"num_cycles": 0.5}, {"num_cycles": 200}, {"num_warmup_steps": 200}],
    ids=["no cycle", "half a cycle", "more cycles than steps", "a warmup longer than the training"],
)
def test_the_built_in_schedule_accepts_what_is_an_error_here(arguments):
    arguments = {"num_warmup_steps": 10, "num_training_steps": 100} | arguments
    get_cosine_with_hard_restarts_schedule_with_warmup(make_optimizer(), **arguments)
    with pytest.raises((TypeError, ValueError), match=r"num_cycles|num_warmup_steps"):
        get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), **arguments)


@pytest.mark.parametrize(("lr", "compilations"), [(0.1, 2), (torch.tensor(0.1), 1)], ids=["float", "tensor"])
def test_torch_compiles_an_optimizer_step_twice_with_a_float_and_once_with_a_tensor(lr, compilations):
    torch._dynamo.reset()
    compiler = CompileCounter()
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weights], lr=lr)
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=20))
    step = torch.compile(optimizer.step, backend=compiler)
    for _ in range(40):
        weights.grad = torch.ones(1)
        step()
        scheduler.step()
    assert compiler.frame_count == compilations


def test_adamw_with_foreach_refuses_a_tensor():
    weights = torch.nn.Parameter(torch.zeros(1))
    weights.grad = torch.ones(1)
    with pytest.raises(ValueError, match="lr as a Tensor is not supported for capturable=False and foreach=True"):
        torch.optim.AdamW([weights], lr=torch.tensor(0.1), foreach=True).step()


def test_an_update_at_learning_rate_0_changes_statistics_and_moments_but_no_weight():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    model(torch.randn(4, 2)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(state["exp_avg"].any() for state in optimizer.state.values())


def test_only_a_first_update_that_is_skipped_makes_the_scheduler_warn():
    for skipped in (0, 1):
        optimizer = make_optimizer()
        scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(T_0=3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3):
                if step != skipped:
                    optimizer.step()
                scheduler.step()
        assert ["optimizer.step()" in str(warning.message) for warning in caught] == [True] * (skipped == 0)


def test_a_trainer_logs_every_500_updates_and_its_schedule_is_linear_by_default():
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert (defaults["logging_steps"], defaults["lr_scheduler_type"]) == (500, "linear")


# docs/many-processes.md


def test_the_fused_adamw_is_a_trainers_default_in_transformers_5_with_torch_2_8_or_later():
    default = TrainingArguments("output", use_cpu=True, report_to="none").optim
    if Version(transformers.__version__) >= Version("5"):
        assert (default == "adamw_torch_fused") == (Version(torch.__version__) >= Version("2.8"))


# docs/which-values.md, docs/command-line.md


def test_a_fraction_as_warmup_is_warmup_steps_from_transformers_5_on():
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert ("warmup_ratio" in names) == (Version(transformers.__version__) < Version("5"))


def test_min_lr_is_the_same_for_all_groups_here_and_keeps_their_ratio_in_transformers():
    def last(schedule):
        optimizer = torch.optim.SGD([parameter_group(1e-3), parameter_group(1e-4)], lr=1e-3)
        scheduler = schedule(optimizer)
        advance(optimizer, scheduler, 10)
        return scheduler.get_last_lr()

    here = partial(get_cosine_restarts_with_decay_and_warmup_schedule, num_warmup_steps=0, num_training_steps=10)
    theirs = partial(get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=0, num_training_steps=10)
    assert last(partial(theirs, min_lr=1e-4)) == pytest.approx([1e-4, 1e-5])
    assert last(partial(here, min_lr=1e-4)) == pytest.approx([1e-4, 1e-4])
    assert last(partial(here, min_lr_rate=0.1)) == pytest.approx([1e-4, 1e-5])


# docs/resume-and-extend.md, docs/use-it-in-your-tool.md


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_the_states_of_two_schedules_of_transformers_are_refused(name):
    if name not in [of.value for of in transformers.SchedulerType]:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    state = transformers.get_scheduler(name, make_optimizer(), 1, 10).state_dict()
    scheduler = CosineRestartLR(make_optimizer(), CosineRestartSchedule(T_0=5))
    with pytest.raises(ValueError, match="Expected a scheduler state with last_epoch and base_lrs"):
        scheduler.load_state_dict(state)


def test_a_longer_schedule_holds_from_the_first_resumed_update_and_in_transformers_from_the_second():
    def rates(schedule):
        stopped = make_optimizer()
        scheduler = schedule(stopped, num_warmup_steps=0, num_training_steps=10)
        advance(stopped, scheduler, 5)
        resumed = make_optimizer()
        longer = schedule(resumed, num_warmup_steps=0, num_training_steps=40)
        resumed.load_state_dict(stopped.state_dict())
        longer.load_state_dict(scheduler.state_dict())
        return [rate for (rate,) in advance(resumed, longer, 2)]

    expected = [CosineRestartSchedule(T_0=40).lr_at(step, 0.1) for step in (5, 6)]
    assert rates(get_cosine_restarts_with_decay_and_warmup_schedule) == pytest.approx(expected)
    first, second = rates(get_cosine_with_hard_restarts_schedule_with_warmup)
    assert first == pytest.approx(0.05)  # of the schedule that ends at step 10
    assert second == pytest.approx(expected[1])


def test_a_sequence_of_schedulers_resumes_rightly_by_its_state_and_wrongly_by_last_epoch():
    def sequence(optimizer, last_epoch=-1):
        parts = [
            LinearLR(optimizer, 0.1, total_iters=4, last_epoch=last_epoch),
            CosineAnnealingWarmRestarts(optimizer, 10, last_epoch=max(-1, last_epoch - 4)),
        ]
        return SequentialLR(optimizer, parts, [4], last_epoch=last_epoch)

    whole = make_optimizer()
    scheduler = sequence(whole)
    expected = advance(whole, scheduler, 12)[8:]
    stopped = make_optimizer()
    scheduler = sequence(stopped)
    advance(stopped, scheduler, 8)
    resumed = make_optimizer()
    by_state = sequence(resumed)
    by_state.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    assert advance(resumed, by_state, 4) == expected
    resumed = make_optimizer()
    resumed.load_state_dict(stopped.state_dict())
    assert advance(resumed, sequence(resumed, last_epoch=7), 4) != expected
