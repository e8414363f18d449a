"""Core space by hand, against a plain loop on dense matrices, and where the published form is another."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Core, LowRank, Ties, UsageError
from tests.algorithms import spectral
from tests.algorithms.families.test_span import CASES, near
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import changed, distance, merged, random_adapters, truncated

every_case = pytest.mark.parametrize(("sources", "weights"), CASES.values(), ids=CASES)


def test_by_hand():
    """Turned by 45° on both sides, so e₁, e₂ are no bases: cores diag(3, 0), diag(−1, 2) all the same."""
    turn = np.sqrt(0.5) * np.array([[1, -1], [1, 1]])
    a = unit(3 * turn[:, 0], turn[:, 0])
    b = LowRank(turn * [-1, 2], turn.T)
    found = dense_of(a, changed(a, lambda _: b), method=Core(density=1.0))
    assert found == pytest.approx(turn @ np.diag([3, 2]) @ turn.T)


@every_case
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_core_ties_is_the_plain_loop(sources, weights, density):
    loop = spectral.core(sources, weights, rule=spectral.ties_of(density))
    assert distance(merged(sources, Core(density=density), weights), loop) < 1e-8


def test_with_factors_as_stored_it_depends_on_how_they_are_split():
    """(7 B, A/7) is the same update. Bases of the stored factors turn with it, and TIES with them."""
    a, b = random_adapters(101, (6, 6), {"q": (40, 50)})
    split = changed(a, lambda u: LowRank(u.up * 7, u.down / 7, u.scale))

    def published(sources):
        updates = [next(iter(source.values())) for source in sources]
        halves = [(u.scale * u.up, u.down) for u in updates]
        return {"q": spectral.in_core(halves, [1, 1], spectral.ties_of(0.2))}

    assert distance(published([split, b]), published([a, b])) > 0.3
    assert distance(merged([split, b], Core()), merged([a, b], Core())) < 1e-12


def test_what_is_trimmed_is_counted_among_the_directions_there_are():
    """Zero rows that only pad a core do not count: 40 silent units beside the others change nothing."""
    sources, weights = CASES["equal ranks"]
    padded = changed(
        sources[0], lambda u: LowRank(np.pad(u.up, ((0, 0), (0, 40))), np.pad(u.down, ((0, 40), (0, 0))))
    )
    assert distance(merged([padded, *sources[1:]], Core(), weights), merged(sources, Core(), weights)) < 1e-9


def test_the_merge_stays_in_the_span_and_that_of_the_dense_rule_does_not():
    sources, weights = CASES["equal ranks"]
    ranks = [
        spectral.rank_of(merged(sources, method, weights)["q"], 1e-9) for method in (Core(), Ties(rank=40))
    ]
    assert ranks[0] <= 24
    assert ranks[1] == 40


@pytest.mark.parametrize("offset", [1e-2, 1e-4, 1e-6])
def test_adapters_that_nearly_share_a_keep_their_digits(offset):
    sources, weights = near(offset, 0.2), [1.0, -0.5, 2.0]
    loop = spectral.core(sources, weights, rule=spectral.ties_of(0.4))
    assert distance(merged(sources, Core(density=0.4, rank_tol=1e-7), weights), loop) < 1e-13 / offset


def test_a_rank_keeps_the_best_of_it():
    sources, weights = CASES["mixed ranks and signs"]
    whole, cut = (merged(sources, replace(Core(), rank=rank), weights) for rank in (None, 5))
    assert distance(cut, {path: truncated(matrix, 5) for path, matrix in whole.items()}) < 1e-9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "emr", "density": 0.5}, "rule=emr has no density: leave it out"),
        ({"rule": "ties", "seed": 3}, "rule=ties has no seed: leave it out"),
        ({"rule": "sum", "density": 0.5, "seed": 1}, "rule=sum has no density and no seed: leave it out"),
        ({"rule": "mean"}, "rule='mean' is not one of 'sum', 'ties', 'dare'"),
        ({"density": 0.0}, "density=0.0 is not in the range 0<x<=1"),
    ],
    ids=str,
)
def test_options_that_a_rule_does_not_have_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Core(**options)
