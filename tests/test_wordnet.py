"""The classes of ILSVRC-2012 and Wu-Palmer similarity, against naive loops and hand counts."""

from __future__ import annotations

import csv
import os
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probebook.wordnet import imagenet_classes, wu_palmer

PATHS = st.lists(
    st.lists(st.sampled_from("abc"), max_size=5).map(lambda below: ["root", *below]),
    min_size=1,
    max_size=12,
)


def naive(a, b):
    """Wu-Palmer as one would do it on paper."""
    shared = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        shared += 1
    return 2 * shared / (len(a) + len(b))


def test_the_classes_are_in_the_standard_order():
    classes = imagenet_classes()
    assert [each.index for each in classes] == list(range(1000))
    wnids = [each.wnid for each in classes]
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)  # what the standard order is
    for each in classes:
        assert each.path[0] == "n00001740:entity"
        assert each.path[-1].split(":")[0] == each.wnid
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {i: classes[i].name for i in known} == known
    assert classes[0].label == "tench, Tinca tinca"
    assert classes[134].name == classes[517].name == "crane"
    assert classes[134].path != classes[517].path


def test_the_list_is_the_callers_own():
    imagenet_classes().clear()
    assert len(imagenet_classes()) == 1000


def test_the_hypernyms_form_a_tree():
    parent = {}
    for each in imagenet_classes():
        for above, below in zip(each.path, each.path[1:], strict=False):
            assert parent.setdefault(below, above) == above


def test_the_notice_comes_with_the_table():
    notice = (files("probebook") / "data" / "NOTICE").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "THIS SOFTWARE AND DATABASE IS PROVIDED" in notice
    assert "LICENSEE agrees to preserve same." in notice


def test_the_table_is_the_shared_one():
    data = Path(os.environ.get("PROBELIB_DATA") or "-") / "imagenet"
    if not (data / "wordnet_hypernyms.csv").is_file():
        pytest.skip("PROBELIB_DATA has no imagenet/wordnet_hypernyms.csv")
    with (data / "wordnet_hypernyms.csv").open(encoding="utf-8", newline="") as file:
        paths = {row["wnid"]: row["hypernym_path"] for row in csv.DictReader(file)}
    with (data / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(row["index"]), row["wnid"], row["label"]) for row in csv.DictReader(file)]
    ours = imagenet_classes()
    assert [(each.index, each.wnid, each.label) for each in ours] == rows
    assert {each.wnid: " > ".join(each.path) for each in ours} == paths


def test_similarities_counted_by_hand():
    """Depths and ancestors read off the table with grep, not computed by this code."""
    classes = imagenet_classes()
    similarity = wu_palmer([each.path for each in classes])
    # tench and goldfish: 17 nodes each, which part below cyprinid, the 16th.
    assert similarity[0, 1] == 2 * 16 / (17 + 17)
    # tench (17) and great white shark (16 nodes) part below fish, the 11th.
    assert similarity[0, 2] == 2 * 11 / (17 + 16)
    # great white shark (16) and tiger shark (16) part below shark, the 14th.
    assert similarity[2, 3] == 2 * 14 / (16 + 16)


def test_all_pairs_of_imagenet_agree_with_the_naive_loop_and_are_fast():
    paths = [each.path for each in imagenet_classes()]
    started = time.perf_counter()
    similarity = wu_palmer(paths)
    assert time.perf_counter() - started < 5  # 0.1 s on an idle core
    assert similarity.shape == (1000, 1000)
    assert similarity.dtype == np.float64
    assert (similarity == similarity.T).all()
    assert (similarity.diagonal() == 1).all()
    assert similarity.min() > 0
    # No class lies above another, so only the diagonal is 1.
    assert (similarity == 1).sum() == 1000
    chosen = np.random.default_rng(0).integers(1000, size=(3000, 2))
    for i, j in chosen:
        assert similarity[i, j] == naive(paths[i], paths[j])


@given(paths=PATHS)
def test_it_is_the_naive_loop_on_any_tree(paths):
    similarity = wu_palmer(paths)
    assert similarity.tolist() == [[naive(a, b) for b in paths] for a in paths]


@given(paths=PATHS)
def test_symmetric_in_range_and_one_on_the_diagonal(paths):
    similarity = wu_palmer(paths)
    assert (similarity == similarity.T).all()
    assert (similarity.diagonal() == 1).all()
    assert (similarity > 0).all()
    assert (similarity <= 1).all()
    same = np.array([[a == b for b in paths] for a in paths])
    assert ((similarity == 1) == same).all()


@given(
    path=st.lists(st.sampled_from("abc"), min_size=1, max_size=6),
    depths=st.lists(st.integers(0, 6), min_size=2, max_size=5),
)
def test_the_deeper_the_common_ancestor_the_nearer(path, depths):
    """Nodes of one depth that leave a path at various levels: nearer the later they leave."""
    path = ["root", *path]
    depths = sorted(min(depth, len(path) - 1) for depth in depths)
    leaving = [[*path[: 1 + d], *["other"] * (len(path) - 1 - d)] for d in depths]
    to_path = wu_palmer([path, *leaving])[0, 1:]
    assert (np.diff(to_path) >= 0).all()
    assert ((np.diff(to_path) > 0) == (np.diff(depths) > 0)).all()


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        ([], "paths is empty"),
        ([["root", "a"], []], r"paths\[1\] is empty"),
        ([["root", "a"], ["other", "a"]], r"paths\[1\] begins at 'other' and paths\[0\] at 'root'"),
        (["root", "rook"], r"paths\[0\] is the string 'root'"),
    ],
)
def test_bad_paths_are_refused(paths, match):
    with pytest.raises(ValueError, match=match):
        wu_palmer(paths)
