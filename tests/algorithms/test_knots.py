import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine
from loramerge.errors import UsageError
from tests.algorithms import spectral
from tests.helpers.adapters import dense, distance, merged, random_adapters, truncated, weighted


def one(matrix):
    matrix = np.array(matrix, float)
    return Adapter.of({"q": LowRank(np.eye(2), matrix)})


def test_by_hand():
    """The only direction of the outputs is (1, 1)/√2, the rows are √2·(4, 1) and √2·(−2, 3).

    Signs (+, +) are elected; 4 alone and the mean of 1 and 3 remain.
    """
    pair = [one([[4, 1], [4, 1]]), one([[-2, 3], [-2, 3]])]
    assert merged(pair, "knots", density=1.0)["q"] == pytest.approx(np.array([[4, 2], [4, 2]]), abs=1e-6)


def test_trimming_by_hand():
    """Half of two entries is one: 4 of the first, 3 of the second; nothing else votes."""
    pair = [one([[4, 1], [4, 1]]), one([[-2, 3], [-2, 3]])]
    assert merged(pair, "knots", density=0.5)["q"] == pytest.approx(np.array([[4, 3], [4, 3]]), abs=1e-6)


def test_a_turn_of_the_outputs_turns_the_merge():
    """Where TIES of dense entries gives something else."""
    sources = random_adapters(3, (2, 3), {"q": (7, 9)})
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    turned = [Adapter.of({t.path: LowRank(turn @ s[t].up, s[t].down) for t in s}) for s in sources]
    for method, held in (("knots", True), ("ties", False)):
        wanted = {"q": turn @ merged(sources, method)["q"]}
        assert (distance(merged(turned, method), wanted) < 1e-12) == held


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, -0.5, 2]], ids=str)
def test_it_is_the_published_algorithm_in_every_module(weights, density):
    for seed in range(4):
        sources = random_adapters(seed, (3, 2, 4), {"q": (17, 19), "v": (15, 8)})
        found = merged(sources, "knots", weights, density=density)
        wanted = spectral.knots(sources, weights, rule=spectral.ties_of(density))
        assert distance(found, wanted) < 1e-12


def test_trimming_by_shares_by_hand():
    """The rows (8, 4) and (-1, 2) are at right angles: by size 8 and 4 are kept, by shares 8 and 2."""
    alone = [one([[8, 4], [-1, 2]])]
    assert merged(alone, "knots", density=0.5)["q"] == pytest.approx(np.array([[8, 4], [0, 0]]), abs=1e-6)
    found = merged(alone, "knots", density=0.5, ranking="shares")["q"]
    assert found == pytest.approx(np.diag([8, 2]), abs=1e-6)


@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, -0.5, 2]], ids=str)
def test_ranking_by_shares_is_drm(weights, density):
    for seed in range(4):
        sources = random_adapters(seed, (3, 2, 4), {"q": (17, 19), "v": (15, 8)})
        found = merged(sources, "knots", weights, density=density, ranking="shares")
        assert distance(found, spectral.drm(sources, weights, density=density)) < 1e-12


def test_a_row_that_a_source_does_not_have_takes_no_place():
    """b writes into the second output alone; what rounding leaves of it elsewhere is no row."""
    pair = [one([[8, 4], [0, 0]]), one([[0, 0], [1, 2]])]
    found = merged(pair, "knots", density=0.25, ranking="shares")["q"]
    assert found == pytest.approx(np.diag([8, 2]), abs=1e-6)


@pytest.mark.parametrize("rule", ["linear", "dare_ties", "emr", "sce"])
def test_shares_are_for_rules_that_trim_each_source(rule):
    with pytest.raises(UsageError, match=f"ranking=shares has nothing to do with rule={rule}"):
        combine(random_adapters(7, (3, 2)), "knots", rule=rule, ranking="shares")


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_rank_is_the_best_one(rank):
    sources = random_adapters(5, (3, 4), {"q": (17, 19)})
    whole = merged(sources, "knots")
    merge = combine(sources, "knots", rank=rank, dtype="float64")
    found, best = dense(merge.adapter)["q"], truncated(whole["q"], rank)
    assert found == pytest.approx(best, abs=1e-12)
    cut = 1 - np.sum(best**2) / np.sum(whole["q"] ** 2)
    assert merge.report.cut == pytest.approx(cut, abs=1e-14)


def test_factors_change_nothing():
    """The same updates by other factors: the merge is the same to rounding, not only nearly."""
    sources = random_adapters(6, (3, 2))
    mix = np.random.default_rng(1).standard_normal((3, 3))
    mixed = Adapter.of(
        {
            t.path: LowRank(sources[0][t].up @ mix, np.linalg.solve(mix, sources[0][t].down))
            for t in sources[0]
        }
    )
    assert distance(merged([mixed, sources[1]], "knots"), merged(sources, "knots")) < 1e-12


def test_a_linear_rule_is_the_plain_sum_and_says_so():
    sources, weights = random_adapters(7, (3, 2)), [1.0, -0.5]
    merge = combine(sources, "knots", weights=weights, rule="linear", dtype="float64")
    assert distance(dense(merge.adapter), weighted(sources, weights)) < 1e-13
    assert any("it is what linear gives" in note for note in merge.report.notes)
    assert not any("linear" in note for note in combine(sources, "knots").report.notes)
    best = merged(sources, "linear", weights, rank=2)
    assert distance(merged(sources, "knots", weights, rule="linear", rank=2), best) < 1e-12


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("linear", {"density": 0.5}),
        ("linear", {"rank_tol": 1e-3}),
        ("linear", {"seed": 1}),
        ("ties", {"seed": 1}),
        ("emr", {"density": 0.5}),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_refused(rule, options):
    (name,) = options
    sentence = f"{name} has nothing to do with rule={rule}: leave|rule={rule} has no {name}: leave"
    with pytest.raises(UsageError, match=sentence):
        combine(random_adapters(7, (3, 2)), "knots", rule=rule, **options)


def test_weak_adapters_are_cut_like_strong_ones():
    """A limit of 1e-5 for any strength would leave nothing of these."""
    sources = random_adapters(8, (3, 2))
    weak = [Adapter.of({t.path: s[t] * 1e-7 for t in s}) for s in sources]
    strong = merged(sources, "knots")
    assert distance({path: m * 1e7 for path, m in merged(weak, "knots").items()}, strong) < 1e-12


def test_weak_directions_are_left_out_by_rank_tol():
    """diag(1, 1e-4) beside nothing: 1e-4 of the strongest is above 1e-5 and below 1e-3."""
    for rank_tol, left in ((1e-5, 1e-4), (1e-3, 0.0)):
        found = merged([one([[1, 0], [0, 1e-4]])], "knots", density=1.0, rank_tol=rank_tol)["q"]
        assert found == pytest.approx(np.diag([1, left]), abs=1e-12)


def test_dare_keeps_other_entries_for_another_seed():
    sources = random_adapters(9, (3, 2))
    options = {"rule": "dare_ties", "density": 0.5}
    same, other = (merged(sources, "knots", seed=seed, **options) for seed in (0, 1))
    assert distance(merged(sources, "knots", **options), same) == 0
    assert distance(other, same) > 0.1


def test_the_densities_are_the_published_ones():
    """Of 2 rows of 20 entries ties keeps 8; no other vote changes them."""
    rng = np.random.default_rng(2)
    alone = Adapter.of({"q": LowRank(np.eye(2), rng.standard_normal((2, 20)))})
    merge = combine([alone], "knots", dtype="float64")
    u = np.linalg.svd(alone[Target("q")].dense(), full_matrices=False)[0]
    rows = u.T @ dense(merge.adapter)["q"]
    assert np.count_nonzero(np.abs(rows) > 1e-12) == 8
    assert (
        distance(
            merged([alone], "knots", rule="dare_ties"),
            merged([alone], "knots", rule="dare_ties", density=0.9),
        )
        == 0
    )


@pytest.mark.parametrize("offset", [1e-3, 1e-5, 1e-7, 0.0])
@pytest.mark.parametrize("side", ["up", "down"])
def test_sources_that_nearly_share_a_factor_are_no_obstacle(side, offset):
    rng = np.random.default_rng(11)
    common = {"up": rng.standard_normal((24, 4)), "down": rng.standard_normal((4, 30))}

    def near():
        own = {name: rng.standard_normal(shared.shape) for name, shared in common.items()}
        return Adapter.of({"q": LowRank(**(own | {side: common[side] + offset * own[side]}))})

    sources = [near() for _ in range(4)]
    wanted = spectral.knots(sources, [1] * 4, rule=spectral.ties_of(0.3))
    assert distance(merged(sources, "knots", density=0.3), wanted) < 1e-11
