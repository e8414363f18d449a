"""Stored factors become float64 by the kernel exactly as by NumPy."""

import ml_dtypes
import numpy as np
import pytest

from loramerge.cuda.widen import sendable
from tests.cuda.host import widened

TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_stored_type_is_exact(dtype):
    values = (np.random.default_rng(0).standard_normal((5, 33)) * 10).astype(dtype)

    bits, kind = sendable(values)
    found = widened(bits, 40, kind)

    np.testing.assert_array_equal(found[:, :33], values.astype(np.float64))
    assert (found[:, 33:] == -7).all(), "what lies beside it is left alone"


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
