"""The refit and the spectra of a full matrix, against its whole SVD."""

import numpy as np
import pytest

from loramerge.algorithms.families.refit import refit, squares
from loramerge.algorithms.families.size import common_rank
from loramerge.arrays.workers import workers


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: more threads wait for each other."""
    with workers(1):
        yield


def hard(kind):
    rng = np.random.default_rng(0)
    shape = 220, 260
    low = rng.standard_normal((shape[0], 12)) @ rng.standard_normal((12, shape[1]))
    return {
        "a trimmed sum": np.where(np.abs(low) > 4, low, 0),
        "noise": rng.standard_normal(shape),
        "low rank and noise": low + 0.5 * rng.standard_normal(shape),
        "equal values": np.linalg.qr(rng.standard_normal((260, 220)))[0].T,
        "low rank": low,
        "one entry": np.eye(*shape, 7) * (np.arange(260) == 12),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["a trimmed sum", "noise", "low rank and noise", "equal values", "low rank", "one entry"]
)
@pytest.mark.parametrize("rank", [1, 16, 64, 220])
@pytest.mark.parametrize("start", ["span", "nothing", "wrong"])
def test_a_refit_loses_what_the_best_one_loses(kind, rank, start):
    matrix = hard(kind)
    begun = {"span": matrix[:12], "nothing": matrix[:0], "wrong": np.eye(260)[250:]}[start]
    best = np.linalg.svd(matrix, compute_uv=False)
    least = float((best[rank:] ** 2).sum())
    fit = refit(matrix, rank, begun)
    assert fit.up.shape == (220, rank)
    assert fit.whole == pytest.approx((matrix**2).sum())
    lost = float(((matrix - fit.up @ fit.down) ** 2).sum())
    assert lost <= least + 1e-6 * fit.whole
    assert fit.cut == pytest.approx(lost, abs=1e-9 * fit.whole)
    np.testing.assert_allclose(squares(matrix), best**2, atol=1e-10 * fit.whole)


@pytest.mark.parametrize("kind", ["a trimmed sum", "noise", "low rank and noise", "equal values", "low rank"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_share_of_the_spectrum_needs_as_many_units_as_the_whole_says(kind, share):
    matrix = hard(kind)
    every, some = squares(matrix), squares(matrix, share, matrix[:12])
    assert some.sum() == pytest.approx(every.sum())
    assert common_rank([some[None]], share - 1e-5) <= common_rank([every[None]], share)
    assert common_rank([some[None]], share) >= common_rank([every[None]], share)


def test_a_refit_in_float32_is_as_good_to_its_digits():
    matrix = hard("a trimmed sum")
    least = float((np.linalg.svd(matrix, compute_uv=False)[16:] ** 2).sum())
    fit = refit(matrix.astype(np.float32), 16, matrix[:12].astype(np.float32))
    lost = float(((matrix - fit.up @ fit.down) ** 2).sum())
    assert lost <= least + 1e-6 * fit.whole
    assert fit.cut == pytest.approx(lost, abs=1e-6 * fit.whole)
