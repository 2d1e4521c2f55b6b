"""The tables of docs/migrate.md: what `python -m tests.peers` found, and the table of names that the hints use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.documents import markdown_table
from hf_warmcos.names import COMMANDS, ELSEWHERE

RESULTS = Path(__file__).parent.parent / "tests" / "peers" / "results.json"


def results() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text())


def as_code(name: str) -> str:
    return f"`{name}`" if re.fullmatch(r"\w+", name) else name


def schedulers() -> str:
    """A section for each scheduler: its release, its arguments here, where it differs, what is lost on going back."""
    sections = []
    for section, found in results().items():
        rows = [[as_code(name), meaning] for name, meaning in ELSEWHERE[section].items()]
        table = markdown_table([f"Theirs ({found['compared_with']})", "Here"], rows, num_text_columns=2)
        facts = [*found["facts"], f"If you go back, you lose: {found['back']}."]
        sections.append("\n".join([f"### {section}", "", table, "", *(f"- {fact}" for fact in facts)]))
    return "\n\n".join(sections)


def commands() -> str:
    """Options of commands, and other names for the same arguments."""
    return markdown_table(["Theirs", "Here"], [[f"`{name}`", meaning] for name, meaning in COMMANDS.items()], 2)
