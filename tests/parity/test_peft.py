"""Our dense merges are those of PEFT's rules applied to ΔW, as its `ties_svd` does before the SVD."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge import DareTies, Magnitude, Ties
from tests.helpers.adapters import cast, dense, merged, random_adapters

torch = pytest.importorskip("torch")
rules = pytest.importorskip("peft.utils.merge_utils")
WEIGHTS = [1.0, 0.5, 2.0]
WHOLE = pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
CASES = {
    "ties": (
        Ties(density=0.3, election="raw", divisor="count", rank=20),
        lambda t, w: rules.ties(t, w, 0.3, "total"),
    ),
    "ties, frequency": (
        Ties(density=0.6, election="count", divisor="count", rank=20),
        lambda t, w: rules.ties(t, w, 0.6, "frequency"),
    ),
    "magnitude_prune": (Magnitude(density=0.4, rank=20), lambda t, w: rules.magnitude_prune(t, w, 0.4)),
    "dare_ties that drops nothing": (
        DareTies(density=1.0, election="raw", divisor="count", rank=20),
        lambda t, w: rules.dare_ties(t, w, 1.0, "total"),
    ),
}


@WHOLE
@pytest.mark.parametrize(("method", "theirs"), CASES.values(), ids=CASES)
def test_the_merge_is_that_of_peft(method, theirs):
    """PEFT elects + where the votes cancel, as only one vote each can here: that is left out."""
    sources = [cast(s, np.float32) for s in random_adapters(7, (3, 4, 2), {"q": (24, 20)})]
    deltas = [dense(source)["q"].astype(float) for source in sources]
    wanted = theirs([torch.from_numpy(d) for d in deltas], torch.tensor(WEIGHTS)).numpy()
    found = merged([cast(s, np.float64) for s in sources], method, WEIGHTS)["q"]
    if method != CASES["ties, frequency"][0]:
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
        return
    limits = [np.sort(np.abs(d).ravel())[-int(0.6 * d.size)] for d in deltas]
    votes = sum(np.sign(d) * (np.abs(d) >= low) for d, low in zip(deltas, limits, strict=True))
    clear = votes != 0
    np.testing.assert_allclose(found[clear], wanted[clear], atol=1e-5 * np.abs(wanted).max())
    assert np.abs(found[~clear]).max() < 1e-5 * np.abs(wanted).max()
