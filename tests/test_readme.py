"""What the README says holds: its code runs, its links lead somewhere, its figures come from committed results."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_of_the_three_doors_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tokens = torch.randint(0, 32, (16, 8)).tolist()
    namespace = {
        "language_model": GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1)),
        "train_dataset": Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
        "output_dir": str(tmp_path),
    }
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["scheduler"].scheduler.schedule.restarts(40_000) == [10_000, 20_000, 30_000]
    assert namespace["schedule"].restarts(25_000) == [10_000, 20_000]
    assert namespace["trainer"].state.global_step == 20
    assert namespace["trainer"].lr_scheduler.schedule.restarts(20) == [8, 12, 16]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md", "docs/when-to-use.md"])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    for target in targets:
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_ci_runs_the_test_command_of_the_readme():
    command = 'pip install -e ".[test]" && python -m pytest'
    assert f"\n```bash\n{command}\n```\n" in README
    assert f"test_command='{command}'" in (ROOT / ".ci" / "run").read_text()


def test_its_figures_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    assert readme.write_sections(README, readme.figures()) == README
