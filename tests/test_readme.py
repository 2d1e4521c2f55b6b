"""What the README says holds: its code runs as it stands, its links lead somewhere, its figures were measured."""

from __future__ import annotations

import importlib
import re

import pytest
from code_blocks import ROOT, code_blocks, run_blocks

import hf_warmcos

README = (ROOT / "README.md").read_text()
COMMANDS = (
    'pip install -e ".[examples]" && accelerate launch examples/accelerate_finetune.py --output_dir output',
    'pip install -e ".[test]" && python -m pytest',
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def blocks():
    own_loop, trainer, accelerate, ensemble = code_blocks("README.md", "python")
    return {"own loop": own_loop, "trainer": trainer, "accelerate": accelerate, "ensemble": ensemble}


def test_a_loop_of_your_own_runs_as_it_stands_and_says_where_cycles_end(blocks, capsys):
    scheduler = run_blocks([blocks["own loop"]], "README.md")["scheduler"]
    ends = [int(number) for number in re.findall(r"after (\d+) updates", capsys.readouterr().out)]
    assert ends == [*scheduler.schedule.restarts(300), 300] == [60, 140, 300]


def test_the_trainer_runs_as_it_stands_and_its_cycle_ends_predict_together(blocks):
    names = run_blocks([blocks["trainer"], blocks["ensemble"]], "README.md")
    steps = [4 + 2, 4 + 8 + 2, 30]
    assert [entry["step"] for entry in names["trainer"].state.log_history if "eval_loss" in entry] == steps
    assert [path.name for path in names["ensemble"].checkpoints] == [f"checkpoint-{step}" for step in steps]
    assert names["log_probabilities"].exp().sum(-1).allclose(names["torch"].ones(1, 3))


def test_the_accelerate_loop_runs_as_it_stands_and_ends_where_its_schedule_ends(blocks):
    scheduler = run_blocks([blocks["accelerate"]], "README.md")["scheduler"].scheduler
    assert scheduler.last_epoch == scheduler.schedule.end == 4 * 640 // 4 // 2
    assert scheduler.at_cycle_end


def test_the_table_has_every_public_name_and_no_other():
    table = README.split("## All public names")[1].split("##")[0]
    first_cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    assert {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)} == {*hf_warmcos.__all__}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md"])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    for target in targets:
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_versions_that_it_names_are_those_that_the_package_asks_for():
    metadata = (ROOT / "pyproject.toml").read_text()
    for name, version in re.findall(r"(torch|transformers|Accelerate)\s+from\s+([\d.]*\d)", README):
        assert f'"{name.lower()}>={version}"' in metadata
    assert f'requires-python = ">={re.search(r"Python ([0-9.]+) or later", README)[1]}"' in metadata


def test_ci_runs_its_two_commands_word_for_word():
    for command in COMMANDS:
        assert f"\n```bash\n{command}\n```\n" in README
        assert f"    '{command}'" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", ["README.md", "docs/speed.md"])
def test_its_figures_are_those_of_the_committed_results(document, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    readme = importlib.import_module("benchmarks.readme")
    assert readme.with_figures(document) == (ROOT / document).read_text()
