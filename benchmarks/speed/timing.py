"""What the timing benchmarks share: interleaved rounds, medians with their spread, and the machine's name."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """The median and the quartiles of the times of one call, in microseconds."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)

    def __str__(self) -> str:
        return f"{rounded(self.median)} ({rounded(self.lower_quartile)} to {rounded(self.upper_quartile)})"


class Bar(NamedTuple):
    """A limit that a measured figure has to keep; `value` is None where it could not be measured."""

    name: str
    value: float | None
    relation: str
    limit: float

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.limit if self.relation == "<=" else self.value >= self.limit

    def __str__(self) -> str:
        verdict = "NOT MEASURED" if self.value is None else "PASS" if self.holds else "FAIL"
        value = "" if self.value is None else f"{self.value:.3g} "
        return f"{verdict}: {self.name}: {value}(bar: {self.relation} {self.limit:g})"


def interleave(contenders: Mapping[str, Callable[[int], Any]], rounds: int, calls: int) -> dict[str, Timing]:
    """Time functions side by side, so that what else the machine does meets all of them alike.

    Args:
        contenders: By name, a function that does what is timed as many times as it is told.
        rounds: How often each contender is timed; each round has an order of its own.
        calls: What a contender is told in each round.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                start = perf_counter_ns()
                contenders[name](calls)
                samples[name].append((perf_counter_ns() - start) / calls / 1000)
    finally:
        gc.enable()
    return {name: Timing.of(times) for name, times in samples.items()}


def repeated(call: Callable[[], Any]) -> Callable[[int], None]:
    """Return a function that makes a call as many times as it is told."""

    def run(calls: int) -> None:
        for _ in range(calls):
            call()

    return run


def rounded(value: float) -> str:
    """A number to three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def surroundings(*packages: str) -> dict[str, Any]:
    """The machine, Python and the versions of packages; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in ("hf_warmcos", "torch", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(surroundings: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {found or 'not installed'}" for name, found in surroundings["versions"].items())
    return f"{surroundings['cpu']}, {surroundings['cores']} cores, Python {surroundings['python']}, {packages}"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same code on few rounds: no figure to rely on")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a bar is missed")
    parser.add_argument("--output", type=Path, help="a directory for the figures, as JSON, and for the picture")
    return parser


def finish(arguments: argparse.Namespace, name: str, record: dict[str, Any], bars: Sequence[Bar] = ()) -> None:
    """Print the bars, write what `--output` asks for, and exit with status 1 where `--check` does."""
    if bars:
        print("\n" + "\n".join(str(bar) for bar in bars))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        record["bars"] = [{**bar._asdict(), "holds": bar.holds} for bar in bars]
        (arguments.output / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    if arguments.check and not all(bar.holds for bar in bars):
        raise SystemExit(1)
