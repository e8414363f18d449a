"""Iso-CTS by hand and its limits; against the plain loop in families/test_span.py."""

import numpy as np
import pytest

from loramerge import IsoC, IsoCTS, UsageError
from tests.algorithms.spectral import rank_of
from tests.algorithms.test_iso_c import dense_of, unit
from tests.helpers.adapters import distance, merged, random_adapters

PAIR = unit([3, 0], [1, 0]), unit([0.6, 0.8], [0, 1])
SHAPES = {"q": (40, 50), "v": (60, 30)}


def test_without_a_common_part_by_hand():
    """Directions e₁ and [.6 .8], 53.13° apart: each turns by 18.43° away from the other. σ̄ = (3 + 1)/2."""
    turned = np.sqrt(0.1) * np.array([[3, 1], [-1, 3]])
    assert dense_of(*PAIR, method=IsoCTS(common=0.0)) == pytest.approx(2 * turned)


def test_with_a_common_part_only_it_is_iso_c_by_hand():
    assert dense_of(*PAIR, method=IsoCTS(common=1.0)) == pytest.approx(np.array([[1.9, 0.3], [-0.3, 1.9]]))


@pytest.mark.parametrize("ranks", [(8,), (3, 3), (1, 1, 1, 1)], ids=str)
def test_one_source_or_few_directions_give_iso_c(ranks):
    """Of one source the residual holds just what was left out; of six directions and two, s = round(2/2)."""
    sources = random_adapters(63, ranks, SHAPES)
    found = distance(merged(sources, IsoCTS()), merged(sources, IsoC()))
    assert found < 1e-9 if len(ranks) != 2 else found > 1e-2


@pytest.mark.parametrize("common", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("ranks", [(8, 8, 8), (7, 5, 6)], ids=str)
def test_it_takes_as_many_directions_as_the_sum_has(common, ranks):
    """No more: ⌊·⌋ and rounding could ask for one too many, and the published code then takes s·T > n."""
    sources = random_adapters(64, ranks, SHAPES)
    for matrix in merged(sources, IsoCTS(common=common)).values():
        assert sum(ranks) - len(ranks) <= rank_of(matrix, 1e-9) <= sum(ranks)


def test_a_weak_source_has_its_direction_among_those_kept():
    """Beside two that are 1000 times as strong, at full strength."""
    strong, other, weak = random_adapters(65, (8, 8, 2), {"q": (40, 50)})
    weights = [1.0, 1.0, 1e-3]
    (merge,) = merged([strong, other, weak], IsoCTS(common=0.8), weights).values()
    (ties,) = merged([weak], IsoC()).values()
    u, _, vt = np.linalg.svd(ties)
    assert u[:, 0] @ merge @ vt[0] > 0.5 * np.linalg.norm(merge, 2)


def test_a_share_above_one_is_refused():
    with pytest.raises(UsageError, match=r"common=1.2 is not in the range 0<=x<=1"):
        IsoCTS(common=1.2)
