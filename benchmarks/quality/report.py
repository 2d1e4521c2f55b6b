"""Writes the tables of the studies from their raw results.

    python -m benchmarks.quality.report

packs the raw results, and writes the tables and numbers of docs/when-to-use.md and docs/results.md. On the pages, each
table or number stands between two comments with its name: none is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.documents import markdown_table, write_figures
from benchmarks.quality.results import pack, packed, read_lines

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

STUDIES = ("known_end", "moving_end", "further", "fine_tuning")
YES = {True: "yes", False: "no"}
NOT_MEASURED = "not measured"
NOT_YET = "Not measured yet: this study has not run far enough to compare two schedules."
NO_DIFFERENCE = "no significant difference"
ARROWS = {"better": "\u00a0↓", "worse": "\u00a0↑", NO_DIFFERENCE: "", "equal": ""}
FIRST_TASKS, SECOND_TASKS = ("text", "digits", "digits-long"), {"text": "code", "digits": "digits, turned"}
SETTING = ["name", "warmup"]  # what tells the first study's settings of one task apart
PLANNED = "cosine planned for {} N"
RESTART = "restart at the full peak"
PLATEAU = "restart with a plateau: `stable_ratio=0.8`"
LOW = "continue at 0.1 of the peak"
SCHEDULE_FREE = "Schedule-Free AdamW"
GROWING = "growing cycles: `num_cycles=3, T_mult=2`"
FOURTH_TASKS = {"reviews": "all weights", "reviews, LoRA": "LoRA"}
GROWING_PLATEAU = "3 growing cycles with a plateau"


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
    if not path.exists() and not packed(path).exists():
        return pd.DataFrame({name: [] for name in ("task", "scenario", "seconds", "versions")})
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
    if run.contender == "hf_warmcos":
        return f"`decay={run.decay:g}, T_mult={run.T_mult:g}`"
    return "torch's `CosineAnnealingWarmRestarts`" if run.contender == "torch" else f"`{run.contender}`"


def known_end(path: Path) -> pd.DataFrame:
    """The first study: beside what was run, the loss at the end and that of the ensemble of all cycle ends."""
    frame = records(path)
    frame["name"] = [setting_name(run) for run in runs_of(frame)]
    frame["warmup"] = frame["num_warmup_steps"] > 0
    frame["own"] = frame["contender"] == "hf_warmcos"
    frame["loss"] = [loss_of(*[*run.curve.values()][-1].values()) for run in runs_of(frame)]
    frame["all"] = [loss_of(of) for of in frame["ensemble"]]
    return frame


def by_seed(frame: pd.DataFrame, value: str, keys: list[str]) -> pd.DataFrame:
    """The values with a row per seed and a column per setting, in the order in which they were measured."""
    order = frame[keys].drop_duplicates()
    columns = pd.MultiIndex.from_frame(order) if len(keys) > 1 else pd.Index(order[keys[0]])
    return frame.pivot(index="seed", columns=keys, values=value)[columns]


def tests_of(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The runs on the test split."""
    return frame[(frame["task"] == task) & (frame["scenario"] == "test")]


def known_end_table(frame: pd.DataFrame) -> str:
    """Study 1, a row for each schedule: the final loss on each task. The baseline is the cosine with as much warmup."""
    losses = {task: by_seed(tests_of(frame, task), "loss", SETTING) for task in FIRST_TASKS}
    rows = []
    for name, warmup in losses["text"]:
        cells = [
            against(of[name, warmup], of["`cosine`", warmup]) if (name, warmup) in of else "" for of in losses.values()
        ]
        rows.append([name, YES[warmup], *cells])
    return markdown_table(["schedule", "warmup", *FIRST_TASKS], rows, num_text_columns=2)


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
        runs = tests_of(frame, task)
        final = by_seed(runs[runs["own"]], "loss", ["decay", "T_mult", "warmup"])
        for row, (_, argument, base, changed) in zip(rows, changes):
            if base in final.columns.get_level_values(argument):
                difference = final.xs(changed, axis=1, level=argument) - final.xs(base, axis=1, level=argument)
                row.append(estimate(difference.mean(axis=1)).difference())
            else:
                row.append(NOT_MEASURED)
    return markdown_table(["change", *(f"final loss, {task}" for task in FIRST_TASKS)], rows)


def ensemble_table(frame: pd.DataFrame) -> str:
    """Study 1 with warmup, a row for each setting: the ensemble of all cycle ends, minus the last checkpoint."""
    runs = frame[(frame["scenario"] == "test") & frame["own"] & frame["warmup"]]
    rows = []
    for name, of in groups(runs, "name"):
        by_task = {task: of[of["task"] == task] for task in FIRST_TASKS}
        rows.append([name, *(estimate(of_task["all"] - of_task["loss"]).difference() for of_task in by_task.values())])
    return markdown_table(["schedule", *FIRST_TASKS], rows)


def contender_name(run: Any) -> str:
    names = {
        "cosine": PLANNED.format(run.plan),
        "restarts": RESTART if run.decay == 1 else f"restart at {run.decay:g} of the peak",
        "low": LOW,
        "wsd": "WSD, cooldowns of 1 - sqrt",
        "wsd_s": PLATEAU,
        "schedule_free": SCHEDULE_FREE,
        "growing": GROWING,
        "growing_wsd_s": GROWING_PLATEAU,
    }
    name = names[run.contender]
    return name + ", warmup" * run.restart_warmup


def moving_end(path: Path) -> pd.DataFrame:
    """The second study: a row per run, point in time, and kind of data."""
    order = {"contender": True, "plan": True, "restart_warmup": True, "decay": False}
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


def same_data_table(frame: pd.DataFrame) -> str:
    """Study 2, for each task a table with a row for each way to continue on the same data: the loss at N, 2 N and 4 N.

    The baseline of the arrows is the cosine planned for that length; when stopped at any time, the one for 4 N.
    """
    tables = []
    for task in SECOND_TASKS:
        rows = []
        losses, planned = same_data_losses(frame, task)
        stopped = losses_when_stopped(frame, task)
        runs = frame[(frame["task"] == task) & (frame["scenario"] == "same data")]
        for name, of in groups(runs, "name"):
            # On the way of a longer plan there is no end.
            shown = [f for f in (1, 2, 4) if name in losses[f] and of["plan"].iloc[0] in (1, f)]
            row = [against(losses[f][name], planned[f]) if f in shown else "" for f in (1, 2, 4)]
            rows.append([name, *row, against(stopped[name], stopped[PLANNED.format(4)]) if 4 in shown else ""])
        tables.append(markdown_table([f"`{task}`", "N", "2 N", "4 N", "stopped"], rows))
    return "\n\n".join(tables)


def other_data_losses(frame: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """The test losses by seed and contender at 2 N: on the new data and on the old."""
    runs = frame[(frame["task"] == task) & (frame["scenario"] == "other data") & (frame["on"] == "test")]
    end = runs[runs["updates"] == 2 * runs["num_updates"]]
    kinds = {"new": SECOND_TASKS[task], "old": task}
    return {kind: by_seed(end[end["data"] == data], "loss", ["name"]) for kind, data in kinds.items()}


def other_data_table(frame: pd.DataFrame) -> str:
    """Study 2, a row for each way to continue on new data: the loss on the new data and on the old at 2 N updates.

    The baseline of the arrows is the restart at the full peak.
    """
    losses = {
        f"{kind} (`{SECOND_TASKS[task] if kind == 'new' else task}`)": of
        for task in SECOND_TASKS
        for kind, of in other_data_losses(frame, task).items()
    }
    names = next(iter(losses.values()))
    rows = [[name, *(against(of[name], of[RESTART]) for of in losses.values())] for name in names]
    return markdown_table(["", *losses], rows)


def fine_tuning_name(run: Any) -> str:
    name = f"`{run.contender}`"
    if run.contender == "hf_warmcos":
        name = (GROWING_PLATEAU if run.stable_ratio else GROWING) + f", `decay={run.decay:g}`" * (run.decay < 1)
    if run.scenario == "new data":
        name = f"restart at {run.restart:g} of the peak" + ", warmup" * run.restart_warmup
    return name


def fine_tuning(path: Path) -> pd.DataFrame:
    """The fourth study: a row per run, with the test loss and accuracy at the end and of the best checkpoint.

    The best checkpoint is the one with the lowest validation loss. On new data, the loss is that on the new data, and
    `old` the one on the old.
    """
    frame = records(path)
    frame = frame[frame["scenario"] != "tuning"].copy()
    frame["name"] = [fine_tuning_name(run) for run in runs_of(frame)]
    columns: dict[str, list[float]] = {}
    for run in runs_of(frame):
        curve = [*run.curve.values()]
        on = {split: [of for of in curve[-1] if of.endswith(split)] for split in ("validation", "test")}
        old, new = on["test"][0], on["test"][-1]
        best = min(curve, key=lambda losses, of=on["validation"][0]: loss_of(losses[of]))  # type: ignore[misc]
        measured = {"loss": loss_of(curve[-1][new]), "accuracy": 100 * curve[-1][new]["accuracy"]}
        measured |= {"best loss": loss_of(best[old]), "best accuracy": 100 * best[old]["accuracy"]}
        for column, value in (measured | {"old": loss_of(curve[-1][old])}).items():
            columns.setdefault(column, []).append(value)
    return frame.assign(**columns)


def fine_tuned(frame: pd.DataFrame, task: str, value: str, scenario: str = "fine-tuning") -> pd.DataFrame:
    """The values by seed and contender."""
    return by_seed(frame[(frame["task"] == task) & (frame["scenario"] == scenario)], value, ["name"])


def fine_tuning_table(frame: pd.DataFrame) -> str:
    """Study 4, a row for each contender and what is trained: the losses with an arrow where `linear` differs."""
    rows = []
    for (task, name), of in groups(frame[frame["scenario"] == "fine-tuning"], ["task", "name"]):
        cells = []
        for value, digits in (("loss", 3), ("accuracy", 1), ("best loss", 3), ("best accuracy", 1)):
            values = fine_tuned(frame, task, value)
            arrow = (
                ARROWS[paired(values[name], values.get("`linear`", values[name])).verdict()] if "loss" in value else ""
            )
            cells.append(estimate(values[name].dropna()).text(digits) + arrow)
        rows.append([FOURTH_TASKS[task], name, f"{of['peak_lr'].iloc[0]:g}", f"{len(of)}", *cells])
    header = ["trained", "schedule", "peak rate", "seeds", "loss", "accuracy, %", "of the best checkpoint", "its, %"]
    return markdown_table(header, rows, num_text_columns=2) if rows else NOT_YET


def fine_tuning_decisions(frame: pd.DataFrame) -> str:
    """Study 4, a row for each decision: what is compared, the verdict, and the difference for each kind of training."""
    linear, plateau, best = "`linear`", GROWING_PLATEAU, "The best of 3 checkpoints by validation loss: "
    full, half = (f"restart at {peak:g} of the peak" for peak in (1, 0.5))
    compared = [
        ("3 growing cycles with a plateau", "loss", plateau, linear),
        (best + "these cycles", "best loss", plateau, linear),
        ("The same cycles with `decay=0.5`", "loss", plateau + ", `decay=0.5`", linear),
        ("3 growing cycles without a plateau", "loss", GROWING, linear),
        (best + "those cycles", "best loss", GROWING, linear),
        *((name, "loss", name, linear) for name in ("`warmup_stable_decay`", "`cosine`", "`cosine_with_restarts`")),
        ("**New data after it.** Loss on the new data: half the peak", "loss", half, full),
        ("Loss on the old data: half the peak", "old", half, full),
        ("Loss on the new data: the full peak with a new warmup", "loss", full + ", warmup", full),
        ("Loss on the old data: the full peak with a new warmup", "old", full + ", warmup", full),
    ]
    rows = []
    for what, value, first, second in compared:
        scenario, baseline = ("fine-tuning", second) if second == linear else ("new data", "the full peak")
        by_task = dict.fromkeys(FOURTH_TASKS, Estimate(math.nan, math.nan))
        for task in {*frame[frame["scenario"] == scenario]["task"]}:
            losses = fine_tuned(frame, task, value, scenario)
            if {first, second} <= {*losses}:
                by_task[task] = paired(losses[first], losses[second])
        verdict, *differences = verdict_and_differences({FOURTH_TASKS[task]: of for task, of in by_task.items()})
        if verdict != NOT_MEASURED:
            rows.append([f"{what}, compared with {baseline}", verdict, *differences])
    header = ["situation", "verdict", *FOURTH_TASKS.values()]
    return markdown_table(header, rows, num_text_columns=2) if rows else NOT_YET


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
        ("1 cosine with a plateau (`warmup_stable_decay`), compared with 1 cosine", partial(after, 1, PLATEAU)),
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
        return NOT_MEASURED
    if math.isnan(further.half_width):  # with one seed so far
        return NOT_MEASURED
    return f"{YES[further.verdict() == verdict]}, {further.text(sign='+')}"


def verdict_and_differences(by_task: dict[str, Estimate]) -> list[str]:
    """The verdict, one for each task where they differ, and the differences; a single seed is no measurement."""
    measured = {task: of.verdict() for task, of in by_task.items() if not math.isnan(of.half_width)}
    same = len(set(measured.values())) == 1
    verdict = "; ".join(dict.fromkeys(of if same else f"{task}: {of}" for task, of in measured.items()))
    differences = (of.text(sign="+") if task in measured else NOT_MEASURED for task, of in by_task.items())
    return [verdict or NOT_MEASURED, *differences]


def decision_table(frames: dict[str, pd.DataFrame]) -> str:
    """A row for each decision: what is compared, the verdict, and the difference in test loss on each task.

    The last column says whether the verdict on `text` held in study 3.
    """
    further = decisions(frames["further"])

    def at_the_end(task: str) -> Estimate:
        final = by_seed(tests_of(frames["known_end"], task), "loss", SETTING)
        return estimate(final["`decay=1, T_mult=2`", True] - final["`cosine`", True])

    rows = []
    for what, difference in decisions(frames["moving_end"], at_the_end).items():
        by_task = {f"`{task}`": difference(task) for task in SECOND_TASKS}
        held_in_study_3 = held(further[what], by_task["`text`"].verdict())
        rows.append([what, *verdict_and_differences(by_task), held_in_study_3])
    header = ["situation", "verdict", *(f"`{task}`" for task in SECOND_TASKS), "`text`, held at 5 times the length"]
    return markdown_table(header, rows, num_text_columns=2)


def read(raw: Path) -> dict[str, pd.DataFrame]:
    """The raw results of the studies."""
    ways = {"known_end": known_end, "moving_end": moving_end, "further": moving_end, "fine_tuning": fine_tuning}
    return {name: way(raw / f"{name}.jsonl") for name, way in ways.items()}


def figures(raw: Path) -> dict[str, str]:
    """All that the pages may show, by the name that their comments give it."""
    frames = read(raw)
    known, moving, tuned = frames["known_end"], frames["moving_end"], frames["fine_tuning"]
    shown = {name: measurements(raw / f"{name}.jsonl") for name in STUDIES}
    shown |= {"fine-tuning decisions": fine_tuning_decisions(tuned), "fine-tuning": fine_tuning_table(tuned)}
    shown |= {"decisions": decision_table(frames), "arguments": argument_table(known)}
    shown |= {"known end": known_end_table(known), "ensembles": ensemble_table(known)}
    shown |= {"same data": same_data_table(moving), "other data": other_data_table(moving)}
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


if __name__ == "__main__":
    main()
