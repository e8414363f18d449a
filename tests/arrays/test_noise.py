"""Rounding is told from an update: by its energy, and by the strength of its directions."""

import ml_dtypes
import numpy as np
import pytest

from loramerge.arrays.noise import Tally, rounding

TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def noise(dtype, shape=(300, 500)):
    """(weights, what rounding does to them)."""
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return weights, weights.astype(TYPES[dtype]).astype(np.float32) - weights


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_is_explained_by_what_is_expected_of_it(dtype):
    weights, off = noise(dtype)
    expected, sigma = rounding(weights, dtype), np.linalg.svd(off, compute_uv=False)
    assert np.square(off).sum() == pytest.approx(expected.energy, rel=0.1)
    assert sigma[0] ** 2 < 1.1 * expected.edge
    assert expected.explains(float(np.square(off).sum()), float(sigma[0]) ** 2)
    assert expected.above(sigma**2) == 0


def test_an_update_of_the_same_energy_stands_out_by_its_few_directions():
    weights, off = noise("BF16")
    rng = np.random.default_rng(1)
    update = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 500))
    update *= np.linalg.norm(off) / np.linalg.norm(update)
    squares = np.linalg.svd(update, compute_uv=False) ** 2
    expected = rounding(weights, "BF16", "F32")
    assert not expected.explains(float(squares.sum()), float(squares[0]))
    assert expected.above(squares) == 2


WEIGHTS = np.random.default_rng(2).standard_normal((640, 300)).astype(np.float32)
SHAPES = {
    "all alike": np.ones((640, 1), np.float32),
    "all the same": 1 / np.where(WEIGHTS, WEIGHTS, 1),
    "one long row": np.where(np.arange(640)[:, None] == 333, 1000, np.float32(1)),
    "long rows at the end": np.where(np.arange(640)[:, None] > 600, 50, np.float32(1)),
    "nothing at the start": (np.arange(640)[:, None] > 400).astype(np.float32),
    "one long column": np.where(np.arange(300) == 7, 100, np.float32(1)),
    "one entry": np.where((np.arange(640)[:, None] == 77) & (np.arange(300) == 7), 1e6, np.float32(1)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_seen_in_pieces_tells_of_all_rows(shape):
    weights = (SHAPES[shape] * WEIGHTS).astype(np.float32)
    tally, whole = Tally(300), rounding(weights, "BF16")
    for top in range(0, 640, 16):
        tally.add(weights[top : top + 16])
    found = tally.noise("BF16")
    assert found.energy == pytest.approx(whole.energy, rel=0.02)
    assert whole.edge * 0.9 < found.edge < whole.edge * 1.25
