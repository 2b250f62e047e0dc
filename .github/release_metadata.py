"""Say in the package's metadata where it comes from, just before it is built for a release.

    GITHUB_REPOSITORY=OWNER/NAME GITHUB_REF_NAME=v1.2.3 python .github/release_metadata.py [FOLDER]

A clone may lie anywhere, so that README.md links relatively and pyproject.toml names no address. A
package index shows README.md alone and needs both: this rewrites the two files in FOLDER (the
repository by default) for the address and the tag that GitHub Actions knows. It is run on a copy
that is thrown away, and its changes are not committed.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# ![text](target) or [text](target) with a target that is neither an address nor an anchor.
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z+]+:|#)([^)\s]+)")


def absolute(page: str, repository: str, tag: str) -> str:
    """A page with its relative links made absolute: images to their bytes, the rest to be read."""

    def address(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        host = "https://raw.githubusercontent.com" if image else "https://github.com"
        kind = "" if image else "blob/"
        return f"{image}{text}{host}/{repository}/{kind}{tag}/{target}"

    return LINK.sub(address, page)


def with_urls(project: str, repository: str, tag: str) -> str:
    """pyproject.toml with the project's addresses."""
    home = f"https://github.com/{repository}"
    return f"""{project.rstrip()}

[project.urls]
Repository = "{home}"
Issues = "{home}/issues"
Changelog = "{home}/blob/{tag}/CHANGELOG.md"
"""


def main(folder: Path) -> None:
    """Rewrite both files; refuse a tag that is not the version's."""
    repository, tag = os.environ["GITHUB_REPOSITORY"], os.environ["GITHUB_REF_NAME"]
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    version = tomllib.loads(project)["project"]["version"]
    if tag != f"v{version}":
        sys.exit(
            f"error: the tag is {tag}, but pyproject.toml has version {version}; tag v{version}"
        )
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(absolute(readme, repository, tag), encoding="utf-8")
    project = with_urls(project, repository, tag)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
