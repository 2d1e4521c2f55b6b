"""The public names: `hf_warmcos` itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import hf_warmcos


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_name_is_there_and_a_type_checker_sees_the_same_names_from_the_same_modules():
    (block,) = (node for node in ast.parse(Path(hf_warmcos.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {(alias.name, node.module) for node in block.body for alias in node.names}
    assert {name for name, _ in seen} == {*hf_warmcos.__all__}
    for name, module in seen:
        assert getattr(hf_warmcos, name) is getattr(sys.modules[module], name)
    assert {*hf_warmcos.__all__} <= {*dir(hf_warmcos)}


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CosineRestartScheduler'"):
        _ = hf_warmcos.CosineRestartScheduler


def test_the_version_is_the_installed_one():
    assert hf_warmcos.__version__ == version("hf_warmcos")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import hf_warmcos", {"torch", "numpy", "transformers", "accelerate"}),
        ("from hf_warmcos import CosineRestartSchedule as S; S(10).curve(5)", {"torch", "transformers", "accelerate"}),
        ("from hf_warmcos import CosineRestartLR", {"transformers", "accelerate", "matplotlib"}),
        ("from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule", {"transformers", "accelerate"}),
    ],
)
def test_a_name_loads_only_what_it_stands_on(code, heavy):
    loaded = run_python(f"import sys; {code}; print(*(name for name in sys.modules if '.' not in name))").split()
    assert not heavy & {*loaded}


def test_a_vendored_copy_needs_no_metadata(tmp_path):
    (tmp_path / "vendored").mkdir()
    for file in Path(hf_warmcos.__file__).parent.glob("*.py"):
        text = file.read_text().replace("from hf_warmcos.", "from vendored.")
        (tmp_path / "vendored" / file.name).write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vendored; print(vendored.__version__)"
    assert run_python(code).strip() == hf_warmcos.__version__
    code = code.replace("vendored.__version__", "vendored.CosineRestartSchedule(10).lr_at(5)")
    assert run_python(code).strip() == "0.5"
