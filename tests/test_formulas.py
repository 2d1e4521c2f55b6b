"""The formulas of docstrings, as they are printed: evaluated, they give the learning rates of the schedule."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizers import make_optimizer

from hf_warmcos import (
    CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
    CosineRestartSchedule,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)


def formulas(documented):
    """Each formula of a docstring: what it defines, and its right side as an expression of Python."""
    (block,) = re.findall(r"\.\. math::\n(.*?)\n\n", documented.__doc__, re.DOTALL)
    for line in " ".join(block.split()).split(r"\\"):
        name, right = line.split("&=")
        for latex, python in (
            (r"\mathrm{round}", "round"),
            (r"\left(", "* ("),
            (r"\right)", ")"),
            (r"\pi", "pi *"),
            (r"\eta_{min}", "eta_min"),
            (r"\_", "_"),
            (r"\cdot", "*"),
            ("^", "**"),
            (r"\frac", "* \\frac"),
        ):
            right = right.replace(latex, python)
        yield name.strip(), without_fractions(right).replace("\\", "")


def without_fractions(latex):
    while (start := latex.find(r"\frac{")) >= 0:
        above, end = in_braces(latex, start + len(r"\frac"))
        below, end = in_braces(latex, end)
        latex = f"{latex[:start]}(({above}) / ({below})){latex[end:]}"
    return latex


def in_braces(latex, start):
    depth = 0
    for end in range(start, len(latex)):
        depth += {"{": 1, "}": -1}.get(latex[end], 0)
        if depth == 0:
            return latex[start + 1 : end], end + 1
    raise ValueError(f"Expected a closing brace in {latex}")


def evaluated(documented, **given):
    names = {"max": max, "min": min, "round": round, "cos": math.cos, "pi": math.pi, **given}
    for name, right in formulas(documented):
        value = names[name] = eval(right.strip().lstrip("*"), names)
    return value


SHAPES = {
    "base_lr": st.sampled_from([0.1, 1.0]),
    "decay": st.sampled_from([1.0, 0.5, 0.1]),
    "eta_min": st.sampled_from([0.0, 0.02]),
    "stable_ratio": st.sampled_from([0.0, 0.3, 0.8]),
    "warmup_steps": st.integers(0, 15),
    "step": st.integers(0, 99),
}


@given(st.fixed_dictionaries(SHAPES))
def test_of_the_class(of):
    step, base_lr, warmup = of["step"], of["base_lr"], of["warmup_steps"]
    scheduler = CosineAnnealingWarmRestartsWithDecayAndLinearWarmup(
        make_optimizer(base_lr),
        T_0=20,
        eta_min=of["eta_min"],
        warmup_steps=warmup,
        decay=of["decay"],
        stable_ratio=of["stable_ratio"],
    )
    cycle = scheduler.schedule.cycle_at(step)
    lr = evaluated(
        CosineAnnealingWarmRestartsWithDecayAndLinearWarmup,
        **of,
        **{"t": step, "k": cycle.index, "s_k": cycle.start, "T_k": cycle.length},
        warm=lambda t: min(1, t / warmup) if warmup else 1,
    )
    assert lr == pytest.approx(scheduler.schedule.lr_at(step, base_lr), rel=1e-12, abs=1e-15)


@given(st.fixed_dictionaries(SHAPES))
def test_of_the_factory_after_its_warmup(of):
    step, base_lr = of["step"] + of["warmup_steps"], of["base_lr"]
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
        make_optimizer(base_lr),
        of["warmup_steps"],
        T_0=20,
        decay=of["decay"],
        min_lr=of["eta_min"],
        stable_ratio=of["stable_ratio"],
    )
    cycle = scheduler.schedule.cycle_at(step)
    places = {"k": cycle.index, "T_k": cycle.length, "tau": step - cycle.start, "min_lr": of["eta_min"]}
    lr = evaluated(get_cosine_restarts_with_decay_and_warmup_schedule, **of, **places)
    assert lr == pytest.approx(scheduler.schedule.lr_at(step, base_lr), rel=1e-12, abs=1e-15)


def test_a_formula_that_forgets_the_plateau_would_fail():
    plateau = CosineRestartSchedule(T_0=160, stable_ratio=0.8)
    assert plateau.lr_at(80) == 1.0 != CosineRestartSchedule(T_0=160).lr_at(80)
