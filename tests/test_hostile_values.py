"""Values that nobody means: each public function names the argument in a short error, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hostile import VALUES
from matplotlib.figure import Figure
from optimizers import make_optimizer

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    CosineRestartLR,
    CosineRestartSchedule,
    count_optimizer_steps,
    get_cosine_restarts_with_decay_and_warmup_schedule,
    plot_schedule,
    register,
)

SCHEDULE = CosineRestartSchedule(T_0=10, num_cycles=2)
GEOMETRIC = {"T_0": 10, "T_mult": 2, "decay": 0.5, "num_cycles": 3}
SHAPE = {"warmup_mode": "overlap", "warmup_lr_rate": 0.1, "stable_ratio": 0.5}
LISTED = {"cycles": [10, 20]}
OF_FACTORY = {"num_warmup_steps": 2, "num_training_steps": 50, "min_lr": None, "min_lr_rate": None, **SHAPE}


def factory(**arguments: Any) -> CosineRestartLR:
    return get_cosine_restarts_with_decay_and_warmup_schedule(make_optimizer(), **arguments)


def registered(**arguments: Any) -> None:
    with register(**arguments):
        pass


def constructed(**arguments: Any) -> CosineRestartLR:
    return CosineRestartLR(**({"optimizer": make_optimizer(), "schedule": SCHEDULE} | arguments))


def with_torchs_arguments(**arguments: Any) -> CosineRestartLR:
    return CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(make_optimizer(), **arguments)


def of_cycle(**cycle: Any) -> CosineRestartSchedule:
    return CosineRestartSchedule(cycles=[10, cycle])


def moved(epoch: Any) -> None:
    constructed().step(epoch)


def with_base_lrs(base_lrs: Any) -> None:
    constructed().base_lrs = base_lrs


def with_a_base_lr(**base_lrs: Any) -> None:
    scheduler = constructed()
    scheduler.base_lrs[0] = base_lrs["base_lrs"]
    scheduler.step()


def with_lr(lr: Any) -> None:
    optimizer = make_optimizer()
    optimizer.param_groups[0]["lr"] = lr
    constructed(optimizer=optimizer)


def loaded(**state: Any) -> None:
    constructed().load_state_dict({"last_epoch": 3, "base_lrs": [0.1]} | state)


def loaded_with_a_base_lr(base_lrs: Any) -> None:
    loaded(base_lrs=[base_lrs])


def loaded_schedule(**schedule: Any) -> None:
    loaded(schedule={"T_0": 10} | schedule)


def drawn(**arguments: Any) -> None:
    plot_schedule(**({"schedules": SCHEDULE, "ax": Figure().subplots()} | arguments))


MINIMUM = {"eta_min": 0.0, "eta_min_rate": None}
ENTRIES = {
    "schedule": (CosineRestartSchedule, GEOMETRIC | SHAPE | MINIMUM | {"warmup_steps": 2}),
    "listed": (CosineRestartSchedule, LISTED),
    "listed with T_0": (CosineRestartSchedule, LISTED | {"T_0": None, "T_mult": 1, "decay": 1, "num_cycles": None}),
    "listed cycle": (of_cycle, {"steps": 10, "peak": 1, "warmup_steps": 2, "stable_ratio": 0.5}),
    "fit": (
        CosineRestartSchedule.fit,
        {"num_training_steps": 90, "num_cycles": 3, "T_mult": 2, "decay": 0.5, "warmup_steps": 2, **SHAPE, **MINIMUM},
    ),
    "extend": (
        SCHEDULE.extend,
        {"num_training_steps": 90, "num_cycles": 2, "T_mult": 1, "decay": 1, "peak": 1, "warmup_steps": 1}
        | {"stable_ratio": 0.5},
    ),
    "lr_at": (SCHEDULE.lr_at, {"step": 3, "base_lr": 0.1}),
    "curve": (SCHEDULE.curve, {"steps": 30, "base_lr": 0.1}),
    "peak_lr": (SCHEDULE.peak_lr, {"index": 1, "base_lr": 0.1}),
    "minimum": (SCHEDULE.minimum, {"base_lr": 0.1}),
    "cycle": (SCHEDULE.cycle, {"index": 1}),
    "cycle_at": (SCHEDULE.cycle_at, {"step": 1}),
    "arc_at": (SCHEDULE.arc_at, {"step": 1}),
    "restarts": (SCHEDULE.restarts, {"num_steps": 30}),
    "CosineRestartLR": (constructed, {"optimizer": ..., "schedule": ..., "last_epoch": -1, "verbose": False}),
    "the class": (with_torchs_arguments, GEOMETRIC | SHAPE | MINIMUM | {"warmup_steps": 2, "last_epoch": -1}),
    "lr of a group": (with_lr, {"lr": 0.1}),
    "step": (moved, {"epoch": 3}),
    "base_lrs": (with_base_lrs, {"base_lrs": [0.1]}),
    "base_lrs in place": (with_a_base_lr, {"base_lrs": 0.1}),
    "load_state_dict": (
        loaded,
        {"last_epoch": 3, "base_lrs": [0.1], "_step_count": 4, "fraction": 0.0, "in_charge": True, "saved_at": 3}
        | {"schedule": {"T_0": 10}, "T_cur": 3},
    ),
    "a base_lr of a state": (loaded_with_a_base_lr, {"base_lrs": 0.1}),
    "a state's schedule": (loaded_schedule, GEOMETRIC | SHAPE | MINIMUM | {"warmup_steps": 2, "cycles": None}),
    "factory": (factory, OF_FACTORY | GEOMETRIC | {"last_epoch": -1}),
    "factory, fitted": (factory, OF_FACTORY | {"num_cycles": 3}),
    "factory, listed": (factory, OF_FACTORY | LISTED),
    "factory, continued": (factory, OF_FACTORY | {"num_cycles": 3, "extend_from": 40, "extend_peak": 0.5}),
    "register": (registered, GEOMETRIC | SHAPE | {"min_lr": None, "min_lr_rate": None}),
    "register, listed": (registered, LISTED | {"extend_from": 20, "extend_peak": 1.0}),
    "plot_schedule": (drawn, {"schedules": ..., "num_steps": 20, "base_lr": 1.0, "yscale": "linear", "logged": None}),
    "count_optimizer_steps": (count_optimizer_steps, {"prepared": None}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_value_that_nobody_means_is_taken_or_named_in_a_short_error(entry):
    function, arguments = ENTRIES[entry]
    others = {name: value for name, value in arguments.items() if value is not ...}
    wrong = []
    for name in arguments:
        for described, value in VALUES.items():
            try:
                function(**others | {name: value})
            except (TypeError, ValueError) as error:
                named = any(word in str(error) for word in (name, entry, "scheduler", "schedule", "param_groups"))
                if len(str(error)) > 600 or not named:
                    wrong.append(f"{name}={described}: {type(error).__name__} {str(error)[:200]!r}")
            except KeyError as error:
                if "initial_lr" not in str(error):  # torch's own error where last_epoch is 0
                    wrong.append(f"{name}={described}: {error!r}"[:200])
            except Exception as error:  # what is reported with all others
                wrong.append(f"{name}={described}: {type(error).__name__} {str(error)[:200]!r}")
    assert not wrong, "\n".join(wrong)
