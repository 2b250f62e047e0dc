"""Both pyproject.toml files, environment.yml and constraints.txt say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import probelib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOOK = tomllib.loads((ROOT / "book" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
CORE = ("arviz", "cloudpickle", "numpy", "safetensors", "scipy", "torch", "tqdm", "xarray", "zarr")
PYTHONS = ("3.11", "3.12", "3.13")


def named(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by the canonical name of what they require, our own distributions left out."""
    found = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    return {name: found[name] for name in found if name != "probelib"}


def book_requirements() -> dict[str, Requirement]:
    """What `make env` installs: the library, what its figures need, and the book."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["plot"]
    return named(lines + BOOK["dependencies"] + BOOK["optional-dependencies"]["build"])


def requirements() -> dict[str, Requirement]:
    """What `make test` installs: the same, and the tests' tools."""
    return book_requirements() | named(PROJECT["optional-dependencies"]["test"])


def conda() -> tuple[dict[str, str], list[str]]:
    """The conda packages with their versions, and the pip lines."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    packages, pip = {}, []
    for entry in content["dependencies"]:
        if isinstance(entry, dict):
            pip = entry["pip"]
        else:
            name, version = re.fullmatch(r"([a-z0-9._-]+)(.*)", entry).groups()
            packages[name] = version
    return packages, pip


def constraints() -> dict[str, Version]:
    """The pinned versions."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_library_requires_little() -> None:
    assert tuple(named(PROJECT["dependencies"])) == CORE
    assert "probelib[plot]" in BOOK["dependencies"]
    assert PROJECT["requires-python"] == BOOK["requires-python"]
    assert PROJECT["version"] == BOOK["version"] == probelib.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]


def test_the_book_needs_nothing_of_the_tests() -> None:
    assert not set(named(PROJECT["optional-dependencies"]["test"])) & set(book_requirements())


def test_conda_has_every_requirement_of_the_book_in_the_same_versions() -> None:
    packages, pip = conda()
    from_pip = {
        canonicalize_name(Requirement(line).name): Requirement(line).specifier
        for line in pip
        if not line.startswith("-e")
    }
    for name, requirement in book_requirements().items():
        if name in from_pip:
            assert from_pip[name] == requirement.specifier, name
        else:
            conda_name = CONDA_NAMES.get(name, name)
            assert conda_name in packages, f"environment.yml lacks {conda_name}"
            assert SpecifierSet(packages[conda_name]) == requirement.specifier, name


def test_conda_has_nothing_else() -> None:
    packages, pip = conda()
    wanted = {CONDA_NAMES.get(name, name) for name in book_requirements()}
    assert set(packages) - {"python", "pip"} <= wanted
    assert set(named([line for line in pip if line[0] != "-"])) <= set(book_requirements())
    assert [line for line in pip if line[0] == "-"] == ["-e .", "-e ./book"]


def test_the_python_range_is_the_same_everywhere() -> None:
    packages, _ = conda()
    assert SpecifierSet(packages["python"]) == SpecifierSet(PROJECT["requires-python"])
    spec = SpecifierSet(PROJECT["requires-python"])
    assert all(Version(version) in spec for version in PYTHONS)
    assert Version("3.10") not in spec
    assert Version("3.14") not in spec
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS


@pytest.mark.parametrize("name", sorted(requirements()))
def test_the_pins_satisfy_the_requirements(name: str) -> None:
    pins = constraints()
    assert name in pins, f"constraints.txt has no {name}"
    assert pins[name] in requirements()[name].specifier


def test_the_pins_bind_every_platform() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = constraints()
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [str(version) for version in pins.values() if version.local]
    assert "://" not in text
    assert not {"probelib", "probebook"} & set(pins)


# -- make env ------------------------------------------------------------------------------------

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
NOT_INHERITED = {"PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OMP_WAIT_POLICY"}


def put_files(folder: Path) -> None:
    """Put what `make env` reads into `folder`."""
    (folder / "book").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "book/pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)


def make(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` in `folder`, where only what `environment` says is inherited of the outer one."""
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    inherited = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def make_env(folder: Path, has: str, complete: bool, *arguments: str, **environment: str):
    """`make env` beside a .venv whose python only says that it is version `has`."""
    put_files(folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho {has}\n")
    python.chmod(0o755)
    if complete:
        (folder / ".venv" / ".complete").touch()
    return make("env", *arguments, folder=folder, **environment)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refusal."""
    assert done.returncode != 0
    assert "pip install" not in done.stdout
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def test_another_python_is_not_swallowed_by_a_complete_environment(tmp_path) -> None:
    sentence = f"error: .venv has a Python 3.9, but {sys.executable} is {HERE}; remove .venv first"
    (tmp_path / "a").mkdir()
    assert refused(make_env(tmp_path / "a", "3.9", True, f"PYTHON={sys.executable}")) == sentence
    (tmp_path / "b").mkdir()
    assert refused(make_env(tmp_path / "b", "3.9", True, PYTHON=sys.executable)) == sentence
    (tmp_path / "c").mkdir()
    assert "there is no nowhere" in refused(make_env(tmp_path / "c", "3.9", True, "PYTHON=nowhere"))


def test_a_complete_environment_is_kept(tmp_path) -> None:
    for name, arguments in (("same", [f"PYTHON={sys.executable}"]), ("default", [])):
        (tmp_path / name).mkdir()
        done = make_env(tmp_path / name, HERE if arguments else "3.9", True, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "pip install" not in done.stdout


def test_an_incomplete_environment_of_another_python_is_not_reused(tmp_path) -> None:
    # The default python3, found on the path, is this interpreter here.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "a").mkdir()
    done = make_env(tmp_path / "a", "3.9", False, PATH=path)
    assert (
        refused(done) == f"error: .venv has a Python 3.9, but python3 is {HERE}; remove .venv first"
    )


def test_the_book_is_installed_without_the_tests_tools(tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    installs = {}
    for target in ("book", "test"):
        folder = tmp_path / target
        put_files(folder)
        done = make("--dry-run", target, folder=folder, PATH=path)
        assert done.returncode == 0, done.stderr
        installs[target] = [line for line in done.stdout.splitlines() if "pip install" in line]
    first = '.venv/bin/python -m pip install --progress-bar off -e . -e "book[build]" '
    assert installs["book"] == [first + "-c constraints.txt"]
    assert installs["test"][0] == installs["book"][0]
    assert len(installs["test"]) == 2
    assert '-e ".[test]"' in installs["test"][1]


@pytest.mark.parametrize(
    ("target", "given", "policy"),
    [
        ("book", None, "passive"),
        ("test", None, "passive"),
        ("test", "active", "active"),
        ("bench", None, "unset"),
        ("bench", "passive", "unset"),
    ],
)
def test_threads_wait_passively_except_where_speed_is_measured(
    target: str, given: str | None, policy: str, tmp_path
) -> None:
    # A python that only says which policy it was given, and tools that say nothing.
    put_files(tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "ruff", "mypy"):
        (binaries / name).write_text('#!/bin/sh\necho "policy ${OMP_WAIT_POLICY-unset} of $*"\n')
        (binaries / name).chmod(0o755)
    for stamp in (".complete", ".complete-tools"):
        (tmp_path / ".venv" / stamp).touch()
    environment = {} if given is None else {"OMP_WAIT_POLICY": given}
    done = make(target, folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"policy {policy} of "), done.stdout
