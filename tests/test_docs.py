"""The site in docs/: it builds without a warning, every name and link is there, and its code runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from code_blocks import ROOT, code_blocks, run_blocks
from transformers import GPT2Config, GPT2LMHeadModel

import hf_warmcos
from hf_warmcos.cli import main

DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))


class Page(HTMLParser):
    """What a page of the site links to, loads, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        self.loaded += [attributes["src"]] if attributes.get("src") else []
        if tag == "link" and attributes.get("rel") != "canonical" and attributes.get("href"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: its folder and its pages. Warnings are errors in mkdocs.yml; the notebook runs in the build."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder, {path: Page(path) for path in folder.rglob("*.html")}


@pytest.mark.slow
def test_every_page_is_there_and_the_notebook_has_run(site):
    folder, pages = site
    assert len(pages) >= len(PAGES)
    notebook = pages[folder / "five_minutes" / "index.html"].text
    assert "restarts at steps [60, 140]" in notebook
    assert notebook.count("a cycle has ended: held-out loss") >= 4
    assert notebook.count('src="data:image/png') >= 4


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_page_and_an_anchor(site):
    folder, pages = site
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute, for an address that is not known here
        for link in page.links:
            scheme, _, target, _, anchor = urlsplit(link)
            if scheme:
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.relative_to(folder)} links to {link}"
            if there in pages:
                assert unquote(anchor) in pages[there].anchors, f"{path.relative_to(folder)} links to {link}"


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in site[1].items():
        for address in page.loaded:
            assert urlsplit(address).scheme in ("", "data"), f"{path} loads {address}"
            if path.name != "404.html" and not address.startswith("data:"):
                assert (path.parent / urlsplit(address).path).exists(), f"{path} loads {address}"


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_the_search_finds_it(site):
    folder, pages = site
    anchors = set().union(*(page.anchors for path, page in pages.items() if "reference" in path.parts))
    found = {entry["location"] for entry in json.loads((folder / "search" / "search_index.json").read_text())["docs"]}
    for name in hf_warmcos.__all__:
        assert f"hf_warmcos.{name}" in anchors
        assert any(location.endswith(f"#hf_warmcos.{name}") for location in found)


@pytest.mark.slow
def test_docstrings_become_formulas_links_and_examples(site):
    folder, pages = site
    for path, page in pages.items():
        if "reference" in path.parts:
            text = re.sub(r"<[^>]+>", "", page.text)
            for markup in (":math:", ".. math::", "*optional*", "[`", "`]", "doctest:", r"\cdot", "Args:"):
                assert markup not in text, f"{path.relative_to(folder)} has {markup}"
    schedule = pages[folder / "reference" / "schedule" / "index.html"]
    assert schedule.text.count("<math") > 5
    assert "<mfrac>" in schedule.text
    assert schedule.text.count("&gt;&gt;&gt; ") > 10
    assert "#hf_warmcos.CosineRestartSchedule" in schedule.links


@pytest.mark.slow
def test_each_argument_of_the_schedule_has_a_picture_for_light_and_for_dark(site):
    folder, pages = site
    page = pages[folder / "reference" / "pictures" / "index.html"]
    arguments = {field.name.lower() for field in fields(hf_warmcos.CosineRestartSchedule)}
    assert arguments <= page.anchors
    for scheme in ("light", "dark"):
        shown = [address for address in page.loaded if address.endswith(f"#only-{scheme}")]
        assert len(shown) >= len(arguments)
        for address in shown:
            assert "<svg" in (folder / "reference" / "pictures" / urlsplit(address).path).read_text()


def test_the_notebook_is_kept_without_what_its_run_gave():
    cells = json.loads((DOCS / "five_minutes.ipynb").read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_the_command_of_the_start_page_draws_its_schedule(capsys):
    (shell,) = (block for block in code_blocks("docs/index.md", "bash") if "hf-warmcos plot" in block)
    (command,) = (line for line in shell.splitlines() if line.startswith("hf-warmcos"))
    assert not main(shlex.split(command)[1:])
    assert capsys.readouterr().out.count("\n") > 5


RUN_BY_THEIR_OWN_TESTS = {"docs/use-it-in-your-tool.md"}


@pytest.mark.parametrize(
    "document", [page for page in PAGES if code_blocks(page, "python") and page not in RUN_BY_THEIR_OWN_TESTS]
)
def test_the_code_of_each_page_runs_in_its_order(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = torch.randint(0, 32, (16, 8))
    language_model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    optimizer = torch.optim.AdamW(language_model.parameters(), lr=1e-3)
    run_blocks(
        code_blocks(document, "python"),
        document,
        # What pages call the reader's own.
        language_model=language_model,
        optimizer=optimizer,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        output_dir="output",
    )
