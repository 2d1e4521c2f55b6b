"""What the site's pages are made of beyond Markdown: pictures of schedules, formulas, links into the repository."""

from __future__ import annotations

import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

INKS = {"light": "#303338", "dark": "#d5d8df"}
logger = get_plugin_logger(__name__)
ROOT = Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> None:
    """The address of the repository stands in one place. As `repo_url`, pages would ask GitHub for stars."""
    repository = re.findall(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    config.extra["repository"] = repository
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": repository, "name": "The repository"}]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _with_pictures(_with_repository_links(markdown, page, config, files), page, config, files)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas become MathML, which browsers show without a script; links of a notebook become the site's."""

    def site_link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(os.path.normpath(Path(page.file.src_uri).parent / match[1]))
        if target is None:
            logger.warning(f"{page.file.src_uri} links to {match[1]}, which there is not")
            return match[0]
        return f'href="{target.url_relative_to(page.file)}"'

    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'href="([^":#]+\.(?:md|ipynb))"', site_link, html)
    return re.sub(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', _formula, html, flags=re.DOTALL)


def _with_repository_links(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the repository, and pictures from there become the site's."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def absolute(match: re.Match[str]) -> str:
        image, text, path, anchor = match["image"], match["text"], match["path"], match["anchor"] or ""
        target = Path(os.path.normpath(folder / path))
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not target.exists():
            logger.warning(f"{page.file.src_uri} links to {path}, which there is not")
        if image:
            files.append(File.generated(config, f"images/{target.name}", abs_src_path=str(target)))
            return f"![{text}]({'../' * page.file.src_uri.count('/')}images/{target.name})"
        return f"[{text}]({config.extra['repository']}/blob/main/{target.relative_to(ROOT)}{anchor})"

    link = r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    return re.sub(link, absolute, markdown)


def _with_pictures(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Each block of code below a `<!-- picture: what it shows -->` is run, and its last expression is drawn."""

    def draw(match: re.Match[str]) -> str:
        number = sum(1 for _ in re.finditer("<!-- picture:", markdown[: match.start()]))
        images = []
        for scheme, svg in _pictures(match["code"]).items():
            uri = f"{page.file.src_uri.removesuffix('.md')}-{number}-{scheme}.svg"
            files.append(File.generated(config, uri, content=svg))
            images.append(f"![{match['text']}]({Path(uri).name}#only-{scheme})")
        return f"{match['block']}\n\n{''.join(images)}"

    return re.sub(
        r"<!-- picture: (?P<text>.+?) -->\n(?P<block>```python\n(?P<code>.*?)```)", draw, markdown, flags=re.DOTALL
    )


def _pictures(code: str) -> dict[str, str]:
    """The SVG of what the code's last expression is, for light and for dark pages."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from hf_warmcos import plot_schedule

    *statements, expression = re.split(r"\n(?=\S)(?![)\]}])", code.strip())
    namespace: dict[str, Any] = {}
    exec("from hf_warmcos import CosineRestartSchedule\n" + "\n".join(statements), namespace)
    schedules = eval(expression, namespace)
    pictures = {}
    for scheme, ink in INKS.items():
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style: dict[Any, Any] = dict.fromkeys(inked, ink)
        # Text stays text, in the reader's own fonts.
        with mpl.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": "hf_warmcos"}):
            figure = Figure(figsize=(6.6, 2.6), layout="constrained")
            axes = plot_schedule(schedules, ax=figure.subplots())
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, frameon=False)
            svg = StringIO()
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        # Black is what SVG writes in where nothing is said, and the labels of peaks are grey on white.
        pictures[scheme] = svg.getvalue().replace("*{", f"text{{fill: {ink}}}*{{", 1).replace("#666666", ink)
    return pictures


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
