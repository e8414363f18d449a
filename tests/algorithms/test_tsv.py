"""TSV-M by hand, and where the published form depends on what a library makes up."""

import ml_dtypes
import numpy as np
import pytest

from loramerge import Adapter, LowRank, Svd, Tsv
from tests.algorithms.spectral import svd
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import dense, distance, merged, random_adapters, truncated

SHAPES = {"q": (40, 50), "v": (60, 30)}


def test_by_hand():
    """Directions e₁ and [.6 .8], 53.13° apart: each turns by 18.43°; σ = 3 and 1, one weight negative."""
    found = dense_of(unit([3, 0], [1, 0]), unit([0.6, 0.8], [0, 1]), method=Tsv(), weights=[1, -2])
    assert found == pytest.approx(np.sqrt(0.1) * np.array([[9, -2], [-3, -6]]))


def test_copies_share_their_directions_by_hand():
    """Twice e₁e₁ᵀ at 2 and at 4: both directions shrink to e₁/√2, and 2/2 + 4/2 are left."""
    found = dense_of(unit([2, 0], [1, 0]), unit([4, 0], [1, 0]), method=Tsv())
    assert found == pytest.approx(np.array([[3.0, 0.0], [0.0, 0.0]]))


def test_every_unit_keeps_its_strength():
    sources = random_adapters(71, (4, 3, 5), SHAPES)
    for path, matrix in merged(sources, Tsv(), [1.0, -2.0, 0.5]).items():
        each = [
            np.linalg.svd(w * dense(s)[path], compute_uv=False)
            for w, s in zip((1, 2, 0.5), sources, strict=True)
        ]
        wanted = np.sort(np.concatenate([s[:r] for s, r in zip(each, (4, 3, 5), strict=True)]))[::-1]
        assert np.linalg.svd(matrix, compute_uv=False)[:12] == pytest.approx(wanted)


def test_sources_that_do_not_interfere_are_simply_added():
    up, down = np.linalg.qr(np.random.default_rng(72).standard_normal((20, 6)))[0], np.eye(6, 9)
    a, b = (Adapter.of({"q": LowRank(up[:, at] * [3, 2, 1], down[at])}) for at in (slice(3), slice(3, 6)))
    assert distance(merged([a, b], Tsv()), merged([a, b], "linear")) < 1e-12


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_a_rank_keeps_the_strongest_units_whole(rank):
    sources = random_adapters(73, (4, 3), SHAPES)
    whole, cut = merged(sources, Tsv()), merged(sources, Tsv(rank=rank))
    assert distance(cut, {path: truncated(matrix, rank) for path, matrix in whole.items()}) < 1e-9


def published(updates, k):
    """All k columns of an SVD of the full matrix, null space and all."""
    us, sigmas, vs = zip(*(svd(update, k) for update in updates), strict=True)
    (p, _, q), (r, _, t) = (np.linalg.svd(np.hstack(side), full_matrices=False) for side in (us, vs))
    return (p @ q * np.concatenate(sigmas)) @ (r @ t).T


def test_the_published_number_of_units_takes_in_directions_that_no_adapter_has():
    """k = ⌊min(out, in)/T⌋ = 16 of rank 4: the polar factor is moved by null vectors that an SVD made up."""
    sources = random_adapters(74, (4, 4), {"q": (40, 32)})
    updates = [dense(source)["q"] for source in sources]
    ours = merged(sources, Tsv())
    assert distance({"q": published(updates, 4)}, ours) < 1e-9
    assert distance({"q": published(updates, 16)}, ours) > 0.1
    turned = [update[:, ::-1] for update in updates]  # the same task with its inputs in another order
    assert distance({"q": published(turned, 4)[:, ::-1]}, ours) < 1e-9
    assert distance({"q": published(turned, 16)[:, ::-1]}, {"q": published(updates, 16)}) > 0.1


def test_for_copies_the_published_polar_factor_is_no_better_defined():
    """Columns twice over have no nearest orthonormal ones; here n copies come to one."""
    (a,) = random_adapters(75, (4,), {"q": (40, 32)})
    assert distance(merged([a] * 3, Tsv()), dense(a)) < 1e-9
    assert distance({"q": published([dense(a)["q"]] * 3, 4)}, dense(a)) > 0.1


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda k: np.dtype(k).name)
@pytest.mark.parametrize("apart", [0, 1e-6, 1e-5, 1e-4, 1e-3])
def test_near_copies_come_to_one_of_them(kind, apart):
    """Rounding to the stored type, or a step of training that bfloat16 hardly sees, is no direction."""
    rng = np.random.default_rng(77)
    up, down = rng.standard_normal((200, 8)), rng.standard_normal((8, 160))

    def near(matrix):
        return (matrix + apart * rng.standard_normal(matrix.shape)).astype(kind)

    copies = [Adapter.of({"q": LowRank(near(up), near(down))}) for _ in range(5)]
    mean = sum(dense(copy)["q"] for copy in copies) / 5
    assert distance(merged(copies, Tsv()), {"q": mean}) < 1e-2
    if apart == 1e-3:
        assert distance(merged(copies, Tsv(rank_tol=1e-5)), {"q": mean}) > 1.5


def test_directions_that_differ_by_more_are_pushed_apart():
    angle = 0.02
    a, b = unit([3, 0], [1, 0]), unit([np.cos(angle), np.sin(angle)], [0, 1])
    found = dense_of(a, b, method=Tsv())
    assert np.linalg.svd(found, compute_uv=False) == pytest.approx([3, 1])


def test_a_weak_unit_is_kept_whatever_the_tolerance_of_directions():
    a = Adapter.of({"q": LowRank(np.diag([1.0, 1e-4]), np.eye(2))})
    assert merged([a], Tsv())["q"] == pytest.approx(np.diag([1.0, 1e-4]))


def test_fewer_units_of_every_source_are_those_of_their_best_approximations():
    sources = random_adapters(76, (5, 2, 4), SHAPES)
    best = [Svd(rank=3)] * 3
    cut = [
        Adapter.of({p: LowRank(*factors(m)) for p, m in merged([s], method).items()})
        for s, method in zip(sources, best, strict=True)
    ]
    assert distance(merged(sources, Tsv(per_source=3)), merged(cut, Tsv())) < 1e-9


def factors(matrix):
    u, sigma, v = svd(matrix, 3)
    return u * sigma, v.T
