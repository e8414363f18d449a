"""SLERP, Model Stock and the Karcher mean are those of mergekit, where mergekit keeps to its formula."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from loramerge import Adapter, LowRank
from tests.helpers.adapters import merged

GOLDEN = load_file(Path(__file__).with_name("coefficients.safetensors"))
every_case = pytest.mark.parametrize("case", ["apart", "related", "parallel"])


def sources(case, count):
    pairs = [(GOLDEN[f"{case}.{t}.up"], GOLDEN[f"{case}.{t}.down"]) for t in range(count)]
    return [Adapter.of({"q": LowRank(*pair)}) for pair in pairs]


def apart(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@every_case
@pytest.mark.parametrize("t", [0.25, 0.5, 0.9])
def test_slerp(case, t):
    found = merged(sources(case, 2), "slerp", [1 - t, t])["q"]
    assert apart(found, GOLDEN[f"{case}.slerp.{t}"]) < 1e-6  # its t is a float32


@every_case
def test_nuslerp(case):
    """It has no threshold but 1e-8 of the sine."""
    found = merged(sources(case, 2), "slerp", [1, 3], dot_threshold=1.0)["q"]
    assert apart(found, GOLDEN[f"{case}.nuslerp"]) < 1e-9


@every_case
def test_model_stock(case):
    found = merged(sources(case, 3), "model_stock")["q"]
    assert apart(found, GOLDEN[f"{case}.model_stock"]) < 1e-12


@every_case
def test_karcher_with_the_steps_of_mergekit(case):
    found = merged(sources(case, 3), "karcher", iterations=10, tolerance=1e-5)["q"]
    assert apart(found, GOLDEN[f"{case}.karcher"]) < 1e-9
