"""Colours can be told apart by everybody, on both grounds."""

from itertools import combinations

import numpy as np
import pytest

from loramerge.charts.style import ALIKE, AWAY, COLOURS, FINE, NOTHING, UNTOLD, WRONG

SIGHT = {  # linear RGB as it is seen: Machado, Oliveira and Fernandes 2009, the whole of each blindness
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
GROUNDS = ("#ffffff", "#161616")


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x, y, z = np.cbrt(np.maximum(XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(first, second, seen):
    """CIE 1976: about 2 is just noticed side by side."""
    return float(np.linalg.norm(lab(seen @ linear(first)) - lab(seen @ linear(second))))


def contrast(first, second):
    low, high = sorted(float(XYZ[1] @ linear(each)) + 0.05 for each in (first, second))
    return high / low


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("group", [COLOURS, (FINE, WRONG, UNTOLD), (AWAY, NOTHING, ALIKE)], ids=len)
def test_colours_that_mean_different_things_look_different(sight, group):
    seen = np.array(SIGHT[sight])
    assert min(apart(a, b, seen) for a, b in combinations(group, 2)) > 15


@pytest.mark.parametrize("colour", [*COLOURS, FINE, WRONG, UNTOLD])
def test_colours_stand_out_on_a_light_and_a_dark_page(colour):
    assert min(contrast(colour, ground) for ground in GROUNDS) > 2.1
