"""The raw results of a study: a line of JSON for each run.

New runs are lines of plain text, for example in `known_end.jsonl`. Packed runs are in `known_end.jsonl.gz` beside it.
`python -m benchmarks.quality.report` moves the new lines there.
"""

from __future__ import annotations

import gzip
from pathlib import Path


def packed(path: Path) -> Path:
    """The packed file beside a file of results."""
    return path.with_name(f"{path.name}.gz")


def read_lines(path: Path) -> list[str]:
    """The lines of all runs: first those that are packed.

    Raises:
        FileNotFoundError: if there is neither file.
    """
    text = gzip.decompress(packed(path).read_bytes()).decode() if packed(path).exists() else ""
    if path.exists() or not packed(path).exists():
        text += path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()  # without a line that was being written when the run was stopped


def pack(path: Path) -> None:
    """Move new lines into the packed file. The same lines give the same bytes."""
    if path.exists():
        text = "".join(f"{line}\n" for line in read_lines(path))
        packed(path).write_bytes(gzip.compress(text.encode(), mtime=0))
        path.unlink()
