"""Pictures of the documentation: SVG files that fit light and dark pages.

    python -m benchmarks.pictures

draws each block of code below a `<!-- picture -->` line in docs/ into the file that the image below the block names.
The last line of such a block is a call of `plot_schedule`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_warmcos.plotting import BLUE

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 5.0  # inches: on the screen of a phone, small text then has more than 9 pixels
INK, PAPER = "#303338", "#fefefe"  # as drawn; a dark page changes both
GRAY = "#777777"  # beside the palette
DARK_PAGES = "@media (prefers-color-scheme: dark)"
COLORS = f"""
<style>
:root {{ --ink: {INK}; --paper: #ffffff; --blue: {BLUE} }}
{DARK_PAGES} {{ :root {{ --ink: #d5d8df; --paper: #1e2129; --blue: #3b8fd6 }} }}
</style>
"""


def new_figure(height: float) -> Figure:
    """An empty figure of the pages' width, to be drawn under [`style`]."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def style() -> Any:
    """The context in which pictures are drawn and saved: ink for all lines and text, and text that stays text."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = dict.fromkeys(inked, INK) | dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER)
    sizes = ("axes.labelsize", "axes.titlesize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize")
    settings |= dict.fromkeys(sizes, 10)
    settings |= {"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "hf_warmcos"}
    return mpl.rc_context(settings)


def save(figure: Figure, path: Path) -> None:
    """Write a figure into an SVG file, whose colors follow the page and whose description says what is drawn."""
    metadata = {"Date": None, "Creator": None, "Description": json.dumps(drawn(figure))}
    figure.savefig(path, format="svg", metadata=metadata)
    svg = path.read_text()
    for color, name in ((INK, "ink"), (PAPER, "paper"), (BLUE.lower(), "blue")):
        svg = svg.replace(color, f"var(--{name})")
    path.write_text(re.sub(r"(<svg [^>]*>)", rf"\1{COLORS}", svg, count=1))


def for_page(svg: str, dark: bool) -> str:
    """The picture for a page that is dark or light whatever the browser prefers."""
    return svg.replace(DARK_PAGES, "@media all" if dark else "@media not all")


def drawn(figure: Figure) -> dict[str, list[Any]]:
    """What a figure shows, whatever the version of matplotlib: its texts, and the places of lines and marks."""
    texts: list[str] = []
    numbers: list[float] = []
    for axes in figure.axes:
        legend = axes.get_legend()
        labels = [] if legend is None else [text.get_text() for text in legend.get_texts()]
        texts += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *labels, *(t.get_text() for t in axes.texts)]
        for line in axes.lines:
            numbers += _sampled(line.get_xydata())
        for collection in axes.collections:
            for path in collection.get_paths():
                numbers += _sampled(path.vertices)
        for patch in axes.patches:
            numbers += _sampled(patch.get_path().transformed(patch.get_patch_transform()).vertices)
    return {"texts": texts, "numbers": numbers}


def _sampled(points: Any) -> list[float]:
    """Some of many points, each as two numbers of four digits."""
    points = np.asarray(points, dtype=float)
    chosen = points[np.unique(np.linspace(0, len(points) - 1, 40).astype(int))] if len(points) else points
    return [float(f"{number:.4g}") for number in chosen.ravel()]


def shown(path: Path) -> dict[str, list[Any]]:
    """What a picture that [`save`] wrote shows."""
    description = ElementTree.parse(path).find(".//{http://purl.org/dc/elements/1.1/}description")
    if description is None or description.text is None:
        raise ValueError(f"Expected {path} to have a description, but it has none")
    return json.loads(description.text)


class Picture(NamedTuple):
    """A block of code in a page, and the file that it is drawn into."""

    page: Path
    code: str
    path: Path


def pictures() -> Iterator[Picture]:
    """The pictures of all pages."""
    block = re.compile(r"<!-- picture -->\n```python\n(.*?)```\n\n!\[[^\]]+\]\(([^)]+)\)", re.DOTALL)
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        found = [Picture(page, code, (page.parent / path).resolve()) for code, path in block.findall(text)]
        if len(found) != text.count("<!-- picture -->"):
            raise ValueError(f"Expected a block of Python and an image below each picture line of {page}")
        yield from found


def draw(code: str) -> Figure:
    """Run the code of a picture, and draw what its last line plots."""
    block = ast.parse(code)
    *_, last = block.body
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)):
        raise ValueError(f"Expected a picture's code to end in a call of plot_schedule, but got {code!r}")
    figure = new_figure(2.5)
    last.value.keywords.append(ast.keyword("ax", ast.Name("_axes", ast.Load())))
    names: dict[str, Any] = {"_axes": figure.subplots()}
    exec(compile(ast.fix_missing_locations(block), "picture", "exec"), names)
    axes: Axes = names["_axes"]
    axes.grid(axis="y", alpha=0.15)
    return figure


def main() -> None:
    with style():
        for picture in pictures():
            picture.path.parent.mkdir(exist_ok=True)
            save(draw(picture.code), picture.path)


if __name__ == "__main__":
    main()
