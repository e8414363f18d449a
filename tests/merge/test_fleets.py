"""Sums of very many adapters: any number, one note of a kind, nothing that grows with their square."""

import json

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.adapters import dense, distance, random_adapters, weighted

SHAPE = (7, 9)


def fleet(count, seed=0):
    return random_adapters(seed, (8,) * count)


@pytest.mark.parametrize("method", ["linear", "average"])
def test_sums_of_any_number_of_sources_are_merged_and_exact(method):
    sources = fleet(300)  # 2400 units for weights of 7×9, where 1024 may be held at once
    merge = lm.combine(sources, method)
    share = 1.0 if method == "linear" else 1 / 300
    assert distance(dense(merge.adapter), weighted(sources, [share] * 300)) < 1e-6
    assert merge.report.norm_ratios[7] == pytest.approx(
        (sum(u.norm() ** 2 for u in merge.adapter.values()) / sum(u.norm() ** 2 for u in sources[7].values()))
        ** 0.5,
        rel=1e-5,
    )


def test_what_is_held_at_once_stays_limited():
    with pytest.raises(lm.IncompatibleError, match="2400 units for 7×9 weights, and 1024 is the limit"):
        lm.combine(fleet(300), "cat")
    with pytest.raises(lm.IncompatibleError, match="method='average', or method='linear' with scale='norm'"):
        lm.combine(fleet(300))


@pytest.mark.parametrize("count", [64, 65])
def test_the_pairs_of_more_than_64_sources_are_not_kept(count):
    report = lm.combine(fleet(count)).report
    pairs = report.to_dict()["pairwise_cosines"]
    assert len(pairs) == (64 if count == 64 else 0)
    assert len(report.cosines) == count
    assert None not in report.cosines
    assert len(json.dumps(report.to_dict())) < 500 * count + 40 * len(pairs) ** 2


def test_a_long_table_shows_its_head_and_its_tail():
    lines = str(lm.combine(fleet(50)).report).splitlines()
    assert sum("… 30 more" in line for line in lines) == 1
    assert any(line.startswith("1 ") for line in lines)
    assert any(line.startswith("50 ") for line in lines)
    assert len(lines) < 30


def test_one_note_tells_of_all_sources_that_lack_modules():
    rng = np.random.default_rng(0)
    unit = lm.LowRank(rng.standard_normal((3, 1)), rng.standard_normal((1, 3)))
    whole, part = lm.Adapter.of(dict.fromkeys("abc", unit)), lm.Adapter.of({"a": unit})
    notes = lm.combine([whole, *[part] * 7]).report.notes
    assert [n for n in notes if "lack" in n] == [
        "7 of the 8 sources lack 2 of the 3 modules; they count as zero there"
    ]
