"""A Sphinx extension: docstrings written as plain text, and `probelib.name` as a reference.

Docstrings of the library say `|w - w*|` and `K_ij` as one would in a text file. Sphinx reads `*`,
`|` and a final `_` as markup; outside of literals they are escaped here, once, so that the source
stays readable. `probelib.name` is what a user writes, but the object is documented in its module;
references to the short name are sent there.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

LITERAL = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`)")


def escape(line: str) -> str:
    """Escape `*`, `|` and a final `_` outside of literals and roles."""
    parts = LITERAL.split(line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\\)([*|])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", parts[i])
    return "".join(parts)


def plain_text(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Escape a docstring in place, literal and code blocks excepted."""
    block: int | None = None  # the indentation of the line that opened a literal block
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None:
            if not line.lstrip().startswith(">>>"):
                lines[i] = escape(line)
            if line.rstrip().endswith("::") or line.lstrip().startswith(".. "):
                block = indent
    if what in ("property", "attribute") and lines:
        # napoleon would take what stands before a colon for a type
        lines[0] = re.sub(r"(?<!:):\s", " \N{EN DASH} ", lines[0], count=1)


def short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Resolve `probelib.name` to the place where the object is documented."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("probelib."):
        return None
    import probelib

    public, *rest = target.removeprefix("probelib.").split(".")
    found = getattr(probelib, public, None)
    module = getattr(found, "__module__", None)
    if module is None:
        return None
    full = ".".join([module, getattr(found, "__qualname__", public), *rest])
    if full == target:
        return None
    domain = env.get_domain("py")
    document = node.get("refdoc", env.docname)
    return domain.resolve_xref(env, document, app.builder, node["reftype"], full, node, contnode)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both; the escaping runs before napoleon (priority 500)."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
    app.connect("missing-reference", short_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
