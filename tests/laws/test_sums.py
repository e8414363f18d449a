"""What a merge comes to, by dense arithmetic, over random merges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge import METHODS, combine
from loramerge.errors import UsageError
from tests.helpers.adapters import distance, merged, random_adapters, truncated, weighted
from tests.laws.rows import MERGES, ROWS


@st.composite
def merges(draw, equal_ranks=False):
    """(adapters, weights) of random shapes, ranks and signs."""
    count = draw(st.integers(1, 4))
    sizes = st.integers(1, 8)
    ranks = [draw(sizes)] * count if equal_ranks else draw(st.lists(sizes, min_size=count, max_size=count))
    shapes = {f"m{i}": (draw(sizes) + 1, draw(sizes) + 1) for i in range(draw(st.integers(1, 3)))}
    weights = [draw(st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0])) for _ in range(count)]
    return random_adapters(draw(st.integers(0, 999)), ranks, shapes, scale=0.5), weights


few = settings(max_examples=40, deadline=None, derandomize=True)


def test_every_method_is_held_to_the_laws():
    assert {type(method) for method in ROWS.values()} == set(METHODS.values())


@few
@given(merges())
def test_cat_and_linear_are_the_weighted_sum(case):
    sources, weights = case
    for method in ("cat", "linear"):
        assert distance(merged(sources, method, weights), weighted(sources, weights)) < 1e-12


@few
@given(merges())
def test_average_is_the_weighted_mean(case):
    sources, weights = case
    if sum(weights):
        mean = weighted(sources, np.array(weights) / sum(weights))
        assert distance(merged(sources, "average", weights), mean) < 1e-12
    else:
        with pytest.raises(UsageError, match="sum to zero"):
            merged(sources, "average", weights)


@few
@given(merges(), st.integers(1, 9))
def test_a_rank_gives_the_best_approximation_of_the_sum(case, rank):
    sources, weights = case
    best = {path: truncated(total, rank) for path, total in weighted(sources, weights).items()}
    for method in ("svd", "linear"):
        assert distance(merged(sources, method, weights, rank=rank), best) < 1e-9


@few
@given(merges())
def test_lego_with_room_for_all_units_is_the_sum(case):
    sources, weights = case
    room = sum(source.rank for source in sources)
    for options in ({}, {"features": "normalised"}, {"variant": "ctm"}):
        whole = merged(sources, "lego", weights, rank=room, **options)
        assert distance(whole, weighted(sources, weights)) < 1e-9


@few
@given(merges(equal_ranks=True))
def test_nsc_with_room_for_all_units_is_the_sum_over_the_root_of_their_number(case):
    sources, weights = case
    room = sum(source.rank for source in sources)
    share = np.array(weights) / np.sqrt(len(sources))
    whole = merged(sources, "lego", weights, variant="nsc", rank=room)
    assert distance(whole, weighted(sources, share)) < 1e-9


@few
@given(merges(), st.sampled_from([0.3, 0.5, 0.9, 0.99, 1.0]))
def test_energy_takes_the_smallest_rank_that_keeps_it_everywhere(case, energy):
    sources, weights = case
    squares = [np.linalg.svd(m, compute_uv=False) ** 2 for m in weighted(sources, weights).values()]
    enough = [
        next(k for k in range(1, len(s) + 1) if s[:k].sum() >= energy * s.sum() * (1 - 1e-10))
        for s in squares
    ]
    for method in ("svd", "linear"):
        merge = combine(sources, method, weights=weights, energy=energy, dtype="float64", threads=1)
        assert merge.method.rank == max(enough)
        kept = {m.name: 1 - m.energy_lost for m in merge.report.modules}
        assert min(kept.values()) >= energy - 1e-10


def test_all_of_the_energy_is_the_sum():
    for sources, weights in MERGES.values():
        whole = merged(sources, "svd", weights, energy=1.0)
        assert distance(whole, weighted(sources, weights)) < 1e-9


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [0.1 + 0.2, -0.3]], ids=str)
def test_weights_that_sum_to_zero_have_no_mean(weights):
    with pytest.raises(UsageError, match="sum to zero, so they have no mean: use method='linear'"):
        merged(random_adapters(0, (2, 2)), "average", weights)
