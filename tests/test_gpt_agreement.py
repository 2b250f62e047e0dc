"""The kept run of samplers on the small GPT: what is read back, and what is refused."""

import json
import math
from pathlib import Path

import pytest

from probebook import gpt_agreement

PRERUN = Path(__file__).parents[1] / "results" / "prerun"


def test_the_published_run_has_every_sampler_at_every_step():
    found = gpt_agreement.kept_agreement(PRERUN)
    rows, about = found["rows"], found["about"]
    assert set(rows.sampler) == set(gpt_agreement.COMPARED)
    steps = sorted(set(rows.step_size * about["localization"]))
    assert steps == pytest.approx(gpt_agreement.STEPS)
    assert len(rows) == len(gpt_agreement.COMPARED) * len(steps)
    assert about["mcse"] < 0.2 * about["llc"]
    assert about["khat"] < 0.7
    assert 0 < found["ceiling"]["spearman"] <= 1


def test_a_run_of_another_seed_is_none_and_a_damaged_one_is_said(tmp_path):
    assert gpt_agreement.kept_agreement(tmp_path) is None
    kept = json.loads((PRERUN / gpt_agreement.FILE).read_text())
    kept["rows"][0] |= {"llc": None, "error": None, "spearman_se": None}
    path = tmp_path / gpt_agreement.FILE
    path.write_text(json.dumps(kept))
    first = gpt_agreement.kept_agreement(tmp_path)["rows"].iloc[0]
    assert math.isinf(first.error)
    assert math.isnan(first.llc)
    assert gpt_agreement.kept_agreement(tmp_path, seed=5) is None
    path.write_text(json.dumps(kept | {"about": kept["about"] | {"format": 9}}))
    with pytest.raises(ValueError, match="format 9, not"):
        gpt_agreement.kept_agreement(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no kept run"):
        gpt_agreement.kept_agreement(tmp_path)
