"""The library's wheel: what is in it, and that it works where nothing else of this is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import probelib

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip"]
SITE = Path(importlib.metadata.distribution("torch").locate_file(""))
# What README.md's example leaves to its reader.
BEFORE = """
import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(90, 4)
data = (x, (x[:, 0] + 0.5 * torch.randn(90) > 0).long())
model = nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()
"""
AFTER = """
assert gain.shape == (90,) and bool((gain.mcse > 0).all())
assert kernel.top_correlated(k=3) is not None
assert trace.sizes["chain"] == 5 and bool((trace.loss == trace.loss).all())
"""


def environment() -> dict[str, str]:
    """This process's environment without what would make another Python import from here."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with more in its environment."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment() | more,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_of_the_sources(folder: Path) -> Path:
    """What a build may read, and more that must not get into it."""
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "_build", "_generated", ".*")
    for name in ("probelib", "tests", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, folder / path.name)
    return folder


@dataclass(frozen=True)
class Built:
    """A source archive, and the wheel built from nothing but it."""

    sdist: Path
    wheel: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return {name for name in archive.namelist() if not name.endswith("/")}

    def metadata(self) -> Message:
        (name,) = [n for n in self.names() if n.endswith(".dist-info/METADATA")]
        with zipfile.ZipFile(self.wheel) as archive:
            return Parser().parsestr(archive.read(name).decode())


def setuptools_elsewhere(folder: Path) -> dict[str, str]:
    """Where to find a setuptools that can build this, if the one here is too old or missing."""
    with suppress(importlib.metadata.PackageNotFoundError):
        if Version(importlib.metadata.version("setuptools")) >= Version("77"):
            return {}
    done = run(*PIP, "install", "-q", "--target", folder, "setuptools>=77", cwd=folder.parent)
    if done.returncode:
        pytest.skip("no setuptools from version 77 here, and no package index can be reached")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_of_the_sources(folder / "sources")
    more = setuptools_elsewhere(folder / "setuptools")
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    done = run(sys.executable, "-c", script, cwd=sources, **more)
    assert done.returncode == 0, done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", folder]
    done = run(*PIP, "wheel", *options, sdist, cwd=folder, **more)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


# -- what is in it -------------------------------------------------------------------------------


def test_the_wheel_holds_the_library_and_nothing_else(built: Built) -> None:
    names = built.names()
    info = f"probelib-{probelib.__version__}.dist-info/"
    about = {name for name in names if name.startswith(info)}
    assert about == {f"{info}{n}" for n in ("METADATA", "RECORD", "WHEEL", "top_level.txt")} | {
        f"{info}licenses/LICENSE"
    }
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "probelib").rglob("*.py")}
    assert names - about == ours | {"probelib/py.typed"}


def test_the_source_archive_holds_what_a_build_needs(built: Built) -> None:
    # The wheel was built from it; here: nothing of the book or the tests travels along.
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "probelib/py.typed"} <= names
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"probelib", "probelib.egg-info"}


def test_a_package_index_can_show_it(built: Built) -> None:
    about = built.metadata()
    assert about["Name"] == "probelib"
    assert about["Version"] == probelib.__version__
    assert about["Author"]
    assert about["License-Expression"] == "MIT"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about["Keywords"]
    classifiers = about.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    pythons = {c.rsplit(" ", 1)[1] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)}
    assert pythons == {"3.11", "3.12", "3.13"}


def test_a_release_links_absolutely(built: Built, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, tmp_path)
    script = [sys.executable, ROOT / ".github" / "release_metadata.py", tmp_path]
    tag = f"v{probelib.__version__}"
    named = {"GITHUB_REPOSITORY": "someone/book", "GITHUB_REF_NAME": "v99"}
    refused = run(*script, cwd=tmp_path, **named)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"error: the tag is v99, but pyproject.toml has version {tag[1:]}; tag {tag}\n"
    )
    done = run(*script, cwd=tmp_path, **named | {"GITHUB_REF_NAME": tag})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)", page)
    assert {image for image, _ in links} == {"", "!"}
    for image, target in links:
        host = "https://raw.githubusercontent.com/" if image else "https://"
        assert target.startswith(host), target
        if "someone/book" in target:
            path = target.split(f"/{tag}/", 1)[1]
            assert (ROOT / path.split("#")[0]).exists(), target
    assert "(results/" not in page
    assert "https://github.com/someone/book" in (tmp_path / "pyproject.toml").read_text()


# -- installed alone -----------------------------------------------------------------------------


def closure(names: Iterable[str]) -> set[str]:
    """The installed distributions that `names` need, extras and markers respected."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for line in importlib.metadata.requires(name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in found}


def expose(names: set[str], site: Path) -> None:
    """Link the files of the named distributions, and of no others, into a folder of packages.

    A folder at the top is linked whole where all that is in it is theirs.
    """
    owners: dict[str, set[str]] = {}
    files: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions(path=[str(SITE)]):
        name = canonicalize_name(distribution.name)
        files[name] = [
            path.as_posix()
            for path in distribution.files or []
            if path.parts[0] not in ("..", "__pycache__") and not path.is_absolute()
        ]
        for path in files[name]:
            owners.setdefault(path.split("/")[0], set()).add(name)
    missing = sorted(name for name in names if not files.get(name))
    assert not missing, f"no list of the files of {', '.join(missing)}"
    for name in sorted(names):
        tops = {path.split("/")[0] for path in files[name]}
        for top in tops:
            if owners[top] <= names:
                if not (site / top).exists():
                    (site / top).symlink_to(SITE / top)
                continue
            for path in files[name]:
                if path.split("/")[0] == top:
                    (site / path).parent.mkdir(parents=True, exist_ok=True)
                    (site / path).symlink_to(SITE / path)


@dataclass(frozen=True)
class Alone:
    """A fresh environment with probelib's wheel and what it requires."""

    python: Path
    folder: Path
    distributions: set[str]

    def script(self, text: str) -> str:
        """Run a script in the folder; return what it printed."""
        done = run(self.python, "-c", text, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    required = [
        line for line in built.metadata().get_all("Requires-Dist") if "extra ==" not in line
    ]
    distributions = closure(required)
    expose(distributions, site)
    options = ["--python", python, "install", "-q", "--no-deps", "--no-index"]
    done = run(*PIP, *options, built.wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    work = folder / "work"
    work.mkdir()
    return Alone(python, work, distributions)


REPORT = """
import importlib.metadata, importlib.util, json, sys
import probelib
modules = sorted(sys.modules)
print(json.dumps({
    "file": probelib.__file__,
    "imported": modules,
    "installed": [found.name for found in importlib.metadata.distributions()],
    "importable": [name for name in PACKAGES if importlib.util.find_spec(name)],
}))
"""
# Distributions that the library does without, by the package that each is imported as.
WITHOUT = {
    "matplotlib": "matplotlib",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "torchvision": "torchvision",
    "seaborn": "seaborn",
    "ipywidgets": "ipywidgets",
    "jupyterlab": "jupyterlab",
    "pytest": "pytest",
    "probebook": "probebook",
}


@pytest.fixture(scope="module")
def report(alone: Alone) -> dict[str, Any]:
    """What `import probelib` finds and does in the fresh environment."""
    return json.loads(alone.script(REPORT.replace("PACKAGES", repr(list(WITHOUT.values())))))


def test_it_is_alone_there(alone: Alone, report: dict[str, Any]) -> None:
    assert Path(report["file"]).is_relative_to(alone.python.parent.parent)
    installed = {canonicalize_name(name) for name in report["installed"]}
    assert installed == alone.distributions | {"probelib"}
    # arviz < 1 itself requires matplotlib, which requires Pillow; probelib does not import them.
    theirs = {module for name, module in WITHOUT.items() if name in closure(["arviz"])}
    assert set(report["importable"]) == theirs <= {"matplotlib", "PIL"}


@pytest.mark.parametrize("package", ["arviz", "matplotlib", "PIL", "pandas", "scipy.stats", "dask"])
def test_importing_it_leaves_out_what_sampling_does_not_need(
    package: str, report: dict[str, Any]
) -> None:
    # Estimates, figures and exchange import theirs where they are used.
    assert "torch" in report["imported"]
    assert package not in report["imported"]


def test_the_readme_example_runs_there(alone: Alone) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Probe your own network\n(.*?)^## ", text, re.M | re.S)[1]
    example, *_ = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    assert "probelib.sample(" in example
    out = alone.script(BEFORE + example + AFTER)
    assert out.strip()  # the verdict
    assert (alone.folder / "probe.zarr").is_dir()
