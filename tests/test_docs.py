"""The documentation: the site builds without a warning and is readable in a browser, and the code of its pages runs."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import fields
from functools import cache, partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_plus, unquote, urlsplit

import pytest
import torch
from chromium import set_window, start_chromium
from code_blocks import RECOMMENDED, ROOT, code_blocks, run_blocks
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from transformers import GPT2Config, GPT2LMHeadModel

import hf_warmcos
from hf_warmcos.cli import main

sys.path.insert(0, str(ROOT))

from benchmarks import pictures

DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))
SOURCES = sorted((ROOT / "hf_warmcos").rglob("*.py"))
DOCUMENTS = [*PAGES, "README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md"]


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
    assert len(pages) >= len(PAGES) - 1  # docs/images/README.md is for the repository
    notebook = pages[folder / "five_minutes" / "index.html"].text
    assert "restarts at steps [60, 140]" in notebook
    assert notebook.count("a cycle ended, held-out loss") >= 4
    assert notebook.count('src="data:image/png') >= 4
    assert not re.search(r"<div [^>]*vnd\.jupyter\.stderr", notebook)  # no warning, and no path of this machine


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
    assert schedule.text.count('<span class="gp">&gt;&gt;&gt; ') > 10
    assert "#hf_warmcos.CosineRestartSchedule" in schedule.links


@pytest.mark.slow
def test_a_signature_has_one_argument_per_line_and_a_link_to_the_source(site):
    folder, pages = site
    page = pages[folder / "reference" / "scheduler" / "index.html"]
    signature = re.findall(r'<div class="[^"]*doc-signature.*?</div>', page.text, re.DOTALL)[0]
    assert len(re.sub(r"<[^>]+>", "", signature).strip().splitlines()) > 10
    assert any(re.search(r"/blob/main/hf_warmcos/factory\.py#L\d+$", link) for link in page.links)
    assert any(link.endswith("/edit/main/docs/reference/scheduler.md") for link in page.links)


@pytest.mark.slow
def test_an_example_is_copied_without_prompts_and_output(site):
    folder, pages = site
    text = pages[folder / "reference" / "schedule" / "index.html"].text
    copied = re.findall(r'<div data-copy="(.*?)" class="language-pycon', text, re.DOTALL)
    assert len(copied) == text.count('class="language-pycon') > 5
    for block in copied:
        compile(unescape(block), "example", "exec")


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


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    """A browser, with a function that opens a page of the site in a window of a width."""
    handler = partial(SilentHandler, directory=site[0])
    driver = start_chromium(tmp_path_factory.mktemp("chromium"), "hide-scrollbars")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def open_page(path, width=1280, dark=False):
            set_window(driver, width=width, height=900, dark=dark)
            driver.get(f"http://127.0.0.1:{server.server_port}/{path}")
            return driver

        yield open_page
        driver.quit()
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


LAYOUT = """
for (const details of document.querySelectorAll('details')) details.open = true;
await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
const width = document.documentElement.clientWidth;
const clipped = [...document.querySelectorAll('.md-content table:not(.highlighttable)')].filter(table => {
  const cells = [...table.querySelectorAll('th, td')];
  const wrapper = (table.closest('.md-typeset__scrollwrap') || table.parentElement).getBoundingClientRect();
  return cells.some(cell => cell.getBoundingClientRect().right > Math.min(width, wrapper.right) + 1 ||
                            cell.scrollWidth > cell.clientWidth + 1);
});
return {
  clipped: clipped.map(table => table.innerText.slice(0, 200)),
  wide: [...document.querySelectorAll('.doc-signature pre')].filter(of => of.scrollWidth > of.clientWidth + 1).length,
  scrolls: document.documentElement.scrollWidth > width + 1,
  images: [...document.images].filter(image => image.clientWidth).map(image => [image.src, image.clientWidth]),
};
"""
LAYOUT = f"const done = arguments[0]; (async () => {{ {LAYOUT} }})().then(done);"


def smallest_text(svg):
    """The size of the smallest text, and the width of the picture, in the units of an SVG file."""
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[\w ]+ )?([\d.]+)px", svg)]
    return min(sizes), float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_no_table_is_clipped_and_the_text_of_pictures_has_at_least_9_pixels(site, browser, width):
    folder, pages = site
    seen = 0
    for path in pages:
        page = path.relative_to(folder)
        if page.name == "404.html":
            continue
        layout = browser(page.parent.as_posix() + "/", width).execute_async_script(LAYOUT)
        assert not layout["clipped"], f"{page} at {width} px clips {layout['clipped']}"
        assert not layout["scrolls"], f"{page} at {width} px is wider than the window"
        assert width < 1000 or not layout["wide"], f"{page} has a signature that is wider than its box"
        for source, shown_width in layout["images"]:
            if source.startswith("data:") or not urlsplit(source).path.endswith(".svg"):
                continue
            size, picture_width = smallest_text((folder / urlsplit(source).path.lstrip("/")).read_text())
            assert size * shown_width / picture_width >= 9, f"{source} in {page} at {width} px"
            seen += 1
    assert seen >= 15


def luminance(color):
    channels = [int(channel) / 255 for channel in re.findall(r"\d+", color)[:3]]
    linear = [of / 12.92 if of <= 0.04045 else ((of + 0.055) / 1.055) ** 2.4 for of in channels]
    return sum(weight * of for weight, of in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_links_and_header_have_a_contrast_of_at_least_4_5(browser, dark):
    driver = browser("when-to-use/", dark=dark)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    for text, background in ((".md-content article a[href^=http]", "body"), (".md-header__topic", ".md-header")):
        colors = (
            driver.execute_script(style, text, "color"),
            driver.execute_script(style, background, "backgroundColor"),
        )
        lighter, darker = sorted(map(luminance, colors), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, colors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("min lr", "which-values/"),
        ("warmup ratio", "which-values/"),
        ("hf-warmcos table", "command-line/"),
        ("torch.compile", "troubleshooting/"),
        ("wandb", "command-line/"),
    ],
)
def test_the_search_finds_what_people_type(browser, query, page):
    driver = browser(f"?q={quote_plus(query)}")
    found = WebDriverWait(driver, 120).until(
        lambda _: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link[href]")
    )
    pages = dict.fromkeys(urlsplit(link.get_attribute("href")).path for link in found)
    assert f"/{page}" in list(pages)[:4], pages


def test_the_notebook_is_kept_without_what_its_run_gave_and_its_lines_fit_the_page():
    cells = json.loads((DOCS / "five_minutes.ipynb").read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert max(len(line.rstrip()) for cell in cells for line in cell["source"]) <= 80


@pytest.mark.slow
def test_code_of_the_notebook_fits_its_cells(browser):
    driver = browser("five_minutes/")
    code = "return [...document.querySelectorAll('.jp-InputArea pre')].map(of => [of.scrollWidth, of.clientWidth])"
    widths = driver.execute_script(code)
    assert len(widths) >= 8
    assert all(needed <= shown + 1 for needed, shown in widths), widths


@pytest.mark.slow
def test_a_formula_that_is_wider_than_the_page_has_a_shadow_at_its_edge(browser):
    driver = browser("reference/schedule/", width=390)
    formula = "const of = document.querySelector('div.formula'); return "
    assert driver.execute_script(formula + "of.scrollWidth > of.clientWidth")
    assert driver.execute_script(formula + "getComputedStyle(of).backgroundImage").count("gradient") == 4


def test_the_command_of_the_start_page_draws_its_schedule(capsys):
    (shell,) = (block for block in code_blocks("docs/README.md", "bash") if "hf-warmcos plot" in block)
    (command,) = (line for line in shell.replace("\\\n", "").splitlines() if line.startswith("hf-warmcos"))
    assert not main(shlex.split(command)[1:])
    assert capsys.readouterr().out.count("\n") > 5


@pytest.mark.parametrize("picture", [*pictures.pictures()], ids=lambda picture: picture.path.stem)
def test_each_committed_picture_shows_what_its_code_draws(picture):
    with pictures.style():
        redrawn = pictures.drawn(pictures.draw(picture.code))
    committed = pictures.shown(picture.path)
    assert redrawn["texts"] == committed["texts"]
    assert redrawn["numbers"] == pytest.approx(committed["numbers"], rel=1e-3, abs=1e-6)


def test_each_picture_is_shown_on_a_page_of_the_repository():
    shown = {
        (ROOT / page).parent.joinpath(path).resolve()
        for page in DOCUMENTS
        for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / page).read_text())
    }
    assert set((DOCS / "images").glob("*.*g")) <= shown


def test_each_public_name_has_an_entry_in_the_reference_of_the_repository():
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    entries = re.findall(r"<!-- figures: (\w+) -->\n## `\1`\n\n.+?```text\n\1\(.+?```pycon\n>>> ", pages, re.DOTALL)
    assert sorted(entries) == sorted(hf_warmcos.__all__)


def test_both_names_of_a_thing_exist():
    table = (DOCS / "reference" / "index.md").read_text().partition("## Two names for one thing")[2]
    rows = [row.split("|")[2:4] for row in re.findall(r"^\| .*", table, re.MULTILINE)[2:]]
    function, schedule = (" ".join(cells) for cells in zip(*rows))
    of_function = inspect.signature(hf_warmcos.get_cosine_restarts_with_decay_and_warmup_schedule).parameters
    of_class = {field.name for field in fields(hf_warmcos.CosineRestartSchedule)}
    assert len({*re.findall(r"`(\w+)", function)} & {*of_function}) == 7
    assert len({*re.findall(r"`(\w+)", schedule)} & of_class) == 3
    assert of_function["warmup_mode"].default == "prefix"
    assert inspect.signature(hf_warmcos.CosineRestartSchedule).parameters["warmup_mode"].default == "overlap"
    assert hf_warmcos.CosineRestartSchedule.fit(10).warmup_mode == "prefix"


def test_snippets_with_growing_cycles_and_a_plateau_have_the_recommended_values():
    """Where the recommendation changes, this lists the places that are to change."""
    texts = [*map(Path.read_text, (*map(ROOT.joinpath, DOCUMENTS), DOCS / "five_minutes.ipynb", *SOURCES))]
    texts += map(Path.read_text, (ROOT / "examples").glob("*.py"))
    triple = r"num_cycles[^\w.]+(\d+)[^\w.]+T_mult[^\w.]+([\d.]*\d)\W+(?:n\W+)?stable_ratio[^\w.]+([\d.]*\d)"
    found = [tuple(map(float, values)) for text in texts for values in re.findall(triple, text)]
    assert len(found) > 40
    assert {*found} == {tuple(map(float, RECOMMENDED.values()))}


def test_the_page_of_public_names_has_each_of_them_and_no_other():
    table = (DOCS / "reference" / "index.md").read_text().partition("## Two names for one thing")[0]
    first_cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[2:]
    assert {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)} == {*hf_warmcos.__all__}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_comment_interrupts_a_paragraph_or_a_list(document):
    """Markdown ends both at a line that begins with a comment."""
    lines = (ROOT / document).read_text().splitlines()
    for before, line in zip(["", *lines], lines):
        assert not line.lstrip().startswith(("<!-- figures", "<!-- picture", "<!-- reference")) or not before.strip(), (
            line
        )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_is_narrow_enough_to_be_read_without_scrolling(document):
    for block in code_blocks(document, "python"):
        assert max(map(len, block.splitlines())) <= 88, block


RUN_BY_THEIR_OWN_TESTS = {"docs/use-it-in-your-tool.md", "docs/migrate.md"}


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
        # What pages say is the reader's own.
        language_model=language_model,
        optimizer=optimizer,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        output_dir="output",
    )


def text_of(node):
    """The text of a string in the source, with … for each value that is filled in."""
    if isinstance(node, ast.Constant):
        text = node.value if isinstance(node.value, str) else "…"
    elif isinstance(node, ast.JoinedStr):
        text = "".join(map(text_of, node.values))
    else:
        text = text_of(node.left) + text_of(node.right) if isinstance(node, ast.BinOp) else "…"
    return re.sub("…+", "…", re.sub(r"%[sdr]", "…", text)).replace("`", "")


@cache
def package_strings():
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    return [text_of(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]


def package_warnings():
    """What is passed to `warnings.warn` and `logger.warning`: as it stands, or by a name that it was given."""
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = [(node.targets[0].id, node.value) for node in nodes if is_named(node)]
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "logger.warning"):
                message = node.args[0]
                name = message.id if isinstance(message, ast.Name) else None
                yield from (text_of(value) for of, value in named if of == name) if name else [text_of(message)]


def is_named(node):
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)


QUOTED = re.findall(r"^\| `([^`|]{30,})` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def says(source, quoted):
    """Whether a message is one from the source: the same, or with what was filled in by a name of its own."""
    known = source.replace("…", "")
    pattern = re.escape(source).replace("…", ".+")
    return quoted in source or (2 * len(known) > len(quoted) and re.fullmatch(pattern, quoted, re.DOTALL) is not None)


@pytest.mark.parametrize("message", QUOTED)
def test_the_messages_of_the_troubleshooting_page_are_those_of_the_package(message):
    assert any(says(source, message) for source in package_strings())


def test_the_troubleshooting_page_has_each_warning_of_the_package():
    warned = {of for of in package_warnings() if not of.startswith("… ") and of != "…"}
    assert len(warned) >= 6
    assert [of for of in warned if not any(of in quoted or quoted in of for quoted in QUOTED)] == []


# Phrases that readers stumbled over, and words that the vocabulary replaces.
PHRASES = re.compile(
    r"level with|hold (it|them) against|held against|contradicts the past|whatever the strategies|always are\b"
    r"|that knew\b|\bat hand\b|outlives|goes outside|base rate|\b(three|same) doors|\bof others\b|\bshare of\b"
    r"|\ba draw\b|(end|length) is open|nobody knows|\b(go|goes|going|went) on\b(?! to)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("document", [*DOCUMENTS, "docs/five_minutes.ipynb"])
def test_no_phrase_that_readers_stumbled_over_is_left_on_a_page(document):
    assert [found[0] for found in PHRASES.finditer((ROOT / document).read_text())] == []


def test_no_phrase_that_readers_stumbled_over_is_left_in_docstrings_errors_and_logs():
    assert [text for text in package_strings() if PHRASES.search(text)] == []
