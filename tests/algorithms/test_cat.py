import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine
from loramerge.errors import UsageError


def test_by_hand():
    """2·[1 0]ᵀ[1 2] − 3·[1 1]ᵀ[0 1] = [[2 1], [0 −3]], and its two units lie side by side."""
    a = Adapter.of({"q": LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 2.0]]), scale=2.0)})
    b = Adapter.of({"q": LowRank(np.array([[1.0], [1.0]]), np.array([[0.0, 1.0]]))})
    merge = combine([a, b], "cat", weights=[1, -3]).adapter[Target("q")]
    assert merge.dense().tolist() == [[2, 1], [0, -3]]
    units = [np.outer(merge.up[:, i], merge.down[i]).tolist() for i in range(merge.rank)]
    assert units == [[[2, 4], [0, 0]], [[0, -3], [0, -3]]]


@pytest.mark.parametrize("option", ["rank", "energy"])
def test_it_has_no_size(option):
    with pytest.raises(
        UsageError, match=f"{option} is an option of linear, average, svd, lego.*, not of cat"
    ):
        combine([Adapter.of({"q": LowRank(np.ones((2, 1)), np.ones((1, 2)))})], "cat", **{option: 1})
