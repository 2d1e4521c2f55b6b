"""What the site's pages are made of beyond Markdown: pictures for light and dark, formulas, tables, links.

The pages read well in the repository, too. There they show the same pictures, and links to docstrings in their place.
"""

from __future__ import annotations

import os
import re
from html import escape, unescape
from pathlib import Path

from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import hf_warmcos

logger = get_plugin_logger(__name__)
ROOT = Path(__file__).parents[2]
DARK_PAGES = "@media (prefers-color-scheme: dark)"
# Pages of the site that lie elsewhere in the repository.
PAGES = {"examples.md": "examples/README.md", "benchmarks.md": "benchmarks/README.md", "changelog.md": "CHANGELOG.md"}

# The output of the notebook says nothing of the machine that builds the site: no widgets of Jupyter, DeepSpeed without
# a GPU.
NOTEBOOK = {"PYTHONWARNINGS": "ignore:IProgress not found", "DS_ACCELERATOR": "cpu"}


def on_config(config: MkDocsConfig) -> None:
    """The address of the repository stands in one place. As `repo_url`, pages would ask GitHub for stars."""
    repository = re.findall(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    config.extra["repository"] = repository
    os.environ.update(NOTEBOOK)
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": repository, "name": "The repository"}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = Path(page.file.abs_src_path or "")
    page.edit_url = f"{config.extra['repository']}/edit/main/{source.relative_to(ROOT)}"
    # Of each public name, the repository shows a part of its docstring.
    names = "|".join(hf_warmcos.__all__)
    markdown = re.sub(
        rf"<!-- figures: ({names}) -->.*?<!-- end of \1 -->", r"::: hf_warmcos.\1", markdown, flags=re.DOTALL
    )
    return _with_links(markdown, page, config, files)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas become MathML, which browsers show without a script; links of a notebook become the site's."""

    def site_link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(os.path.normpath(Path(page.file.src_uri).parent / match[1]))
        if target is None:
            logger.warning(f"{page.file.src_uri} links to {match[1]}, which does not exist")
            return match[0]
        return f'href="{target.url_relative_to(page.file)}"'

    if page.file.src_uri.endswith(".ipynb"):
        return re.sub(r'href="([^":#]+\.(?:md|ipynb))"', site_link, html)
    html = re.sub(r"<table>.*?</table>", _labeled_table, html, flags=re.DOTALL)
    html = re.sub(r'<div class="language-pycon highlight">.*?</div>', _copied_without_prompts, html, flags=re.DOTALL)
    return re.sub(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', _formula, html, flags=re.DOTALL)


def _with_links(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site, or into the repository; pictures become the site's."""
    folder = Path(page.file.abs_src_path or "").parent
    sources = {str(ROOT / path): uri for uri, path in PAGES.items()}
    to_root = "../" * page.file.src_uri.count("/")

    def link(match: re.Match[str]) -> str:
        image, text, path, anchor = match["image"], match["text"], match["path"], match["anchor"] or ""
        target = Path(os.path.normpath(folder / path))
        if not target.exists():
            logger.warning(f"{page.file.src_uri} links to {path}, which does not exist")
        if image:
            return _image(text, target, to_root, config, files)
        if str(target) in sources:
            return f"[{text}]({to_root}{sources[str(target)]}{anchor})"
        if target.is_relative_to(config.docs_dir) and target.is_file():
            return f"[{text}]({to_root}{target.relative_to(config.docs_dir)}{anchor})"
        return f"[{text}]({config.extra['repository']}/blob/main/{target.relative_to(ROOT)}{anchor})"

    return re.sub(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)]*)?\)", link, markdown)


def _image(text: str, path: Path, to_root: str, config: MkDocsConfig, files: Files) -> str:
    """A picture; one that fits light and dark pages twice, since here the reader and not the browser chooses."""
    if path.suffix != ".svg":
        _add(files, File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
        return f"![{text}]({to_root}images/{path.name})"
    images = []
    for scheme, media in (("light", "@media not all"), ("dark", "@media all")):
        uri = f"images/{path.stem}-{scheme}.svg"
        _add(files, File.generated(config, uri, content=path.read_text().replace(DARK_PAGES, media)))
        images.append(f"![{text}]({to_root}{uri}#only-{scheme})")
    return "".join(images)


def _add(files: Files, file: File) -> None:
    if file.src_uri not in files.src_uris:
        files.append(file)


def _labeled_table(match: re.Match[str]) -> str:
    """Each cell knows the name of its column: on a narrow screen a row becomes a list."""
    table = BeautifulSoup(match[0], "html.parser")
    names = [cell.get_text() for cell in table.select("thead th")]
    for row in table.select("tbody tr"):
        for name, cell in zip(names, row.find_all("td")):
            cell["data-label"] = name
    return str(table)


def _copied_without_prompts(match: re.Match[str]) -> str:
    """What the button beside an example copies: its input, without prompts and output."""
    lines = unescape(re.sub(r"<[^>]+>", "", match[0])).splitlines()
    copied = "\n".join(line[4:] for line in lines if line.startswith((">>>", "...")))
    return match[0].replace("<div ", f'<div data-copy="{escape(copied)}" ', 1)


def _formula(match: re.Match[str]) -> str:
    latex = match[3].strip()
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        latex = latex.replace(entity, character)
    # A name of several letters is one name, not a product.
    kept = r"\\(?:text|begin|end|operatorname)\{[^}]*\}|\\[A-Za-z]+|\\."
    latex = latex.replace(r"\mathrm{", r"\operatorname{")
    latex = re.sub(
        rf"({kept})|([A-Za-z](?:[A-Za-z]|\\_)+)",
        lambda part: part[1] or r"\text{" + part[2].replace(r"\_", "_") + "}",
        latex,
    )
    display = "block" if match[2] == "[" else "inline"
    return f'<{match[1]} class="formula">{convert(latex, display=display)}</{match[1]}>'
