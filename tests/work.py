"""How much work a call does, whatever the speed of the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
HANGS_AFTER = 600  # seconds: a process that has not ended by then never will, however slow the machine is
OWN = tuple(f"{ROOT / folder}/" for folder in ("hf_warmcos", "examples"))


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Expect that the lines of this repository's Python that are executed are at most so many, each time counted."""
    executed = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal executed
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        executed += event == "line"
        if executed > limit:
            sys.settrace(before)
            raise AssertionError(f"Expected at most {limit:,} lines to be executed, but got more")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
    assert executed, "Expected lines of this repository to be executed, but got none"
