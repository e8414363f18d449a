"""Stored factors become float64 by the kernel exactly as by NumPy."""

import ml_dtypes
import numpy as np
import pytest

from loramerge.cuda.widen import launch, sendable
from tests.cuda.host import widened
from tests.cuda.stand_in import installed
from tests.helpers.device import AWAY, down

EVERY = [1, 31, 32, 33, 64, 112, 168, 512]  # units
TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_stored_type_is_exact(dtype):
    values = (np.random.default_rng(0).standard_normal((5, 33)) * 10).astype(dtype)

    bits, kind = sendable(values)
    found = widened(bits, 40, kind)

    np.testing.assert_array_equal(found[:, :33], values.astype(np.float64))
    assert (found[:, 33:] == -7).all(), "what lies beside it is left alone"


@pytest.mark.parametrize("units", EVERY)
@pytest.mark.parametrize("turned", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("threads", [32, 256])
def test_so_is_every_size(units, turned, threads):
    """Beside zeros, and numbers that are none."""
    values = np.random.default_rng(units).standard_normal((units, 5)).astype(np.float32)
    values[0] = np.nan, np.inf, -np.inf, 0.0, -0.0
    values = values.T if turned else values

    bits, kind = sendable(values)
    found = widened(bits, values.shape[1] + 3, kind, threads)

    np.testing.assert_array_equal(found[:, : values.shape[1]], values.astype(np.float64))
    assert (found[:, values.shape[1] :] == -7).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_exact(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 256)

    bits, kind = sendable(values)

    with np.errstate(invalid="ignore"):
        wanted = values.astype(np.float64)
    np.testing.assert_array_equal(widened(bits, 256, kind), wanted)


def test_a_slice_is_sent_dense():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]

    bits, kind = sendable(values)

    assert bits.flags.c_contiguous
    np.testing.assert_array_equal(widened(bits, 3, kind), values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_subnormal_numbers_stay(dtype):
    least = ml_dtypes.finfo(dtype).smallest_subnormal
    values = np.array([[least, -least, 3 * least]], dtype)

    bits, kind = sendable(values)

    assert (values != 0).all()
    np.testing.assert_array_equal(widened(bits, 3, kind), values.astype(np.float64))


class TestTheLauncher:
    """What does not fit never reaches the kernel."""

    @pytest.fixture(autouse=True)
    def _cupy(self, monkeypatch):
        with installed(monkeypatch):
            yield

    def test_it_fills_a_slice_of_wider_rows(self):
        out, bits = AWAY.zeros((4, 7)), AWAY.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))

        launch(bits, out[:, 2:5], 1)

        np.testing.assert_array_equal(down(out)[:, 2:5], np.arange(12.0).reshape(4, 3))
        assert (down(out)[:, [0, 1, 5, 6]] == 0).all()

    @pytest.mark.parametrize(
        ("bits", "place", "kind", "named"),
        [
            (np.zeros((4, 3), np.float32), np.zeros((4, 3)), 0, "bits is float32"),
            (np.zeros((4, 3)), np.zeros((4, 3)), 1, "bits is float64"),
            (np.zeros((4, 3)), np.zeros((4, 3)), 3, "bits is float64"),
            (np.zeros((4, 3), np.float16), np.zeros((4, 3)), 2, "bits is float16"),
            (np.zeros((4, 3)), np.zeros((4, 3)), 7, "no kind 7"),
            (np.zeros((3, 4)), np.zeros((4, 3)), 0, "bits is float64"),
            (np.zeros((4, 6))[:, ::2], np.zeros((4, 3)), 0, "bits is float64"),
            (np.zeros((4, 3)), np.zeros((4, 3), np.float32), 0, "place is float32"),
            (np.zeros((4, 3)), np.zeros((1, 4, 3)), 0, "place is float64"),
            (np.zeros((4, 3)), np.zeros((4, 6))[:, ::2], 0, "strides"),
            (np.zeros((4, 3)), np.zeros((3, 4)).T, 0, "strides"),
        ],
    )
    def test_shapes_and_types_are_checked(self, bits, place, kind, named):
        moved = AWAY.asarray(np.zeros(1)), AWAY.asarray(np.zeros(1))
        moved[0]._array, moved[1]._array = bits, place  # views, as they are

        with pytest.raises(ValueError, match=f"widen: .*{named}"):
            launch(*moved, kind)
