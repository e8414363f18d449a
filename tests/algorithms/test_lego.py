"""LEGO against a plain loop over units, and by hand."""

import numpy as np
import pytest

from loramerge import Adapter, Lego, LowRank, Target, combine
from loramerge.arrays.frames import framed
from loramerge.errors import UsageError
from tests.helpers.adapters import distance, merged, random_adapters, units_of


def unit(up, down):
    return Adapter.of({"q": LowRank(np.array(up, float)[:, None], np.array(down, float)[None])})


def dense_of(*sources, **options):
    return combine(sources, Lego(**options)).adapter[Target("q")].dense()


# --- by hand ----------------------------------------------------------------------------------------


def test_intrinsic_by_hand():
    """Units 10·e₁e₂ᵀ, 4·e₁e₁ᵀ, 3·e₂e₂ᵀ; squared distances 116, 109 and 25: the last two are a cluster.

    Its sum is diag(4, 3), of which the best unit is 4·e₁e₁ᵀ. The sum of all is [[4 10], [0 3]], so 9/125
    of it is lost.
    """
    sources = [unit([10, 0], [0, 1]), unit([4, 0], [1, 0]), unit([0, 3], [0, 1])]
    merge = combine(sources, "lego", rank=2)
    assert merge.adapter[Target("q")].dense() == pytest.approx(np.array([[4.0, 10.0], [0.0, 0.0]]), abs=1e-12)
    assert merge.report.energy_lost == pytest.approx(9 / 125)


ONE_CLUSTER = [unit([4, 0], [1, 0]), unit([0, 2], [1, 0])]  # [b; a] = [4 0 1 0] and [0 2 1 0]
MEAN = np.array([[2.0, 0.0], [1.0, 0.0]])  # of them: b = [2 1], a = [1 0]
BY_HAND = {  # (options, factor of MEAN): each half is stretched, so the stretch is squared
    "ctm: peaks (4 + 2)/2 over 2, √(2/1)": ({"variant": "ctm"}, 1.5**2 * 2**0.5),
    "nsc: peaks (4 + 2)/2 over 2, √(1/1)": ({"variant": "nsc"}, 1.5**2),
    "lengths (√17 + √5)/2 over √6": (
        {"variant": "ctm", "rescale": "l2", "gain": "none"},
        (17**0.5 + 5**0.5) ** 2 / 24,
    ),
    "nothing": ({"variant": "nsc", "rescale": "none", "gain": "none"}, 1.0),
}


@pytest.mark.parametrize(("options", "factor"), BY_HAND.values(), ids=BY_HAND)
def test_published_by_hand(options, factor):
    assert dense_of(*ONE_CLUSTER, rank=1, **options) == pytest.approx(factor * MEAN)


FEATURES = {
    "raw: the short ones are close": ("raw", [[100.25, 0.25], [0.25, 0.25]]),
    "normalised: the parallel ones are": ("normalised", [[5.5**2, 0.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize(("features", "expected"), FEATURES.values(), ids=FEATURES)
def test_published_features_by_hand(features, expected):
    """Units e₁e₁ᵀ, 10e₁·10e₁ᵀ, e₂e₂ᵀ in two clusters: {1, 3} with mean ½[1 1 1 1], or {1, 2} with 5.5·e₁."""
    sources = [unit([1, 0], [1, 0]), unit([10, 0], [10, 0]), unit([0, 1], [0, 1])]
    options = {"variant": "ctm", "rescale": "none", "gain": "none", "features": features}
    assert dense_of(*sources, rank=2, **options) == pytest.approx(np.array(expected))


def test_a_weight_lengthens_a_published_unit_without_turning_it():
    """[b; a] of weight −4 is [−2b; 2a]."""
    source = unit([1, 2], [3, 4])
    merge = combine([source], Lego(variant="ctm"), weights=[-4]).adapter[Target("q")]
    assert merge.up.ravel() == pytest.approx([-2, -4])
    assert merge.down.ravel() == pytest.approx([6, 8])


def test_intrinsic_units_come_strongest_first():
    source = Adapter.of({"q": LowRank(np.eye(3), np.diag([1.0, 9.0, 4.0]))})
    update = combine([source], "lego").adapter[Target("q")]
    assert np.linalg.norm(update.up, axis=0) == pytest.approx([3, 2, 1])


@pytest.mark.parametrize("option", [{"rescale": "inf"}, {"gain": "none"}], ids=str)
def test_intrinsic_is_neither_stretched_nor_amplified(option):
    with pytest.raises(UsageError, match="rescale and gain belong to variant=ctm and variant=nsc"):
        Lego(**option)


# --- against a plain loop ---------------------------------------------------------------------------


def raw_units(sources, weights, target):
    """Every [b; a], scale on b, √|w| on both and the sign on b."""
    for source, weight in zip(sources, weights, strict=True):
        update = source[target]
        for i in range(update.rank):
            b, a = update.scale * update.up[:, i], update.down[i]
            yield np.sign(weight) * abs(weight) ** 0.5 * b, abs(weight) ** 0.5 * a


def svd_units(sources, weights, target):
    """Every balanced singular unit of w ΔW, by dense SVD."""
    for source, weight in zip(sources, weights, strict=True):
        u, sigma, vt = np.linalg.svd(weight * source[target].dense())
        for i in range(source[target].rank):
            yield u[:, i] * sigma[i] ** 0.5, vt[i] * sigma[i] ** 0.5


def direction(x):
    return x / np.linalg.norm(x)


def inner(first, second, method, features):
    """⟨,⟩ of what k-means sees of two units (b, a)."""
    pairs = list(zip(first, second, strict=True))
    if features == "normalised":
        pairs = [(direction(x), direction(y)) for x, y in pairs]
    up, down = (x @ y for x, y in pairs)
    return up * down if method.variant == "intrinsic" else up + down


def clusters(method, features, pairs, sources, weights, target):
    """Lists of units, from the labels that k-means finds for the plain kernel."""
    (batch,) = units_of(sources)
    plain = batch.grams(balance=method.frame != "stored")
    grams = method.weigh(framed(plain, method.frame), np.array(weights))
    module = batch.targets.index(target)
    kernel = np.array(grams.kernel)
    kernel[module] = [[inner(x, y, method, features) for y in pairs] for x in pairs]
    member = method._member(grams, kernel)[module]
    return [[pairs[i] for i in np.flatnonzero(column)] for column in member.T if column.any()]


def length(x, rescale):
    return np.linalg.norm(x, np.inf if rescale == "inf" else 2)


def published(method, features, rescale, gain, sources, weights, target):
    """A direct reading of the two published codes, one cluster at a time."""
    pairs = list(raw_units(sources, weights, target))
    found = clusters(method, features, pairs, sources, weights, target)
    total = 0.0
    for cluster in found:
        concat = [np.concatenate(pair) for pair in cluster]
        mean = np.mean(concat, axis=0)
        if rescale != "none":
            mean = mean * np.mean([length(x, rescale) for x in concat]) / length(mean, rescale)
        outs = len(cluster[0][0])
        total += np.outer(mean[:outs], mean[outs:])
    share = {"sqrt-N/k": len(pairs), "sqrt-r/k": len(pairs) / len(sources), "none": len(found)}[gain]
    return total * (share / len(found)) ** 0.5


def intrinsic(method, features, sources, weights, target):
    """The best unit of every cluster's dense sum."""
    pairs = list(svd_units(sources, weights, target))
    total = 0.0
    for cluster in clusters(method, features, pairs, sources, weights, target):
        u, sigma, vt = np.linalg.svd(sum(np.outer(b, a) for b, a in cluster))
        total += sigma[0] * np.outer(u[:, 0], vt[0])
    return total


CASES = {
    "equal ranks": (random_adapters(21, (3, 3, 3), scale=0.5), [1.0, 1.0, 1.0]),
    "mixed ranks and signs": (random_adapters(22, (4, 2, 5), scale=2.0), [0.5, -1.0, 2.0]),
    "one source": (random_adapters(23, (6,)), [1.0]),
}
every_case = pytest.mark.parametrize(("sources", "weights"), CASES.values(), ids=CASES)
every_feature = pytest.mark.parametrize("features", ["raw", "normalised"])


@every_case
@every_feature
@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_intrinsic_is_the_plain_loop(sources, weights, features, rank):
    method = Lego(rank=rank, features=features, seed=rank)
    expected = {str(t): intrinsic(method, features, sources, weights, t) for t in sources[0]}
    assert distance(merged(sources, method, weights), expected) < 1e-9


@every_case
@every_feature
@pytest.mark.parametrize("variant", ["ctm", "nsc"])
@pytest.mark.parametrize("rescale", ["inf", "l2", "none"])
@pytest.mark.parametrize("gain", ["sqrt-N/k", "sqrt-r/k", "none"])
def test_published_are_the_plain_loop(sources, weights, variant, features, rescale, gain):
    method = Lego(variant=variant, features=features, rescale=rescale, gain=gain, rank=4, seed=3)
    expected = {str(t): published(method, features, rescale, gain, sources, weights, t) for t in sources[0]}
    assert distance(merged(sources, method, weights), expected) < 1e-12


PUBLISHED = {"ctm": ("raw", "inf", "sqrt-N/k"), "nsc": ("normalised", "inf", "sqrt-r/k")}


@every_case
@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_variants_have_the_published_defaults(sources, weights, variant):
    features, rescale, gain = PUBLISHED[variant]
    said = Lego(variant=variant, features=features, rescale=rescale, gain=gain, rank=3)
    assert (
        distance(merged(sources, Lego(variant=variant, rank=3), weights), merged(sources, said, weights)) == 0
    )
