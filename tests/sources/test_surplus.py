"""A sum of more units than a module has rows or columns is folded, and nobody can tell from the result."""

import numpy as np
import pytest

from loramerge import combine, open
from loramerge.adapters.target import Target
from loramerge.sources.surplus import crowded, weighted_sum
from loramerge.verbs.plan import plan
from tests.helpers.adapters import dense, distance, random_adapters, truncated, weighted

SHAPES = {"flat": (4, 9), "tall": (9, 4), "wide enough": (20, 20)}
SOURCES = random_adapters(1, (3, 2, 4, 1), SHAPES)  # 10 units: more than 4
WEIGHTS = [1.0, -0.5, 0.0, 2.0]
TOTAL = weighted(SOURCES, WEIGHTS)
METHODS = {
    "linear": ({}, 10),  # the module that is not crowded keeps its units
    "linear, rank 3": ({"rank": 3}, 3),
    "svd": ({}, 4),
    "svd, 90 %": ({"energy": 0.9}, None),
}


@pytest.mark.parametrize(("name", "options", "rank"), [(n, *row) for n, row in METHODS.items()])
def test_a_folded_merge_is_the_dense_one(name, options, rank):
    merge = combine(SOURCES, name.partition(",")[0], weights=WEIGHTS, dtype="float64", **options)
    kept = merge.adapter.rank
    assert rank in (None, kept)
    expected = {path: truncated(total, kept) for path, total in TOTAL.items()}
    assert distance(dense(merge.adapter), expected) < 1e-12


def test_average_folds_with_its_own_weights():
    merge = combine(SOURCES, "average", weights=[1, 2, 3, 4], dtype="float64")
    assert distance(dense(merge.adapter), weighted(SOURCES, [0.1, 0.2, 0.3, 0.4])) < 1e-12


def test_the_report_still_counts_each_source():
    merge = combine(SOURCES, "svd", rank=2, weights=WEIGHTS, dtype="float64").report
    result = {path: truncated(total, 2) for path, total in TOTAL.items()}
    each = [dense(source) for source in SOURCES]

    def product(first, second):
        return sum(float(np.sum(first[path] * second[path])) for path in first)

    def cosine(first, second):
        return product(first, second) / np.sqrt(product(first, first) * product(second, second))

    assert merge.cosines == pytest.approx([cosine(result, source) for source in each])
    assert merge.pairwise == [pytest.approx([cosine(a, b) for b in each]) for a in each]
    assert merge.energy_lost == pytest.approx(1 - product(result, result) / product(TOTAL, TOTAL))
    assert [module.ranks for module in merge.modules] == [(3, 2, 4, 1)] * 3


def test_only_crowded_modules_of_methods_that_sum_are_folded():
    assert (crowded((3, 2), (5, 9)), crowded((3, 3), (5, 9)), crowded((3, 3), (9, 5))) == (False, True, True)
    assert len(plan(SOURCES, "linear").work.adapters) == 5
    for method in ("cat", "lego"):
        chosen = plan(SOURCES, method)
        assert chosen.work is chosen.sources
    few = plan(SOURCES, "linear", only="enough")
    assert few.work is few.sources


def test_cat_keeps_every_unit_even_so():
    merge = combine(SOURCES, "cat", weights=WEIGHTS, dtype="float64").adapter
    assert merge.rank == 10
    assert distance(dense(merge), TOTAL) < 1e-12


def test_opened_adapters_are_not_folded_and_agree():
    pair = open(SOURCES, threads=1)
    for method in ("linear", "svd"):
        folded = combine(SOURCES, method, weights=WEIGHTS, dtype="float64")
        assert distance(dense(pair.combine(method, weights=WEIGHTS).adapter), dense(folded.adapter)) < 1e-12


def test_the_sum_by_hand_and_the_sum_of_nothing():
    target = Target("flat")
    assert weighted_sum(SOURCES, np.array(WEIGHTS), target) == pytest.approx(TOTAL["flat"])
    assert not weighted_sum(SOURCES, np.zeros(4), target).any()
    assert not combine(SOURCES, "svd", weights=[0, 0, 0, 0]).adapter[target].dense().any()
