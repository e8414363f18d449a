"""Compress, then merge: by hand, against HOOI on dense matrices, and what it keeps."""

import numpy as np
import pytest

from loramerge import Ctm, Target, combine
from loramerge.algorithms.families.tucker import subspaces
from tests.algorithms import spectral
from tests.algorithms.families.test_span import CASES
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import dense, distance, merged, random_adapters, truncated, weighted, zero

every_case = pytest.mark.parametrize(("sources", "weights"), CASES.values(), ids=CASES)
TRIO = unit([10, 0], [1, 0]), unit([0, 1], [0, 1]), unit([0, 1], [0, 1])


@pytest.mark.parametrize(("beta", "expected"), [(1.0, [10, 0]), (0.0, [0, 1])])
def test_beta_by_hand(beta, expected):
    """10 e₁e₁ᵀ and twice e₂e₂ᵀ, room for one: as they are 100 against 1 + 1; all of norm 4, 16 against 32."""
    found = dense_of(*TRIO, method=Ctm(rank=1, beta=beta, density=1.0))
    assert found == pytest.approx(np.diag(expected))


def test_the_rule_sees_the_sources_as_they_are_by_hand():
    """Only the choice of directions is evened out: with room for both nothing is rescaled."""
    found = dense_of(*TRIO, method=Ctm(rank=2, beta=0.0, density=1.0))
    assert found == pytest.approx(np.diag([10, 1]))


@every_case
@pytest.mark.parametrize(
    ("rank", "beta", "density"), [(4, 0.25, 0.2), (4, 0.25, 1.0), (6, 0.0, 0.4), (2, 1.0, 0.7)]
)
def test_it_is_hooi_and_ties_on_dense_matrices(sources, weights, rank, beta, density):
    method = Ctm(rank=rank, beta=beta, density=density)
    loop = spectral.ctm(sources, weights, rule=spectral.ties_of(density), k=rank, beta=beta)
    assert distance(merged(sources, method, weights), loop) < 1e-6


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_subspaces_keep_what_no_others_keep_more_of(count):
    rng = np.random.default_rng(111)
    cores = [(rng.standard_normal((20, 4)), rng.standard_normal((20, 4))) for _ in range(count)]

    def kept(left, right):
        return sum(np.linalg.norm(left.T @ up @ down.T @ right) ** 2 for up, down in cores)

    left, right = subspaces(cores, 3)
    assert left.T @ left == pytest.approx(np.eye(3))
    assert right.T @ right == pytest.approx(np.eye(3))
    best = kept(left, right)
    if count == 1:
        sigma = np.linalg.svd(cores[0][0] @ cores[0][1].T, compute_uv=False)
        assert best == pytest.approx((sigma[:3] ** 2).sum())
    for _ in range(50):  # neither near ones nor any others
        near = [np.linalg.qr(side + 0.1 * rng.standard_normal(side.shape))[0] for side in (left, right)]
        other = [np.linalg.qr(rng.standard_normal(side.shape))[0] for side in (left, right)]
        assert max(kept(*near), kept(*other)) < best * (1 + 1e-4)


def test_the_rank_is_that_of_the_largest_source_if_none_is_given():
    sources = random_adapters(112, (3, 7, 5), {"q": (40, 50)})
    merge = combine(sources, Ctm())
    assert merge.method.rank == 7
    assert merge.adapter[Target("q")].rank == 7


def test_one_adapter_with_less_room_is_its_best_approximation():
    (a,) = random_adapters(113, (7,), {"q": (40, 50)})
    found = merged([a], Ctm(rank=3, density=1.0))
    assert distance(found, {path: truncated(matrix, 3) for path, matrix in dense(a).items()}) < 1e-12


def test_without_election_it_keeps_less_of_the_sum_than_svd_but_no_more_is_cut_off():
    """The sum in common subspaces, against the best of that rank."""
    sources, weights = CASES["equal ranks"]
    total = weighted(sources, weights)
    ours, best = (
        merged(sources, m, weights, rank=8, **o) for m, o in (("ctm", {"rule": "sum"}), ("svd", {}))
    )
    for path, matrix in total.items():
        missed, least = (np.linalg.norm(matrix - found[path]) for found in (ours, best))
        assert least < missed < np.linalg.norm(matrix)


def test_silent_sources_change_nothing_where_the_published_form_divides_by_zero():
    sources = random_adapters(114, (4, 4), {"q": (40, 50)})
    assert distance(merged([*sources, zero(sources[0])], Ctm()), merged(sources, Ctm())) < 1e-12
    assert not any(matrix.any() for matrix in merged([zero(sources[0])] * 2, Ctm()).values())


def test_an_energy_is_of_the_weighted_sum():
    sources, weights = CASES["equal ranks"]
    chosen = combine(sources, Ctm(energy=0.9), weights=weights).method.rank
    assert chosen == combine(sources, "svd", energy=0.9, weights=weights).method.rank
