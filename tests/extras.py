"""Which packages a test needs, and which extra of pyproject.toml brings them.

The rule: a test needs the packages that its file imports at the top, that it imports itself, and that the functions and
fixtures which it names import. What only a command imports that it starts, it says with `@pytest.mark.needs("peft")`.
"""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
# Where a package is imported by another name than the index has.
IMPORTED_AS = {
    "beautifulsoup4": "bs4",
    "hydra-core": "hydra",
    "ipython": "IPython",
    "mkdocs-material": "material",
    "scikit-learn": "sklearn",
}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TESTS.parent / "pyproject.toml").read_text())


def requirements() -> dict[str, list[str]]:
    """The packages that each extra brings itself, by the names of the index."""
    return {
        extra: [re.match(r"[\w-]+", requirement)[0] for requirement in of if not requirement.startswith("hf_warmcos")]
        for extra, of in pyproject()["project"]["optional-dependencies"].items()
    }


@cache
def extra_of_package() -> dict[str, str]:
    """The extra that brings a package, by the name that is imported."""
    return {
        IMPORTED_AS.get(package, package.replace("-", "_")): extra
        for extra, packages in reversed(requirements().items())
        for package in packages
    }


@cache
def imports_at_the_top(path: Path) -> set[str]:
    """The packages that a file of tests imports at the top, also through the helpers and examples that it imports."""
    return _imported(compile(path.read_text(), str(path), "exec"))


def needs(item: Any) -> set[str]:
    """The packages that a test needs, of those that an extra brings."""
    found = {name for mark in item.iter_markers("needs") for name in mark.args}
    if hasattr(item, "function"):
        found |= imports_at_the_top(item.path)
        named = (vars(item.module).get(name) for name in getattr(item, "fixturenames", ()))
        for value in (item.function, *named):
            found |= _needed_by(value, set())
    return found & extra_of_package().keys()


def missing(packages: set[str]) -> str | None:
    """Why a test that needs these packages cannot run here, or None."""
    absent = sorted(name for name in packages & extra_of_package().keys() if find_spec(name) is None)
    if not absent:
        return None
    extras = ",".join(sorted({extra_of_package()[name] for name in absent}))
    return f'needs {", ".join(absent)}: pip install -e ".[{extras}]"'


def _imported(code: CodeType) -> set[str]:
    """The packages that this code imports; of a helper or an example, those that it imports at its top."""
    found = set()
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            name = step.argval.partition(".")[0]
            own = [file for folder in (TESTS, EXAMPLES) if (file := folder / f"{name}.py").exists()]
            found |= imports_at_the_top(own[0]) if own else {name}
    return found


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _needed_by(value: Any, seen: set[Any]) -> set[str]:
    """What a function imports, and the functions of the tests that it names."""
    function = inspect.unwrap(value) if callable(value) and not isinstance(value, (type, ModuleType)) else None
    code = getattr(function, "__code__", None)
    if code is None or code in seen or not Path(code.co_filename).is_relative_to(TESTS):
        return set()
    seen.add(code)
    found = set()
    for part in _parts(code):
        found |= _imported(part)
        for name in part.co_names:
            found |= _needed_by(function.__globals__.get(name), seen)
    return found
