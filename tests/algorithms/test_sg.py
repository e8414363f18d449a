import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramerge import Adapter, Linear, LowRank, Sg, Target, combine
from loramerge.algorithms.sg import mixture
from loramerge.errors import UsageError
from tests.helpers.adapters import dense, distance, merged, random_adapters, weighted


def corner(row, column, value):
    """The 2×2 update with one entry."""
    up, down = np.zeros((2, 1)), np.zeros((1, 2))
    up[row, 0], down[0, column] = value, 1.0
    return Adapter.of({"q": LowRank(up, down)})


def test_by_hand():
    """Near by 1 and 1 - 0.05 ln 3 is e^0 : e^-ln3 = 3 : 1; diag(4, 0) and diag(0, 8) give diag(3, 2)."""
    near, far = corner(0, 0, 4.0), corner(1, 1, 8.0)
    merge = combine([near, far], Sg(), weights=[1.0, 1 - 0.05 * math.log(3)], dtype="float64")
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.diag([3.0, 2.0]), abs=1e-12)
    assert merge.report.weights == pytest.approx([0.75, 0.25])
    assert merge.report.similarities == pytest.approx([1.0, 0.945], abs=1e-3)
    assert merge.report.energy_lost == 0


def published(similarities, top_k, temperature):
    """α by a plain loop, for similarities above 0 that all differ."""
    order = sorted(range(len(similarities)), key=lambda e: -similarities[e])[:top_k]
    shares = [math.exp((similarities[e] - similarities[order[0]]) / temperature) for e in order]
    return [shares[order.index(e)] / sum(shares) if e in order else 0.0 for e in range(len(similarities))]


@pytest.mark.parametrize("top_k", [1, 2, 4, 6])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0, 100.0])
def test_the_mixture_is_the_published_one(top_k, temperature):
    sources, near = random_adapters(3, (2, 3, 1, 2, 4)), [0.31, 0.9, 0.05, 0.42, 0.88]
    shares = published(near, top_k, temperature)
    assert mixture(np.array(near), top_k, temperature) == pytest.approx(shares, abs=1e-15)
    assert sum(shares) == pytest.approx(1)
    found = merged(sources, Sg(top_k=top_k, temperature=temperature), near)
    assert distance(found, weighted(sources, shares)) < 1e-12


numbers = st.floats(-1, 1).map(lambda x: round(x, 3))


@given(
    st.lists(numbers, min_size=1, max_size=9),
    st.integers(1, 12),
    st.sampled_from([0, 1e-300, 0.05, 3, math.inf]),
)
def test_shares_sum_to_one_and_do_not_depend_on_the_order(similarities, top_k, temperature):
    near = np.array(similarities)
    if not (near > 0).any():
        with pytest.raises(UsageError, match="No source has a similarity above 0"):
            mixture(near, top_k, temperature)
        return
    shares = mixture(near, top_k, temperature)
    assert math.fsum(shares) == pytest.approx(1, abs=1e-15)
    assert (shares >= 0).all()
    assert not shares[near <= 0].any()
    turned = np.random.default_rng(0).permutation(len(near))
    assert (mixture(near[turned], top_k, temperature) == shares[turned]).all()
    order = np.argsort(-near, kind="stable")
    assert (np.diff(shares[order]) <= 0).all(), "who is more similar weighs no less"


def test_at_temperature_zero_the_nearest_comes_back_to_the_last_bit():
    sources = random_adapters(4, (2, 3, 4))
    merge = combine(sources, Sg(temperature=0), weights=[0.2, 0.9, 0.8])
    for target, update in merge.adapter.items():
        assert (update.dense() == sources[1][target].dense()).all()
    cold = combine(sources, Sg(temperature=1e-4), weights=[0.2, 0.9, 0.8])
    assert distance(dense(cold.adapter), dense(sources[1])) < 1e-12
    assert cold.adapter.rank == 3, "experts whose share is nothing take no rank"


def test_at_an_infinite_temperature_the_chosen_count_alike():
    sources, near = random_adapters(4, (2, 3, 4, 1)), [0.2, 0.9, 0.8, 0.5]
    found = merged(sources, Sg(temperature=math.inf, top_k=3), near)
    assert distance(found, weighted(sources, [0, 1 / 3, 1 / 3, 1 / 3])) < 1e-14
    assert distance(merged(sources, Sg(temperature=1e9, top_k=3), near), found) < 1e-8


@pytest.mark.parametrize(
    ("near", "top_k", "temperature", "shares"),
    [
        ([0.5, 0.5, 0.4], 1, 0.05, [0.5, 0.5, 0]),
        ([0.5, 0.5, 0.4], 2, 0, [0.5, 0.5, 0]),
        ([0.9, 0.5, 0.5, 0.5], 2, math.inf, [0.25] * 4),
        ([0.9, 0.0, 0.0], 3, math.inf, [1, 0, 0]),
        ([0.9, -0.1, 0.3], 3, math.inf, [0.5, 0, 0.5]),
    ],
)
def test_ties_are_chosen_together_and_what_is_not_similar_never(near, top_k, temperature, shares):
    assert mixture(np.array(near), top_k, temperature).tolist() == shares


def test_sources_outside_the_top_k_are_left_out_whole_and_named():
    """Neither their rank nor the modules that only they have are in the merge."""
    a, b = random_adapters(5, (2, 3))
    (c,) = random_adapters(6, (50,), {"layers.9.q": (60, 60)})
    merge = combine([a, Adapter("far", c.slots), b], Sg(top_k=2), weights=[0.8, 0.1, 0.7])
    assert merge.adapter.rank == 5
    assert {t.path for t in merge.adapter} == {t.path for t in a}
    assert merge.report.sources == ("source0", "source1")
    assert merge.report.left_out == {"far": 0.1}
    assert "left out with weight 0, by similarity: far 0.1" in merge.report.notes
    told = merge.report.to_dict()
    assert told["left_out"] == [{"name": "far", "weight": 0.0, "similarity": 0.1}]
    assert [each["similarity"] for each in told["sources"]] == [0.8, 0.7]
    assert "similarity" in str(merge.report).splitlines()[0]
    alone = combine([a, b], Sg(top_k=2), weights=[0.8, 0.7])
    assert distance(dense(merge.adapter), dense(alone.adapter)) == 0


def test_many_that_are_left_out_are_counted():
    sources = random_adapters(1, [1] * 30)
    notes = combine(sources, Sg(top_k=1), weights=[1 - t / 100 for t in range(30)]).report.notes
    (note,) = [note for note in notes if "left out" in note]
    assert note.startswith("left out with weight 0, by similarity: source1 0.99, source2 0.98, ")
    assert note.endswith(" and 21 more")


def test_a_rank_cuts_the_mixture_as_it_would_the_sum():
    sources, near = random_adapters(7, (3, 4)), [0.4, 0.38]
    shares = mixture(np.array(near), 4, 0.05)
    for size in ({"rank": 2}, {"energy": 0.8}):
        found = merged(sources, Sg(**size), near)
        assert distance(found, merged(sources, Linear(**size), shares.tolist())) < 1e-12


def test_ramps_and_rules_say_how_similar_sources_are_in_a_layer():
    from loramerge import Rule

    sources = random_adapters(8, (2, 2))
    rule = Rule(r"\.v$", weights=(0.1, 0.9))
    found = merged(sources, Sg(temperature=0), [0.9, 0.1], rules=[rule])
    one, two = (dense(source) for source in sources)
    assert distance(found, {"layers.0.q": one["layers.0.q"], "layers.0.v": two["layers.0.v"]}) < 1e-14


WRONG = {
    "top_k 0": ({"top_k": 0}, "top_k=0 is not in the range 1<=x"),
    "a top_k of half": ({"top_k": 1.5}, "top_k=1.5 must be a whole number"),
    "a negative temperature": ({"temperature": -1.0}, "temperature=-1.0 is not in the range 0<=x"),
    "a temperature of nan": ({"temperature": math.nan}, "temperature=nan is not in the range"),
    "a temperature in words": ({"temperature": "hot"}, "temperature='hot' must be a number"),
    "an empty query": ({"describe": " "}, "describe is empty"),
    "a query that is no text": ({"describe": 3}, "describe=3 must be text"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_options_out_of_range_are_refused_by_name(options, words):
    with pytest.raises(UsageError, match=words):
        Sg(**options)


def test_an_infinite_temperature_can_be_recorded():
    assert Sg(temperature=math.inf).options()["temperature"] == "inf"
    assert Sg(**Sg(temperature=math.inf).options()) == Sg(temperature=math.inf)


def test_without_a_query_and_without_similarities_there_is_nothing_to_choose_by():
    with pytest.raises(UsageError, match="sg mixes sources by what they are good at"):
        combine(random_adapters(1, (2, 2)), Sg())
    with pytest.raises(UsageError, match="No source has a similarity above 0"):
        combine(random_adapters(1, (2, 2)), Sg(), weights=[0, -1])
