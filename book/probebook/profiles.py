"""The parameters of the chapters by profile, and what a reader made of them.

`data/profiles.json` is written by `make sync` from the chapters and `params/`, and comes with this
package, so that a chapter knows its profiles wherever it is opened: for each chapter its `default`
values, and by profile those that differ from them.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "data" / "profiles.json"
NOT_A_RESULT = {"smoke"}  # profiles whose numbers mean nothing
# Parameters that say where and how a chapter runs, not what it computes.
APART = {"profile", "results_dir", "live", "device", "published_dir"}


def read_profiles(chapter: str, file: Path = FILE) -> dict[str, dict[str, Any]]:
    """All values of a chapter by profile, and its `default` ones; none where they are not known.

    Args:
        chapter: its file stem.
        file: as `make sync` writes it.
    """
    try:
        own = json.loads(file.read_text(encoding="utf-8"))[chapter]
    except (OSError, ValueError, KeyError):
        return {}
    return {name: own["default"] | values for name, values in own.items()}


@dataclass(frozen=True)
class Settled:
    """What became of the parameters of an opened chapter.

    Attributes:
        taken: values that were the chapter's defaults and now are the profile's, by name.
        edited: by name, the profile's value and the other one that the chapter runs with.
    """

    taken: dict[str, Any] = field(default_factory=dict)
    edited: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def words(self) -> str:
        """The edited values: `draws: 500 -> 50; seed: 0 -> 1`; "" where there are none."""
        return "; ".join(
            f"{name}: {spell(was)} -> {spell(now)}" for name, (was, now) in self.edited.items()
        )


def settle(
    chapter: str, profile: str, values: MutableMapping[str, Any], file: Path = FILE
) -> Settled:
    """Give a chapter the values of the profile that it names, and say which it has not.

    A value that still is the chapter's default gives way to the profile's. Any other that is not
    the profile's stays: somebody wrote it.

    Args:
        chapter: its file stem.
        profile: its parameter of that name.
        values: its parameters, among other names; they are set here.
        file: as `make sync` writes it.

    Raises:
        ValueError: the chapter has no such profile.
    """
    profiles = read_profiles(chapter, file)
    if not profiles:
        return Settled()
    default, known = profiles["default"], sorted(profiles.keys() - {"default"})
    if profile not in known:
        raise ValueError(f"profile is {profile!r}; take one of {', '.join(known)}")
    settled = Settled()
    for name, wanted in profiles[profile].items():
        if name in APART or name not in values or values[name] == wanted:
            continue
        if values[name] == default.get(name):
            values[name] = settled.taken[name] = wanted
        else:
            settled.edited[name] = (wanted, values[name])
    return settled


def spell(value: Any) -> str:
    """A value as the chapters write it: like `repr`, with double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


__all__ = ["APART", "NOT_A_RESULT", "Settled", "read_profiles", "settle", "spell"]
