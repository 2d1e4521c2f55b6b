"""The README: its code runs, its links lead somewhere, its figures were measured."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import extras
import pytest
import torch
from code_blocks import RECOMMENDED, ROOT, code_blocks, run_blocks
from optimizers import make_optimizer
from transformers import HfArgumentParser, TrainingArguments

from hf_warmcos import CosineRestartSchedule, WarmCosTrainer, find_cycle_end_checkpoints

README = (ROOT / "README.md").read_text()
COMMANDS = (
    'pip install -e ".[examples]" && accelerate launch examples/accelerate_finetune.py --output_dir output',
    'pip install -e ".[test]" && python -m pytest',
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_can_be_read_in_a_few_minutes():
    assert len(README.split()) <= 900


def test_the_first_lines_of_code_make_the_schedule_of_the_picture():
    first, _ = code_blocks("README.md", "python")
    scheduler = run_blocks([first], "README.md", optimizer=make_optimizer(1e-3))["scheduler"]
    assert scheduler.schedule == CosineRestartSchedule.fit(300, **RECOMMENDED, warmup_steps=20)


def test_the_trainer_runs_as_it_stands_evaluates_and_saves_at_cycle_ends_and_logs_the_learning_rate():
    _, trainer = code_blocks("README.md", "python")
    history = run_blocks([trainer], "README.md")["trainer"].state.log_history
    ends = [4 + 2, 4 + 8 + 2, 30]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == ends
    assert [path.name for path in find_cycle_end_checkpoints("output/trainer")] == [f"checkpoint-{end}" for end in ends]
    assert [entry["step"] for entry in history if "learning_rate" in entry] == list(range(1, 31))


@pytest.mark.slow
def test_the_trainer_runs_without_a_warning():
    _, trainer = code_blocks("README.md", "python")
    # DeepSpeed, where it is installed, logs what it thinks of a machine without a GPU.
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", trainer]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert not re.search(r"warning|\[transformers\]", finished.stderr, re.IGNORECASE), finished.stderr


def test_its_command_line_gives_a_trainer_the_schedule_that_it_says():
    (command,) = (block for block in code_blocks("README.md", "bash") if "trainer_finetune.py" in block)
    _, script, *options = shlex.split(command.replace("\\\n", ""))
    assert (ROOT / script).is_file()
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(options)
    trainer = WarmCosTrainer(torch.nn.Linear(1, 1), args, optimizers=(make_optimizer(1e-3), None))
    schedule = trainer.create_scheduler(300).schedule
    assert schedule == CosineRestartSchedule.fit(300, **RECOMMENDED, eta_min_rate=0.1)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md"])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    for target in targets:
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_versions_that_it_names_are_those_that_the_package_asks_for_and_was_tested_with():
    project = extras.pyproject()["project"]
    for name, version in re.findall(r"(torch|transformers|Accelerate)\s+from\s+([\d.]*\d)", README):
        assert f"{name.lower()}>={version}" in project["dependencies"]
    lowest, newest = re.search(r"Python ([0-9.]+) or later \(tested to ([\d.]+)\)", README).groups()
    assert project["requires-python"] == f">={lowest}"
    assert f'"{newest} highest")' in (ROOT / ".ci" / "versions").read_text()
    # Those releases with which `python -m tests.peers` ran.
    peers = json.loads((ROOT / "tests" / "peers" / "results.json").read_text()).values()
    for name, version in re.findall(r"(torch|transformers) from [\d.]+ \(to ([\d.]+)\)", README):
        assert any(of["compared_with"].startswith(f"{name} {version}.") for of in peers)


def test_its_badges_say_what_the_package_says():
    project = extras.pyproject()["project"]
    assert f"![License: {project['license']}](https://img.shields.io/badge/license-Apache--2.0-blue)" in README
    python = project["requires-python"].removeprefix(">=")
    assert f"![Python: {python} or later](https://img.shields.io/badge/python-{python}_or_later-blue)" in README


def test_ci_runs_its_two_commands_word_for_word():
    for command in COMMANDS:
        assert f"\n```bash\n{command}\n```\n" in README
        assert f"    '{command}'" in (ROOT / ".ci" / "run").read_text()


REFERENCE = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs" / "reference").glob("*.md"))]


@pytest.mark.parametrize(
    "document",
    ["README.md", "docs/speed.md", "docs/optimizers.md", "docs/command-line.md", "docs/migrate.md", *REFERENCE],
)
def test_figures_and_help_are_those_of_today(document, monkeypatch):
    if document == "docs/command-line.md" and sys.version_info >= (3, 13):
        pytest.skip("argparse writes help in another form from Python 3.13 on")
    monkeypatch.syspath_prepend(ROOT)
    readme = importlib.import_module("benchmarks.readme")
    assert readme.with_figures(document) == (ROOT / document).read_text()


def test_the_picture_of_the_costs_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    readme, pictures = (importlib.import_module(f"benchmarks.{name}") for name in ("readme", "pictures"))
    with pictures.style():
        redrawn = pictures.drawn(readme.draw_step_cost())
    committed = pictures.shown(readme.RESULTS / "step_cost.svg")
    assert redrawn["texts"] == committed["texts"]
    assert redrawn["numbers"] == pytest.approx(committed["numbers"], rel=1e-3)
