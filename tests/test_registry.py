"""`register`: the name "cosine_with_restarts" in the tables of transformers and of diffusers."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers.optimization
from optimizers import make_optimizer
from trainer_runs import BASE_LR, causal_lm, logged_rates, token_rows, training_arguments
from transformers import Trainer, TrainingArguments
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule, WarmCosTrainer, register, unregister
from hf_warmcos.arguments import schedule_from_arguments

NAMES = ["transformers", pytest.param("diffusers", marks=pytest.mark.needs("diffusers"))]
INSTALLED = [import_module(f"{name}.optimization") for name in ("transformers", "diffusers") if find_spec(name)]


@pytest.fixture(params=NAMES)
def library(request):
    return import_module(f"{request.param}.optimization")


def entry(library=transformers.optimization):
    return library.TYPE_TO_SCHEDULER_FUNCTION[library.SchedulerType.COSINE_WITH_RESTARTS]


def everything_that_register_changes():
    return [dict(library.TYPE_TO_SCHEDULER_FUNCTION) for library in INSTALLED]


@pytest.fixture(autouse=True)
def before():
    """The tables as they are without registration; after each test they have to be so again."""
    before = everything_that_register_changes()
    yield before
    after = everything_that_register_changes()
    unregister()
    assert after == before


def schedule_of(scheduler):
    return scheduler.schedule


def test_takes_effect_at_once_until_unregister(library):
    built_in = entry(library)
    register()
    scheduler = library.get_scheduler(
        "cosine_with_restarts", make_optimizer(), num_warmup_steps=5, num_training_steps=25
    )
    unregister()
    assert schedule_of(scheduler) == CosineRestartSchedule.fit(25, 1, warmup_steps=5, warmup_mode="prefix")
    assert entry(library) is built_in
    scheduler = library.get_scheduler(
        "cosine_with_restarts", make_optimizer(), num_warmup_steps=5, num_training_steps=25
    )
    assert not hasattr(scheduler, "schedule")


def test_the_arguments_given_hold_whatever_the_tool_passes(library):
    with register(num_cycles=4, decay=0.75):
        scheduler = library.get_scheduler(
            "cosine_with_restarts", make_optimizer(), num_warmup_steps=5, num_training_steps=25
        )
    assert schedule_of(scheduler) == CosineRestartSchedule.fit(25, 4, decay=0.75, warmup_steps=5, warmup_mode="prefix")


def test_what_is_not_given_is_the_tools_to_say():
    import diffusers.optimization

    with register(decay=0.75):
        of_diffusers = diffusers.optimization.get_scheduler(
            "cosine_with_restarts", make_optimizer(), num_warmup_steps=5, num_training_steps=25, num_cycles=4
        )
        of_transformers = transformers.optimization.get_scheduler(
            "cosine_with_restarts", make_optimizer(), 5, 25, scheduler_specific_kwargs={"num_cycles": 4, "decay": 0.1}
        )
    expected = CosineRestartSchedule.fit(25, 4, decay=0.75, warmup_steps=5, warmup_mode="prefix")
    assert schedule_of(of_diffusers) == schedule_of(of_transformers) == expected


def test_a_tool_may_pass_by_position():
    with register(decay=0.5):
        scheduler = entry()(make_optimizer(), 5, 25, 2, -1)
    assert schedule_of(scheduler) == CosineRestartSchedule.fit(25, 2, decay=0.5, warmup_steps=5, warmup_mode="prefix")


def test_the_num_cycles_that_diffusers_passes_unasked_does_not_end_restarts_of_given_length():
    import diffusers.optimization

    with register(T_0=10):
        scheduler = diffusers.optimization.get_scheduler(
            "cosine_with_restarts", make_optimizer(), num_warmup_steps=5, num_training_steps=25
        )
    assert schedule_of(scheduler) == CosineRestartSchedule(T_0=10, warmup_steps=5, warmup_mode="prefix")


@pytest.mark.parametrize("given", [{"num_cycles": 3}, {"T_0": 10}, {"num_cycles": 3, "T_mult": 2, "decay": 0.5}])
def test_lengths_given_one_way_hold_over_cycles_that_a_tool_lists(given):
    with register(**given):
        schedule = schedule_of(entry()(make_optimizer(), 5, 25, cycles=[8, [12, 0.5]]))
    assert schedule == schedule_from_arguments(5, 25, **given)


@pytest.mark.parametrize(("given", "passed"), [("min_lr", "min_lr_rate"), ("min_lr_rate", "min_lr")])
def test_a_minimum_given_one_way_holds_over_one_passed_the_other_way(given, passed):
    with register(**{given: 0.05}):
        scheduler = entry()(make_optimizer(0.5), 0, 25, **{passed: 0.01})
    assert scheduler.schedule.minimum(0.5) == (0.05 if given == "min_lr" else 0.025)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"decay": 2}, "decay"),
        ({"num_cycle": 4}, "num_cycle"),
        ({"num_training_steps": 100}, "num_training_steps"),
        ({"optimizer": None}, "optimizer"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once_and_registers_nothing(before, arguments, named):
    with pytest.raises((TypeError, ValueError), match=rf"Expected .*\b{named}\b"):
        register(**arguments)
    assert everything_that_register_changes() == before


def test_what_a_tool_passes_that_the_schedule_does_not_know_is_a_type_error():
    with register(), pytest.raises(TypeError, match="power"):
        entry()(make_optimizer(), 5, 25, power=2.0)


def test_as_a_context_manager_ends_with_the_block_and_with_an_error(before):
    with register():
        assert everything_that_register_changes() != before
    assert everything_that_register_changes() == before
    registration = register()
    registration.close()
    assert everything_that_register_changes() == before
    with pytest.raises(ValueError, match="invalid literal"), register():
        int("an error inside the block")
    assert everything_that_register_changes() == before


def test_one_unregister_ends_however_many_registrations(before):
    register()
    register(decay=0.5)
    unregister()
    assert everything_that_register_changes() == before
    unregister()
    assert everything_that_register_changes() == before


def test_of_several_the_latest_holds_with_its_arguments_alone_and_its_end_leaves_the_others():
    def registered_schedule():
        return schedule_of(entry()(make_optimizer(), 0, 24, num_cycles=2))

    with register(decay=0.5):
        with register(num_cycles=3):
            assert registered_schedule() == CosineRestartSchedule.fit(24, 3, warmup_mode="prefix")
        assert registered_schedule() == CosineRestartSchedule.fit(24, 2, decay=0.5, warmup_mode="prefix")


def test_registrations_may_end_in_any_order(before):
    first, second = register(decay=0.5), register(decay=0.25)
    with first:
        pass
    assert entry() is not before[0]["cosine_with_restarts"]
    with second:
        unregister()
        assert everything_that_register_changes() == before


def test_gives_back_what_someone_else_had_put_there_and_leaves_what_someone_else_puts_there(monkeypatch):
    def someone_elses(optimizer, num_warmup_steps, num_training_steps):
        raise AssertionError

    def someone_elses_later(optimizer, num_warmup_steps, num_training_steps):
        raise AssertionError

    table, key = transformers.optimization.TYPE_TO_SCHEDULER_FUNCTION, transformers.SchedulerType.COSINE_WITH_RESTARTS
    with monkeypatch.context() as patch:
        patch.setitem(table, key, someone_elses)
        with register():
            pass
        assert entry() is someone_elses
        with register():
            table[key] = someone_elses_later
        assert entry() is someone_elses_later


def test_the_end_of_an_inner_registration_leaves_what_someone_else_has_put_there_since(monkeypatch):
    def someone_elses(optimizer, num_warmup_steps, num_training_steps):
        raise AssertionError

    with register(decay=0.5), monkeypatch.context() as patch:
        with register(num_cycles=3):
            patch.setitem(
                transformers.optimization.TYPE_TO_SCHEDULER_FUNCTION,
                transformers.SchedulerType.COSINE_WITH_RESTARTS,
                someone_elses,
            )
        assert entry() is someone_elses


def test_many_threads_may_register_at_once():
    failures = []

    def registers_again_and_again(decay):
        for _ in range(50):
            with register(decay=decay):
                if not hasattr(entry()(make_optimizer(), 0, 24, num_cycles=3), "schedule"):
                    failures.append(decay)

    threads = [threading.Thread(target=registers_again_and_again, args=(0.1 * number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def in_a_new_process(code):
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_AFTER)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("library", NAMES)
def test_holds_for_a_library_that_is_imported_afterwards_with_the_environment_of_then(library):
    in_a_new_process(f"""
import os, sys
from hf_warmcos.arguments import schedule_from_arguments
from hf_warmcos.registry import register, unregister
register(decay=0.5, num_cycles=2)
assert not [name for name in ("transformers", "diffusers") if name in sys.modules]
os.environ["HF_HOME"] = "/said/by/the/script"
import torch
from {library}.optimization import get_scheduler
from huggingface_hub.constants import HF_HOME
assert HF_HOME == "/said/by/the/script"
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
scheduler = get_scheduler("cosine_with_restarts", optimizer, num_warmup_steps=0, num_training_steps=10)
assert scheduler.schedule.decay == 0.5
unregister()
scheduler = get_scheduler("cosine_with_restarts", optimizer, num_warmup_steps=0, num_training_steps=10)
assert not hasattr(scheduler, "schedule")
""")


@pytest.mark.slow
def test_a_library_that_another_thread_is_importing_is_waited_for():
    in_a_new_process("""
import sys, threading, time
from hf_warmcos.registry import register
name = "transformers.optimization"
thread = threading.Thread(target=__import__, args=(name,))
thread.start()
while name not in sys.modules:
    time.sleep(0.0001)
register(decay=0.5)
module = sys.modules[name]
entry = module.TYPE_TO_SCHEDULER_FUNCTION[module.SchedulerType.COSINE_WITH_RESTARTS]
assert entry.__module__ == "hf_warmcos.registry", entry
thread.join()
""")


def test_a_trainer_of_this_project_leaves_the_tables_alone(tmp_path, before):
    WarmCosTrainer(causal_lm(), training_arguments(tmp_path)).create_optimizer_and_scheduler(20)
    assert everything_that_register_changes() == before


@pytest.mark.parametrize("resumed", [False, True])
def test_a_plain_trainer_trains_by_it_and_goes_on_by_it(tmp_path, resumed):
    arguments = {
        "max_steps": 20,
        "warmup_steps": 4,
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 4},
        "save_strategy": "steps",
        "save_steps": 10,
    }
    schedule = CosineRestartSchedule.fit(20, 4, decay=0.75, warmup_steps=4, warmup_mode="prefix")
    expected = [schedule.lr_at(step, BASE_LR) for step in range(20)]
    with register(decay=0.75):
        for checkpoint in (None, str(tmp_path / "checkpoint-10"))[: 1 + resumed]:
            args = training_arguments(tmp_path, **arguments)
            trainer = Trainer(causal_lm(), args, train_dataset=token_rows(64))
            trainer.train(resume_from_checkpoint=checkpoint)
            assert logged_rates(trainer) == expected


def test_the_finder_is_there_while_there_is_a_registration():
    before = [*sys.meta_path]
    with register(num_cycles=2):
        assert len(sys.meta_path) == len(before) + 1
        with register(num_cycles=3):
            assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before


@pytest.mark.parametrize(
    ("given", "passed"), [({}, {}), ({"stable_ratio": 0.5}, {"num_cycles": 1}), ({"min_lr": 0.01}, {})]
)
def test_a_schedule_without_a_restart_that_nobody_asked_for_is_a_warning(given, passed):
    with register(**given), pytest.warns(UserWarning, match="one cosine without a restart"):
        entry()(make_optimizer(0.5), 0, 25, **passed)


@pytest.mark.parametrize(
    ("given", "passed"),
    [({"num_cycles": 1}, {}), ({"num_cycles": 3}, {"num_cycles": 1}), ({}, {"num_cycles": 3}), ({"T_0": 5}, {})],
)
def test_cycles_that_somebody_asked_for_are_none(given, passed):
    with register(**given), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        entry()(make_optimizer(0.5), 0, 25, **passed)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("num_cycles=3", TypeError, "argument after \\*\\* must be a mapping, not str"),
        ("{'num_cycles': 3}", ValueError, "Expecting property name enclosed in double quotes"),
    ],
)
def test_a_text_that_is_no_json_is_the_error_on_the_page_about_troubleshooting(tmp_path, text, error, message):
    def scheduler():
        kwargs = TrainingArguments(str(tmp_path), lr_scheduler_kwargs=text).lr_scheduler_kwargs
        return transformers.get_scheduler("cosine_with_restarts", make_optimizer(), 0, 10, kwargs)

    with register(num_cycles=3), pytest.raises(error, match=message):
        scheduler()
    page = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
    assert message.replace("\\", "") in page
