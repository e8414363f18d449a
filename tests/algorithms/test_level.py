"""Level is its formula on dense matrices, and its strength is the one that it states, at any rank."""

import numpy as np
import pytest

import loramerge as lm
from loramerge import Adapter, Level, Target
from tests.helpers.adapters import distance, merged, random_adapters, truncated, zero

LARGE = {"q": (48, 64), "v": (40, 36)}
THREE = random_adapters(41, (8, 3, 5), LARGE)
UNEVEN = [
    adapter
    for t, c in enumerate((0.1, 1.0, 30.0))
    for adapter in random_adapters(49 + t, (4,), LARGE, scale=c)
]
CASES = {
    "mixed ranks": (THREE, [1.0, 1.0, 1.0]),
    "weights and signs": (THREE, [0.5, -1.0, 2.0]),
    "very different strengths": (UNEVEN, [1.0, 1.0, 1.0]),
    "one silent": ([*THREE, zero(THREE[0])], [1.0, 2.0, 1.0, 1.0]),
    "one at weight 0": ([*THREE, *random_adapters(46, (4,), LARGE)], [1.0, 2.0, 1.0, 0.0]),
    "one module in one source only": (
        [*random_adapters(47, (5, 6), {"q": (30, 20)}), *random_adapters(48, (4,), {"v": (12, 9)})],
        [1.0, -1.0, 2.0],
    ),
}
every_case = pytest.mark.parametrize(("sources", "weights"), CASES.values(), ids=CASES)


def dense(adapter, path):
    return adapter[Target(path)].dense() if Target(path) in adapter else np.zeros((1, 1))


def whitened(units, shrink):
    values, vectors = np.linalg.eigh((1 - shrink) * units.T @ units + shrink * np.eye(units.shape[1]))
    return units @ (vectors / np.sqrt(values)) @ vectors.T


def formula(sources, weights, scope="adapter", shrink=0.3, power=0.75, fade=0.3, rank=None):
    """The docstring of Level, with every matrix written out."""
    merge = {}
    norms = []
    for source in sources:
        own = [np.linalg.norm(source[target].dense()) for target in source]
        norms.append(np.sqrt(np.mean(np.square([each for each in own if each > 0]))) if any(own) else 0.0)
    for path in sorted({target.path for source in sources for target in source}):
        us, sigmas, vs, lengths = [], [], [], []
        for source, weight, norm in zip(sources, weights, norms, strict=True):
            update = dense(source, path)
            length = np.linalg.norm(update)
            if weight == 0 or length == 0:
                continue
            u, sigma, vt = np.linalg.svd(update, full_matrices=False)
            kept = sigma > 1e-9 * sigma[0]
            us, vs, lengths = [*us, u[:, kept]], [*vs, vt[kept].T], [*lengths, abs(weight) * length]
            level = sigma[kept] * abs(weight) / (norm if scope == "adapter" else length)
            sigmas.append(np.sign(weight) * level**power)
        if len(us) == 1:
            made = next(
                w * dense(s, path)
                for s, w in zip(sources, weights, strict=True)
                if w and dense(s, path).any()
            )
            merge[path] = truncated(made, rank)
            continue
        made = (whitened(np.hstack(us), shrink) * np.concatenate(sigmas)) @ whitened(np.hstack(vs), shrink).T
        made = truncated(made, rank)
        merge[path] = made * np.mean(lengths) * len(lengths) ** -fade / np.linalg.norm(made)
    return merge


@every_case
@pytest.mark.parametrize("scope", ["adapter", "module"])
@pytest.mark.parametrize("rank", [None, 4])
def test_level_is_its_formula(sources, weights, scope, rank):
    options = {"shrink": 0.5, "power": 0.6, "fade": 0.3, "scope": scope, "rank": rank}
    assert distance(merged(sources, Level(**options), weights), formula(sources, weights, **options)) < 1e-8


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_small_rank_is_as_strong_as_a_large_one(rank):
    merge = lm.combine(THREE, "level", rank=rank).adapter
    for target in merge:
        each = [np.linalg.norm(source[target].dense()) for source in THREE]
        assert merge[target].norm() == pytest.approx(np.mean(each) * 3**-0.3)


@pytest.mark.parametrize("scope", ["adapter", "module"])
def test_a_stronger_adapter_has_no_larger_share(scope):
    """Ten times one source: the merge is stronger, and has the same direction."""
    louder = Adapter.of({target.path: 10.0 * THREE[0][target] for target in THREE[0]}, "louder")
    plain, other = (merged(each, Level(scope=scope)) for each in (THREE, [louder, *THREE[1:]]))
    for path, update in plain.items():
        assert other[path] / np.linalg.norm(other[path]) == pytest.approx(update / np.linalg.norm(update))
        assert np.linalg.norm(other[path]) > np.linalg.norm(update)


def test_a_weight_gives_an_adapter_a_larger_share():
    (first, *_), target = THREE, Target("q")
    shares = [
        lm.combine(THREE, "level", weights=[w, 1, 1]).adapter[target].inner(first[target])
        for w in (0.5, 1, 2)
    ]
    assert shares == sorted(shares)


def test_an_adapter_that_learned_next_to_nothing_is_told_of():
    """It would be a half of the merge; with a weight of 0 it is none of it."""
    faint = Adapter.of({target.path: 1e-4 * THREE[0][target] for target in THREE[0]}, "faint")
    told = [note for note in lm.combine([THREE[1], faint]).report.notes if "hundredth" in note]
    assert told
    assert told[0].startswith("source 2 has less than a hundredth")
    for quiet in (
        lm.combine([THREE[1], faint], "level", weights=[1, 0]),
        lm.combine([THREE[1], faint], "linear"),
        lm.combine(THREE),
        lm.combine(UNEVEN[1:]),
    ):
        assert not any("hundredth" in note for note in quiet.report.notes)
