"""Factors found from a sketch lose what the best ones lose, whatever the spectrum."""

import numpy as np
import pytest

from loramerge.algorithms.families import krylov
from loramerge.algorithms.families.krylov import leading, sketched
from loramerge.arrays.workers import workers
from loramerge.checkpoints.difference import OF_LOST

SHAPE = 400, 260  # above that of which a whole SVD is made


@pytest.fixture(autouse=True)
def an_eighth(monkeypatch):
    """Of the rows of so small a matrix, as of a large one."""
    monkeypatch.setattr(krylov, "ENOUGH", 1)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker: more threads wait for each other."""
    with workers(1):
        yield


def scattered(rng, count):
    """1 at so many rows, which a sketch may add up with each other, and 0 elsewhere."""
    return (rng.permutation(SHAPE[0]) < count).astype(float)


def alike(rng, count, times):
    """Rows at right angles, of so many times the energy of others: which are best is hard to tell."""
    found, where = rng.standard_normal(SHAPE), rng.permutation(SHAPE[0])[:count]
    found[where] = np.linalg.qr(rng.standard_normal((SHAPE[1], count)))[0].T * np.sqrt(times * SHAPE[1])
    return found


def matrices():
    rng = np.random.default_rng(5)
    u, v = (np.linalg.qr(rng.standard_normal((n, SHAPE[1])))[0] for n in SHAPE)
    row = rng.standard_normal((1, SHAPE[1]))
    noise = rng.standard_normal(SHAPE)
    return {
        "noise": noise,
        **{f"i to the -{p}": (u * np.arange(1, SHAPE[1] + 1) ** -p) @ v.T for p in (0.1, 0.3, 0.7, 2.0)},
        "a few strong ones in noise": (u[:, :60] * np.arange(1, 61) ** -0.7) @ v[:, :60].T + 0.01 * noise,
        "equal values": u @ v.T,
        "values on a diagonal, of which most are equal": np.eye(*SHAPE) * np.where(np.arange(260) % 4, 2, 1),
        "low rank": noise[:, :5] @ noise[:5],
        "few rows": np.where(np.arange(SHAPE[0])[:, None] < 5, noise, 0),
        "more rows than units": scattered(rng, 70)[:, None] * noise,
        "strong rows in noise": (1e-2 + scattered(rng, 40)[:, None]) * noise,
        "rows of six times the energy": np.sqrt(1 + 5 * scattered(rng, 40)[:, None]) * noise,
        **{f"{n} equal rows of eight times the energy": alike(rng, n, 8) for n in (36, 40, 64, 90)},
        "few entries, one in a row": np.eye(*SHAPE) * scattered(rng, 90)[:, None] * noise,
        "few equal entries": np.eye(*SHAPE) * scattered(rng, 90)[:, None],
        "rows that come twice": np.vstack([noise[:200]] * 2),
        "two strong rows that a sketch may take from each other": np.vstack(
            [row, np.zeros((99, SHAPE[1])), row, 1e-3 * noise[:299]]
        ),
    }


@pytest.mark.parametrize("kind", matrices())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_the_excess_over_the_best_is_within_what_is_asked(kind, dtype, turned):
    matrix = matrices()[kind].T if turned else matrices()[kind]
    sigma = np.linalg.svd(matrix, compute_uv=False)
    whole, digits = (sigma**2).sum(), 1e-12 if dtype is np.float32 else 1e-20
    for rank in (1, 8, 32, 64):
        left, right = leading(matrix.astype(dtype), rank, digits, OF_LOST)
        lost, least = np.square(matrix - left.astype(float) @ right).sum(), (sigma[rank:] ** 2).sum()
        assert least * (1 - 1e-9) - digits * whole < lost < least * 1.001 + digits * whole
        assert np.allclose(right @ right.T, np.eye(len(right)), atol=1e-5)


def test_a_sketch_keeps_every_row_and_an_eighth_of_the_size():
    matrix = np.random.default_rng(0).standard_normal((401, 7))
    sketch = sketched(matrix).matrix
    assert len(sketch) <= 401 / 7
    assert np.square(sketch).sum() == pytest.approx(np.square(matrix).sum(), rel=0.2)
    for row in range(401):
        assert np.abs(sketched(matrix * (np.arange(401) == row)[:, None]).matrix).sum() > 0


def test_a_sketch_of_a_small_matrix_is_no_smaller_than_what_is_enough(monkeypatch):
    monkeypatch.setattr(krylov, "ENOUGH", 256)
    assert len(sketched(np.ones((401, 7))).matrix) >= 256
    assert len(sketched(np.ones((100, 7))).matrix) == 100


def test_rows_of_one_head_are_not_added_to_each_other():
    matrix = np.zeros((4096, 5), np.float32)
    matrix[512:768] = np.random.default_rng(0).standard_normal((256, 5))
    sketch = krylov.Sketch(matrix.shape, 32, matrix)
    for top in range(0, 4096, 32):
        sketch.add(matrix[top : top + 32], top)
    assert (np.abs(sketch.matrix).sum(axis=1) > 0).sum() == 256


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_that_others_span_add_nothing(dtype):
    others = np.linalg.qr(np.random.default_rng(0).standard_normal((90, 6)))[0].astype(dtype)
    new = krylov._orthonormal(others[:, :2] + others[:, 3:5], 1e-5, others)
    assert new.shape == (90, 0)
    both = np.hstack([others[:, :2], np.eye(90, 3, dtype=dtype)])
    new = krylov._orthonormal(both, 1e-5, others)
    assert new.shape == (90, 3)
    assert np.allclose(new.T @ new, np.eye(3), atol=1e-6)
    assert np.abs(others.T @ new).max() < 1e-6
