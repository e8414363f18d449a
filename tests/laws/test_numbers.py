"""Types of floats and zeros; sources are left as they were."""

import json

import ml_dtypes
import numpy as np
import pytest

from loramerge import combine
from tests.helpers.adapters import cast, dense, distance, merged, zero
from tests.laws.rows import MERGES, every_method, every_pair, fingerprint, plain, taken


@every_pair
def test_sources_are_left_as_they_were(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    before = [fingerprint(source) for source in sources]
    combine(sources, method, weights=weights, threads=1)
    assert [fingerprint(source) for source in sources] == before


@every_pair
def test_float32_sources_merge_as_float64_ones_do(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    single = merged([cast(source, np.float32) for source in sources], method, weights)
    assert distance(single, plain(sources, method, weights)) < 1e-5


@every_pair
def test_bfloat16_sources_are_rounded_once_at_the_end(method, sources, weights):
    """The written factors are those of the float64 merge of the same values, each rounded once."""
    sources, weights = taken(method, sources, weights)
    stored = [cast(source, ml_dtypes.bfloat16) for source in sources]
    brief = combine(stored, method, weights=weights, threads=1).adapter
    wide = [cast(source, np.float64) for source in stored]
    exact = combine(wide, method, weights=weights, dtype="float64", threads=1).adapter
    assert brief.dtype == "BF16"
    assert fingerprint(brief) == fingerprint(cast(exact, ml_dtypes.bfloat16))
    assert distance(dense(brief), dense(exact)) < 2**-7


@every_method
@pytest.mark.parametrize("untrained", [[0], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("weights", [[1.0, -0.5, 2.0], [1.0, 0.0, 0.0]], ids=str)
def test_zeros_never_become_nan(method, untrained, weights):
    sources = [zero(a) if t in untrained else a for t, a in enumerate(MERGES["three of different rank"][0])]
    sources, weights = taken(method, sources, weights)
    merge = combine(sources, method, weights=weights, threads=1)
    numbers = method.weights(np.array(weights))
    left = [t for t in range(len(sources)) if t not in untrained and numbers[t]]
    for matrix in dense(merge.adapter).values():
        assert np.isfinite(matrix).all()
        assert matrix.any() == bool(left) or (left and method.traits.vanishes)
    assert "NaN" not in json.dumps(merge.report.to_dict())
    assert str(merge.report)
