"""The blocks of code in a document, and a run of them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parent.parent
# The values that the measurements recommend where there are several cycles. Snippets use them, and no others.
RECOMMENDED = {"num_cycles": 3, "T_mult": 2, "stable_ratio": 0.8}


def code_blocks(document: str, language: str) -> list[str]:
    """The blocks of one language, in their order, without those of pictures: drawing the pictures runs them."""
    text = (ROOT / document).read_text()
    fenced = re.finditer(rf"(<!-- picture -->\n)?^( *)```{language}\n(.*?)^\2```$", text, re.DOTALL | re.MULTILINE)
    return [dedent(block[3]) for block in fenced if not block[1]]


def run_blocks(blocks: list[str], document: str, **names: Any) -> dict[str, Any]:
    """Run blocks of Python one after the other, as a reader who pastes them would, and return the names they define."""
    namespace = {"__name__": "__main__", **names}
    for block in blocks:
        exec(compile(block, document, "exec"), namespace)
    return namespace


def code_of_section(document: str, section: str, language: str = "python") -> str:
    """The blocks of one language in a section of the third level."""
    text = (ROOT / document).read_text()
    sections = dict(of.split("\n", 1) for of in re.split(r"^### ", text, flags=re.MULTILINE)[1:])
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", sections[section], re.DOTALL))
