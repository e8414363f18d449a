"""What the Grams say about the sum of the units is what dense matrices say."""

import numpy as np
import pytest

from loramerge import Adapter, LowRank
from loramerge.arrays.frames import canonical
from loramerge.arrays.gram import balanced, halves, inner, leading, spectrum, weigh
from tests.helpers.adapters import random_adapters, units_of, update


def graded(rng):
    u = update(rng, 5)
    return LowRank(u.up * np.logspace(0, -8, 5), u.down)


def repeated(rng):
    """Rank 3 in six units."""
    u = update(rng, 3)
    return LowRank(np.concatenate([u.up, u.up], axis=1), np.concatenate([u.down, -0.5 * u.down]))


def shared(rng):
    """Six units of full rank on one side and rank 3 on the other."""
    u = update(rng, 3)
    return LowRank(np.concatenate([u.up, u.up], axis=1), rng.standard_normal((6, 9)))


def nearly_shared(rng):
    u = update(rng, 3)
    near = u.up + 1e-6 * rng.standard_normal(u.up.shape)
    return LowRank(np.concatenate([u.up, near], axis=1), rng.standard_normal((6, 9)))


def cancelling(rng):
    u = update(rng, 3)
    return LowRank(np.concatenate([u.up, -u.up], axis=1), np.concatenate([u.down, u.down]))


UPDATES = {
    "random": lambda rng: update(rng, 4),
    "rank 1": lambda rng: update(rng, 1),
    "scaled": lambda rng: update(rng, 4, scale=-0.01),
    "tall": lambda rng: update(rng, 3, (200, 5)),
    "more units than rows or columns": lambda rng: update(rng, 12, (5, 6)),
    "rank deficient": repeated,
    "rank deficient on one side": shared,
    "nearly so": nearly_shared,
    "cancelling": cancelling,
    "graded": graded,
    "unbalanced": lambda rng: LowRank(update(rng, 4).up * 1e8, update(rng, 4).down * 1e-8),
    "each unit unbalanced otherwise": lambda rng: LowRank(
        update(rng, 4).up * [1e6, 1e-6, 1, 1e3], update(rng, 4).down * [[1e-6], [1e6], [1], [1e-3]]
    ),
    "one unit zero": lambda rng: LowRank(update(rng, 4).up * [1, 0, 1, 1], update(rng, 4).down),
    "zero": lambda rng: update(rng, 4) * 0.0,
    "tiny": lambda rng: update(rng, 4) * 1e-30,
}
every_update = pytest.mark.parametrize("make", UPDATES.values(), ids=UPDATES)


def grams_of(u):
    """(factors, Grams) of one update alone."""
    (units,) = units_of([Adapter.of({"q": u})])
    return (units.up(0), units.down(0)), units.grams()


def length_of_all(u):
    """Σ‖unit‖, the scale of rounding errors."""
    return abs(u.scale) * (np.linalg.norm(u.up, axis=0) * np.linalg.norm(u.down, axis=1)).sum()


@every_update
def test_singular_values_are_the_dense_ones(make):
    u = make(np.random.default_rng(1))
    _, grams = grams_of(u)
    ours, dense = spectrum(grams.up, grams.down).sigma[0], np.linalg.svd(u.dense(), compute_uv=False)
    size = max(len(ours), len(dense))
    ours, dense = (np.pad(sigma, (0, size - len(sigma))) for sigma in (ours, dense))
    assert np.abs(ours - dense).max() <= 1e-7 * length_of_all(u)
    assert (np.diff(ours) <= 0).all()


@every_update
def test_the_singular_units_sum_to_the_update(make):
    u = make(np.random.default_rng(2))
    (up, down), grams = grams_of(u)
    parts = spectrum(grams.up, grams.down)
    remix = grams.remix(parts.left * parts.sigma[:, None, :], parts.right)
    assert np.linalg.norm(up @ remix.core[0] @ down - u.dense()) <= 1e-14 * length_of_all(u)


@every_update
def test_lifts_give_the_singular_vectors(make):
    """Orthonormal on either side, where the singular value is no noise."""
    u = make(np.random.default_rng(3))
    (up, down), grams = grams_of(u)
    parts = spectrum(grams.up, grams.down)
    kept = parts.sigma[0] > 1e-6 * length_of_all(u)
    left = up @ (grams.lift.P @ parts.left)[0][:, kept]
    right = (parts.right @ grams.lift.Q)[0][kept] @ down
    eye = np.eye(kept.sum())
    assert left.T @ left == pytest.approx(eye, abs=1e-7)
    assert right @ right.T == pytest.approx(eye, abs=1e-7)
    apart = left.T @ u.dense() @ right.T - np.diag(parts.sigma[0][kept])
    assert np.abs(apart).max(initial=0) <= 1e-7 * length_of_all(u)


@every_update
@pytest.mark.parametrize("rank", [1, 3])
def test_balanced_units_have_the_root_of_sigma_on_either_side(make, rank):
    u = make(np.random.default_rng(4))
    (up, down), grams = grams_of(u)
    parts = spectrum(grams.up, grams.down)
    remix = grams.remix(*balanced(parts, rank))
    kept = parts.sigma[0, :rank] > 1e-6 * length_of_all(u)
    sigma = parts.sigma[0, :rank][kept]
    lengths = np.linalg.norm(up @ remix.P[0], axis=0), np.linalg.norm(remix.Q[0] @ down, axis=1)
    for length in lengths:
        assert length[: len(kept)][kept] ** 2 == pytest.approx(sigma, rel=1e-7)


def test_halves_square_to_the_gram():
    rng = np.random.default_rng(5)
    factors = rng.standard_normal((3, 6, 4))
    grams = factors @ factors.swapaxes(1, 2)  # (3, 6, 6) of rank 4
    half = halves(grams)
    assert half.swapaxes(1, 2) @ half == pytest.approx(grams, abs=1e-13)


LIVE = {  # how many singular units are no rounding noise
    "random": 4,
    "more units than rows or columns": 5,
    "rank deficient": 3,
    "rank deficient on one side": 3,
    "nearly so": 6,
    "cancelling": 0,
    "graded": 5,
    "one unit zero": 3,
    "zero": 0,
    "tiny": 4,
}


@pytest.mark.parametrize("name", LIVE)
def test_rounding_noise_is_no_live_unit(name):
    for seed in range(20):
        _, grams = grams_of(UPDATES[name](np.random.default_rng(seed)))
        assert canonical(grams).live.sum() == LIVE[name]


def batch(seed=6, ranks=(3, 2, 4)):
    sources = random_adapters(seed, ranks, scale=0.5)
    (units,) = units_of(sources)
    return sources, units, units.grams()


def test_the_kernel_holds_the_inner_products_of_the_units():
    sources, units, grams = batch()
    for m, target in enumerate(units.targets):
        dense = [
            s[target].scale * np.outer(s[target].up[:, i], s[target].down[i]).ravel()
            for s in sources
            for i in range(s[target].rank)
        ]
        assert grams.kernel[m] == pytest.approx(np.array(dense) @ np.array(dense).T, rel=1e-12)
    assert [grams.of(t).tolist() for t in range(3)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("even", [False, True])
def test_weights_multiply_the_units_of_their_source(even):
    sources, units, grams = batch()
    weights = np.array([2.0, -3.0, 0.0])
    heavy = weigh(grams, weights, even)
    assert heavy.kernel == pytest.approx(
        grams.kernel * np.outer(weights[grams.owner], weights[grams.owner]), rel=1e-12
    )
    for m, target in enumerate(units.targets):
        up, down = units.remix(m, heavy.lift)
        total = sum(w * s[target].dense() for w, s in zip(weights, sources, strict=True))
        assert up @ down == pytest.approx(total, rel=1e-12)
        assert up.T @ up == pytest.approx(heavy.up[m], rel=1e-12)
        assert down @ down.T == pytest.approx(heavy.down[m], rel=1e-12)
    assert heavy.live.tolist() == [[True] * 5 + [False] * 4] * 2


def test_even_weights_lengthen_both_halves_alike():
    _, _, grams = batch()
    heavy = weigh(grams, np.array([4.0, -4.0, 4.0]), even=True)
    assert heavy.down == pytest.approx(4 * grams.down)
    assert np.abs(heavy.up) == pytest.approx(4 * np.abs(grams.up))


@pytest.mark.parametrize("ranks", [(3, 2, 4), (1,), (9, 9)], ids=str)
def test_canonical_units_are_each_sources_own_balanced_svd(ranks):
    sources, units, grams = batch(7, ranks)
    own = canonical(grams)
    for m, target in enumerate(units.targets):
        up, down = units.remix(m, own.lift)
        assert up.T @ up == pytest.approx(own.up[m], abs=1e-6)
        assert down @ down.T == pytest.approx(own.down[m], abs=1e-6)
        for t, source in enumerate(sources):
            mine, dense = own.of(t), source[target].dense()
            sigma = np.linalg.svd(dense, compute_uv=False)[: len(mine)]
            expected = np.zeros(len(mine))
            expected[: len(sigma)] = sigma
            block = np.ix_(mine, mine)
            assert up[:, mine] @ down[mine] == pytest.approx(dense, abs=1e-12)
            for side in (own.up[m], own.down[m]):
                assert side[block] == pytest.approx(np.diag(expected), abs=1e-6)
            assert own.live[m, mine].tolist() == (expected > 1e-9).tolist()


def test_canonical_keeps_zero_units_dead():
    a, b = random_adapters(8, (3, 2))
    empty = Adapter.of({t.path: u * 0.0 for t, u in b.items()})
    (units,) = units_of([a, empty])
    own = canonical(units.grams())
    assert own.live.tolist() == [[True] * 3 + [False] * 2] * 2
    assert not own.up[:, 3:].any()


def test_inner_products_of_cores_are_those_of_the_dense_updates():
    _, units, grams = batch()
    rng = np.random.default_rng(9)
    first, second = rng.standard_normal((2, *grams.up.shape))
    found = inner(grams, first, second)
    for m in range(len(units.targets)):
        up, down = units.remix(m, grams.lift)
        assert found[m] == pytest.approx(((up @ first[m] @ down) * (up @ second[m] @ down)).sum())


def test_by_hand():
    """up = [[1 0], [0 2]], down = [[3 4], [0 ½]]: Grams diag(1, 4) and [[25 2], [2 ¼]], σ of [[3 4], [0 1]].

    ‖·‖² = 26 and |det| = 3, so σ² solves x² − 26x + 9 = 0: 13 ± √160.
    """
    u = LowRank(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 0.5]]))
    (units,) = units_of([Adapter.of({"q": u})])
    grams = units.grams(balance=False)
    assert grams.up[0].tolist() == [[1, 0], [0, 4]]
    assert grams.down[0].tolist() == [[25, 2], [2, 0.25]]
    sigma = spectrum(grams.up, grams.down).sigma[0]
    assert sigma**2 == pytest.approx([13 + 160**0.5, 13 - 160**0.5])


def steep(rng, sigma, size=90):
    """An update of 80 units with these singular values, its units mixed."""
    left, right = (np.linalg.qr(rng.standard_normal((size, 80)))[0] for _ in range(2))
    mix = np.linalg.qr(rng.standard_normal((80, 80)))[0]
    return LowRank(left * np.sqrt(sigma) @ mix, mix.T @ (np.sqrt(sigma)[:, None] * right.T))


SPECTRA = {
    "slow": np.linspace(1, 0.5, 80),
    "fast": np.geomspace(1, 1e-6, 80),
    "steep at once": np.append(1.0, np.full(79, 1e-9)),
    "flat": np.ones(80),
    "a step": np.repeat([1.0, 1e-3], [12, 68]),
    "of rank 5": np.repeat([1.0, 0.0], [5, 75]),
    "zero": np.zeros(80),
}


@pytest.mark.parametrize("rank", [1, 5, 12, 26, 40])
@pytest.mark.parametrize("sigma", SPECTRA.values(), ids=SPECTRA)
def test_the_leading_units_are_those_of_the_whole_spectrum(sigma, rank):
    u = steep(np.random.default_rng(6), sigma)
    (up, down), grams = grams_of(u)
    some, whole = leading(grams.up, grams.down, rank), spectrum(grams.up, grams.down)
    np.testing.assert_allclose(some.sigma[0], whole.sigma[0, :rank], atol=1e-8)
    remix = grams.remix(*balanced(some, rank))
    lost = np.linalg.norm(up @ remix.core[0] @ down - u.dense()) ** 2
    assert lost <= (sigma[rank:] ** 2).sum() + 1e-13 * max((sigma**2).sum(), 1e-30)


def test_leading_units_do_not_depend_on_the_batch():
    rng = np.random.default_rng(7)
    each = [grams_of(steep(rng, sigma))[1] for sigma in SPECTRA.values()]
    together = leading(*(np.concatenate([getattr(g, side) for g in each]) for side in ("up", "down")), 6)
    for m, grams in enumerate(each):
        alone = leading(grams.up, grams.down, 6)
        for name in ("sigma", "left", "right"):
            assert (getattr(together, name)[m] == getattr(alone, name)[0]).all()
