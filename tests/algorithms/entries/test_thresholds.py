"""The k-th largest of more values than memory holds: exactly one of them, whatever the sample."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge.algorithms.entries.thresholds import Bracket, guessed, largest, look, narrowed

few = settings(max_examples=60, deadline=None, derandomize=True)


def value_sets():
    spread = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=60)
    huge = st.lists(st.floats(0, 1e300), min_size=1, max_size=60)
    tied = st.lists(st.sampled_from([0.0, 1.0, 1.0 + 2**-23, 2.0]), min_size=1, max_size=60)
    return st.one_of(spread, tied, huge)


@few
@given(value_sets(), st.data(), st.sampled_from([np.float32, np.float64]))
def test_the_kth_largest_is_exact_whatever_the_sample(values, data, kind):
    array = np.minimum(values, np.finfo(kind).max).astype(kind)
    rank = data.draw(st.integers(1, len(values)))
    sample = np.array(data.draw(st.lists(st.sampled_from(array.tolist()), min_size=1, max_size=9)), kind)
    found = largest([rank], len(array), sample, lambda: [array[:7], array[7:]])
    assert found == [np.sort(array)[-rank]]


@few
@given(value_sets(), st.data(), st.sampled_from([np.float32, np.float64]))
def test_counting_alone_finds_it_too(values, data, kind):
    """As over a whole adapter, where nothing can be collected."""
    array = np.minimum(values, np.finfo(kind).max).astype(kind)
    rank = data.draw(st.integers(1, len(values)))
    bracket, looks = Bracket(rank), 0
    while isinstance(bracket, Bracket):
        (seen,) = look([bracket], [array], collect=0)
        bracket, looks = narrowed(bracket, seen), looks + 1
    assert bracket == np.sort(array)[-rank]
    assert looks <= 8


def test_a_sample_saves_passes():
    values = np.random.default_rng(0).standard_normal(1 << 20) ** 2
    passes = []

    def pieces():
        passes.append(1)
        yield values

    assert largest([1000, 200000], len(values), values[: 1 << 14], pieces) == [
        np.sort(values)[-1000],
        np.sort(values)[-200000],
    ]
    assert len(passes) == 1
    assert guessed(1, 10, np.array([3.0]), np.array([10.0])).low <= 3.0
