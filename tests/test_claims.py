"""Every claim that a number is held to says why its range is what it is, in all chapters."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from probebook.chapter import Claim

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("notebooks", "book/probebook")
    for path in (ROOT / folder).rglob("*.py")
    if "Claim(" in path.read_text(encoding="utf-8")
)
FIELDS = list(Claim.__dataclass_fields__)


def given(call: ast.Call) -> dict[str, ast.expr]:
    """The arguments of a claim, by the names of its fields."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return dict(zip(FIELDS, call.args, strict=False)) | named


def calls(source: str) -> list[dict[str, ast.expr]]:
    """The claims that a file makes."""
    return [
        given(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Claim"
    ]


def has_range(claim: dict[str, ast.expr]) -> bool:
    """Whether a claim is held to a range."""
    return any(
        name in claim and ast.unparse(claim[name]) not in ("None", "-math.inf", "math.inf")
        for name in ("low", "high")
    )


def unexplained(source: str) -> list[str]:
    """The quantities of a file that have a range and no word about it."""
    return [
        ast.unparse(claim["what"])
        for claim in calls(source)
        if has_range(claim) and ("why" not in claim or ast.unparse(claim["why"]) in ("''", "None"))
    ]


def test_the_claims_are_found() -> None:
    found = [claim for path in SOURCES for claim in calls(path.read_text(encoding="utf-8"))]
    assert len(found) > 50
    assert sum(map(has_range, found)) > 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_range_has_its_reason(path: Path) -> None:
    assert unexplained(path.read_text(encoding="utf-8")) == []


def test_a_range_without_a_reason_is_found() -> None:
    source = (
        'Claim("a", "a", "1", 0, 2)\n'
        'Claim("b", "b", "1", 0, None, ".2f", "because")\n'
        'Claim("c", "c", high=2, why="")\n'
        'Claim("d", "d", "large", None, None)\n'
        'Claim("e", "e", digits=".2f")\n'
    )
    assert unexplained(source) == ["'a'", "'c'"]
