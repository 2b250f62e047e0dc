"""Keep the numbers that a page quotes equal to those in the results files.

A quoted number stands before a comment that says where it comes from and how it is written:
`0.982<!--laptop/03_memorization.auroc_gain:.3f-->`. `python book/quote.py README.md` rewrites the
numbers; `--check` only says which are out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUOTE = re.compile(
    r"(?P<shown>[^\s|>]*)<!--(?P<file>[\w./-]+)\.(?P<key>\w+):(?P<format>[^\s>]*?)-->"
)


def refresh(text: str, results: Path) -> str:
    """`text` with every quoted number as the results files under `results` have it.

    Raises:
        KeyError: a quote names a file or a number that does not exist.
    """

    def number(match: re.Match[str]) -> str:
        path = results / f"{match['file']}.json"
        if not path.exists():
            raise KeyError(f"{match[0]!r} quotes {path.name}, which does not exist")
        numbers = json.loads(path.read_text())
        if match["key"] not in numbers:
            raise KeyError(f"{match[0]!r} quotes {match['key']!r}, which {path.name} lacks")
        shown = format(numbers[match["key"]], match["format"])
        return f"{shown}<!--{match['file']}.{match['key']}:{match['format']}-->"

    return QUOTE.sub(number, text)


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check pages; returns the number of pages that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    options = parser.parse_args(arguments)
    stale = 0
    for page in options.pages:
        text = page.read_text()
        new = refresh(text, ROOT / "results")
        if new != text:
            stale += options.check
            print(f"{page}: {'out of date' if options.check else 'rewritten'}")
            if not options.check:
                page.write_text(new)
    return stale


if __name__ == "__main__":
    sys.exit(main())
