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
from hf_warmcos.schedule import Arc


def formulas(documented):
    """Each formula of a docstring: what it defines, and its right side as an expression of Python."""
    (block,) = re.findall(r"\.\. math::\n(.*?)\n\n", documented.__doc__, re.DOTALL)
    for line in " ".join(block.split()).split(r"\\"):
        name, right = line.split("&=")
        for latex, python in (
            (r"\mathrm{round}", "round"),
            (r"\left(", "("),
            (r"\right)", ")"),
            (r"\pi \,", "pi *"),
            (r"\pi", "pi *"),
            (r"\,", "*"),
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
        value = eval(right.strip().lstrip("*"), names)
        name, takes_the_step, _ = name.partition("(t)")
        names[name] = (lambda _, value=value: value) if takes_the_step else value
    return value


def is_close_to(lr):
    return pytest.approx(lr, rel=1e-12, abs=1e-15)


SHAPES = {
    "base_lr": st.sampled_from([0.1, 1.0]),
    "decay": st.sampled_from([1.0, 0.5, 0.1]),
    "eta_min": st.sampled_from([0.0, 0.02]),
    "stable_ratio": st.sampled_from([0.0, 0.3, 0.8]),
    "warmup_steps": st.integers(0, 15),
    "step": st.integers(0, 99),
}


@given(
    st.fixed_dictionaries(SHAPES),
    st.sampled_from(["overlap", "prefix", "every_cycle"]),
    st.sampled_from([0.0, 0.25]),
    st.booleans(),
)
def test_of_the_schedule(of, warmup_mode, warmup_lr_rate, lists_a_warmup):
    names = ("eta_min", "stable_ratio", "warmup_steps")
    arguments = {name: of[name] for name in names} | {"warmup_mode": warmup_mode, "warmup_lr_rate": warmup_lr_rate}
    if lists_a_warmup:
        arguments["cycles"] = [20, [30, of["decay"]], {"steps": 25, "peak": of["decay"] ** 2, "warmup_steps": 5}]
    else:
        arguments |= {"T_0": 20, "T_mult": 1.25, "decay": of["decay"]}
    schedule = CosineRestartSchedule(**arguments)
    step, warmup = of["step"], of["warmup_steps"]
    cycle = schedule.cycle_at(step)
    tau, own = step - cycle.start, warmup if warmup_mode == "every_cycle" else 0
    if lists_a_warmup and cycle.index == 2:
        own = 5
    places = {"t": step, "k": cycle.index, "T_k": cycle.length, "tau": min(tau, cycle.length), "w": own}

    def warm(t):
        overlaps = warmup and warmup_mode == "overlap"
        return warmup_lr_rate + (1 - warmup_lr_rate) * min(1, t / warmup) if overlaps else 1

    peak = schedule.peak_lr(cycle.index, of["base_lr"])
    if tau < 0:
        lr = peak * (warmup_lr_rate + (1 - warmup_lr_rate) * step / warmup)
    elif tau < own:
        lr = of["eta_min"] + (peak - of["eta_min"]) * (warmup_lr_rate + (1 - warmup_lr_rate) * tau / own)
    else:
        lr = evaluated(CosineRestartSchedule, **of, **places, warm=warm)
    assert is_close_to(lr) == schedule.lr_at(step, of["base_lr"])


@given(st.fixed_dictionaries(SHAPES), st.sampled_from(["overlap", "prefix", "every_cycle"]))
def test_of_an_arc(of, warmup_mode):
    names = ("eta_min", "stable_ratio", "warmup_steps", "decay")
    schedule = CosineRestartSchedule(T_0=20, T_mult=1.25, warmup_mode=warmup_mode, **{name: of[name] for name in names})
    arc = schedule.arc_at(of["step"])
    floor, span = arc.floor_and_span(of["base_lr"])
    parts = {name: getattr(arc, name) for name in ("rise_start", "fall_start")}
    fractions = {"f": arc.floor_from, "r": arc.span_from, "rise": arc.rise or 1}
    lr = evaluated(Arc, t=of["step"], clip=lambda x: min(max(x, 0), 1), fall=arc.fall, floor=floor, span=span,
                   **parts, **fractions)  # fmt: skip
    assert is_close_to(lr) == schedule.lr_at(of["step"], of["base_lr"])


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
    assert is_close_to(lr) == scheduler.schedule.lr_at(step, base_lr)


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
    assert is_close_to(lr) == scheduler.schedule.lr_at(step, base_lr)


def test_a_formula_that_forgets_the_plateau_would_fail():
    plateau = CosineRestartSchedule(T_0=160, stable_ratio=0.8)
    assert plateau.lr_at(80) == 1.0 != CosineRestartSchedule(T_0=160).lr_at(80)
