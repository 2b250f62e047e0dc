"""Where a trace lies while it grows and afterwards, in memory or on disk.

- :mod:`~probelib.store.layout`: arrays, attributes, sizes (what a trace looks like);
- :mod:`~probelib.store.checkpoints`: where a group of chains goes on from, and how far it is;
- :mod:`~probelib.store.integrity`: atomic writes and checksums;
- ``paths`` and ``copies``: what people call a path, and copies
  that ``to_zarr`` made;
- :mod:`~probelib.store.locks`: one writer a store;
- :mod:`~probelib.store.matching`: never another trace;
- :mod:`~probelib.store.base`, with :mod:`~probelib.store.memory` and
  :mod:`~probelib.store.disk`: the store itself.

Draw d is taken after ``burn_in + (d + 1) * thin`` steps. Root attributes hold the configuration,
the fingerprint, seed, device, ``draws_done`` and ``complete``, and ``wall_time``, the seconds of
work of all groups together. ``diverged`` names chains that did, which are NaN from there on.
"""

from probelib.store.base import TraceStore
from probelib.store.checkpoints import Checkpoint, Progress
from probelib.store.disk import DiskStore, open_trace
from probelib.store.integrity import StoreError, TraceMismatch, write_atomically
from probelib.store.layout import FORMAT, Sizes, Start
from probelib.store.locks import StoreBusy
from probelib.store.memory import MemoryStore

__all__ = [
    "FORMAT",
    "Checkpoint",
    "DiskStore",
    "MemoryStore",
    "Progress",
    "Sizes",
    "Start",
    "StoreBusy",
    "StoreError",
    "TraceMismatch",
    "TraceStore",
    "open_trace",
    "write_atomically",
]
