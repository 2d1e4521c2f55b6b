"""Tables and pictures from the raw results of `benchmarks/quality.py`.

    python benchmarks/quality_report.py     # writes the tables into docs/when-to-use.md, the pictures beside it

Each table of the document stands between two comments that name it, and is written anew whole: no number in it is typed
by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality.jsonl"
DOCUMENT = ROOT / "docs" / "when-to-use.md"
IMAGES = ROOT / "docs" / "images"

SHARES = (0.25, 0.5, 0.75, 1.0)
ARROWS = {"better": " ↓", "worse": " ↑", "draw": "", "equal": ""}


class Setting(NamedTuple):
    """What `benchmarks/quality.py` calls a setting: a schedule with its arguments and its budget."""

    schedule: str
    num_training_steps: int
    num_warmup_steps: int
    num_cycles: int
    T_mult: float
    decay: float
    num_separate_runs: int

    @property
    def name(self) -> str:
        if self.schedule == "hf_warmcos":
            return f"`decay={self.decay:g}, T_mult={self.T_mult:g}`"
        return "torch's `CosineAnnealingWarmRestarts`" if self.schedule == "torch" else f"`{self.schedule}`"

    @property
    def warmup(self) -> str:
        return f"{self.num_warmup_steps}" if self.num_warmup_steps else "none"

    @property
    def is_own(self) -> bool:
        return self.schedule == "hf_warmcos"


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


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and half-width by Student's t over the seeds."""
    sample = np.array(list(values), dtype=float)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), math.nan)
    half_width = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return Estimate(float(sample.mean()), float(half_width))


Value = Callable[[dict[str, Any]], float]


class Results:
    """The raw results, by task, setting and seed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.records = [json.loads(line) for line in lines]
        self.test: dict[tuple[str, Setting], dict[int, dict[str, Any]]] = defaultdict(dict)
        self.tuning: dict[tuple[str, Setting], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in self.records:
            run = record["run"]
            key = (run["task"], Setting(**run["setting"]))
            if run["split"] == "test":
                self.test[key][run["seed"]] = record
            else:
                loss = record["members"][-1]["loss"]
                self.tuning[key][run["peak_lr"]].append(math.inf if loss is None else loss)
        self.tasks = list(dict.fromkeys(task for task, _ in self.test))

    def settings(self, task: str) -> list[Setting]:
        """The settings of single runs, in the order in which they were measured."""
        return [setting for of_task, setting in self.test if of_task == task and setting.num_separate_runs == 1]

    def cosine_like(self, task: str, setting: Setting, num_separate_runs: int = 1) -> Setting:
        """The cosine with the same warmup; or as many separate runs of it as are asked for, of the same budget."""
        for of_task, other in self.test:
            if (of_task, other.schedule, other.num_separate_runs) == (task, "cosine", num_separate_runs) and bool(
                other.num_warmup_steps
            ) == bool(setting.num_warmup_steps):
                return other
        raise ValueError(f"Expected results of cosine in {num_separate_runs} separate runs, but got none for {task}")

    def of(self, task: str, setting: Setting, value: Value) -> Estimate:
        return estimate(value(record) for record in self.test[task, setting].values())

    def difference(self, task: str, setting: Setting, value: Value, other: Setting, other_value: Value) -> Estimate:
        """The mean difference of two settings, seed by seed: same weights at the start, same batches."""
        these, those = self.test[task, setting], self.test[task, other]
        return estimate(value(these[seed]) - other_value(those[seed]) for seed in sorted(these.keys() & those.keys()))

    def peak_lr(self, task: str, setting: Setting) -> str:
        """The tuned rate; starred where it is still at an edge of the grid."""
        (peak_lr,) = {record["run"]["peak_lr"] for record in self.test[task, setting].values()}
        tried = self.tuning[task, setting._replace(num_separate_runs=1)]
        return f"{peak_lr:g}" + (" *" if peak_lr in (min(tried), max(tried)) else "")


def loss_at(share: float) -> Value:
    """The loss after that share of the budget; infinite where training diverged."""

    def value(record: dict[str, Any]) -> float:
        loss = record["curve"][str(int(share * record["run"]["setting"]["num_training_steps"]))]["loss"]
        return math.inf if loss is None else loss

    return value


def final_accuracy(record: dict[str, Any]) -> float:
    return 100 * record["members"][-1]["accuracy"]


def ensemble(measure: str, size: int | None = None) -> Value:
    """Loss or accuracy of the last `size` members' averaged probabilities; of all members without a size."""
    return lambda record: record["ensembles"][str(size or len(record["members"]))][measure]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    alignment = ["---" if index == 0 else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, alignment, *rows))


def final_table(results: Results, task: str) -> str:
    """Every schedule at the end of the budget."""
    rows = []
    loss = loss_at(1)
    for setting in results.settings(task):
        cosine = results.cosine_like(task, setting)
        difference = results.difference(task, setting, loss, cosine, loss)
        rows.append(
            [
                setting.name,
                setting.warmup,
                results.peak_lr(task, setting),
                results.of(task, setting, loss).text(),
                results.of(task, setting, final_accuracy).text(1),
                *(("", "") if setting == cosine else (difference.text(sign="+"), difference.verdict())),
            ]
        )
    header = ["schedule", "warmup", "peak rate", "final loss", "accuracy, %", "minus cosine's", "verdict"]
    return table(header, rows)


def early_table(results: Results, task: str) -> str:
    """The loss on the way, against the cosine's at the same point."""
    rows = []
    for setting in results.settings(task):
        cosine = results.cosine_like(task, setting)
        cells = []
        for share in SHARES[:-1]:
            loss = loss_at(share)
            verdict = results.difference(task, setting, loss, cosine, loss).verdict()
            cells.append(results.of(task, setting, loss).text() + ARROWS[verdict])
        rows.append([setting.name, setting.warmup, *cells])
    return table(["schedule", "warmup", *(f"{share:.0%} of the budget" for share in SHARES[:-1])], rows)


def tally_table(results: Results, task: str) -> str:
    """How often this schedule's settings do better, neither and worse than each peer with the same warmup."""
    settings = results.settings(task)
    rows = []
    for schedule in dict.fromkeys(setting.schedule for setting in settings if not setting.is_own):
        cells = []
        name = ""
        for share in SHARES:
            loss = loss_at(share)
            verdicts: Counter[str] = Counter()
            for peer in (setting for setting in settings if setting.schedule == schedule):
                name = peer.name
                for own in settings:
                    if own.is_own and own.num_warmup_steps == peer.num_warmup_steps:
                        verdicts[results.difference(task, own, loss, peer, loss).verdict()] += 1
            cells.append(f"{verdicts['better']} / {verdicts['draw'] + verdicts['equal']} / {verdicts['worse']}")
        rows.append([name, *cells])
    return table(["against", *(f"{share:.0%} of the budget" for share in SHARES)], rows)


def argument_table(results: Results) -> str:
    """What one argument of this schedule changes, all others equal: the mean over the others, seed by seed."""
    loss = loss_at(1)
    # The argument's place in the keys of `own` below, and its two values.
    changes: list[tuple[str, int, Any, Any]] = [
        ("`decay=0.75` in place of 1", 0, 1, 0.75),
        ("`decay=0.5` in place of 1", 0, 1, 0.5),
        ("`T_mult=2` in place of 1", 1, 1, 2),
        ("warmup in place of none", 2, False, True),
    ]
    rows = []
    for name, place, base, changed in changes:
        cells = []
        for task in results.tasks:
            settings = [setting for setting in results.settings(task) if setting.is_own]
            own = {(setting.decay, setting.T_mult, setting.num_warmup_steps > 0): setting for setting in settings}
            by_seed = defaultdict(list)
            for key, setting in own.items():
                other = own.get((*key[:place], changed, *key[place + 1 :]))
                if key[place] == base and other is not None:
                    these, those = results.test[task, other], results.test[task, setting]
                    for seed in these.keys() & those.keys():
                        by_seed[seed].append(loss(these[seed]) - loss(those[seed]))
            if by_seed:
                difference = estimate(float(np.mean(by_seed[seed])) for seed in sorted(by_seed))
                cells.append(f"{difference.text(sign='+')} {difference.verdict()}")
            else:
                cells.append("not measured")
        rows.append([name, *cells])
    return table(["change", *(f"final loss, {task}" for task in results.tasks)], rows)


def snapshot_table(results: Results, task: str) -> str:
    """Ensembles of cycle ends against the last checkpoint, and against as many separate short runs."""
    rows = []
    last, all_members = ensemble("loss", 1), ensemble("loss")
    for setting in results.settings(task):
        if setting.num_cycles == 1:
            continue
        separate = results.cosine_like(task, setting, num_separate_runs=setting.num_cycles)
        to_last = results.difference(task, setting, all_members, setting, last)
        to_separate = results.difference(task, setting, all_members, separate, all_members)
        rows.append(
            [
                setting.name,
                setting.warmup,
                results.of(task, setting, last).text(),
                results.of(task, setting, ensemble("loss", 2)).text(),
                f"{results.of(task, setting, all_members).text()} ({setting.num_cycles})",
                f"{to_last.text(sign='+')} {to_last.verdict()}",
                results.of(task, separate, all_members).text(),
                f"{to_separate.text(sign='+')} {to_separate.verdict()}",
            ]
        )
    header = [
        "schedule",
        "warmup",
        "last checkpoint",
        "last 2 cycle ends",
        "all cycle ends",
        "all minus last",
        "separate short runs",
        "all cycle ends minus separate runs",
    ]
    return table(header, rows)


def best_table(results: Results) -> str:
    """The best peer and the best setting of this schedule, by the mean final loss, side by side."""
    loss = loss_at(1)
    rows = []
    for task in results.tasks:

        def mean_loss(setting: Setting, task: str = task) -> float:
            return results.of(task, setting, loss).mean

        settings = results.settings(task)
        own = min((setting for setting in settings if setting.is_own), key=mean_loss)
        peer = min((setting for setting in settings if not setting.is_own), key=mean_loss)
        difference = results.difference(task, own, loss, peer, loss)
        rows.append([task])
        for setting in (peer, own):
            rows[-1] += [f"{setting.name}, warmup {setting.warmup}", results.of(task, setting, loss).text()]
        rows[-1] += [difference.text(sign="+"), difference.verdict()]
    header = ["task", "best peer", "its loss", "best of this schedule", "its loss", "difference", "verdict"]
    return table(header, rows)


def measurement_list(results: Results) -> str:
    """What was run, by which versions, and what it took."""
    seconds = sum(record["seconds"] for record in results.records)
    tuning_seeds = sorted({r["run"]["seed"] for r in results.records if r["run"]["split"] != "test"})
    seeds = Counter(len(by_seed) for by_seed in results.test.values())
    lines = [
        f"{len(results.records)} runs, {seconds / 60:.0f} minutes in all, each on one core of a shared machine.",
        f"Tuned with seeds {', '.join(map(str, tuning_seeds))}; "
        + "; ".join(
            f"{number} combinations of task and setting measured with {n} others" for n, number in seeds.items()
        )
        + ".",
    ]
    versions = {json.dumps(record["versions"]) for record in results.records}
    for text in sorted(versions):
        lines.append("Versions: " + ", ".join(f"{name} {number}" for name, number in json.loads(text).items()) + ".")
    for task in results.tasks:
        stars = sum("*" in results.peak_lr(task, setting) for setting in results.settings(task))
        lines.append(f"Tuned rates of `{task}` that are still at an edge of the grid (starred below): {stars}.")
    return "\n".join(f"- {line}" for line in lines)


def sections(results: Results) -> dict[str, str]:
    """The tables of the document, by the names that its comments give them."""
    written = {
        "measurements": measurement_list(results),
        "best": best_table(results),
        "arguments": argument_table(results),
    }
    tables = {"final": final_table, "early": early_table, "tally": tally_table, "snapshots": snapshot_table}
    for name, make_table in tables.items():
        for task in results.tasks:
            written[f"{name}-{task}"] = make_table(results, task)
    return written


def write_sections(document: str, written: dict[str, str]) -> str:
    """Return the document with each section in its place, between two comments that name it.

    Raises:
        ValueError: If the document lacks the place of a section.
    """
    for name, text in written.items():
        begin, end = f"<!-- figures: {name} -->", f"<!-- end of {name} -->"
        if document.count(begin) != 1 or document.count(end) != 1:
            raise ValueError(f"Expected one {begin} and one {end} in the document")
        before, rest = document.split(begin)
        document = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return document


def plain(name: str) -> str:
    return name.replace("`", "")


def save_panels(figure: Any, panels: Any, path: Path) -> None:
    """Write a picture of one panel per task, with one legend for all of them."""
    import matplotlib.pyplot as plt

    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def draw_final(results: Results, path: Path) -> None:
    """Each schedule's final loss minus the cosine's with the same warmup, with confidence intervals."""
    import matplotlib.pyplot as plt

    loss = loss_at(1)
    figure, panels = plt.subplots(1, len(results.tasks), figsize=(13, 5), sharey=True, layout="constrained")
    names = list(dict.fromkeys(plain(s.name) for s in results.settings(results.tasks[0]) if s.schedule != "cosine"))
    for task, axes in zip(results.tasks, panels):
        settings = [setting for setting in results.settings(task) if setting.schedule != "cosine"]
        for setting in settings:
            warm = bool(setting.num_warmup_steps)
            difference = results.difference(task, setting, loss, results.cosine_like(task, setting), loss)
            axes.errorbar(
                difference.mean,
                names.index(plain(setting.name)) + (0.15 if warm else -0.15),
                xerr=difference.half_width,
                fmt="o" if warm else "s",
                color="tab:red" if warm else "tab:blue",
            )
        axes.errorbar([], [], fmt="s", color="tab:blue", label="no warmup")
        axes.errorbar([], [], fmt="o", color="tab:red", label="warmup")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(task)
        axes.set_xlabel("final loss minus cosine's (left is better)")
        axes.grid(alpha=0.3)
    panels[0].invert_yaxis()
    save_panels(figure, panels, path)


def draw_early(results: Results, path: Path) -> None:
    """The mean test loss over the budget, of runs with warmup."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results.tasks), figsize=(13, 4.5), layout="constrained")
    for task, axes in zip(results.tasks, panels):
        for setting in results.settings(task):
            if not setting.num_warmup_steps or (setting.is_own and setting.decay == 0.5):
                continue
            if setting.schedule == "cosine_with_restarts":  # the same rates as decay=1, T_mult=1
                continue
            curves = [record["curve"] for record in results.test[task, setting].values()]
            steps = sorted(map(int, curves[0]))
            losses = [np.mean([curve[str(step)]["loss"] for curve in curves]) for step in steps]
            axes.plot(steps, losses, "-" if setting.is_own else "--", label=plain(setting.name))
        axes.set_title(task)
        axes.set_xlabel("updates")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("test loss")
    save_panels(figure, panels, path)


def draw_snapshots(results: Results, path: Path) -> None:
    """What the last checkpoint, an ensemble of cycle ends and one of separate short runs come to, with warmup."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results.tasks), figsize=(13, 4), sharey=True, layout="constrained")
    for task, axes in zip(results.tasks, panels):
        settings = [s for s in results.settings(task) if s.num_warmup_steps and s.is_own]
        for index, setting in enumerate(settings):
            separate = results.cosine_like(task, setting, num_separate_runs=setting.num_cycles)
            kinds = {
                "last checkpoint": ("o", results.of(task, setting, ensemble("loss", 1))),
                "ensemble of the last 2 cycle ends": ("^", results.of(task, setting, ensemble("loss", 2))),
                "ensemble of all cycle ends": ("D", results.of(task, setting, ensemble("loss"))),
                "ensemble of separate short runs": ("x", results.of(task, separate, ensemble("loss"))),
            }
            for color, (label, (marker, value)) in enumerate(kinds.items()):
                axes.errorbar(
                    value.mean,
                    index + 0.15 * (color - 1.5),
                    xerr=value.half_width,
                    fmt=marker,
                    color=f"C{color}",
                    label=label if index == 0 else None,
                )
        axes.set_yticks(range(len(settings)), [plain(setting.name) for setting in settings])
        axes.set_title(task)
        axes.set_xlabel("test loss (left is better)")
        axes.grid(alpha=0.3)
    panels[0].invert_yaxis()
    save_panels(figure, panels, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the raw results (default: %(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where the tables go (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the pictures go (default: %(default)s)")
    arguments = parser.parse_args()
    results = Results(arguments.results.read_text().splitlines())
    document = arguments.document.read_text()
    arguments.document.write_text(write_sections(document, sections(results)))
    arguments.images.mkdir(parents=True, exist_ok=True)
    draw_final(results, arguments.images / "quality-final.png")
    draw_early(results, arguments.images / "quality-early.png")
    draw_snapshots(results, arguments.images / "quality-snapshots.png")
    print(f"Wrote the tables of {arguments.document} and three pictures in {arguments.images}")


if __name__ == "__main__":
    main()
