"""The package as others get it: what is built, what the package index shows, and the wheel alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import extras
import pytest
import yaml

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.needs("build", "hatchling", "twine")


def run(*command: str | Path, **options) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from it. Without isolation, since tests download nothing."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return HeaderParser().parsestr(wheel.read(name).decode())


def test_twine_finds_nothing_to_complain_about(distributions):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *distributions).count("PASSED") == 2


def test_the_wheel_has_the_package_its_types_its_command_and_its_license(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        others = {name.split(".dist-info/")[1] for name in wheel.namelist() if ".dist-info/" in name}
    files = {path for path in (ROOT / "hf_warmcos").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == {str(path.relative_to(ROOT)) for path in files}
    assert {"hf_warmcos/py.typed", "hf_warmcos/startup/sitecustomize.py"} <= names
    assert {"entry_points.txt", "licenses/LICENSE"} <= others


@pytest.fixture(scope="module")
def unpacked(distributions, tmp_path_factory):
    """The folder of the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(distributions[0]) as sdist:
        sdist.extractall(folder)
    (unpacked,) = folder.iterdir()
    return unpacked


def test_the_sdist_has_all_that_its_tests_its_pages_and_its_ci_name(unpacked):
    for folder in ("tests", "examples", "docs", "benchmarks", ".ci", ".github"):
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(ROOT) for path in files} <= {
            path.relative_to(unpacked) for path in unpacked.rglob("*")
        }
    for text in map(Path.read_text, (ROOT / "CONTRIBUTING.md", *(ROOT / ".ci").iterdir())):
        for name in re.findall(r"[\w./-]+", text):
            if (ROOT / name).is_file():
                assert (unpacked / name).is_file(), name


@pytest.mark.slow
def test_the_sdist_passes_its_own_tests(unpacked):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    fast = ("public_names", "arguments", "cycles", "extended_schedules", "factory", "saved_state", "schedule")
    tests = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *(f"tests/test_{name}.py" for name in fast),
    )
    printed = run(sys.executable, *tests, cwd=unpacked, env=environment)
    assert int(re.search(r"(\d+) passed", printed)[1]) > 100


def test_the_page_on_the_index_leads_into_the_repository_where_the_files_are(metadata):
    (repository,) = (url.split(", ")[1] for url in metadata.get_all("Project-URL") if url.startswith("Repository, "))
    page = metadata.get_payload()
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", page)
    assert any(image for image, _ in targets)
    for image, target in targets:
        assert target.startswith("https://"), target
        if target.startswith(f"{repository}/"):
            kind, path = target.partition("#")[0].removeprefix(f"{repository}/").split("/main/")
            assert kind == ("raw" if image else "blob")
            assert (ROOT / path).exists(), target


def test_the_address_of_the_repository_is_the_same_everywhere(metadata):
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == urls["Repository"]


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def test_the_public_ci_runs_what_decides_here_and_each_python_in_a_job_of_its_own():
    jobs = workflow("ci")["jobs"]
    assert [job["steps"][-1]["run"] for job in jobs.values()] == [
        ".ci/run",
        ".ci/versions ${{ matrix.python }} ${{ matrix.resolution }}",
    ]
    matrix = jobs["versions"]["strategy"]["matrix"]
    rows = {(python, "highest") for python in matrix["python"]} | {tuple(row.values()) for row in matrix["include"]}
    here = re.search(r"^here=\((.*)\)$", (ROOT / ".ci" / "versions").read_text(), re.MULTILINE)[1]
    assert {tuple(row.split()) for row in re.findall('"(.*?)"', here)} < rows
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in ("run", "versions"))


@pytest.mark.slow
def test_a_python_that_is_asked_for_and_missing_is_a_failure():
    asked = subprocess.run([ROOT / ".ci" / "versions", "3.99", "highest"], capture_output=True, text=True)
    assert asked.returncode != 0
    assert "3.99" in asked.stderr


def test_the_classifiers_are_the_pythons_from_the_lowest_to_the_newest_that_is_tested_here():
    names = [of.rpartition(" :: ")[2] for of in extras.pyproject()["project"]["classifiers"] if "Python :: 3." in of]
    rows = re.search(r"^here=\((.*)\)$", (ROOT / ".ci" / "versions").read_text(), re.MULTILINE)[1]
    tested = [int(minor) for minor in re.findall(r'"3\.(\d+) ', rows)]
    assert names == [f"3.{minor}" for minor in range(min(tested), max(tested) + 1)]


def test_no_file_of_tests_has_more_than_500_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_a_version_bound_stands_once():
    project = extras.pyproject()
    stated = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(of for extra in project["project"]["optional-dependencies"].values() for of in extra),
    ]
    bounded = [re.split("[>=<~!]", requirement)[0] for requirement in stated if re.search("[>=<~!]", requirement)]
    assert sorted(bounded) == sorted(set(bounded))
    assert not re.search(
        "[>=<~]=?[0-9]", "".join(re.findall(r"pip install.*-e.*", (ROOT / ".ci" / "versions").read_text()))
    )


@pytest.mark.slow
def test_the_wheel_alone_runs_its_doctests_in_a_fresh_environment(distributions, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", distributions[1], env=environment)
    # What it depends on is there already, in these tests' own environment, behind the wheel. The editable package in
    # that one stays out, since the files that make it so are read for an environment's own folder alone.
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    where = run(python, "-c", "import hf_warmcos; print(hf_warmcos.__file__)", cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(own)
    doctests = ("-m", "pytest", "--doctest-modules", "--pyargs", "hf_warmcos", "-q", "-p", "no:cacheprovider")
    printed = run(python, *doctests, "-c", "/dev/null", "--rootdir", tmp_path, cwd=tmp_path, env=environment)
    assert int(re.search(r"(\d+) passed", printed)[1]) > 20
    command = run(tmp_path / "venv" / "bin" / "hf-warmcos", "table", "--T_0", "10", cwd=tmp_path, env=environment)
    assert command
