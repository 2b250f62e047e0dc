"""Run the chapters in order with papermill, then render what they produced.

    python book/driver.py --profile laptop [--only 03] [--from 02] [--into DIR] [--publish]
                          [--force] [--no-render]

A chapter is a pair `notebooks/NN_topic.{py,ipynb}`; the .py file is what runs. Its parameters
come from `params/<profile>.yaml`, and it writes `results/own/<profile>/NN_topic.json` itself;
with `--publish` that is `results/<profile>/NN_topic.json`, which is committed. The executed copy
lands in `book/notebooks/`, the rendered book in `book/_build/html`. With `--into`, all of that
lands below DIR and nothing in the repository is touched.

A chapter is kept where nothing that it depends on has changed (`unchanged.py`), unless `--force`.

The first failure ends the run with a non-zero exit status and keeps the failed notebook. So do
SIGINT (130) and SIGTERM (143). What a run leaves that is killed, the next one removes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
import yaml

import gate
import preflight
import prepare
import render
import unchanged
from preflight import DriverError
from probebook import profiles

ROOT = Path(__file__).resolve().parent.parent
LIFELINE = ROOT / "book" / "probebook" / "lifeline.py"


@dataclass(frozen=True)
class Layout:
    """Where everything is: the sources, and where a run may write.

    Attributes:
        notebooks: the chapters' sources.
        params: one YAML file a profile.
        pages: the written pages with `_config.yml` and `_toc.yml`.
        book: where executed chapters and the rendered book land; `pages` itself by default.
        results: one folder a profile lands here: `results/own`, or `results` of a run that is
            to be published.
    """

    notebooks: Path
    params: Path
    pages: Path
    book: Path
    results: Path

    @classmethod
    def of(cls, root: Path = ROOT, into: Path | None = None, publish: bool = False) -> Layout:
        """The layout of the repository at `root`, with outputs below `into` if given.

        Args:
            root: the repository.
            into: where outputs land, if not in it.
            publish: whether the results are to replace the published ones.
        """
        target = root if into is None else into.resolve()
        return cls(
            notebooks=root / "notebooks",
            params=root / "params",
            pages=root / "book",
            book=target / "book",
            results=target / "results" if publish else target / "results" / "own",
        )

    @property
    def executed(self) -> Path:
        """Where the executed copies land."""
        return self.book / "notebooks"

    def results_file(self, chapter: Chapter) -> Path:
        """Where a chapter writes its numbers."""
        return self.results / chapter.parameters["profile"] / f"{chapter.stem}.json"


@dataclass(frozen=True)
class Chapter:
    """A chapter, and the parameters that it will run with."""

    path: Path
    parameters: dict[str, Any]

    @property
    def stem(self) -> str:
        """`NN_topic`."""
        return self.path.stem


# -- what to run -------------------------------------------------------------------------------


def chapters(folder: Path) -> list[Path]:
    """The chapters' sources, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def select(paths: list[Path], only: str | None = None, start: str | None = None) -> list[Path]:
    """The chapters asked for by number or name: those (`only`), or these and all later (`start`).

    A chapter in two parts has one number and two names.
    """
    numbers = ", ".join(path.stem for path in paths) or "none"

    def find(asked: str) -> list[int]:
        found = [at for at, path in enumerate(paths) if asked in (path.stem, path.stem[:2])]
        if not found:
            raise DriverError(f"there is no chapter {asked!r}; there are: {numbers}")
        return found

    if not paths:
        raise DriverError("there is no chapter to run (notebooks/NN_topic.py)")
    if only is not None:
        return [paths[at] for at in find(only)]
    return paths[find(start)[0] :] if start is not None else paths


def read_profile(layout: Layout, profile: str) -> dict[str, dict[str, Any]]:
    """The parameters of a profile: `{chapter: {name: value}}`."""
    path = layout.params / f"{profile}.yaml"
    known = sorted(p.stem for p in layout.params.glob("*.yaml"))
    if profile not in known:  # not is_file(): "../params/smoke" and "Smoke" would lose the banner
        raise DriverError(
            f"there is no profile {profile!r}; params/ has: {', '.join(known) or 'none'}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise DriverError(
            f"params/{path.name} is not YAML{where}; write one `chapter: {{name: value}}` a line"
        ) from error
    if not isinstance(content, dict):
        raise DriverError(
            f"params/{path.name} holds a {type(content).__name__}; it must map chapters to their "
            "parameters"
        )
    stems = {chapter.stem for chapter in chapters(layout.notebooks)}
    for stem, values in content.items():
        if stem not in stems:
            raise DriverError(f"params/{path.name} names {stem!r}, which is not a chapter")
        if values is not None and not isinstance(values, dict):
            raise DriverError(f"params/{path.name}: {stem} must map parameter names to values")
    return {stem: values or {} for stem, values in content.items()}


def plan(layout: Layout, profile: str, paths: list[Path]) -> list[Chapter]:
    """Pair every chapter with its parameters; refuse a parameter that a chapter does not have."""
    content = read_profile(layout, profile)
    planned = []
    for path in paths:
        own = content.get(path.stem, {})
        given = {
            "profile": profile,
            "results_dir": str(layout.results / profile),
            "live": False,
        }
        clash = sorted(given.keys() & own.keys())
        if clash:
            raise DriverError(
                f"params/{profile}.yaml sets {clash[0]!r} of {path.stem}, which the driver sets"
            )
        source = prepare.read_source(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"{path.stem}.ipynb"
            nbformat.write(source, copy)
            known = {name: p["default"] for name, p in papermill.inspect_notebook(copy).items()}
        for name in {**given, **own}:
            if name not in known:
                origin = f"params/{profile}.yaml" if name in own else "the driver"
                raise DriverError(
                    f"notebooks/{path.name} has no parameter {name!r} (set by {origin}); "
                    f"its parameters are: {', '.join(known) or 'none'}"
                )
        _require_known(path.stem, profile, prepare.defaults(source) | own)
        planned.append(Chapter(path, {**given, **own}))
    return planned


def _require_known(stem: str, profile: str, wanted: dict[str, Any]) -> None:
    """Refuse parameters that the chapter itself would take for edited ones."""
    known = profiles.read_profiles(stem)
    if known and any(
        known.get(profile, {}).get(name) != value
        for name, value in wanted.items()
        if name not in profiles.APART
    ):
        raise DriverError(
            f"book/probebook/data/{profiles.FILE.name} has other parameters of {stem} than "
            f"params/{profile}.yaml and the chapter; run `make sync`"
        )


# -- running -----------------------------------------------------------------------------------


class LiveLog(logging.Handler):
    """Shows a chapter's progress while it runs: cells, and what they print.

    Complete lines are shown as they come; a progress bar (it ends in a carriage return) at most
    every `every` seconds, so that a log file stays readable.
    """

    def __init__(self, chapter: str, cells: int, stream: TextIO | None = None, every: float = 15):
        super().__init__()
        self.chapter, self.cells, self.every = chapter, cells, every
        self.stream = stream or sys.stdout
        self.partial = ""
        self.last_bar = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Turn papermill's log into one short line a cell."""
        found = re.match(r"Executing Cell (\d+)", record.getMessage())
        if found:
            self.line(f"cell {found.group(1)}/{self.cells}")

    def write(self, text: str) -> None:
        """Take what a cell printed."""
        *done, self.partial = (self.partial + text).split("\n")
        for line in done:
            self.line("  " + line.rsplit("\r", 1)[-1])
        if "\r" in self.partial:
            self.partial = self.partial.rsplit("\r", 1)[-1]
            if time.monotonic() - self.last_bar >= self.every:
                self.last_bar = time.monotonic()
                self.line("  " + self.partial)

    def flush(self) -> None:
        """Nothing is held back."""

    def line(self, text: str) -> None:
        """Print one line."""
        if text.strip():
            print(f"[{self.chapter}] {text}", file=self.stream, flush=True)


@contextlib.contextmanager
def own_kernel() -> Iterator[str]:
    """A kernel that is this very interpreter, whatever kernels the user has installed.

    Threads that wait at a barrier sleep rather than spin, unless OMP_WAIT_POLICY says otherwise:
    far faster beside any other busy process (CONTRIBUTING.md, Speed).
    """
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3"
        spec.mkdir(parents=True)
        argv = [sys.executable, str(LIFELINE), str(os.getpid())]  # it ends when the driver does
        argv += ["ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        kernel = {
            "argv": argv,
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "env": {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")},
        }
        (spec / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
        os.environ["JUPYTER_PATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
        try:
            yield "python3"
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def run_chapter(
    chapter: Chapter, layout: Layout, commit: str, device: str, identity: str = ""
) -> dict[str, Any]:
    """Run one chapter and store its executed copy; return what its results file holds."""
    source = prepare.read_source(chapter.path)
    profile = chapter.parameters["profile"]
    final = layout.executed / f"{chapter.stem}.ipynb"
    results = layout.results_file(chapter)
    for folder in (final.parent, results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    started, clock = prepare.now(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=layout.executed, prefix=".running-") as folder:
        output = Path(folder) / "executed.ipynb"
        execute(chapter, source, output, layout)
        numbers = json.loads(results.read_text(encoding="utf-8"))
        provenance = prepare.Provenance(
            source=f"notebooks/{chapter.path.name}",
            source_sha256=prepare.source_hash(source),
            profile=profile,
            parameters=shown_parameters(source, chapter, layout),
            commit=commit,
            device=str(numbers.get("device", device)),
            versions=prepare.versions(),
            started=started,
            duration_seconds=round(time.monotonic() - clock, 1),
            identity=identity,
            written=unchanged.written(results),
        )
        executed = nbformat.read(output, as_version=4)
        copy = prepare.executed_copy(executed, provenance, shown_paths(chapter, layout))
        nbformat.write(unchanged.seal(copy), output)
        os.replace(output, final)
    return numbers | {"duration_seconds": provenance.duration_seconds}


def execute(chapter: Chapter, source: nbformat.NotebookNode, output: Path, layout: Layout) -> None:
    """Have papermill run a chapter, and hold it to having written its results.

    Raises:
        DriverError: it failed; the notebook as far as it came is kept beside the executed ones.
    """
    failed = layout.executed / f"{chapter.stem}.failed.ipynb"
    failed.unlink(missing_ok=True)
    results = layout.results_file(chapter)
    before = results.stat().st_mtime_ns if results.exists() else None
    given = output.with_name("source.ipynb")
    nbformat.write(source, given)
    log = LiveLog(chapter.stem, len(source.cells) + 1)  # papermill injects one
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [log]
    try:
        papermill.execute_notebook(
            given,
            output,
            parameters=chapter.parameters,
            kernel_name="python3",
            cwd=chapter.path.parent,
            progress_bar=False,
            log_output=True,
            stdout_file=log,
            stderr_file=log,
        )
        found = gate.results_findings(results)
        if not found and results.stat().st_mtime_ns == before:
            found = ["this run did not write it"]
        if found:
            shown = shown_paths(chapter, layout)["results_dir"]
            raise DriverError(f"{shown}/{results.name}: {'; '.join(found)}")
    except BaseException as error:
        if output.exists():
            os.replace(output, failed)
        kept = f"; the notebook is kept at {failed}" if failed.exists() else ""
        if isinstance(error, KeyboardInterrupt):
            logging.getLogger("asyncio").disabled = True  # mourns the tasks that were cut off
            error.args = (f"{chapter.stem} was interrupted{kept}",)
            raise
        raise DriverError(f"{chapter.stem} failed: {failure(error)}{kept}") from error
    finally:
        logger.handlers = []


def shown_paths(chapter: Chapter, layout: Layout) -> dict[str, Any]:
    """What the reader sees instead of the paths of this machine."""
    return {"results_dir": prepare.shown_results(layout.results, chapter.parameters["profile"])}


def shown_parameters(
    source: nbformat.NotebookNode, chapter: Chapter, layout: Layout
) -> dict[str, Any]:
    """Every parameter of the chapter with the value it ran with, defaults included."""
    return prepare.defaults(source) | chapter.parameters | shown_paths(chapter, layout)


def failure(error: BaseException) -> str:
    """The reason of a failure, in one line."""
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    if name is None:
        name, value = type(error).__name__, str(error)
        if isinstance(error, DriverError):
            return value
    first = str(value).strip().split("\n")[0]
    return f"{name}: {first}" if first else name


# -- the whole ---------------------------------------------------------------------------------


def copy_pages(layout: Layout) -> None:
    """Put the written pages where the book is built, when that is not where they are."""
    if layout.pages.resolve() == layout.book.resolve():
        return
    skip = shutil.ignore_patterns("notebooks", "_build", "_generated", "__pycache__", "*.py")
    shutil.copytree(layout.pages, layout.book, ignore=skip, dirs_exist_ok=True)


def summary(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """A table: chapter, duration, how its claims fared, headline."""
    width = max(len("chapter"), *(len(stem) for stem, _ in rows))
    lines = [f"{'chapter':{width}}  {'time':>12}  {'claims':19}  what it measured"]
    for stem, numbers in rows:
        text = numbers.get("headline") or f"{len(numbers) - 1} numbers"
        took = prepare.duration(numbers["duration_seconds"])
        claims = "none"
        if "claims_agree" in numbers:
            claims = ", ".join(
                f"{numbers[f'claims_{verb}']} {verb}{'s' * (numbers[f'claims_{verb}'] == 1)}"
                for verb in ("agree", "differ")
            )
        lines.append(f"{stem:{width}}  {took:>12}  {claims:19}  {text}")
    return "\n".join(lines)


def run(
    layout: Layout,
    profile: str,
    only: str | None = None,
    start: str | None = None,
    rendering: bool = True,
    force: bool = False,
) -> Path | None:
    """Run the chapters and render the book; return the front page, or None without a render.

    Args:
        layout: where everything is.
        profile: a file of `params/`.
        only: the chapter to run, by number or name.
        start: the first chapter to run.
        rendering: whether to build the book.
        force: whether to run chapters that have not changed as well.
    """
    everything = chapters(layout.notebooks)
    planned = plan(layout, profile, select(everything, only, start))
    preflight.check_data()
    stems, results = [path.stem for path in everything], layout.results / profile
    preflight.check_writable([layout.book, layout.executed, results])
    with preflight.hold(layout.executed):
        preflight.clear(layout.executed, results, stems)
        if rendering:
            preflight.check_render(layout.pages, layout.executed, stems)
        rows = run_chapters(planned, layout, force)
        print("\n" + summary(rows) + "\n", flush=True)
        return finish(layout, profile, stems) if rendering else None


def run_chapters(
    planned: list[Chapter], layout: Layout, force: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Run each chapter in turn, or keep it; return what the results file of each holds."""
    os.environ.setdefault("PROBELIB_CACHE", str(ROOT / ".cache"))
    commit, device = prepare.commit(layout.notebooks), prepare.device()
    rows = []
    with own_kernel():
        for chapter in planned:
            # Each time anew: what a chapter downloads is there for the next.
            identity = chapter_identity(chapter, layout, device)
            executed = layout.executed / f"{chapter.stem}.ipynb"
            kept = unchanged.find_kept(executed, layout.results_file(chapter), identity)
            if kept is not None and not force:
                (layout.executed / f"{chapter.stem}.failed.ipynb").unlink(missing_ok=True)
                print(f"[{chapter.stem}] unchanged, kept (made {kept.started})", flush=True)
                rows.append((chapter.stem, kept.numbers))
                continue
            print(f"[{chapter.stem}] starts, profile {chapter.parameters['profile']}", flush=True)
            numbers = run_chapter(chapter, layout, commit, device, identity)
            rows.append((chapter.stem, numbers))
            print(f"[{chapter.stem}] done, {prepare.duration(numbers['duration_seconds'])}")
    return rows


def chapter_identity(chapter: Chapter, layout: Layout, device: str) -> str:
    """What a chapter and all that it depends on are now."""
    source, results = prepare.read_source(chapter.path), layout.notebooks.parent / "results"
    around = unchanged.surroundings(device, results / "prerun")
    published = results / chapter.parameters["profile"] / f"{chapter.stem}.json"
    shown = None  # a run that is published shows no other beside it
    if published != layout.results_file(chapter):
        shown = unchanged.file_hash(published)
    parameters = shown_parameters(source, chapter, layout)
    return unchanged.identity(source, parameters, around, shown)


def finish(layout: Layout, profile: str, stems: list[str]) -> Path | None:
    """Render the book from chapters that ran; return the front page, or None if one did not."""
    missing = [stem for stem in stems if not (layout.executed / f"{stem}.ipynb").exists()]
    if missing:
        print(f"The book is not rendered: {', '.join(missing)} did not run yet.")
        return None
    copy_pages(layout)
    findings = gate.check(layout.executed, layout.results, layout.notebooks)
    if findings:
        raise DriverError("the gate refuses the book:\n  " + "\n  ".join(findings))
    return render.build(layout.book, profile, layout.results / profile)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the chapters, then render the book.")
    parser.add_argument("--profile", default="laptop", help="a file of params/ (default: laptop)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NN", help="run this chapter alone")
    which.add_argument("--from", dest="start", metavar="NN", help="run this and all later ones")
    parser.add_argument("--into", type=Path, metavar="DIR", help="write everything below DIR")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write to results/PROFILE, which is committed, not to results/own/PROFILE",
    )
    parser.add_argument("--force", action="store_true", help="run unchanged chapters, too")
    parser.add_argument("--no-render", action="store_true", help="run, but do not build the book")
    options = parser.parse_args(arguments)
    preflight.never_fail_to_print()
    began = time.monotonic()
    try:
        if options.publish and options.profile in prepare.NOT_A_RESULT:
            raise DriverError(f"the {options.profile} profile is not a result to be published")
        with preflight.ending_on_signals(), preflight.usable_home():
            page = run(
                Layout.of(into=options.into, publish=options.publish),
                options.profile,
                options.only,
                options.start,
                rendering=not options.no_render,
                force=options.force,
            )
    except (DriverError, render.RenderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"error: {error or 'interrupted'}", file=sys.stderr)
        return getattr(error, "status", 130)
    print(f"Done in {prepare.duration(time.monotonic() - began)}.")
    if page is not None:
        print(f"The book is at {page}")
    if options.publish:
        print("Pages quote these results: run `python book/quote.py README.md`, then commit both.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
