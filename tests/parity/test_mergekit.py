"""Our dense merges are mergekit's where it is right; `make_golden.py` made the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge import Adapter, Breadcrumbs, LowRank, Sce, Ties
from tests.helpers.adapters import merged

GOLDEN = Path(__file__).with_name("mergekit-0.1.5.npz")
WEIGHTS = [1.0, 0.5, 2.0]
CROWDED = Breadcrumbs(density=0.9, gamma=0.3, rank=20)
CASES = {
    "ties": (Ties(density=0.3, rank=20), WEIGHTS),
    "ties_all": (Ties(density=1.0, rank=20), WEIGHTS),
    "ties_summed": (Ties(density=0.5, divisor="none", rank=20), WEIGHTS),
    "ties_equal": (Ties(rank=20), None),
    "sce": (Sce(rank=20), None),
    "sce_half": (Sce(density=0.5, rank=20), None),
    "sce_tenth": (Sce(density=0.1, rank=20), None),
    "breadcrumbs": (Breadcrumbs(density=0.4, gamma=0.05, rank=20), WEIGHTS),
    "breadcrumbs_crowded": (CROWDED, WEIGHTS),
    "breadcrumbs_ties": (Breadcrumbs(density=0.4, gamma=0.05, election="weighted", rank=20), WEIGHTS),
}


def sources(golden, kind=np.float64):
    pairs = [(golden[f"up{t}"].astype(kind), golden[f"down{t}"].astype(kind)) for t in range(3)]
    return [Adapter.of({"q": LowRank(*pair)}, f"source{t}") for t, pair in enumerate(pairs)]


@pytest.mark.parametrize("name", CASES)
def test_the_merge_is_that_of_mergekit(name):
    golden = np.load(GOLDEN)
    method, weights = CASES[name]
    found = merged(sources(golden), method, weights)["q"]
    np.testing.assert_allclose(found, golden[name], atol=2e-5 * np.abs(golden[name]).max())


def test_every_golden_merge_is_compared():
    factors = {f"{side}{t}" for side in ("up", "down") for t in range(3)}
    assert set(np.load(GOLDEN).files) == set(CASES) | factors
