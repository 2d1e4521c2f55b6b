"""Writes the tables and pictures of the studies from their raw results.

    python -m benchmarks.quality.report

packs the raw results, and writes the tables and numbers of docs/when-to-use.md and docs/results.md, and the pictures of
docs/results.md. On the pages, each table or number stands between two comments with its name: none is typed by hand.

| name on the page | function | a row for each | the numbers |
| --- | --- | --- | --- |
| decisions | `decision_table` | decision | difference in test loss, on each task of study 2 |
| best | `best_table` | task of study 1 | final loss of the best baseline and of the best setting of this schedule |
| arguments | `argument_table` | changed argument | what the change does to the final loss |
| known end, TASK | `known_end_table` | schedule of study 1 | loss after each quarter of the budget |
| snapshots, TASK | `snapshot_table` | setting of study 1 | loss of the last checkpoint and of ensembles |
| weights; predictions | `average_table` | task and setting | loss of averages of the last checkpoints |
| same data, TASK | `same_data_table` | way to continue | loss at N, 2 N and 4 N updates |
| other data, TASK | `other_data_table` | way to continue | loss on the new and on the old data |
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.documents import markdown_table, write_figures
from benchmarks.pictures import GRAY, INK, WIDTH, save, style
from benchmarks.quality.results import pack, read_lines
from hf_warmcos.plotting import BLUE, VERMILLION

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

STUDIES = ("known_end", "weight_averages", "moving_end", "further")
YES = {True: "yes", False: "no"}
NO_DIFFERENCE = "no significant difference"
ARROWS = {"better": "\u00a0↓", "worse": "\u00a0↑", NO_DIFFERENCE: "", "equal": ""}
QUARTERS = {"25%": 0.25, "50%": 0.5, "75%": 0.75, "100%": 1.0}
FIRST_TASKS, SECOND_TASKS = ("text", "digits", "digits-long"), {"text": "code", "digits": "digits, turned"}
SETTING = ["name", "warmup"]  # what tells the first study's settings of one task apart
PLANNED = "cosine planned for {} N"
RESTART = "restart at the full peak"
PLATEAU = "restart with a plateau: `stable_ratio=0.8`"
LOW = "continue at 0.1 of the peak"
SCHEDULE_FREE = "Schedule-Free AdamW"
GROWING = "growing cycles: `num_cycles=3, T_mult=2`"
GROWING_PLATEAU = "growing cycles with a plateau: `num_cycles=3, T_mult=2, stable_ratio=0.8`"


class Estimate(NamedTuple):
    """A mean over seeds with the half-width of its 95 % confidence interval."""

    mean: float
    half_width: float

    def verdict(self) -> str:
        """What a difference in loss says; "equal" where it is zero for every seed."""
        if self.mean == self.half_width == 0:
            return "equal"
        if abs(self.mean) <= self.half_width or math.isnan(self.half_width):
            return NO_DIFFERENCE
        return "better" if self.mean < 0 else "worse"

    def text(self, digits: int = 3, sign: str = "") -> str:
        """The mean and the interval, with a minus sign and spaces at which no browser breaks the line."""
        return f"{self.mean:{sign}.{digits}f}\u00a0±\u00a0{self.half_width:.{digits}f}".replace("-", "\u2212")

    def difference(self) -> str:
        return self.text(sign="+") + ARROWS[self.verdict()]


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and half-width by Student's t over the seeds."""
    sample = np.array(list(values), dtype=float)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), math.nan)
    half_width = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return Estimate(float(sample.mean()), float(half_width))


def paired(losses: pd.Series, baseline: pd.Series) -> Estimate:
    """The difference, over the seeds that both were measured with so far."""
    seeds = losses.dropna().index.intersection(baseline.dropna().index)
    return estimate(losses[seeds] - baseline[seeds])


def against(values: pd.Series, reference: pd.Series) -> str:
    """The mean of losses by seed, with an arrow where they differ from the reference's, seed by seed."""
    return estimate(values).text() + ARROWS[estimate(values - reference).verdict()]


def records(path: Path) -> pd.DataFrame:
    """A row per run: what determines it, and what was measured."""
    frame = pd.DataFrame(map(json.loads, read_lines(path)))
    runs = pd.json_normalize(list(frame.pop("run"))).rename(columns={"contender.name": "contender"})
    return runs.rename(columns=lambda name: name.split(".")[-1]).join(frame)


def runs_of(frame: pd.DataFrame) -> Iterable[Any]:
    return frame.itertuples()


def groups(frame: pd.DataFrame, keys: Any) -> Iterable[Any]:
    """Each group with its key, in the order in which they were measured."""
    return frame.groupby(keys, sort=False)


def loss_of(measured: dict[str, Any]) -> float:
    """Infinite where training diverged."""
    return math.inf if measured["loss"] is None else measured["loss"]


def setting_name(run: Any) -> str:
    if run.schedule == "hf_warmcos":
        return f"`decay={run.decay:g}, T_mult={run.T_mult:g}`"
    return "torch's `CosineAnnealingWarmRestarts`" if run.schedule == "torch" else f"`{run.schedule}`"


def known_end(path: Path) -> pd.DataFrame:
    """The first study: beside what was run, the losses of ensembles."""
    frame = records(path)
    frame["name"] = [setting_name(run) for run in runs_of(frame)]
    frame["warmup"] = frame["num_warmup_steps"] > 0
    frame["own"] = frame["schedule"] == "hf_warmcos"
    frame["accuracy"] = [100 * members[-1]["accuracy"] for members in frame["members"]]
    frame["last 2"] = [loss_of(of.get("2", of["1"])) for of in frame["ensembles"]]
    frame["all"] = [loss_of(of[str(len(of))]) for of in frame["ensembles"]]
    return frame


def by_seed(frame: pd.DataFrame, value: str, keys: list[str]) -> pd.DataFrame:
    """The values with a row per seed and a column per setting, in the order in which they were measured."""
    order = frame[keys].drop_duplicates()
    columns = pd.MultiIndex.from_frame(order) if len(keys) > 1 else pd.Index(order[keys[0]])
    return frame.pivot(index="seed", columns=keys, values=value)[columns]


def single_runs(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The test runs, without ensembles of separate runs, with the loss after each quarter of the budget."""
    runs = frame[(frame["task"] == task) & (frame["split"] == "test") & (frame["num_separate_runs"] == 1)].copy()
    for column, fraction in QUARTERS.items():
        runs[column] = [loss_of(run.curve[str(int(fraction * run.num_training_steps))]) for run in runs_of(runs)]
    return runs


def known_end_table(frame: pd.DataFrame, task: str) -> str:
    """Study 1, a row for each schedule: the loss after each quarter of the budget, and the accuracy at the end.

    The baseline of the arrows and of the last column is the cosine with the same warmup. A star marks a tuned learning
    rate at an edge of the grid.
    """
    runs = single_runs(frame, task)
    tuning = frame[(frame["task"] == task) & (frame["split"] == "validation")]
    losses = {column: by_seed(runs, column, SETTING) for column in QUARTERS}
    rows = []
    for (name, warmup), of in groups(runs, SETTING):
        tried, rate = tuning[(tuning["name"] == name) & (tuning["warmup"] == warmup)]["peak_lr"], of["peak_lr"].iloc[0]
        final, cosine = losses["100%"][name, warmup], losses["100%"]["`cosine`", warmup]
        rows.append(
            [
                name,
                YES[warmup],
                f"{rate:g}" + " *" * (rate in (tried.min(), tried.max())),
                *(against(losses[column][name, warmup], losses[column]["`cosine`", warmup]) for column in QUARTERS),
                estimate(of["accuracy"]).text(1),
                "" if name == "`cosine`" else estimate(final - cosine).difference(),
            ]
        )
    quarters = [f"loss at {column}" for column in QUARTERS]
    return markdown_table(["schedule", "warmup", "peak rate", *quarters, "accuracy, %", "minus cosine"], rows)


def best_table(frame: pd.DataFrame) -> str:
    """Study 1, a row for each task: the best baseline and the best setting of this schedule, by mean final loss."""
    rows = []
    for task in FIRST_TASKS:
        runs = single_runs(frame, task)
        final = by_seed(runs, "100%", ["own", *SETTING])
        baseline, own = (final[is_own][final[is_own].mean().idxmin()] for is_own in (False, True))
        rows.append([task])
        for values in (baseline, own):
            rows[-1] += [f"{values.name[0]}, warmup: {YES[values.name[1]]}", estimate(values).text()]
        rows[-1].append(estimate(own - baseline).difference())
    return markdown_table(
        ["task", "best baseline", "its loss", "best of this schedule", "its loss", "difference"], rows
    )


def argument_table(frame: pd.DataFrame) -> str:
    """Study 1, a row for each change of an argument: its mean effect on the final loss, over all other arguments."""
    changes: list[tuple[str, str, Any, Any]] = [
        ("`decay=0.75` in place of 1", "decay", 1.0, 0.75),
        ("`decay=0.5` in place of 1", "decay", 1.0, 0.5),
        ("`T_mult=2` in place of 1", "T_mult", 1, 2),
        ("warmup in place of none", "warmup", False, True),
    ]
    rows = [[name] for name, *_ in changes]
    for task in FIRST_TASKS:
        runs = single_runs(frame, task)
        final = by_seed(runs[runs["own"]], "100%", ["decay", "T_mult", "warmup"])
        for row, (_, argument, base, changed) in zip(rows, changes):
            if base in final.columns.get_level_values(argument):
                difference = final.xs(changed, axis=1, level=argument) - final.xs(base, axis=1, level=argument)
                row.append(estimate(difference.mean(axis=1)).difference())
            else:
                row.append("not measured")
    return markdown_table(["change", *(f"final loss, {task}" for task in FIRST_TASKS)], rows)


def snapshot_table(frame: pd.DataFrame, task: str) -> str:
    """Study 1, a row for each setting: the loss of the last checkpoint and of ensembles of cycle ends.

    The baseline of the arrows is the last checkpoint; that of the last column is an ensemble of as many separate runs.
    """
    runs = single_runs(frame, task)
    rows = []
    for (name, warmup), of in groups(runs[runs["own"]], SETTING):
        of = of.set_index("seed")
        size = of["num_cycles"].iloc[0]
        separate = frame[(frame["task"] == task) & (frame["num_separate_runs"] == size) & (frame["warmup"] == warmup)]
        separately = separate.set_index("seed")["all"]
        ensembles = [against(of[column], of["100%"]) for column in ("last 2", "all")]
        difference = estimate(of["all"] - separately).difference()
        cells = [estimate(of["100%"]).text(), *ensembles, estimate(separately).text(), difference]
        rows.append([name, YES[warmup], f"{size}", *cells])
    header = ["schedule", "warmup", "cycles", "last checkpoint", "ensemble of the last 2", "of all", "separate runs"]
    return markdown_table([*header, "all minus separate runs"], rows)


def average_table(frame: pd.DataFrame, kind: str) -> str:
    """A row for each task and setting: the loss of averages of `weights`, or of `predictions`, of the last cycle ends.

    The baseline of the arrows is the last checkpoint.
    """
    sizes, rows = ("2", "3", "4"), []
    for (task, name), of in groups(frame.set_index("seed"), ["task", "name"]):
        last = of["weights"].map(lambda by_size: loss_of(by_size["1"]))
        cells = [
            against(of[kind].map(lambda by_size, size=size: loss_of(by_size[size])), last)
            if size in of[kind].iloc[0]
            else ""
            for size in sizes
        ]
        rows.append([task, name, estimate(last).text(), *cells])
    columns = [f"{kind}, last {size}" for size in sizes]
    return markdown_table(["task", "schedule", "last checkpoint", *columns], rows)


def between_the_members(averages: pd.DataFrame, known: pd.DataFrame) -> str:
    """How many averages of weights have a lower loss than the mean loss of the models that were averaged."""
    keys = ["task", "name", "seed", "num_warmup_steps", "split"]
    pairs = [
        (loss_of(run.weights[f"{size}"]), np.mean([loss_of(member) for member in run.members[-size:]]))
        for run in runs_of(averages.merge(known[[*keys, "members"]], on=keys))
        for size in range(2, len(run.weights) + 1)
    ]
    return f"{sum(average < mean for average, mean in pairs)} of {len(pairs)}"


def contender_name(run: Any) -> str:
    names = {
        "cosine": PLANNED.format(run.plan),
        "linear": f"linear planned for {run.plan} N",
        "restarts": RESTART if run.decay == 1 else f"restart at {run.decay:g} of the peak",
        "low": LOW,
        "constant": "constant",
        "wsd": "WSD, cooldowns of 1 - sqrt",
        "wsd_s": PLATEAU,
        "infinite_cosine": "infinite cosine",
        "schedule_free": SCHEDULE_FREE,
        "growing": GROWING,
        "growing_wsd_s": GROWING_PLATEAU,
    }
    name = names[run.contender]
    return name + ", warmup" * run.restart_warmup + ", fresh optimizer" * run.fresh_optimizer


def moving_end(path: Path) -> pd.DataFrame:
    """The second study: a row per run, point in time, and kind of data."""
    order = {"contender": True, "plan": True, "restart_warmup": True, "fresh_optimizer": True, "decay": False}
    frame = records(path).sort_values(list(order), ascending=list(order.values()), kind="stable")
    frame["name"] = [contender_name(run) for run in runs_of(frame)]
    rows = [
        {"updates": int(updates), "data": kind.rsplit(", ", 1)[0], "on": kind.rsplit(", ", 1)[1], "loss": loss_of(of)}
        | {key: getattr(run, key) for key in ("task", "scenario", "name", "plan", "num_updates", "peak_lr", "seed")}
        for run in runs_of(frame)
        for updates, losses in run.curve.items()
        for kind, of in losses.items()
    ]
    return pd.DataFrame(rows)


def when_stopped(of: pd.DataFrame) -> pd.Series:
    """By seed: the test loss of the best checkpoint so far (by validation loss), averaged over all times."""
    losses = of.pivot(index=["seed", "updates"], columns="on", values="loss").sort_index()
    means = {}
    for seed, curve in losses.groupby(level="seed"):
        best = [int(np.argmin(curve["validation"].iloc[: index + 1])) for index in range(len(curve))]
        means[seed] = curve["test"].iloc[best].mean()
    return pd.Series(means)


def losses_when_stopped(frame: pd.DataFrame, task: str) -> dict[str, pd.Series]:
    """By contender: [`when_stopped`], for those that ran to the end."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data")]
    return {name: when_stopped(of) for name, of in groups(runs, "name")}


def same_data_losses(frame: pd.DataFrame, task: str) -> tuple[dict[int, pd.DataFrame], dict[int, pd.Series]]:
    """By the multiple of N: the test losses by seed and contender, and those of the cosine planned for it, if any."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data") & (frame["on"] == "test")]
    losses = {
        factor: by_seed(runs[runs["updates"] == factor * runs["num_updates"]], "loss", ["name"]) for factor in (1, 2, 4)
    }
    return losses, {factor: of[PLANNED.format(factor)] for factor, of in losses.items() if PLANNED.format(factor) in of}


def same_data_table(frame: pd.DataFrame, task: str) -> str:
    """Study 2, a row for each way to continue on the same data: the loss at N, 2 N and 4 N updates.

    The baseline of the arrows is the cosine planned for that length; in the last column, the one planned for 4 N.
    """
    losses, planned = same_data_losses(frame, task)
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data")]
    last, longest = runs["updates"].max(), when_stopped(runs[runs["name"] == PLANNED.format(4)])
    rows = []
    for name, of in groups(runs, "name"):
        cells = []
        for factor in (1, 2, 4):
            # On the way of a longer plan there is no end.
            shown = name in losses[factor] and of["plan"].iloc[0] in (1, factor)
            cells.append(against(losses[factor][name], planned[factor]) if shown else "")
        to_the_last = of["updates"].max() == last
        minus = estimate(losses[4][name] - planned[4]).difference() if to_the_last and name != PLANNED.format(4) else ""
        stopped = against(when_stopped(of), longest) if to_the_last else ""
        rows.append([name, f"{of['peak_lr'].iloc[0]:g}", *cells, minus, stopped])
    header = ["", "peak rate", "loss at N", "at 2 N", "at 4 N", "4 N, minus planned cosine", "stopped at any time"]
    return markdown_table(header, rows)


def other_data_losses(frame: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """The test losses by seed and contender at 2 N: on the new data, on the old, and the mean of both."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "other data") & (frame["on"] == "test")]
    end = runs[runs["updates"] == 2 * runs["num_updates"]]
    old, new = (by_seed(end[end["data"] == data], "loss", ["name"]) for data in (task, SECOND_TASKS[task]))
    return {"new": new, "old": old, "mean": (new + old) / 2}


def other_data_table(frame: pd.DataFrame, task: str) -> str:
    """Study 2, a row for each way to continue on new data: the loss on the new data and on the old at 2 N updates.

    The baseline of the arrows and of the last columns is the restart at the full peak.
    """
    losses = other_data_losses(frame, task)
    rows = [
        [name, *(against(of[name], of[RESTART]) for of in losses.values())]
        + (
            ["", ""]
            if name == RESTART
            else [estimate(losses[k][name] - losses[k][RESTART]).difference() for k in ("new", "old")]
        )
        for name in losses["new"]
    ]
    header = ["", f"loss on the new data ({SECOND_TASKS[task]})", f"on the old ({task})", "mean of both"]
    return markdown_table([*header, "new, minus the full restart", "old, minus the full restart"], rows)


def measurements(path: Path) -> str:
    """What was run, by which versions, and what it took."""
    frame = records(path)
    versions = frame["versions"].map(lambda of: ", ".join(f"{name} {number}" for name, number in of.items()))
    lines = [
        f"{len(frame)} runs, {frame['seconds'].sum() / 60:.0f} minutes in all, each on one core of a shared machine."
    ]
    return "\n".join(f"- {line}" for line in [*lines, *(f"Versions: {of}." for of in versions.unique())])


def decisions(
    moving: pd.DataFrame, at_the_end: Callable[[str], Estimate] | None = None
) -> dict[str, Callable[[str], Estimate]]:
    """By situation: the difference in test loss on a task. It raises KeyError where a contender was not measured.

    Args:
        moving: The runs of study 2, or of study 3, which are of the same kind.
        at_the_end: The difference where the number of steps is known, if it comes from other runs.
    """

    same_data = cache(partial(same_data_losses, moving))
    other_data = cache(partial(other_data_losses, moving))
    stopped_at_any_time = cache(partial(losses_when_stopped, moving))

    def after(factor: int, name: str, task: str, planned_for: int | None = None) -> Estimate:
        losses, _ = same_data(task)
        return paired(losses[factor][name], losses[factor][PLANNED.format(planned_for or factor)])

    def on_data(kind: str, name: str, task: str) -> Estimate:
        losses = other_data(task)[kind]
        return paired(losses[name], losses[RESTART])

    def at_any_time(name: str, task: str) -> Estimate:
        stopped = stopped_at_any_time(task)
        return paired(stopped[name], stopped[PLANNED.format(4)])

    half = "restart at 0.5 of the peak"
    compared: list[tuple[str, Callable[[str], Estimate]]] = [
        (
            "**Number of steps known.** 3 growing cycles, compared with 1 cosine",
            at_the_end or partial(after, 1, GROWING),
        ),
        ("3 growing cycles with a plateau, compared with 1 cosine", partial(after, 1, GROWING_PLATEAU)),
        ("1 cosine with a plateau, compared with 1 cosine", partial(after, 1, PLATEAU)),
        (
            "**A checkpoint at N.** A cycle ends there, compared with 1 cosine planned for 4 N",
            partial(after, 1, RESTART, planned_for=4),
        ),
        ("A cycle with a plateau ends there, compared with that cosine", partial(after, 1, PLATEAU, planned_for=4)),
        (
            "**Continued on the same data, to 4 N.** Restarts at the full peak, compared with 1 cosine planned for 4 N",
            partial(after, 4, RESTART),
        ),
        ("Restarts at the full peak with a plateau, compared with the planned cosine", partial(after, 4, PLATEAU)),
        ("No restart, 0.1 of the peak after N, compared with the planned cosine", partial(after, 4, LOW)),
        (
            "**Continued on new data, to 2 N.** Loss on the new data: restart with a plateau, compared with none",
            partial(on_data, "new", PLATEAU),
        ),
        ("Loss on the new data: restart at half the peak, compared with the full peak", partial(on_data, "new", half)),
        ("Loss on the old data: restart at half the peak, compared with the full peak", partial(on_data, "old", half)),
        (
            "**Stopped at an arbitrary time.** Restarts with a plateau, compared with 1 cosine planned for 4 N",
            partial(at_any_time, PLATEAU),
        ),
        ("Restarts without a plateau, compared with the planned cosine", partial(at_any_time, RESTART)),
        ("1 cosine planned for N, then 0.1 of the peak, compared with the planned cosine", partial(at_any_time, LOW)),
        ("Schedule-Free AdamW, compared with AdamW and the planned cosine", partial(at_any_time, SCHEDULE_FREE)),
    ]
    return dict(compared)


def held(difference: Callable[[str], Estimate], verdict: str) -> str:
    """Whether study 3 came to the same verdict on `text`, and its difference."""
    try:
        further = difference("text")
    except KeyError:
        return "not measured"
    if math.isnan(further.half_width):  # with one seed so far
        return "not measured"
    return f"{YES[further.verdict() == verdict]}, {further.text(sign='+')}"


def decision_table(frames: dict[str, pd.DataFrame]) -> str:
    """A row for each decision: what is compared, the verdict, and the difference in test loss on each task.

    The last column says whether the verdict on `text` held in study 3.
    """
    further = decisions(frames["further"])

    def at_the_end(task: str) -> Estimate:
        return minus_cosine(frames["known_end"], task)["`decay=1, T_mult=2`"]

    rows = []
    for what, difference in decisions(frames["moving_end"], at_the_end).items():
        by_task = {task: difference(task) for task in SECOND_TASKS}
        verdicts = {task: of.verdict() for task, of in by_task.items()}
        same = len(set(verdicts.values())) == 1
        verdict = "; ".join(dict.fromkeys(of if same else f"`{task}`: {of}" for task, of in verdicts.items()))
        differences = (of.text(sign="+") for of in by_task.values())
        rows.append([what, verdict, *differences, held(further[what], verdicts["text"])])
    header = ["situation", "verdict", *(f"`{task}`" for task in SECOND_TASKS), "`text`, held at 5 times the length"]
    return markdown_table(header, rows, num_text_columns=2)


Dots = dict[str, list[Estimate]]


def draw_dots(panels: dict[str, Dots], names: Sequence[str], baseline: str) -> Figure:
    """A panel per task with a row per name: differences with their intervals, beside a line for the baseline."""
    labels = [fill(name.replace("`", ""), 24) for name in names]
    num_lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(WIDTH, 1.5 + 0.21 * num_lines), layout="constrained")
    for axis, (task, dots) in zip(figure.subplots(1, len(panels), sharey=True), panels.items()):
        for index, (label, estimates) in enumerate(dots.items()):
            axis.errorbar(
                [of.mean for of in estimates],
                [row + 0.25 * (index - (len(dots) - 1) / 2) for row in range(len(estimates))],
                xerr=[of.half_width for of in estimates],
                fmt="os"[index],
                markersize=4,
                color=(BLUE, VERMILLION)[index],
                label=label,
            )
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_title(task)
        axis.locator_params(axis="x", nbins=5 - len(panels))
        axis.xaxis.set_major_formatter(lambda number, _: f"{number:g}".replace("-", "\u2212"))
        axis.grid(axis="x", alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(names)), labels)
    figure.axes[0].invert_yaxis()
    figure.supxlabel(f"test loss minus that of {baseline} (left is better)", fontsize=10)
    if len(dots) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def minus_cosine(frame: pd.DataFrame, task: str) -> dict[str, Estimate]:
    """Each schedule's final loss minus the cosine's, both with warmup."""
    final = by_seed(single_runs(frame, task), "100%", SETTING).xs(True, axis=1, level="warmup")
    return {name: estimate(final[name] - final["`cosine`"]) for name in final}


def draw_known_end(frame: pd.DataFrame) -> Figure:
    """Each schedule's final loss minus the cosine's."""
    names = [f"`{name}`" for name in ("constant", "linear")]
    names += [f"`decay={decay:g}, T_mult={T_mult}`" for T_mult in (1, 2) for decay in (1, 0.75, 0.5)]
    differences = {task: minus_cosine(frame, task) for task in FIRST_TASKS}
    panels: dict[str, Dots] = {task: {"final": [of[name] for name in names]} for task, of in differences.items()}
    return draw_dots(panels, names, "the cosine")


def draw_same_data(frame: pd.DataFrame) -> Figure:
    """Each contender's loss at 2 N and 4 N minus that of the cosine planned for that length."""
    panels: dict[str, Dots] = {}
    for task in SECOND_TASKS:
        losses, planned = same_data_losses(frame, task)
        names = [name for name in losses[4] if not name.startswith("linear planned") and name in losses[2]]
        names = [name for name in names if name != PLANNED.format(4)]
        panels[task] = {
            f"after {factor} N updates": [estimate(losses[factor][name] - planned[factor]) for name in names]
            for factor in (2, 4)
        }
    return draw_dots(panels, names, "the planned cosine")


def draw_other_data(frame: pd.DataFrame) -> Figure:
    """The loss on the new data and on the old; a line joins the restarts from the full peak down to a quarter of it."""
    markers = {LOW: "v", "constant": "X", "WSD, cooldowns of 1 - sqrt": "D", PLATEAU: "p", "infinite cosine": "*"}
    markers |= {SCHEDULE_FREE: "^", PLANNED.format(2): "P"}
    figure = Figure(figsize=(WIDTH, 6.8), layout="constrained")
    for axis, task in zip(figure.subplots(len(SECOND_TASKS), 1), SECOND_TASKS):
        losses = other_data_losses(frame, task)
        for ending, color, line in (("", BLUE, "o-"), (", warmup", VERMILLION, "s--")):
            names = [RESTART, *(f"restart at {decay} of the peak" for decay in (0.7, 0.5, 0.25))]
            x, y = ([losses[kind][name + ending].mean() for name in names] for kind in ("new", "old"))
            axis.plot(x, y, line, color=color, label=f"restart at 1, 0.7, 0.5, 0.25 of the peak{ending}")
            if not ending:
                for text, place in (("1", (x[0], y[0])), ("0.25", (x[-1], y[-1]))):
                    axis.annotate(text, place, xytext=(-6, -12), textcoords="offset points", ha="right")
        for name, marker in markers.items():
            x, y = losses["new"][name].mean(), losses["old"][name].mean()
            axis.plot(x, y, marker, color=GRAY, label=name.replace("`", ""))
        axis.set_title(f"{task}, then {SECOND_TASKS[task]}")
        axis.set_xlabel("test loss on the new data (left: learned more)")
        axis.set_ylabel("on the old data\n(down: forgot less)")
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", frameon=False)
    return figure


def draw_all(frames: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """The pictures of the page, by the names of their files. To be called, and saved, under [`style`]."""
    return {
        "known-end": draw_known_end(frames["known_end"]),
        "same-data": draw_same_data(frames["moving_end"]),
        "other-data": draw_other_data(frames["moving_end"]),
    }


def read(raw: Path) -> dict[str, pd.DataFrame]:
    """The raw results of the studies."""
    ways = {"known_end": known_end, "moving_end": moving_end, "further": moving_end}
    return {name: way(raw / f"{name}.jsonl") for name, way in ways.items()}


def figures(raw: Path) -> dict[str, str]:
    """All that the pages may show, by the name that their comments give it."""
    frames = read(raw)
    known, moving = frames["known_end"], frames["moving_end"]
    shown = {name: measurements(raw / f"{name}.jsonl") for name in STUDIES}
    shown |= {"best": best_table(known), "arguments": argument_table(known), "decisions": decision_table(frames)}
    averages = records(raw / "weight_averages.jsonl")
    averages["name"] = [setting_name(run) for run in runs_of(averages)]
    shown |= {kind: average_table(averages, kind) for kind in ("weights", "predictions")}
    shown |= {"below the mean": between_the_members(averages, known)}
    for task in FIRST_TASKS:
        shown[f"known end, {task}"] = known_end_table(known, task)
        shown[f"snapshots, {task}"] = snapshot_table(known, task)
    for task in SECOND_TASKS:
        shown[f"same data, {task}"] = same_data_table(moving, task)
        shown[f"other data, {task}"] = other_data_table(moving, task)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=RAW, help="the folder of the raw results (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of the pages (default: %(default)s)")
    arguments = parser.parse_args()
    for study in STUDIES:
        pack(arguments.raw / f"{study}.jsonl")
    shown = figures(arguments.raw)
    for page in (arguments.docs / "when-to-use.md", arguments.docs / "results.md"):
        page.write_text(write_figures(page.read_text(), shown))
    with style():
        for name, figure in draw_all(read(arguments.raw)).items():
            save(figure, arguments.docs / "images" / f"{name}.svg")


if __name__ == "__main__":
    main()
