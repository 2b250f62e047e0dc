"""What is done to a run, how often, and what is lost: ``make faults``.

Every fault is a real one: processes are killed with SIGKILL, a disk of a few megabytes fills up,
workers of a cluster of processes die, files are damaged. Results go to ``results/faults.json``, the
table to ``book/faults/table.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.pool
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import probelib
import probelib.record

ROOT = Path(__file__).resolve().parents[1]
CHAINS, DRAWS = 2, 60


def posterior(n: int = 400) -> probelib.LocalPosterior:
    """A small network around random weights: what it learned does not matter here."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator)
    y = torch.randint(0, 4, (n,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    return probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=5.0
    )


def observed(n: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough samples that writing their losses takes a good share of the time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def probe(store: str | Path | None, draws: int = DRAWS, **options: Any) -> xr.Dataset:
    """The call that everything is done to; it writes after every tenth draw."""
    threads, often = torch.get_num_threads(), probelib.record._FLUSH_DRAWS
    torch.set_num_threads(1)
    probelib.record._FLUSH_DRAWS = 10
    settings = {"sampler": probelib.SGLD(1e-2, 16), "chains": CHAINS, "burn_in": 5, "thin": 2}
    settings |= {"store": store, "draws": draws, "seed": 3, "progress": False}
    try:
        return probelib.sample(posterior(), observed(), **settings | options)
    finally:
        torch.set_num_threads(threads)
        probelib.record._FLUSH_DRAWS = often


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Whether two traces are equal, bit for bit."""
    return all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in b.variables)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- killed ---------------------------------------------------------------------------------------


def kills(times: int = 50, seed: int = 0) -> dict[str, int]:
    """Kill a process that samples, and make the same call again, until it ends by itself.

    Every other kill comes at a random moment, the rest when a file is written but not yet renamed
    into its place, one of those of the whole run at random.
    """
    rng, found = random.Random(seed), Counter(times=times)
    found.update(killed=0, mid_write=0, lost=0, wrong=0, resumed=0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["probelib", "faults"])
    reference = probe(None).load()

    def start(store: Path, file: int = 0) -> multiprocessing.process.BaseProcess:
        child = context.Process(target=_probe_that_dies, args=(store, file))
        child.start()
        return child

    with folder() as here:
        start(here / "first").join()  # the server that forks has everything imported now
        since = time.perf_counter()
        start(here / "whole").join()
        length = time.perf_counter() - since
        while found["killed"] < times:
            store, durable, here_killed = here / f"trace-{found['traces']}", 0, 0
            while True:
                left_before = _half_written(store)
                at_rest = found["killed"] == times or here_killed == 8  # let this one end
                if found["killed"] % 2 and not at_rest:
                    # The first twenty make the store; then a dozen come with each checkpoint.
                    child = start(store, rng.randint(40 if found["killed"] % 4 == 1 else 1, 60))
                else:
                    child = start(store)
                    child.join(None if at_rest else rng.uniform(0.0, 0.7 * length))
                    child.kill()
                child.join()
                if child.exitcode == 0:
                    break
                if child.exitcode != -signal.SIGKILL:
                    raise RuntimeError(f"the call failed by itself, with status {child.exitcode}")
                found["killed"] += 1
                here_killed += 1
                found["mid_write"] += bool(_half_written(store) - left_before)
                if store.exists():
                    left = probelib.open_trace(store)
                    found["lost"] += max(0, durable - left.sizes["draw"])
                    durable = left.sizes["draw"]
                    found["wrong"] += not np.array_equal(left.loss, reference.loss[:, :durable])
                    found["resumed"] += 0 < durable < DRAWS
            found["traces"] += 1
            found["identical"] += same(probelib.open_trace(store), reference)
            shutil.rmtree(store)
    return {k: int(v) for k, v in found.items()}


def _probe_that_dies(store: Path, file: int) -> None:
    """The call, killed when its file of this number is about to be renamed; 0: of none."""
    rename, left = os.replace, file

    def dies(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args, **kwargs)

    os.replace = dies
    probe(store)


def _half_written(store: Path) -> set[Path]:
    """Files that were not renamed into their places yet."""
    whole = store.parent.glob(f".{store.name}.*-*")
    return {*whole, *store.glob("checkpoint/.*"), *store.rglob("*.partial")}


# --- workers lost ---------------------------------------------------------------------------------


def worker_losses(times: int = 10, seed: int = 0) -> dict[str, int]:
    """Kill workers of a Dask cluster of processes in the middle of their chains."""
    import dask
    from distributed import Client, LocalCluster

    rng, found = random.Random(seed), Counter(times=times, killed=0)
    chains, draws = 3, 150
    # Dask gives up a task whose workers die too often, and a worker that dies as it starts again.
    patience = {"scheduler.allowed-failures": times, "deploy.lost-worker-timeout": "1 hour"}
    dask.config.set({f"distributed.{key}": value for key, value in patience.items()})
    with (
        folder() as here,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(_write_often)
        alone = here / "alone"
        executor = client.get_executor()
        reference = probe(alone, draws, chains=chains, executor=executor).load()
        while found["killed"] < times:
            store = here / f"trace-{found['traces']}"
            pool = multiprocessing.pool.ThreadPool(1)
            call = pool.apply_async(probe, (store, draws), {"chains": chains, "executor": executor})
            while not call.ready() and found["killed"] < times:
                call.wait(rng.uniform(1.0, 4.0))
                holders = _holders(store)
                if holders and not call.ready():
                    with suppress(ProcessLookupError):
                        os.kill(rng.choice(holders), 9)
                        found["killed"] += 1
            found["identical"] += same(call.get(), reference)
            found["traces"] += 1
            pool.close()
    return dict(found)


def _write_often() -> None:
    probelib.record._FLUSH_DRAWS = 10


def _holders(store: Path) -> list[int]:
    """The processes that are writing a store's chains."""
    found = []
    for lock in store.glob("checkpoint/chains-*.lock"):
        with suppress(OSError, ValueError, KeyError):
            found.append(json.loads(lock.read_text())["process"])
    return found


# --- a full disk, one that cannot be written, one that vanishes ---


def disks() -> dict[str, int]:
    """Fill a disk up under a run, make it read-only, take the folder away; then give it back."""
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, __file__, "--on-a-small-disk"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"no disk of its own to fill (unshare): {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=26m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _on_a_small_disk() -> dict[str, int]:
    found = Counter(times=3)
    reference = probe(None).load()
    with folder() as above, _small_disk(above) as here:
        (here / "filler").write_bytes(bytes(13 * 2**20))
        store = here / "trace"

        def refused(words: str) -> int:
            try:
                probe(store)
            except probelib.StoreError as error:
                if words not in str(error) or "\n" in str(error):
                    raise
                return 1
            return 0

        found["full_refused"] = refused("is on a full disk")
        left = probelib.open_trace(store).load()
        found["full_draws_kept"] = left.sizes["draw"]
        found["full_wrong"] = not np.array_equal(left.loss, reference.loss[:, : left.sizes["draw"]])
        subprocess.run(["mount", "-o", "remount,ro", here], check=True)
        found["read_only_refused"] = refused("cannot be written")
        found["read_only_kept"] = int(same(probelib.open_trace(store).load(), left))
        subprocess.run(["mount", "-o", "remount,rw", here], check=True)
        (here / "filler").unlink()
        found["went_on_identical"] = int(same(probe(store).load(), reference))
        # Vanished: between two flushes somebody moves the folder away, and back.
        gone, original = here / "elsewhere", probelib.store.DiskStore.commit

        def vanish(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if self.done()[0] >= 30 and not gone.exists():
                os.rename(store, gone)

        shutil.rmtree(store)
        probelib.store.DiskStore.commit = vanish
        found["gone_refused"] = refused("is gone")
        probelib.store.DiskStore.commit = original
        found["gone_recreated"] = int(store.exists())
        os.rename(gone, store)
        found["gone_draws_kept"] = probelib.open_trace(store).sizes["draw"]
        found["gone_went_on_identical"] = int(same(probe(store).load(), reference))
    return {k: int(v) for k, v in found.items()}


# --- damaged stores -------------------------------------------------------------------------------


def damage(store: Path, rng: random.Random) -> str:
    """Damage one file of a store at random; says how."""
    files = sorted(p for p in store.rglob("*") if p.is_file())
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "flip", "truncate", "zero", "delete", "swap", "grow"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[rng.randrange(len(content)) :]
    elif kind == "zero":
        start = rng.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "swap":
        content = bytearray(rng.choice(files).read_bytes())
    elif kind == "grow":
        content += rng.randbytes(16)
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(content)
    return f"{kind} {file.relative_to(store)}"


def corrupted(times: int = 200, seed: int = 0) -> dict[str, int]:
    """Damage a finished store in a random place, then open, read and extend it."""
    rng, found = random.Random(seed), Counter(times=times, silently_wrong=0)
    with folder() as here:
        whole = here / "whole"
        reference = probe(whole, 20).load()
        longer = probe(None, 30).load()
        for _ in range(times):
            store = here / "damaged"
            shutil.copytree(whole, store)
            what = damage(store, rng)
            try:
                trace = probelib.open_trace(store).load()
                found["silently_wrong"] += not same(trace, reference)
                try:
                    probelib.local_learning_coefficient(trace)
                    again = probe(store, 30)
                    found["harmless"] += same(again.load(), longer)
                    found["silently_wrong"] += not same(again, longer)
                except (probelib.TraceMismatch, ValueError) as error:
                    found["found_when_extended"] += 1
                    _one_sentence(error, what)
            except FileNotFoundError as error:
                found["found_when_opened"] += 1
                _one_sentence(error, what)
            except probelib.TraceMismatch as error:
                found["found_when_opened"] += 1
                _one_sentence(error, what)
            except ValueError as error:
                found["found_when_read"] += 1
                _one_sentence(error, what)
            shutil.rmtree(store)
    return dict(found)


def _one_sentence(error: Exception, what: str) -> None:
    if "\n" in str(error) or len(str(error)) < 20:
        raise RuntimeError(f"after {what!r} the message is {error}") from error


# --- malformed input ------------------------------------------------------------------------------


def malformed(times: int = 10_000) -> dict[str, int]:
    """Arguments of the wrong type, sign, size or kind: each is refused by its name."""
    import malformed_input

    return malformed_input.run(times)


# --- the price ---


def overhead(draws: int = 50) -> dict[str, float]:
    """The share of run time that a store takes on MNIST at Table 1's setting, five chains.

    For the 50 of Table 1's 500 draws after which all is written and a checkpoint made, with the
    making of the store. What it takes is timed inside the run: two runs differ by more than this.
    """
    import workloads
    from run import machine, observed, posterior_of, sampler_of

    what = workloads.mnist_mlp()
    target = posterior_of(what)
    names = ("create", "write_draws", "write_steps", "commit", "finish")
    written = _time_of(probelib.store.DiskStore, names)
    with folder() as here:
        since = time.perf_counter()
        probelib.sample(
            target, observed(what), sampler=sampler_of(what), chains=5, draws=draws, burn_in=10,
            store=here / "trace", progress=False,
        )  # fmt: skip
        took = time.perf_counter() - since
    return {
        **machine(),
        "draws": draws,
        "seconds": took,
        "writing_seconds": written["seconds"],
        "share_in_writing": written["seconds"] / took,
    }


def _time_of(owner: type, names: tuple[str, ...]) -> dict[str, float]:
    spent = {"seconds": 0.0}
    for name in names:
        original = getattr(owner, name)

        def timed(*args: Any, original: Callable = original, **kwargs: Any) -> Any:
            since = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent["seconds"] += time.perf_counter() - since

        setattr(owner, name, timed)
    return spent


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kills": kills,
    "worker_losses": worker_losses,
    "disks": disks,
    "corrupted": corrupted,
    "malformed": malformed,
    "overhead": overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--on-a-small-disk", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.on_a_small_disk:
        print(json.dumps(_on_a_small_disk()))
        return
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    results = ROOT / "results" / "benchmarks" / "faults.json"
    kept = json.loads(results.read_text()) if results.exists() else {}
    for part in asked.parts or PARTS:
        print(part, flush=True)
        found = PARTS[part]()
        kept = {k: v for k, v in kept.items() if not k.startswith(f"{part}_")}
        kept |= {f"{part}_{k}": v for k, v in found.items()}
        print(json.dumps(found, indent=1, sort_keys=True), flush=True)
        results.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
