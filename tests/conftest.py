"""What several test modules share."""

from __future__ import annotations

import os
import re
from collections import Counter

import extras
import pytest
from hypothesis import HealthCheck, settings

# Before anything that reads them is imported. Nothing here needs the Hub, and no test may wait for it. The models are
# too small for more threads than one, and the threads of several processes would wait for each other. DeepSpeed is to
# run on the CPU.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

# The same examples on each machine, however slow it is. `--hypothesis-profile random` tries others at each run.
of_any_machine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, database=None, **of_any_machine)
settings.register_profile("random", print_blob=True, **of_any_machine)
settings.load_profile("same")

# Why a test may be skipped where the tests decide whether a change is accepted: what no package brings.
REASONS = (
    r"there is (no|a) GPU here",
    r"torch \S+ (cannot combine its own schedulers so|puts other tensors in the place of the rates)",
    r"transformers loads no checkpoint with a torch before 2\.6",
    r"transformers 4 has another way for it",
    r"transformers \S+ has no (reduce_lr_on_plateau|greedy)",
    r"no permission to mount a read-only folder",
    r"argparse writes help in another form from Python 3\.13 on",
)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Examples in docstrings are those of the package; what only tests import is not looked through for more."""
    return [collector for collector in (yield) if type(collector) in (pytest.Module, SkippedFile)]


def pytest_pycollect_makemodule(module_path, parent):
    reason = extras.missing(extras.imports_at_the_top(module_path))
    return SkippedFile.from_parent(parent, path=module_path, reason=reason) if reason else None


class SkippedFile(pytest.Module):
    """A file that needs a package which is not installed."""

    def __init__(self, *args, reason, **kwargs):
        super().__init__(*args, **kwargs)
        self.reason = reason

    def collect(self):
        pytest.skip(self.reason, allow_module_level=True)


def pytest_collection_modifyitems(items):
    runs_slow = {"CI", "RUN_SLOW"} & {*os.environ}
    for item in items:
        if not runs_slow and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip("slow: RUN_SLOW=1 runs it"))
        packages = extras.needs(item)
        names = {extras.extra_of_package()[package] for package in packages}
        item.user_properties += [("extra", name) for name in names - {"test", "plot"} or {"test"}]
        if reason := extras.missing(packages):
            item.add_marker(pytest.mark.skip(reason))
    # The files that start most processes come first, so that none of them is left for the end of a run in several
    # processes.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def accepted(reason):
    """Whether a test may be skipped for this reason. `CI_EXTRAS` has the extras that are installed, if not all."""
    installed = os.environ.get("CI_EXTRAS")
    absent = re.search(r'pip install -e "\.\[(.+)\]"$', reason) if installed else None
    if absent and not {*absent[1].split(",")} & {*installed.split(",")}:
        return True
    return any(re.search(accepted, reason) for accepted in REASONS)


def fail_if_skipped(report):
    if "CI" in os.environ and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not accepted(reason):
            report.outcome, report.longrepr = "failed", f"With CI set, a test must not be skipped so: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_if_skipped((yield))


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats
    passed = Counter(
        extra
        for report in reports.get("passed", ())
        if report.when == "call"
        for extra in [value for name, value in report.user_properties if name == "extra"] or ["test"]
    )
    terminalreporter.write_line("passed, by extra: " + ", ".join(f"{of} {passed[of]}" for of in sorted(passed)))
    for reason, count in Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reports.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    ).most_common():
        terminalreporter.write_line(f"skipped, {count}: {reason}")
