"""The reference as the repository shows it: of each public name a sentence, the signature and an example.

They come from the docstrings. The site shows the whole docstrings in their place.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import hf_warmcos

ROOT = Path(hf_warmcos.__file__).parent.parent
WIDTH = 88


def reference(name: str) -> str:
    """The entry of a public name."""
    of = getattr(hf_warmcos, name)
    docstring = inspect.getdoc(of) or ""
    sentences = re.sub(r"\[(`[^`]+`)\]", r"\1", docstring.partition("\n\n")[0])
    example = re.findall(r"```python\n(>>>.*?)\n*```", docstring, re.DOTALL)[0]
    source = Path(inspect.getsourcefile(of) or "").relative_to(ROOT)
    return "\n\n".join(
        (
            f"## `{name}`",
            textwrap.fill(" ".join(sentences.split()), 120),
            f"```text\n{signature(name, of)}\n```",
            "```pycon\n" + re.sub(r"  # doctest:.*", "", example) + "\n```",
            f"[Arguments and errors](../../{source.as_posix()})",
        )
    )


def signature(name: str, of: Any) -> str:
    """The arguments of a function or class and their defaults, as many in a line as fit."""
    plain = inspect.signature(of)
    arguments = [
        str(argument.replace(annotation=inspect.Parameter.empty))
        for argument in plain.parameters.values()
        if argument.name != "verbose"
    ]
    kinds = [argument.kind for argument in plain.parameters.values() if argument.name != "verbose"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    filled = textwrap.fill(f"{', '.join(arguments)},", WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{name}(\n{filled}\n)"
