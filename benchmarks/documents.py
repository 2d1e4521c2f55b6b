"""Tables, and their places in documents: no figure in the documentation is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_sections(document: str, sections: Mapping[str, str]) -> str:
    """Return the document with each section in its place, between two comments that name it.

    Raises:
        ValueError: If the document lacks the place of a section.
    """
    for name, text in sections.items():
        begin, end = f"<!-- figures: {name} -->", f"<!-- end of {name} -->"
        if document.count(begin) != 1 or document.count(end) != 1:
            raise ValueError(f"Expected one {begin} and one {end} in the document")
        before, rest = document.split(begin)
        document = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return document
