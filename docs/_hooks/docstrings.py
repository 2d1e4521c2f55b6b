"""The docstrings, written in the style of transformers, become what the site's generator reads.

Types and defaults are taken from the signature. Formulas, names in brackets and examples become Markdown.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe

import hf_warmcos

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()
REPOSITORY = re.findall(r'^Repository = "(.+)"', PROJECT, re.MULTILINE)[0]


class ProjectDocstrings(griffe.Extension):
    """Rewrite the docstring of each object of the package before it is parsed."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        if obj.docstring is not None and obj.path.startswith("hf_warmcos"):
            returns = obj.returns if obj.is_function else None  # type: ignore[attr-defined]
            text = markdown(obj.docstring.value, None if returns is None else str(returns))
            obj.docstring.value = text + _source_link(obj)


def _source_link(obj: griffe.Object) -> str:
    """A link to the lines of a public class or function in the repository."""
    if obj.name not in hf_warmcos.__all__ or obj.lineno is None:
        return ""
    return f"\n\n[Source code]({REPOSITORY}/blob/main/{obj.relative_package_filepath}#L{obj.lineno})"


def markdown(docstring: str, returns: str | None = None) -> str:
    """Return a docstring of this project as one in Google's style, with Markdown in it."""
    sections = (("Args", _arguments), ("Attributes", _arguments), ("Raises", _errors))
    for title, rewrite in sections:
        docstring = _in_section(docstring, title, rewrite)
    docstring = _in_section(docstring, "Returns", lambda text: _returns(text, returns))
    docstring = re.sub(r"^( *)\.\. math::\n((?:\1 +.*\n|\n(?=\1 ))+)", _display_math, docstring + "\n", flags=re.M)
    docstring = re.sub(r":math:`([^`]+)`", r"\\(\1\\)", docstring)
    docstring = re.sub(r"\[`([\w.~]+)`\](?![(\[])", _cross_reference, docstring)
    docstring = re.sub(r"^( *)```python\n(?=\1>>>)", r"\1```pycon\n", docstring, flags=re.M)
    docstring = re.sub(r"  # doctest:.*", "", docstring)
    docstring = re.sub(r"\n\n( *```)$", r"\n\1", docstring, flags=re.M)
    return re.sub(r"^(Example|Source):", r"**\1:**", docstring, flags=re.M)


def _in_section(docstring: str, title: str, rewrite: Any) -> str:
    """Rewrite the indented text below a title."""
    return re.sub(
        rf"^{title}:\n((?: +.*\n?|\n(?= ))+)",
        lambda section: f"{title}:\n{_indent(rewrite(dedent(section[1]).rstrip()))}\n",
        docstring,
        count=1,
        flags=re.M,
    )


def _indent(text: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _arguments(text: str) -> str:
    """`names (`type`, *optional*): what`, for each name an item of its own."""

    def items(match: re.Match[str]) -> str:
        names = [name.lstrip("*") if name == "*args" else name for name in re.split(r",\s*", match["names"])]
        return "\n".join(f"{name}: {match['what'].strip()}" for name in names)

    item = r"^(?P<names>[*\w]+(?:,\s*[*\w]+)*)(?: \((?:[^()]|\([^()]*\))*\))?:(?P<what>.*(?:\n(?: .*|$))*)"
    return re.sub(item, items, text, flags=re.M)


def _errors(text: str) -> str:
    """`TypeError, ValueError: when`, for each error an item of its own."""
    item = r"^(?P<names>\w+(?:, \w+)*): (?P<what>.*(?:\n .*)*)"
    return re.sub(
        item,
        lambda match: "\n".join(f"{name}: {match['what']}" for name in match["names"].split(", ")),
        text,
        flags=re.M,
    )


def _returns(text: str, annotation: str | None) -> str:
    """What is returned, under the type of the signature."""
    if annotation is None:
        return text
    what = re.sub(r"^\[?`[^`]+`\]?: ", "", text)
    return f"{annotation}: {what}"


def _display_math(match: re.Match[str]) -> str:
    formula = dedent(match[2]).strip()
    if r"\\" in formula:
        formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    lines = "\n".join(f"{match[1]}{line}" for line in formula.splitlines())
    return f"\n{match[1]}\\[\n{lines}\n{match[1]}\\]\n\n"


def _cross_reference(match: re.Match[str]) -> str:
    name = match[1]
    if name.split(".")[0] in hf_warmcos.__all__:
        return f"[`{name}`][hf_warmcos.{name}]"
    return f"`{name.lstrip('~')}`"
