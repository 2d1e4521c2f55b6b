"""Look for arguments, states, command lines and sequences of operations that give another learning rate than the model.

    python -m tests.fuzz --seconds 600

A failure prints the shortest case that hypothesis finds, and the command that repeats it. The exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import logging
import math
import os
import pickle
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import hostile
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, note, seed, settings, stateful
from hypothesis import strategies as st
from optimizers import rates_of

from hf_warmcos import CosineRestartLR, CosineRestartSchedule
from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule as factory
from hf_warmcos.cli import main as command_line
from tests.fuzz import model

NUMBERS = itertools.count()


def parameter_group(lr: Any) -> dict[str, Any]:
    """A group whose parameter is not equal to that of any other."""
    return {"params": [torch.nn.Parameter(torch.tensor([float(next(NUMBERS))]))], "lr": lr}


MODES = st.sampled_from(["overlap", "prefix", "every_cycle"])
RATIOS = st.one_of(st.sampled_from([0, 0.5, 0.8]), st.floats(0, 0.99))
FRACTIONS = st.one_of(st.sampled_from([0, 0.1, 1]), st.floats(0, 1))
T_MULTS = st.one_of(st.sampled_from([1, 2, 1.5, 0.5]), st.floats(0.3, 3))
DECAYS = st.one_of(st.sampled_from([1, 0.5]), st.floats(0.1, 1))
LEARNING_RATES = st.one_of(st.sampled_from([0.1, 0.02, 1]), st.floats(1e-6, 10))
LENGTHS = st.integers(1, 40)
LISTED = st.lists(
    st.one_of(
        LENGTHS,
        st.tuples(LENGTHS, st.floats(0.05, 2)).map(list),
        st.fixed_dictionaries(
            {"steps": LENGTHS},
            optional={"peak": st.floats(0.05, 2), "warmup_steps": st.integers(0, 10), "stable_ratio": RATIOS},
        ),
    ),
    min_size=1,
    max_size=5,
)
SHAPES = {"warmup_mode": MODES, "warmup_lr_rate": FRACTIONS, "stable_ratio": RATIOS}
WARMUPS = st.one_of(st.integers(0, 12), st.integers(0, 60))
MINIMA = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"eta_min": st.floats(0, 0.2)}),
    st.fixed_dictionaries({"eta_min_rate": FRACTIONS}),
)


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of a schedule, each within its range: some of them cannot be together."""
    arguments = draw(st.fixed_dictionaries({"warmup_steps": WARMUPS}, optional=SHAPES)) | draw(MINIMA)
    if draw(st.booleans()):
        return arguments | {"cycles": draw(LISTED)}
    T_0s = st.one_of(st.integers(1, 60), st.floats(1, 60))
    some = {"T_mult": T_MULTS, "decay": DECAYS, "num_cycles": st.one_of(st.none(), st.integers(1, 6))}
    return arguments | draw(st.fixed_dictionaries({"T_0": T_0s}, optional=some))


def near(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, rtol=1e-9, atol=1e-12))


def says_in_few_words(error: Exception) -> None:
    """An error says in a few words what was expected and what came."""
    assert str(error).startswith("Expected "), error
    assert len(str(error)) < 1500, error


@contextlib.contextmanager
def refused_or_right() -> Any:
    try:
        yield
    except (TypeError, ValueError) as error:
        says_in_few_words(error)


@given(schedules(), st.lists(st.one_of(st.integers(0, 400), st.floats(0, 400)), min_size=1), LEARNING_RATES)
def schedule(arguments: dict[str, Any], steps: list[float], base_lr: float) -> None:
    """Each learning rate is the model's, and what is refused is what the model calls impossible."""
    try:
        schedule = CosineRestartSchedule(**arguments)
    except ValueError:
        schedule = None
    assert model.is_possible(arguments) == (schedule is not None)
    if schedule is None:
        return
    expected = [model.learning_rate(arguments, step, base_lr) for step in steps]
    assert near([schedule.lr_at(step, base_lr) for step in steps], expected)
    assert near(schedule.curve(np.array(steps), base_lr), expected)
    whole = [model.learning_rate(arguments, step, base_lr) for step in range(90)]
    assert near(schedule.curve(90, base_lr), whole)
    start = schedule.origin
    for index, (length, *_) in zip(range(5), model.cycles_of(arguments)):
        assert schedule.cycle(index) == (index, start, length)
        assert schedule.cycle_at(start + length - 1).index == index
        start += length
    assert (
        CosineRestartSchedule(**json.loads(json.dumps(arguments))) == schedule == pickle.loads(pickle.dumps(schedule))
    )
    if schedule.end is not None:
        assert schedule.end == model.end(arguments)
        longer = schedule.extend(schedule.end + 100, peak=0.5)
        expected = model.extended(arguments, schedule.end + 100, peak=0.5)
        assert near(
            longer.curve(schedule.end + 102), [model.learning_rate(expected, at) for at in range(schedule.end + 102)]
        )


@given(st.data())
def arguments(data: st.DataObject) -> None:
    """The factory fits and continues as the model does."""
    N, count = data.draw(st.integers(1, 200), "num_training_steps"), data.draw(st.integers(1, 5), "num_cycles")
    given = {"num_warmup_steps": data.draw(WARMUPS, "num_warmup_steps")}
    given |= data.draw(st.fixed_dictionaries({}, optional={**SHAPES, "T_mult": T_MULTS, "decay": DECAYS}), "shape")
    of_minimum = data.draw(MINIMA, "minimum")
    expected = {"warmup_mode": "prefix"} | given | of_minimum
    W = expected["warmup_steps"] = expected.pop("num_warmup_steps")
    budget = N - W * (expected["warmup_mode"] == "prefix")
    if budget == 0:
        budget = count = 1  # one cycle of one step after a training that only warms up
    optimizer = torch.optim.SGD([parameter_group(0.1)])
    given |= {name.replace("eta_min", "min_lr"): value for name, value in of_minimum.items()}
    later = sorted(data.draw(st.lists(st.integers(N + 1, N + 200), max_size=3, unique=True), "later"))
    with warnings.catch_warnings(), refused_or_right():
        warnings.simplefilter("ignore")
        if later and CONTINUES:
            *between, given["num_training_steps"] = later
            given["extend_from"] = [N, *between] if between or data.draw(st.booleans(), "as a list") else N
            peak = given["extend_peak"] = data.draw(st.floats(0.05, 1.5), "extend_peak")
        else:
            given["num_training_steps"] = N
        note(f"factory(optimizer, **{given | {'num_cycles': count}})")
        scheduler = factory(optimizer, **given, num_cycles=count)
        expected |= {"T_0": model.fitted(budget, count, expected.get("T_mult", 1)), "num_cycles": count}
        assert model.is_possible(expected)
        if later and CONTINUES:
            for each in later:
                expected = model.extended(expected, each, peak)
        steps = range(given["num_training_steps"] + 3)
        assert near(scheduler.schedule.curve(len(steps), 0.1), [model.learning_rate(expected, s, 0.1) for s in steps])


CONTINUES = "extend_from" in factory.__wrapped__.__annotations__


OPTIONS = ["num_training_steps", "max_steps", "num_warmup_steps", "warmup_ratio", "lr", "num_cycles", "T_mult", "decay"]
OPTIONS += [
    "min_lr",
    "min_lr_rate",
    "T_0",
    "cycles",
    "stable_ratio",
    "warmup_mode",
    "warmup_lr_rate",
    "format",
    "yscale",
]
OPTIONS += ["from", "output", "extend_from", "extend_peak", "help", "nun_cycles", "", "at_cycle_ends"]
TEXTS = st.one_of(
    st.integers(-2, 60).map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(
        ["1e400", "0x10", "1_000", "10,20:0.5", "10,,", "1:2:3", "9" * 400, "prefix", "json", "csv", "log"]
    ),
    LISTED.map(json.dumps),
    st.sampled_from(
        ['[{"steps": 10, "warmup_steps": 3}]', '{"steps": 1}', "[" * 5000, "[1", "[[]]", "[null]", "/", "."]
    ),
)


@given(st.data())
def command_lines(data: st.DataObject) -> None:
    """Whatever is given, the command line prints its answer, or ends with one line."""
    command = data.draw(st.sampled_from(["table", "plot", "run", "tabel"]), "command")
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(OPTIONS), TEXTS), max_size=5), "options")
    if data.draw(st.booleans(), "with a length"):
        pairs.append(("T_0", "10"))
    line = [command, *(f"--{name}={text}" for name, text in pairs if (name, command) != ("output", "plot"))]
    line += ["/no/such/command"] if command == "run" else []
    code, out, err = called(line)
    note(f"hf-warmcos {line}: {code}\n{out[:300]}\n{err[:300]}")
    if code in (2, 127):
        assert out == ""
        assert [*err].count("\n") == err.endswith("\n") == 1
        assert len(err) < 2500
        return
    assert code == 0 or (code == 130 and len(out) > MOST_OUTPUT)
    assert "Traceback" not in err


MOST_OUTPUT = 100_000  # characters: a table can have more rows than anybody waits for


class Output(io.StringIO):
    """What is printed, until somebody has seen enough and presses Ctrl-C."""

    def write(self, text: str) -> int:
        if self.tell() > MOST_OUTPUT:
            raise KeyboardInterrupt
        return super().write(text)


def called(line: list[str]) -> tuple[Any, str, str]:
    """The exit code of a command line, what it printed, and the errors."""
    out, err, environment = Output(), io.StringIO(), dict(os.environ)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = command_line(line)
        except SystemExit as exit:
            code = exit.code
        finally:
            os.environ.clear()
            os.environ.update(environment)
    return code, out.getvalue(), err.getvalue()


@given(schedules().filter(model.is_possible), LEARNING_RATES, st.integers(1, 150))
def tables(arguments: dict[str, Any], lr: float, num_training_steps: int) -> None:
    """The table has the model's cycles."""
    options = {
        "num_training_steps": num_training_steps,
        "lr": lr,
        "format": "json",
        "warmup_mode": "overlap",
    } | arguments
    line = ["table"]
    for name, value in options.items():
        name = name.replace("eta_min", "min_lr").replace("warmup_steps", "num_warmup_steps")
        line += [] if value is None else [f"--{name}", json.dumps(value) if name == "cycles" else str(value)]
    note(f"hf-warmcos {' '.join(line)}")
    code, out, err = called(line)
    if options["warmup_steps"] > num_training_steps:
        assert code == 2
        return
    assert code == 0, err
    start = arguments["warmup_steps"] if options["warmup_mode"] == "prefix" else 0
    for row, (length, *_) in zip(json.loads(out), model.cycles_of(arguments)):
        assert (row["start"], row["length"]) == (start, length)
        assert near(row["end_lr"], model.learning_rate(arguments, start + length - 1, lr))
        start += length


@given(st.data())
def states(data: st.DataObject) -> None:
    """A damaged state is refused, and changes nothing; or it is a state, and its position holds."""
    arguments = data.draw(schedules().filter(model.is_possible), "schedule")
    optimizer = torch.optim.SGD([parameter_group(0.1), parameter_group(0.02)])
    scheduler = CosineRestartLR(optimizer, CosineRestartSchedule(**arguments))
    optimizer.step()
    scheduler.step(data.draw(st.one_of(st.integers(0, 100), st.floats(0, 100)), "position"))
    state = copy.deepcopy(scheduler.state_dict())
    for _ in range(data.draw(st.integers(1, 2), "changes")):
        entries = (
            state
            if data.draw(st.booleans(), "outside") or not isinstance(state.get("schedule"), dict)
            else state["schedule"]
        )
        entry = data.draw(st.sampled_from([*sorted(map(str, entries)), "other"]), "entry")
        kind = data.draw(st.sampled_from(["removed", "hostile", "in a list", "number"]), "change")
        if kind == "removed":
            entries.pop(entry, None)
        elif kind == "number":
            entries[entry] = data.draw(st.one_of(st.integers(), st.floats()), "value")
        else:
            value = hostile.VALUES[data.draw(hostile.names, "value")]
            entries[entry] = [value, 0.1] if kind == "in a list" else value
    optimizer.step()
    scheduler.step()
    before = snapshot(optimizer, scheduler)
    try:
        scheduler.load_state_dict(state)
    except (TypeError, ValueError) as error:
        says_in_few_words(error)
        assert snapshot(optimizer, scheduler) == before
        return
    base_lrs = [float(lr) for lr in scheduler.base_lrs]
    if scheduler.last_epoch >= 0:
        position = scheduler.schedule.cycle_at(scheduler.last_epoch).start + scheduler.T_cur
        assert near(scheduler.get_last_lr(), [model.learning_rate(arguments, position, lr) for lr in base_lrs])
        scheduler.state_dict()
        scheduler.step()
        assert rates_of(optimizer) == scheduler.get_last_lr()


def snapshot(optimizer: Any, scheduler: Any) -> list[Any]:
    """What may not change where something is refused."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return copy.deepcopy([groups, scheduler.state_dict(), scheduler.base_lrs, scheduler.get_last_lr()])


@dataclasses.dataclass
class Group:
    """What the model knows of a parameter group: its initial learning rate, the learning rate that it holds, and what
    stands in it as its initial one: that of the last step, or of a state that was loaded."""

    base_lr: float
    held: float
    stands: float | None = None


class Operations(stateful.RuleBasedStateMachine):
    """An optimizer and a scheduler, whatever happens to them, have the learning rates of a model that says: the groups
    hold what was written last; a step writes the learning rate of its position for each group's initial one.

    Other code that removes groups and adds others between two steps, or changes their order, goes unnoticed, as with
    torch's schedulers: here a step follows at once.
    """

    saved = stateful.Bundle("saved")
    LRS = st.sampled_from([0.5, 0.25, 0.125, 0.0625, 0.75])
    KINDS = st.sampled_from(["float", "tensor", "float32 tensor", "shared tensor"])

    def make(self, lr: float, kind: str) -> Any:
        """A learning rate as a group holds it. A shared tensor is that of the first group, if it has one."""
        shared = self.optimizer.param_groups[0]["lr"] if kind == "shared tensor" and self.groups else None
        if isinstance(shared, torch.Tensor):
            return shared
        return lr if kind == "float" else torch.tensor(lr, dtype=torch.float32 if "32" in kind else torch.float64)

    def start(self, arguments: dict[str, Any], groups: list[tuple[float, str]]) -> None:
        shared = torch.tensor(groups[0][0], dtype=torch.float64)
        lrs = []
        self.groups = []
        for lr, kind in groups:
            lrs.append(shared if kind == "shared tensor" else self.make(lr, kind))
        self.optimizer = torch.optim.SGD([parameter_group(lr) for lr in lrs])
        self.arguments, self.position, self.changed = arguments, 0.0, None
        self.scheduler = CosineRestartLR(self.optimizer, CosineRestartSchedule(**arguments))
        self.groups = [Group(float(groups[0][0] if lr is shared else own[0]), 0.0) for lr, own in zip(lrs, groups)]
        self.write()

    def expected(self) -> list[float]:
        return [model.learning_rate(self.arguments, self.position, group.base_lr) for group in self.groups]

    def write(self) -> None:
        """What the scheduler does when it steps: it writes all groups, and has seen what was changed."""
        for group, lr in zip(self.groups, self.expected()):
            group.held, group.stands = lr, group.base_lr
        self.known, self.changed, self.waiting = [*self.groups], None, False
        self.written = [group.held for group in self.groups]

    def stepped(self) -> None:
        self.write()
        assert near_float32(self.scheduler.get_last_lr(), self.written)

    @property
    def in_charge(self) -> bool:
        """Whether known groups hold what was written last."""
        pairs = [
            (group, lr) for group, lr in zip(self.known, self.written) if any(group is each for each in self.groups)
        ]
        return all(math.isclose(group.held, lr, rel_tol=1e-6) for group, lr in pairs)

    @stateful.initialize(
        arguments=schedules().filter(model.is_possible), groups=st.lists(st.tuples(LRS, KINDS), min_size=1, max_size=4)
    )
    def begin(self, arguments: dict[str, Any], groups: list[tuple[float, str]]) -> None:
        self.start(arguments, groups)

    @stateful.rule(count=st.integers(1, 9))
    def update(self, count: int) -> None:
        for _ in range(count):
            if self.changed == "added" and self.in_charge:
                self.write()  # what was added joins
            self.optimizer.step()
            self.agree()
            self.scheduler.step()
            self.position = math.floor(self.position) + 1.0 + self.position % 1
            self.stepped()
            self.agree()

    @stateful.rule(position=st.one_of(st.integers(0, 90), st.integers(0, 720).map(lambda eighths: eighths / 8)))
    def go_to(self, position: float) -> None:
        self.scheduler.step(position)
        self.position = position
        self.stepped()

    @stateful.precondition(lambda self: self.changed != "removed" and len(self.groups) < 6)
    @stateful.rule(lr=LRS, kind=KINDS)
    def add(self, lr: float, kind: str) -> None:
        made = self.make(lr, kind)
        inherits = isinstance(made, torch.Tensor) and made is self.optimizer.param_groups[0]["lr"]
        self.optimizer.add_param_group(parameter_group(made))
        self.groups.append(Group(self.groups[0].base_lr if inherits else lr, float(made)))
        self.changed = "added"

    @stateful.precondition(lambda self: self.changed != "added" and len(self.groups) > 1)
    @stateful.rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.groups) - 1), "index")
        del self.optimizer.param_groups[index], self.groups[index]
        self.changed = "removed"

    @stateful.precondition(lambda self: self.changed is None)
    @stateful.rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(self.groups))), "order")
        self.optimizer.param_groups[:] = [self.optimizer.param_groups[index] for index in order]
        self.go_to(self.position)

    @stateful.precondition(lambda self: self.changed is None)
    @stateful.rule(data=st.data(), lr=LRS, kind=KINDS)
    def exchange(self, data: st.DataObject, lr: float, kind: str) -> None:
        index = data.draw(st.integers(0, len(self.groups) - 1), "index")
        self.optimizer.add_param_group(parameter_group(self.make(lr, kind)))
        self.optimizer.param_groups[index] = self.optimizer.param_groups.pop()
        self.go_to(self.position)

    @stateful.rule(data=st.data(), lr=LRS, kind=KINDS)
    def set_by_hand(self, data: st.DataObject, lr: float, kind: str) -> None:
        index = data.draw(st.integers(0, len(self.groups) - 1), "index")
        if self.changed == "added" and not index:
            return  # whose tensor the added group has can no longer be told
        made = self.make(lr, kind.replace("shared ", ""))
        self.optimizer.param_groups[index]["lr"] = made
        group = self.groups[index]
        group.held = float(made)
        if not any(group is each for each in self.known) and group.stands is None:  # what it holds is its initial one
            group.base_lr = lr

    @stateful.precondition(lambda self: self.changed is None)
    @stateful.rule(data=st.data(), in_place=st.booleans())
    def set_base_lrs(self, data: st.DataObject, in_place: bool) -> None:
        base_lrs = [data.draw(self.LRS, "base_lr") for _ in self.groups]
        if in_place:
            self.scheduler.base_lrs[:] = base_lrs
        else:
            self.scheduler.base_lrs = base_lrs
        for group, base_lr in zip(self.groups, base_lrs):
            group.base_lr = base_lr
            if not in_place:  # otherwise it is written at the next step
                group.stands = base_lr

    @stateful.rule(target=saved)
    def save(self) -> Any:
        states = copy.deepcopy((self.optimizer.state_dict(), self.scheduler.state_dict()))
        in_charge = self.in_charge and all(
            # Exactly: a warmup can begin at 1e-300, where what differs by a factor lies close together.
            model.learning_rate(self.arguments, self.position, group.base_lr) == lr
            for group, lr in zip(self.known, self.written)
            if any(group is each for each in self.groups)
        )
        return states, copy.deepcopy(self.groups), self.position, in_charge

    def load(self, saved: Any, order: str) -> None:
        (of_optimizer, of_scheduler), groups, position, in_charge = saved
        for which in order.split(", "):
            if which == "optimizer":
                self.optimizer.load_state_dict(copy.deepcopy(of_optimizer))
                for group, other in zip(self.groups, groups):
                    group.held, group.stands = other.held, other.stands
                    if not any(group is each for each in self.known):
                        group.base_lr = other.base_lr if other.stands is None else other.stands
            else:
                self.scheduler.load_state_dict(copy.deepcopy(of_scheduler))
                for group, other in zip(self.groups, groups):
                    group.base_lr = group.stands = other.base_lr
                self.position = position
                self.known, self.written, self.changed = [*self.groups], self.expected(), None
                if in_charge:
                    self.write()

    ORDERS = st.sampled_from(["optimizer", "scheduler", "optimizer, scheduler", "scheduler, optimizer"])

    @stateful.rule(saved=saved, order=ORDERS)
    def roll_back(self, saved: Any, order: str) -> None:
        if len(saved[1]) == len(self.groups):
            self.load(saved, order)

    @stateful.rule(saved=saved, order=ORDERS, lrs=st.lists(st.tuples(LRS, KINDS), min_size=6, max_size=6))
    def resume(self, saved: Any, order: str, lrs: list[tuple[float, str]]) -> None:
        self.start(self.arguments, lrs[: len(saved[1])])
        self.load(saved, order)

    @stateful.precondition(
        lambda self: self.scheduler.schedule.end is not None and len(self.groups) and not self.changed
    )
    @stateful.rule(steps=st.integers(1, 60), peak=st.floats(0.1, 2), saved=saved)
    def extend(self, steps: int, peak: float, saved: Any) -> None:
        if self.arguments.get("warmup_mode") == "every_cycle":
            steps += self.arguments["warmup_steps"]
        last = model.end(self.arguments) + steps
        assert self.scheduler.schedule.extend(last, peak=peak) == CosineRestartSchedule(
            **model.extended(self.arguments, last, peak)
        )
        self.start(model.extended(self.arguments, last, peak), [(0.5, "float")] * len(saved[1]))
        self.load(saved, "optimizer, scheduler")

    @stateful.rule(way=st.sampled_from([copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))]))
    def copied(self, way: Callable[[Any], Any]) -> None:
        self.optimizer, self.scheduler = way((self.optimizer, self.scheduler))

    @stateful.precondition(lambda self: not self.changed)
    @stateful.rule(name=hostile.names, what=st.sampled_from(["step", "load", "base_lrs", "base_lrs in place"]))
    def refuse(self, name: str, what: str) -> None:
        value = hostile.VALUES[name]
        optimizer, scheduler = copy.deepcopy((self.optimizer, self.scheduler))
        before, known = snapshot(optimizer, scheduler), [*scheduler.base_lrs]
        try:
            if what == "step":
                scheduler.step([value])  # type: ignore[arg-type]
            elif what == "load":
                scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": value})
            elif what == "base_lrs":
                scheduler.base_lrs = value
            else:
                scheduler.base_lrs[-1] = [value]  # type: ignore[call-overload]
                scheduler.step()
        except (TypeError, ValueError) as error:
            says_in_few_words(error)
            if what == "base_lrs in place":
                scheduler.base_lrs[:] = known
            assert snapshot(optimizer, scheduler) == before

    @stateful.invariant()
    def agree(self) -> None:
        assert near_float32(rates_of(self.optimizer), [group.held for group in self.groups])
        assert self.scheduler.last_epoch == math.floor(self.position)


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)


def near_float32(some: list[float], others: list[float]) -> bool:
    """Near enough for what may have been held by a float32 tensor."""
    return len(some) == len(others) and all(map(close, some, others))


HOW = settings(
    max_examples=40,
    stateful_step_count=30,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
TARGETS: dict[str, Any] = {each.__name__: HOW(each) for each in (schedule, arguments, tables, command_lines, states)}
TARGETS["operations"] = Operations


def run(target: Any, number: int) -> None:
    """One round: some hundred examples of a target, the same for the same seed."""
    if isinstance(target, type):
        stateful.run_state_machine_as_test(seed(number)(target), settings=HOW)
    else:
        seed(number)(target)()


def main() -> int:
    """Run all targets in turn until the time is over or one fails; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default: 60)")
    parser.add_argument("--seed", type=int, help="of the first round (default: another each time)")
    parser.add_argument("--target", choices=TARGETS, help="the only one to run (default: all in turn)")
    options = parser.parse_args()
    logging.getLogger("hf_warmcos").setLevel("ERROR")
    warnings.simplefilter("ignore")
    begin, first = time.monotonic(), random.randrange(10**6) if options.seed is None else options.seed
    names = list(TARGETS) if options.target is None else [options.target]
    for rounds in itertools.count():
        number, name = first + rounds // len(names), names[rounds % len(names)]
        if rounds and time.monotonic() - begin > options.seconds:
            break
        try:
            run(TARGETS[name], number)
        except Exception:
            traceback.print_exc()
            print(f"\nRepeat it with: python -m tests.fuzz --target {name} --seed {number} --seconds 0")
            return 1
    print(f"{rounds} rounds of {', '.join(names)} in {time.monotonic() - begin:.0f} s from seed {first}: no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
