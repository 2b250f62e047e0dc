"""A chapter runs again if anything that it depends on has changed, and only then."""

from __future__ import annotations

import hashlib
import os
import sys

import nbformat
import pytest
from small_book import add, empty

import driver
import prepare
import unchanged
from probebook import brown, classifiers, imagenet, mnist

COUNT = """
from pathlib import Path
runs = Path({path!r})
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
Path(results_dir, "00_first-figure.png").write_text("a figure")
"""


class Project:
    """A project with one chapter, which counts its runs."""

    def __init__(self, root):
        self.layout = empty(root)
        self.runs = root / "runs"
        self.source = add(self.layout, "00_first", body=COUNT.format(path=str(self.runs)))
        self.results = self.layout.results / "laptop"
        self.copy = self.layout.executed / "00_first.ipynb"

    def run(self, **options) -> int:
        """Run the driver; how many times the chapter has run so far."""
        driver.run(self.layout, "laptop", rendering=False, **options)
        return len(self.runs.read_text())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """It ran once; its "library" is a folder of its own."""
    library = tmp_path / "library"
    (library / "part").mkdir(parents=True)
    (library / "part" / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(unchanged, "code_folders", lambda: [library])
    project = Project(tmp_path)
    assert project.run() == 1
    return project


def test_an_unchanged_chapter_is_kept_and_force_runs_it(project, capsys) -> None:
    before = project.copy.read_bytes()
    capsys.readouterr()
    assert project.run() == 1
    out = capsys.readouterr().out
    made = nbformat.read(project.copy, as_version=4).metadata[prepare.PROVENANCE]["started"]
    assert f"[00_first] unchanged, kept (made {made})\n" in out
    assert "starts" not in out
    assert "n is 10" in out  # the summary shows it all the same
    assert project.copy.read_bytes() == before
    compiled = project.layout.notebooks.parent / "library" / "__pycache__"
    compiled.mkdir()
    (compiled / "code.pyc").touch()
    assert project.run() == 1
    assert project.run(force=True) == 2


def edited_source(project) -> None:
    project.source.write_text(project.source.read_text() + "\n# %% [markdown]\n# more\n")


def edited_parameter(project) -> None:
    (project.layout.params / "laptop.yaml").write_text("00_first: {n: 11}\n")


def edited_library(project) -> None:
    (project.layout.notebooks.parent / "library" / "part" / "code.py").write_text("a = 2\n")


def renamed_library(project) -> None:
    path = project.layout.notebooks.parent / "library" / "part" / "code.py"
    path.rename(path.with_name("other.py"))


def another_kept_run(project) -> None:
    folder = project.layout.notebooks.parent / "results" / "prerun"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_text("x")


def edited_results(project) -> None:
    path = project.results / "00_first.json"
    path.write_text(path.read_text().replace("10", "12"))


def lost_results(project) -> None:
    (project.results / "00_first.json").unlink()


def lost_figure(project) -> None:
    (project.results / "00_first-figure.png").unlink()


def lost_copy(project) -> None:
    project.copy.unlink()


def torn_copy(project) -> None:
    project.copy.write_bytes(project.copy.read_bytes()[:-100])


def edited_copy(project) -> None:
    nb = nbformat.read(project.copy, as_version=4)
    nb.cells[0].source += " by hand"
    nbformat.write(nb, project.copy)


@pytest.mark.parametrize(
    "change",
    [
        edited_source,
        edited_parameter,
        edited_library,
        renamed_library,
        another_kept_run,
        edited_results,
        lost_results,
        lost_figure,
        lost_copy,
        torn_copy,
        edited_copy,
    ],
    ids=lambda f: f.__name__,
)
def test_it_runs_again_after(project, monkeypatch, change) -> None:
    # Whether it would run is what counts; that it then does, the test above shows.
    change(project)
    (planned,) = driver.plan(project.layout, "laptop", [project.source])
    identity = driver.chapter_identity(planned, project.layout, prepare.device())
    results = project.layout.results_file(planned)
    assert unchanged.find_kept(project.copy, results, identity) is None


@pytest.mark.parametrize("what", ["versions", "data", "device"])
def test_it_runs_again_where_the_surroundings_changed(project, monkeypatch, what) -> None:
    (planned,) = driver.plan(project.layout, "laptop", [project.source])
    before = driver.chapter_identity(planned, project.layout, "CPU (x86_64, 2 cores)")
    assert driver.chapter_identity(planned, project.layout, "CPU (x86_64, 4 cores)") == before
    device = "CPU"
    if what == "versions":
        monkeypatch.setattr(prepare, "versions", lambda: {"torch": "0"})
    elif what == "data":
        monkeypatch.setattr(imagenet, "data_identity", lambda: "other")
    else:
        device = "NVIDIA H200"
    assert driver.chapter_identity(planned, project.layout, device) != before


def test_the_code_is_that_of_both_packages() -> None:
    assert [folder.name for folder in unchanged.code_folders()] == ["probelib", "probebook"]


# -- data ------------------------------------------------------------------------------------------


def test_mnist_is_its_content_wherever_it_comes_from(monkeypatch, tmp_path) -> None:
    before = mnist.data_identity()
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert mnist.data_identity() == before
    monkeypatch.setattr(mnist, "FILES", {"train-images-idx3-ubyte": hashlib.sha256().hexdigest()})
    assert mnist.data_identity() != before


def test_photographs_are_known_by_name_size_and_time(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    monkeypatch.delenv("PROBELIB_IMAGENET", raising=False)
    stand_in = imagenet.data_identity()
    assert stand_in.startswith("stand-in ")
    photograph = tmp_path / "imagenet" / "n01440764" / "a.JPEG"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"1234")
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    seen = [stand_in, imagenet.data_identity()]
    assert imagenet.data_identity() == seen[-1]
    photograph.write_bytes(b"12345")
    seen.append(imagenet.data_identity())
    os.utime(photograph, ns=(1, 1))
    seen.append(imagenet.data_identity())
    photograph.rename(photograph.with_name("b.JPEG"))
    seen.append(imagenet.data_identity())
    monkeypatch.setenv("PROBELIB_IMAGENET", str(tmp_path / "imagenet"))
    seen.append(imagenet.data_identity())
    assert len(set(seen)) == len(seen)


def test_weights_are_known_by_size_and_time(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    assert classifiers.data_identity() == ""
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert classifiers.data_identity() == ""
    file = tmp_path / "imagenet" / classifiers.INCEPTION_FILE
    file.parent.mkdir()
    file.write_bytes(b"12")
    before = classifiers.data_identity()
    file.write_bytes(b"123")
    os.utime(file, ns=(2, 2))
    assert classifiers.data_identity() == "3 2" != before


def test_the_brown_corpus_is_its_content(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setattr(brown.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    assert brown.data_identity() == ""
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    (tmp_path / brown.FILE).write_bytes(b"12")
    assert brown.data_identity() == brown.SHA256  # any other content is refused
