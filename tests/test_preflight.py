"""A run that ends early, however it ends, leaves nothing that spoils the next; what cannot work
is refused before the first chapter runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from small_book import add, empty, start

import driver
import preflight
from probebook import lifeline, scratch

LONG = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, {lifeline!r}, str(os.getpid()), "timeit", "-n", "1", "-r",
    "1", "-s", "import time", "time.sleep(300)"], stderr=-3)
Path = __import__("pathlib").Path
Path({flag!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
while Path({wait!r}).exists():
    time.sleep(0.05)
child.kill()
"""


@pytest.fixture
def layout(tmp_path: Path) -> driver.Layout:
    """A project whose chapter goes on, with a process of its own, until `wait` is removed."""
    layout = empty(tmp_path)
    (tmp_path / "wait").touch()
    names = {"flag": str(tmp_path / "pids"), "wait": str(tmp_path / "wait")}
    add(layout, "00_first", body=LONG.format(lifeline=lifeline.__file__, **names))
    return layout


def until(condition, seconds: float = 300.0) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process still runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def in_the_chapter(layout: driver.Layout, process: subprocess.Popen) -> list[int]:
    """Wait until the chapter's own cell runs; the kernel's process and its child."""
    flag = layout.notebooks.parent / "pids"
    until(lambda: process.poll() is not None or (flag.exists() and " " in flag.read_text()))
    assert process.poll() is None, process.communicate()
    return [int(pid) for pid in flag.read_text().split()]


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit status of a process, and what it wrote."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_a_killed_run_ends_its_processes_and_the_next_succeeds(layout, number, status) -> None:
    process = start(layout)
    pids = in_the_chapter(layout, process)
    process.send_signal(number)
    found, _, err = ended(process)
    assert found == status
    kept = layout.executed / "00_first.failed.ipynb"
    if number == signal.SIGKILL:
        assert list(layout.executed.glob(".running-*"))
    else:
        # Before it the kernel may have said something.
        assert err.endswith(f"error: 00_first was interrupted; the notebook is kept at {kept}\n")
        assert [path.name for path in layout.executed.iterdir()] == [kept.name]
    until(lambda: not any(alive(pid) for pid in pids), 60)
    (layout.notebooks.parent / "wait").unlink()
    found, out, err = ended(start(layout))
    # A kernel that ends while it waits may say so, which is no error of the run.
    assert found == 0, err
    assert "error:" not in err
    assert "Traceback" not in err
    assert ("Removed what an earlier run left: .running-" in out) == (number == signal.SIGKILL)
    assert [path.name for path in layout.executed.iterdir()] == ["00_first.ipynb"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_second_run_into_the_same_folder_is_refused_and_the_first_goes_on(layout) -> None:
    first = start(layout)
    in_the_chapter(layout, first)
    running = list(layout.executed.glob(".running-*"))
    status, _, err = ended(start(layout))
    assert status == 1
    assert err.startswith(f"error: another run (process {first.pid}, since ")
    assert err.endswith("or give this one a folder of its own with --into\n")
    assert err.count("\n") == 1
    assert list(layout.executed.glob(".running-*")) == running
    (layout.notebooks.parent / "wait").unlink()
    assert ended(first)[0] == 0


def test_a_lock_is_free_again_and_leaves_no_file(tmp_path) -> None:
    for _ in range(2):
        with preflight.hold(tmp_path):
            with (
                pytest.raises(preflight.DriverError, match="another run"),
                preflight.hold(tmp_path),
            ):
                pass
            assert (tmp_path / preflight.LOCK).exists()
        assert list(tmp_path.iterdir()) == []


def test_what_others_left_is_removed_and_what_is_not_ours_is_refused(tmp_path, capsys) -> None:
    layout = empty(tmp_path)
    results = layout.results / "laptop"
    for folder in (layout.executed / ".running-x", layout.executed / ".ipynb_checkpoints", results):
        folder.mkdir(parents=True)
        (folder / "a.ipynb").write_text("{}")
    (results / ".00_first.json.12-ab").touch()
    renamed = {"metadata": {"probelib": {"profile": "laptop"}}}
    (layout.executed / "00_old.ipynb").write_text(json.dumps(renamed))
    (layout.executed / "00_old.failed.ipynb").write_text("{}")
    (layout.executed / "00_first.ipynb").write_text(json.dumps(renamed))
    preflight.clear(layout.executed, results, ["00_first"])
    assert [p.name for p in layout.executed.iterdir()] == ["00_first.ipynb"]
    assert [p.name for p in results.iterdir()] == ["a.ipynb"]
    assert "00_old.ipynb" in capsys.readouterr().out
    preflight.check_render(layout.pages, layout.executed, ["00_first"])
    (layout.executed / "mine.ipynb").write_text("{}")
    preflight.clear(layout.executed, results, ["00_first"])
    with pytest.raises(preflight.DriverError, match=r"mine\.ipynb is no chapter"):
        preflight.check_render(layout.pages, layout.executed, ["00_first"])


# -- refusals before anything runs -----------------------------------------------------------------


def test_the_render_of_this_book_passes_the_checks() -> None:
    layout = driver.Layout.of()
    stems = [path.stem for path in driver.chapters(layout.notebooks)]
    preflight.check_render(layout.pages, layout.executed / "none", stems)


@pytest.mark.parametrize(
    ("toc", "message"),
    [
        ("root: intro\nchapters: [{file: notebooks/07_gone}]", "names 'notebooks/07_gone', but"),
        ("root: intro\nparts: [{chapters: [{file: gone}]}]", "_toc.yml names 'gone', but there"),
        ("root: other", "names 'other', but there is no such page or chapter"),
        ("- intro", "book/_toc.yml must map names to values"),
        ("root: [", r"book/_toc.yml cannot be read \(ParserError\)"),
    ],
)
def test_a_render_that_would_fail_is_refused_before_a_chapter_runs(
    tmp_path, capsys, toc, message
) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first")
    (layout.pages / "_toc.yml").write_text(toc)
    with pytest.raises(preflight.DriverError, match=message):
        driver.run(layout, "laptop")
    assert "starts" not in capsys.readouterr().out


@pytest.mark.parametrize("package", ["jupyter-book", "sphinx-mathjax-offline"])
def test_a_package_that_the_render_needs_is_missed_at_once(tmp_path, monkeypatch, package) -> None:
    layout = empty(tmp_path)
    find = preflight.importlib.util.find_spec
    module = package.replace("jupyter-", "jupyter_")
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(preflight.DriverError, match=f"{package} is missing; run `make env`"):
        preflight.check_render(layout.pages, layout.executed, [])


@pytest.mark.parametrize("blocked", ["book/notebooks", "results"])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, blocked) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first")
    (tmp_path / blocked).touch()  # a file: refused to root, too
    status, out, err = ended(start(layout))
    assert status == 1
    assert "starts" not in out
    assert err.startswith(f"error: {tmp_path / blocked}")
    assert "cannot be written (" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("profile", ["../params/laptop", "./laptop", "Laptop", "laptop.yaml", ""])
def test_a_profile_is_a_name_and_no_path(tmp_path, profile) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first")
    with pytest.raises(preflight.DriverError, match=r"there is no profile .* params/ has: laptop"):
        driver.run(layout, profile)


@pytest.mark.parametrize("name", ["PROBELIB_DATA", "PROBELIB_IMAGENET"])
def test_data_that_is_not_there_is_refused(tmp_path, monkeypatch, name) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first")
    monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    with pytest.raises(preflight.DriverError, match=f"{name} is .*nowhere, which is no folder"):
        driver.run(layout, "laptop")
    assert not layout.executed.exists()


# -- the process -----------------------------------------------------------------------------------


def test_output_that_is_not_unicode_ends_no_run(tmp_path) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first", body="print('7 ± 1')\nn = '7 ± 1'")
    status, out, err = ended(start(layout, PYTHONIOENCODING="ascii"))
    assert (status, err) == (0, "")
    assert "n is 7 ? 1" in out


def test_a_home_that_cannot_be_written_is_replaced(tmp_path) -> None:
    layout = empty(tmp_path)
    add(layout, "00_first", body="import arviz, os\nprint('cache', os.environ['XDG_CACHE_HOME'])")
    (tmp_path / "home").touch()
    names = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")
    status, out, err = ended(start(layout, HOME=str(tmp_path / "home"), **dict.fromkeys(names, "")))
    assert (status, err) == (0, "")
    assert "The home folder cannot be written" in out
    (line,) = [line for line in out.splitlines() if "  cache " in line]
    assert not Path(line.split()[-1]).exists()  # it went with the run


def test_a_home_that_can_be_written_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    before = dict(os.environ)
    with preflight.usable_home():
        assert dict(os.environ) == before


# -- what trainings use ----------------------------------------------------------------------------

HOLD = "from probebook.scratch import scratch_folder; import time\n"
HOLD += "with scratch_folder('test') as folder:\n    print(folder, flush=True); time.sleep(300)"


@pytest.mark.skipif(scratch.fcntl is None, reason="no locks")
def test_a_scratch_folder_goes_at_the_end_or_at_the_next_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        left = Path(holder.stdout.readline().strip())
        with scratch.scratch_folder("test") as own:
            assert {left, own} == set(tmp_path.iterdir())  # a holder that lives is left alone
        assert list(tmp_path.iterdir()) == [left]
        holder.kill()
    with scratch.scratch_folder("test") as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("told", [True, False])
def test_a_process_ends_with_the_one_that_started_it(told) -> None:
    child = "import os, time; from probebook import lifeline\n"
    child += "" if told else "lifeline._tell_me = lambda: False\n"
    child += "lifeline.end_with_parent({}, every=0.05); print(os.getpid(), flush=True)\n"
    child += "time.sleep(300)"
    parent = (
        "import os, subprocess, sys\n"
        f"code = {child!r}.format(os.getpid())\n"
        "subprocess.Popen([sys.executable, '-c', code]).wait()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    until(lambda: not alive(pid), 60)


def test_a_process_whose_parent_has_gone_does_not_begin() -> None:
    code = "from probebook.lifeline import end_with_parent; end_with_parent(1 << 30); print('ran')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
