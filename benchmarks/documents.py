"""Tables, and the places of figures in documents: no figure in the documentation is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], num_text_columns: int = 1) -> str:
    """A table whose first columns are text; the others are numbers, aligned to the right."""
    alignment = ["---"] * num_text_columns + ["---:"] * (len(header) - num_text_columns)
    lines = [header, alignment, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_figures(document: str, figures: Mapping[str, str]) -> str:
    """Return the document with each figure in its place, between two comments that name it.

    The comments stand on lines of their own, or within a line.

    Raises:
        ValueError: If the document names a figure that there is not.
    """

    def write(place: re.Match[str]) -> str:
        name, newline = place["name"], place["newline"]
        if name not in figures:
            nearest = ", ".join(get_close_matches(name, figures)) or "none"
            raise ValueError(f"Expected the name of a figure, but got {name!r} (near it: {nearest})")
        return f"<!-- figures: {name} -->{newline}{figures[name]}{newline}<!-- end of {name} -->"

    place = r"<!-- figures: (?P<name>[^\n]+?) -->(?P<newline>\n?).*?<!-- end of (?P=name) -->"
    return re.sub(place, write, document, flags=re.DOTALL)
