"""Tables and pictures from the raw results of both studies.

    python -m benchmarks.quality.report

writes the figures of docs/when-to-use.md and docs/results.md, and the pictures beside them. Each figure of these pages
stands between two comments that name it: no number in a table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.documents import markdown_table, write_figures

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

YES = {True: "yes", False: "no"}
ARROWS = {"better": " ↓", "worse": " ↑", "draw": "", "equal": ""}
SHARES = {"25%": 0.25, "50%": 0.5, "75%": 0.75, "100%": 1.0}
FIRST_TASKS, SECOND_TASKS = ("text", "digits", "digits-long"), {"text": "code", "digits": "digits, turned"}
SETTING = ["name", "warmup"]  # what tells the first study's settings of one task apart
KNEW = "cosine that knew {}"
RESTART = "restart at the full peak"


class Estimate(NamedTuple):
    """A mean over seeds with the half-width of its 95 % confidence interval."""

    mean: float
    half_width: float

    def verdict(self) -> str:
        """What a difference in loss says; "equal" where it is zero for every seed."""
        if self.mean == self.half_width == 0:
            return "equal"
        if abs(self.mean) <= self.half_width or math.isnan(self.half_width):
            return "draw"
        return "better" if self.mean < 0 else "worse"

    def text(self, digits: int = 3, sign: str = "") -> str:
        return f"{self.mean:{sign}.{digits}f} ± {self.half_width:.{digits}f}"

    def difference(self) -> str:
        return f"{self.text(sign='+')} {self.verdict()}"


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and half-width by Student's t over the seeds."""
    sample = np.array(list(values), dtype=float)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), math.nan)
    half_width = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return Estimate(float(sample.mean()), float(half_width))


def against(values: pd.Series, reference: pd.Series) -> str:
    """The mean of losses by seed, with an arrow where they differ from the reference's, seed by seed."""
    return estimate(values).text() + ARROWS[estimate(values - reference).verdict()]


def records(path: Path) -> pd.DataFrame:
    """A row per run: what determines it, and what was measured."""
    frame = pd.DataFrame(map(json.loads, path.read_text().splitlines()))
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
    """The test runs outside of ensembles of separate runs, with the loss after each share of the budget."""
    runs = frame[(frame["task"] == task) & (frame["split"] == "test") & (frame["num_separate_runs"] == 1)].copy()
    for column, share in SHARES.items():
        runs[column] = [loss_of(run.curve[str(int(share * run.num_training_steps))]) for run in runs_of(runs)]
    return runs


def known_end_table(frame: pd.DataFrame, task: str) -> str:
    """Every schedule on the way and at the end; arrows against the cosine with the same warmup.

    A tuned rate that is still at an edge of the grid is starred.
    """
    runs = single_runs(frame, task)
    tuning = frame[(frame["task"] == task) & (frame["split"] == "validation")]
    losses = {column: by_seed(runs, column, SETTING) for column in SHARES}
    rows = []
    for (name, warmup), of in groups(runs, SETTING):
        tried, rate = tuning[(tuning["name"] == name) & (tuning["warmup"] == warmup)]["peak_lr"], of["peak_lr"].iloc[0]
        final, cosine = losses["100%"][name, warmup], losses["100%"]["`cosine`", warmup]
        rows.append(
            [
                name,
                YES[warmup],
                f"{rate:g}" + " *" * (rate in (tried.min(), tried.max())),
                *(against(losses[column][name, warmup], losses[column]["`cosine`", warmup]) for column in SHARES),
                estimate(of["accuracy"]).text(1),
                "" if name == "`cosine`" else estimate(final - cosine).difference(),
            ]
        )
    shares = [f"loss at {share}" for share in SHARES]
    return markdown_table(["schedule", "warmup", "peak rate", *shares, "accuracy, %", "minus cosine"], rows)


def best_table(frame: pd.DataFrame) -> str:
    """The best peer and the best setting of this schedule, by the mean final loss, side by side."""
    rows = []
    for task in FIRST_TASKS:
        runs = single_runs(frame, task)
        final = by_seed(runs, "100%", ["own", *SETTING])
        peer, own = (final[is_own][final[is_own].mean().idxmin()] for is_own in (False, True))
        rows.append([task])
        for values in (peer, own):
            rows[-1] += [f"{values.name[0]}, warmup: {YES[values.name[1]]}", estimate(values).text()]
        rows[-1].append(estimate(own - peer).difference())
    return markdown_table(["task", "best peer", "its loss", "best of this schedule", "its loss", "difference"], rows)


def argument_table(frame: pd.DataFrame) -> str:
    """What one argument of this schedule changes, all others equal: the mean over the others, seed by seed."""
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
    """Ensembles of cycle ends, against the last checkpoint and against as many separate short runs."""
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


def weight_average_table(frame: pd.DataFrame) -> str:
    """Averages of weights and of predictions; arrows against the last checkpoint."""
    kinds, sizes, rows = ("weights", "predictions"), range(2, 5), []
    for (task, name), of in groups(frame.set_index("seed"), ["task", "name"]):
        last = of["weights"].map(lambda by_size: loss_of(by_size["1"]))
        cells = [
            against(of[kind].map(lambda by_size, size=size: loss_of(by_size[f"{size}"])), last)
            if f"{size}" in of[kind].iloc[0]
            else ""
            for kind in kinds
            for size in sizes
        ]
        rows.append([task, name, estimate(last).text(), *cells])
    columns = [f"{kind}, last {size}" for kind in kinds for size in sizes]
    return markdown_table(["task", "schedule", "last checkpoint", *columns], rows)


def between_the_members(averages: pd.DataFrame, known: pd.DataFrame) -> str:
    """In how many averages of weights the loss is below the mean of those of the models that were averaged."""
    keys = ["task", "name", "seed", "num_warmup_steps", "split"]
    pairs = [
        (loss_of(run.weights[f"{size}"]), np.mean([loss_of(member) for member in run.members[-size:]]))
        for run in runs_of(averages.merge(known[[*keys, "members"]], on=keys))
        for size in range(2, len(run.weights) + 1)
    ]
    return f"{sum(average < mean for average, mean in pairs)} of {len(pairs)}"


def contender_name(run: Any) -> str:
    names = {
        "cosine": KNEW.format(f"{run.plan} N"),
        "linear": f"linear that knew {run.plan} N",
        "restarts": RESTART if run.decay == 1 else f"restart at {run.decay:g} of the peak",
        "low": "stay at 0.1 of the peak",
        "constant": "constant",
        "wsd": "WSD, cooldowns of 1 - sqrt",
        "wsd_s": "WSD-S: stable_ratio=0.8",
        "infinite_cosine": "infinite cosine",
        "schedule_free": "Schedule-Free AdamW",
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


def at_hand(of: pd.DataFrame) -> pd.Series:
    """By seed: the mean over the times of the test loss of the checkpoint so far that validation prefers."""
    losses = of.pivot(index=["seed", "updates"], columns="on", values="loss").sort_index()
    means = {}
    for seed, curve in losses.groupby(level="seed"):
        best = [int(np.argmin(curve["validation"].iloc[: index + 1])) for index in range(len(curve))]
        means[seed] = curve["test"].iloc[best].mean()
    return pd.Series(means)


def same_data_losses(frame: pd.DataFrame, task: str) -> tuple[dict[int, pd.DataFrame], dict[int, pd.Series]]:
    """By the multiple of N: the test losses by seed and contender, and those of the cosine that knew."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data") & (frame["on"] == "test")]
    losses = {
        factor: by_seed(runs[runs["updates"] == factor * runs["num_updates"]], "loss", ["name"]) for factor in (1, 2, 4)
    }
    return losses, {factor: of[KNEW.format(f"{factor} N")] for factor, of in losses.items()}


def same_data_table(frame: pd.DataFrame, task: str) -> str:
    """The losses at N, 2 N and 4 N; arrows against the cosine that knew that length."""
    losses, knew = same_data_losses(frame, task)
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data")]
    last, hand_of_longest = runs["updates"].max(), at_hand(runs[runs["name"] == KNEW.format("4 N")])
    rows = []
    for name, of in groups(runs, "name"):
        cells = []
        for factor in (1, 2, 4):
            # On the way of a longer plan there is no end.
            shown = name in losses[factor] and of["plan"].iloc[0] in (1, factor)
            cells.append(against(losses[factor][name], knew[factor]) if shown else "")
        to_the_last = of["updates"].max() == last
        minus = estimate(losses[4][name] - knew[4]).difference() if to_the_last and name != KNEW.format("4 N") else ""
        hand = against(at_hand(of), hand_of_longest) if to_the_last else ""
        rows.append([name, f"{of['peak_lr'].iloc[0]:g}", *cells, minus, hand])
    header = ["", "peak rate", "loss at N", "at 2 N", "at 4 N", "at 4 N, minus the cosine that knew", "at hand"]
    return markdown_table(header, rows)


def other_data_losses(frame: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """The test losses by seed and contender at 2 N: on the new data, on the old, and the mean of both."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "other data") & (frame["on"] == "test")]
    end = runs[runs["updates"] == 2 * runs["num_updates"]]
    old, new = (by_seed(end[end["data"] == data], "loss", ["name"]) for data in (task, SECOND_TASKS[task]))
    return {"new": new, "old": old, "mean": (new + old) / 2}


def other_data_table(frame: pd.DataFrame, task: str) -> str:
    """What was learnt and what was forgotten; arrows against a restart at the full peak."""
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


BLUE, ORANGE, GRAY = "#0072B2", "#E69F00", "#555555"  # of Okabe and Ito: told apart by colour-blind people
Dots = dict[str, list[Estimate | None]]


def draw_dots(panels: dict[str, Dots], names: Sequence[str], zero: str, path: Path) -> None:
    """A panel per task with a row per name: differences with their intervals, beside a zero line that is labelled."""
    size = (5 + 3 * len(panels), 1.5 + 0.32 * len(names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for axis, (task, dots) in zip(axes, panels.items()):
        for index, (label, estimates) in enumerate(dots.items()):
            shown = [(row, of) for row, of in enumerate(estimates) if of is not None]
            axis.errorbar(
                [of.mean for _, of in shown],
                [row + 0.2 * (index - (len(dots) - 1) / 2) for row, _ in shown],
                xerr=[of.half_width for _, of in shown],
                fmt="os"[index],
                color=(BLUE, ORANGE)[index],
                label=label,
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.annotate(zero, (0, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        axis.set_title(task, pad=18)
        axis.set_xlabel("difference in test loss (left is better)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    axes[0].invert_yaxis()
    if len(dots) > 1:
        axes[-1].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def minus_cosine(frame: pd.DataFrame, task: str) -> dict[str, Estimate]:
    """Each schedule's final loss minus the cosine's, both with warmup."""
    final = by_seed(single_runs(frame, task), "100%", SETTING).xs(True, axis=1, level="warmup")
    return {name: estimate(final[name] - final["`cosine`"]) for name in final}


def draw_known_end(frame: pd.DataFrame, path: Path) -> None:
    names = [f"`{name}`" for name in ("constant", "linear")]
    names += [f"`decay={decay:g}, T_mult={T_mult}`" for T_mult in (1, 2) for decay in (1, 0.75, 0.5)]
    differences = {task: minus_cosine(frame, task) for task in FIRST_TASKS}
    panels: dict[str, Dots] = {task: {"final": [of[name] for name in names]} for task, of in differences.items()}
    draw_dots(panels, names, "cosine", path)


def draw_same_data(frame: pd.DataFrame, path: Path) -> None:
    """Each contender's loss at 2 N and 4 N minus that of the cosine that knew that length."""
    panels: dict[str, Dots] = {}
    for task in SECOND_TASKS:
        losses, knew = same_data_losses(frame, task)
        names = [name for name in losses[4] if not name.startswith("linear that") and name in losses[2]]
        names = [name for name in names if name != KNEW.format("4 N")]
        panels[task] = {
            f"after {factor} N updates": [estimate(losses[factor][name] - knew[factor]) for name in names]
            for factor in (2, 4)
        }
    draw_dots(panels, names, "the cosine that knew", path)


def draw_other_data(frame: pd.DataFrame, path: Path) -> None:
    """The loss on the new data and on the old; lines join the restarts from the full peak down to a quarter of it."""
    markers = {"stay at 0.1 of the peak": "v", "constant": "X", "WSD, cooldowns of 1 - sqrt": "D"}
    markers |= {"WSD-S: stable_ratio=0.8": "p", "infinite cosine": "*", "Schedule-Free AdamW": "^"}
    markers[KNEW.format("2 N")] = "P"
    figure, axes = plt.subplots(1, len(SECOND_TASKS), figsize=(13, 4.5), layout="constrained")
    for axis, task in zip(axes, SECOND_TASKS):
        losses = other_data_losses(frame, task)
        for ending, color, style in (("", BLUE, "o-"), (", warmup", ORANGE, "s--")):
            names = [RESTART, *(f"restart at {decay} of the peak" for decay in (0.7, 0.5, 0.25))]
            x, y = ([losses[kind][name + ending].mean() for name in names] for kind in ("new", "old"))
            axis.plot(x, y, style, color=color, label=f"restart at 1, 0.7, 0.5, 0.25 of the peak{ending}")
            axis.annotate("1", (x[0], y[0]), xytext=(6, 4), textcoords="offset points", color=color)
            axis.annotate("0.25", (x[-1], y[-1]), xytext=(6, 4), textcoords="offset points", color=color)
        for name, marker in markers.items():
            x, y = losses["new"][name].mean(), losses["old"][name].mean()
            axis.plot(x, y, marker, color=GRAY, label=name.replace("`", ""))
        axis.set_title(f"{task}, then {SECOND_TASKS[task]}")
        axis.set_xlabel("test loss on the new data (left: learnt more)")
        axis.set_ylabel("test loss on the old data (down: forgot less)")
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def figures(raw: Path) -> dict[str, str]:
    """All that the pages may show, by the name that their comments give it."""
    known, moving = known_end(raw / "known_end.jsonl"), moving_end(raw / "moving_end.jsonl")
    shown = {name: measurements(raw / f"{name}.jsonl") for name in ("known_end", "weight_averages", "moving_end")}
    shown |= {"best": best_table(known), "arguments": argument_table(known)}
    averages = records(raw / "weight_averages.jsonl")
    averages["name"] = [setting_name(run) for run in runs_of(averages)]
    shown |= {"weights": weight_average_table(averages), "below the mean": between_the_members(averages, known)}
    for task in FIRST_TASKS:
        shown[f"known end, {task}"] = known_end_table(known, task)
        shown[f"snapshots, {task}"] = snapshot_table(known, task)
        differences = minus_cosine(known, task).items()
        shown |= {f"{task}, known end: {name.replace('`', '')}": of.difference() for name, of in differences}
    for task in SECOND_TASKS:
        shown[f"same data, {task}"] = same_data_table(moving, task)
        shown[f"other data, {task}"] = other_data_table(moving, task)
        losses, knew = same_data_losses(moving, task)
        for factor, of in losses.items():
            shown |= {f"{task} at {factor} N: {name}": estimate(of[name] - knew[factor]).difference() for name in of}
        same = moving[(moving["task"] == task) & (moving["scenario"] == "same data")]
        hand = {name: at_hand(of) for name, of in groups(same, "name")}
        longest = hand[KNEW.format("4 N")]
        shown |= {f"{task} at hand: {name}": estimate(of - longest).difference() for name, of in hand.items()}
        for kind, of in other_data_losses(moving, task).items():
            shown |= {f"{task}, {kind}: {name}": estimate(of[name] - of[RESTART]).difference() for name in of}
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=RAW, help="the folder of the raw results (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of the pages (default: %(default)s)")
    arguments = parser.parse_args()
    shown = figures(arguments.raw)
    for page in (arguments.docs / "when-to-use.md", arguments.docs / "results.md"):
        page.write_text(write_figures(page.read_text(), shown))
    images = arguments.docs / "images"
    draw_known_end(known_end(arguments.raw / "known_end.jsonl"), images / "known-end.png")
    draw_same_data(moving_end(arguments.raw / "moving_end.jsonl"), images / "same-data.png")
    draw_other_data(moving_end(arguments.raw / "moving_end.jsonl"), images / "other-data.png")


if __name__ == "__main__":
    main()
