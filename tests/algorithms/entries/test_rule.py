"""Every elementwise rule against numbers worked out by hand, and against plain loops of its formula."""

from __future__ import annotations

from dataclasses import replace
from math import copysign, inf

import numpy as np
import pytest

from loramerge import (
    Adapter,
    Breadcrumbs,
    Dare,
    DareTies,
    Della,
    Emr,
    LowRank,
    Magnitude,
    Sce,
    Target,
    Ties,
    combine,
)
from loramerge.algorithms.entries.block import whole
from loramerge.algorithms.entries.chance import uniform
from loramerge.errors import UsageError
from tests.helpers.adapters import dense, merged, random_adapters

A = [[4.0, 1.0], [-3.0, 2.0]]
B = [[2.0, 1.0], [5.0, -6.0]]


def of(*matrices, kind=float):
    """One adapter per matrix, called s0, s1 …"""
    return [
        Adapter.of({"q": LowRank(np.array(m, kind), np.eye(len(m[0]), dtype=kind))}, f"s{t}")
        for t, m in enumerate(matrices)
    ]


HAND = {  # method, weights of A and B -> the merge
    "ties: 4 and -3, 5 and -6 are the largest; at (1, 0) the sum is 2": (
        Ties(density=0.5),
        [1, 1],
        [[4, 0], [5, -6]],
    ),
    "ties, all kept: (4 + 2)/2, (1 + 1)/2, 5 wins over -3, -6 over 2": (
        Ties(density=1.0),
        [1, 1],
        [[3, 1], [5, -6]],
    ),
    "ties, weighted: (3·4 + 2)/4; at (1, 0) 3·-3 + 5 = -4; at (1, 1) 6 - 6 = 0": (
        Ties(density=1.0),
        [3, 1],
        [[3.5, 1], [-3, 0]],
    ),
    "ties, raw election: signs as with equal weights, the mean weighted": (
        Ties(density=1.0, election="raw"),
        [3, 1],
        [[3.5, 1], [5, -6]],
    ),
    "ties, counted: (3·4 + 2)/2, (3 + 1)/2": (
        Ties(density=1.0, election="raw", divisor="count"),
        [3, 1],
        [[7, 2], [5, -6]],
    ),
    "ties, summed": (Ties(density=1.0, divisor="none"), [1, 1], [[6, 2], [5, -6]]),
    "ties, one vote each: one against one elects nobody": (
        Ties(density=1.0, election="count"),
        [1, 1],
        [[3, 1], [0, 0]],
    ),
    "ties, B subtracted: (4 - 2) elects 4, nobody at (0, 1), (-3 - 5)/2, (2 + 6)/2": (
        Ties(density=1.0),
        [1, -1],
        [[4, 0], [-4, 4]],
    ),
    "magnitude: the two largest of each": (Magnitude(density=0.5), [1, 2], [[4, 0], [7, -12]]),
    "breadcrumbs: without 4 and -6, the next two": (
        Breadcrumbs(density=0.5, gamma=0.25),
        [1, 1],
        [[2, 0], [2, 2]],
    ),
    "breadcrumbs, elected: 2; 5 over -3; 2": (
        Breadcrumbs(density=0.5, gamma=0.25, election="weighted", divisor="weight"),
        [1, 1],
        [[2, 0], [5, 2]],
    ),
    "sce: ‖A‖² = 30, ‖B‖² = 66: (30·4 + 66·2)/96, 1, 5, -6": (Sce(), [1, 1], [[2.625, 1], [5, -6]]),
    "sce, half: variances 1, 0, 16, 16": (Sce(density=0.5), [1, 1], [[0, 0], [5, -6]]),
    "emr: the strongest of the elected": (Emr(), [1, 1], [[4, 1], [5, -6]]),
    "emr, weighted: 3·4, 3, -9; 6 - 6 elects nobody": (Emr(), [3, 1], [[12, 3], [-9, 0]]),
    "dare that drops nothing is the sum": (Dare(density=1.0), [1, 2], [[8, 3], [7, -10]]),
    "dare_ties that drops nothing is ties": (DareTies(density=1.0), [1, 1], [[3, 1], [5, -6]]),
    "della that drops nothing is ties": (Della(density=1.0), [1, 1], [[3, 1], [5, -6]]),
}


@pytest.mark.parametrize(("method", "weights", "expected"), HAND.values(), ids=HAND)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_two_by_two_by_hand(method, weights, expected, kind):
    np.testing.assert_allclose(merged(of(A, B, kind=kind), method, weights)["q"], expected, atol=1e-5)


# --- plain loops of the published formulas ---------------------------------------------------------


def top(matrix, count, skipped=0):
    """The entries whose size is that of the `count` next after the `skipped` largest; 0 for the others."""
    sizes = sorted((abs(x) for row in matrix for x in row), reverse=True)
    low, high = sizes[skipped + count - 1], sizes[skipped - 1] if skipped else inf
    return [[x if low <= abs(x) < high else 0.0 for x in row] for row in matrix]


def sign(x):
    return 0.0 if x == 0 else copysign(1.0, x)


def entry_by_entry(rule, matrices):
    """rule([x_1 … x_T]) for every place."""
    rows, columns = len(matrices[0]), len(matrices[0][0])
    return [[rule([m[i][j] for m in matrices]) for j in range(columns)] for i in range(rows)]


def vote(weights, election="weighted", divisor="weight"):
    def rule(xs):
        votes = {"weighted": [w * x for w, x in zip(weights, xs, strict=True)], "raw": xs}
        elected = sign(sum(votes[election] if election in votes else map(sign, xs)))
        total = share = 0.0
        for w, x in zip(weights, xs, strict=True):
            agrees = sign(w * x if election == "weighted" else x) == elected != 0
            if election == "none":
                agrees = x != 0
            if agrees:
                total += w * x
                share += {"weight": abs(w), "count": 1.0, "none": 1.0}[divisor]
        return total / (share if divisor != "none" else 1.0) if share else 0.0

    return rule


def add(weights):
    return lambda xs: sum(w * x for w, x in zip(weights, xs, strict=True))


def drop(matrix, name, keep, seed=0):
    """Keep entry (i, j) where chance is below keep(i, j), divided by that."""
    drawn = uniform(seed, name, "q", (0, 0), (len(matrix), len(matrix[0])), np.dtype(float))
    return [
        [x / keep(i, j) if drawn[i, j] < np.float32(keep(i, j)) else 0.0 for j, x in enumerate(row)]
        for i, row in enumerate(matrix)
    ]


def by_rank(matrix, density, epsilon):
    def keep(i, j):
        larger = sum(abs(x) > abs(matrix[i][j]) for x in matrix[i])
        return density + epsilon - 2 * epsilon * larger / (len(matrix[i]) - 1)

    return keep


def restored(matrix, kept):
    """`kept` scaled to the sum of sizes of `matrix`."""
    before, after = (sum(abs(x) for row in m for x in row) for m in (matrix, kept))
    return [[x * before / after for x in row] for row in kept]


def sce(matrices, weights, density):
    count = len(matrices)

    def variance(xs):
        return sum((x - sum(xs) / count) ** 2 for x in xs) / count

    spread = top(entry_by_entry(variance, matrices), int(density * 15 * 11))
    kept = [
        [[x if s > 0 else 0.0 for x, s in zip(*rows, strict=True)] for rows in zip(m, spread, strict=True)]
        for m in matrices
    ]
    energies = [sum(x * x for row in m for x in row) for m in kept]

    def rule(xs):
        elected = sign(sum(w * x for w, x in zip(weights, xs, strict=True)))
        terms = [
            (w * e * x, abs(w) * e)
            for w, e, x in zip(weights, energies, xs, strict=True)
            if sign(w * x) == elected != 0
        ]
        return sum(t[0] for t in terms) / sum(t[1] for t in terms) if terms else 0.0

    return entry_by_entry(rule, kept)


def emr(weights):
    def rule(xs):
        scaled = [w * x for w, x in zip(weights, xs, strict=True)]
        elected = sign(sum(scaled))
        return elected * max((abs(x) for x in scaled if sign(x) == elected), default=0.0)

    return rule


W = [1.0, -0.5, 2.0]
N = 15 * 11
ORACLES = {
    "ties": (Ties(), lambda m: entry_by_entry(vote(W), [top(x, int(0.2 * N)) for x in m])),
    "ties, raw": (
        Ties(density=0.6, election="raw", divisor="count"),
        lambda m: entry_by_entry(vote(W, "raw", "count"), [top(x, int(0.6 * N)) for x in m]),
    ),
    "ties, one vote each": (
        Ties(density=0.6, election="count", divisor="none"),
        lambda m: entry_by_entry(vote(W, "count", "none"), [top(x, int(0.6 * N)) for x in m]),
    ),
    "ties, no election": (
        Ties(density=0.6, election="none"),
        lambda m: entry_by_entry(vote(W, "none"), [top(x, int(0.6 * N)) for x in m]),
    ),
    "magnitude": (
        Magnitude(density=0.3),
        lambda m: entry_by_entry(add(W), [top(x, int(0.3 * N)) for x in m]),
    ),
    "breadcrumbs": (
        Breadcrumbs(density=0.4, gamma=0.05),
        lambda m: entry_by_entry(add(W), [top(x, int(0.4 * N), int(0.05 * N)) for x in m]),
    ),
    "dare": (
        Dare(density=0.3, seed=5),
        lambda m: entry_by_entry(
            add(W), [drop(x, f"source{t}", lambda i, j: 0.3, 5) for t, x in enumerate(m)]
        ),
    ),
    "dare, l1": (
        Dare(density=0.3, rescale="l1"),
        lambda m: entry_by_entry(
            add(W), [restored(x, drop(x, f"source{t}", lambda i, j: 0.3)) for t, x in enumerate(m)]
        ),
    ),
    "dare, not rescaled": (
        Dare(density=0.3, rescale="none"),
        lambda m: entry_by_entry(
            add([0.3 * w for w in W]), [drop(x, f"source{t}", lambda i, j: 0.3) for t, x in enumerate(m)]
        ),
    ),
    "dare_ties": (
        DareTies(density=0.4),
        lambda m: entry_by_entry(vote(W), [drop(x, f"source{t}", lambda i, j: 0.4) for t, x in enumerate(m)]),
    ),
    "della": (
        Della(density=0.4, epsilon=0.2),
        lambda m: entry_by_entry(
            vote(W), [drop(x, f"source{t}", by_rank(x, 0.4, 0.2)) for t, x in enumerate(m)]
        ),
    ),
    "sce": (Sce(density=0.5), lambda m: sce(m, W, 0.5)),
    "emr": (Emr(), lambda m: entry_by_entry(emr(W), m)),
}


@pytest.mark.parametrize(("method", "oracle"), ORACLES.values(), ids=ORACLES)
@pytest.mark.parametrize("seed", range(3))
def test_the_dense_merge_is_the_plain_loop(method, oracle, seed):
    sources = random_adapters(seed, (3, 4, 2), {"q": (15, 11)})
    matrices = [dense(source)["q"].tolist() for source in sources]
    found = merged(sources, replace(method, rank=11), W)["q"]
    np.testing.assert_allclose(found, oracle(matrices), atol=1e-9)


@pytest.mark.parametrize(("method", "oracle"), ORACLES.values(), ids=ORACLES)
def test_the_rule_applied_to_any_stack_is_the_plain_loop(method, oracle):
    """Also where two matrices of other sizes share a stack."""
    rng = np.random.default_rng(4)
    stack = rng.standard_normal((3, 2, 17, 13))
    stack[:, 0, 15:], stack[:, 0, :, 11:] = 0, 0
    names = ("source0", "source1", "source2")
    found = method.rule.on(whole(stack, np.array(W), np.array([[15, 11], [17, 13]]), names, ("q", "v")))
    np.testing.assert_allclose(found[0, :15, :11], oracle(stack[:, 0, :15, :11].tolist()), atol=1e-12)
    assert not found[0, 15:].any()
    assert not found[0, :, 11:].any()
    alone = method.rule.on(whole(stack[:, 1:], np.array(W), np.array([[17, 13]]), names, ("v",)))
    assert (found[1:] == alone).all()


def kept_by(sources, method, weights=None):
    """Where the merge is not zero; factors hold a zero to rounding only."""
    return np.abs(merged(sources, method, weights)["q"]) > 1e-9


# --- chance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["dense", "core"])
@pytest.mark.parametrize("rescale", ["density", "none"])
def test_dare_is_the_sum_on_average_over_seeds(space, rescale):
    """Mean of 150 seeds within five standard errors of every entry; without rescaling, the share kept."""
    sources = random_adapters(1, (3, 2), {"q": (7, 6)})
    plain = merged(sources, "linear", [1, -0.5])["q"]
    wanted = plain if rescale == "density" else 0.4 * plain
    seeds = [
        merged(sources, Dare(density=0.4, seed=s, space=space, rescale=rescale, rank=6), [1, -0.5])["q"]
        for s in range(150)
    ]
    error = np.std(seeds, axis=0) / np.sqrt(len(seeds))
    assert (np.abs(np.mean(seeds, axis=0) - wanted) < 5 * error + 1e-12).all()
    assert error.min() > 0


def test_della_keeps_large_entries_more_often():
    """Over 200 seeds: each entry of a row at the rate of its rank."""
    source = of([[5.0, 1.0, -3.0], [1.0, -2.0, 3.0], [0.5, 0.4, 0.3]])
    beside = LowRank(np.eye(40), np.eye(40))  # of which something always stays: a merge of nothing is refused
    source = [Adapter.of({"q": source[0][Target("q")], "rest": beside})]
    kept = [kept_by(source, Della(density=0.5, epsilon=0.3, seed=s, rank=40)) for s in range(200)]
    wanted = np.array([[0.8, 0.2, 0.5], [0.2, 0.5, 0.8], [0.8, 0.5, 0.2]])
    assert (np.abs(np.mean(kept, axis=0) - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 200)).all()


def test_another_seed_keeps_others_and_the_same_seed_the_same():
    source = random_adapters(1, (3,), {"q": (20, 30)})
    one, same, other = (kept_by(source, Dare(seed=s, rank=20)) for s in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).mean() > 0.3


def test_what_is_kept_depends_on_the_name_of_a_source_not_on_its_place():
    a, b = random_adapters(1, (3, 3), {"q": (20, 30)})
    alone = merged([b], Dare(rank=20))["q"]
    beside = merged([a, b], Dare(rank=20), [0.0, 1.0])["q"]
    assert (alone == beside).all()


def test_sources_of_one_name_may_come_in_any_order():
    a, b = (Adapter.of({"q": s[Target("q")]}, "lora") for s in random_adapters(1, (3, 3), {"q": (20, 30)}))
    first, second = merged([a, b], Dare(rank=20))["q"], merged([b, a], Dare(rank=20))["q"]
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert (kept_by([a], Dare(rank=20)) == kept_by([a, b], Dare(rank=20), [1, 0])).all()


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"density": 0.1}, {"density": 0.9}, {"density": 0.5, "epsilon": 0.5}])
def test_probabilities_of_della_stay_between_0_and_1(options):
    with pytest.raises(UsageError, match=r"gives probabilities from .* Give a smaller epsilon"):
        Della(**options)


@pytest.mark.parametrize("method", [Ties, Dare, Magnitude, Sce, Breadcrumbs])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_a_density_is_a_share(method, density):
    with pytest.raises(UsageError, match="not in the range"):
        method(density=density)


def test_what_a_method_has_found_is_no_option():
    with pytest.raises(UsageError, match="search is neither a setting of combine nor an option of ties"):
        combine(of(A), "ties", search=1)
    assert "search" not in Ties().options()


CANCELLING = [
    Ties(density=1.0, space="core"),
    Emr(space="core"),
    Sce(space="core"),
    Ties(density=1.0),
]


@pytest.mark.parametrize("method", CANCELLING, ids=repr)
def test_what_cancels_leaves_no_rounding_at_full_strength(method):
    (a,) = random_adapters(77, (3,))
    found = merged([a, a], method, [1.0, -1.0])
    assert max(np.abs(matrix).max() for matrix in found.values()) < 1e-6


@pytest.mark.parametrize("name", ["ties", "dare", "sce", "emr"])
def test_a_tolerance_of_bases_is_refused_where_there_are_none(name):
    with pytest.raises(UsageError, match=r"rank_tol=0\.01 has nothing to do in dense space"):
        combine(random_adapters(1, (2, 2)), name, rank_tol=0.01)
