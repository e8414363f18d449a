"""Numbers at the ends of float64: a merge that is right, or a sentence; never zeros, warnings or a bug."""

import dataclasses
import typing

import numpy as np
import pytest

import loramerge as lm
from loramerge import METHODS, LowRank
from loramerge.errors import LoramergeError
from tests.helpers.adapters import dense, random_adapters
from tests.laws.rows import every_method, taken

FARS = [1e30, 1e38, 1e160, 1e308, 5e-324, 1e-160, 1e-38]
PLACES = {  # where the number stands -> (the update, the position of its source, the number) -> the update
    "a weight": lambda u, i, far: u,
    "all weights": lambda u, i, far: u,
    "a scale": lambda u, i, far: u if i else u * far,
    "all scales": lambda u, i, far: u * far,
    "up": lambda u, i, far: LowRank(u.up * far, u.down, u.scale),
    "up and down": lambda u, i, far: LowRank(u.up * far, u.down * far, u.scale),
    "up against down": lambda u, i, far: LowRank(u.up * far, u.down * (1 / far), u.scale),
}
WEIGHTS = {"a weight": lambda far: [far, 1.0], "all weights": lambda far: [far, far]}


def sources(place, far):
    change = PLACES[place]
    with np.errstate(all="ignore"):
        return [
            lm.Adapter.of({t.path: change(a[t], i, far) for t in a}, a.name)
            for i, a in enumerate(random_adapters(0, (2, 2)))
        ]


def right_or_refused(method, adapters, weights):
    """No zeros where the sources and their sum are none."""
    try:
        made = lm.combine(adapters, method, weights=weights, threads=1)
    except LoramergeError:
        return False
    matrices = list(dense(made.adapter).values())
    assert all(np.isfinite(matrix).all() for matrix in matrices)
    assert method.traits.vanishes or any(matrix.any() for matrix in matrices), "zeros"
    assert str(made.report)
    return True


@every_method
@pytest.mark.parametrize("place", PLACES)
def test_a_number_far_from_one(method, place, chosen):
    for far in chosen(FARS):
        weights = WEIGHTS.get(place, lambda far: [1.0, 1.0])(far)
        right_or_refused(method, *taken(method, sources(place, far), weights))


@every_method
@pytest.mark.parametrize("place", ["a weight", "all weights", "a scale", "all scales", "up"])
def test_what_real_files_may_hold_is_merged(method, place):
    for far in (1e-20, 1e20):
        weights = WEIGHTS.get(place, lambda far: [1.0, 1.0])(far)
        assert right_or_refused(method, *taken(method, sources(place, far), weights))


def floats(kind):
    """The options of a method that may be a float."""
    hints = typing.get_type_hints(kind)
    return [name for name in kind.names() if float in (hints[name], *typing.get_args(hints[name]))]


FLOATS = [(kind, name) for kind in METHODS.values() for name in floats(kind)]


@pytest.mark.parametrize(("kind", "name"), FLOATS, ids=lambda each: getattr(each, "__name__", each))
def test_an_option_far_from_one(kind, name):
    for far in [*FARS, float("inf")]:
        try:
            method = dataclasses.replace(kind(), **{name: far})
        except LoramergeError:
            continue
        right_or_refused(method, *taken(method, random_adapters(0, (2, 2)), [1.0, 1.0]))


@pytest.mark.parametrize("far", FARS)
def test_the_strength_of_a_merge(far):
    try:
        made = lm.combine(random_adapters(0, (2, 2)), "svd", scale=far, threads=1)
    except LoramergeError:
        return
    assert all(matrix.any() and np.isfinite(matrix).all() for matrix in dense(made.adapter).values())


def test_a_unit_that_is_faint_beside_others_is_no_error():
    up, down = np.eye(6, 2), np.diag([1.0, 1e-120])[:, :2] @ np.eye(2, 5)
    made = lm.combine([lm.Adapter.of({"q": LowRank(up, down)})], "svd", threads=1)
    assert made.adapter[lm.Target("q")].dense()[0, 0] == pytest.approx(1.0)
    assert made.report.sources


@pytest.mark.parametrize(("far", "how"), [(1e50, "strong"), (1e-50, "weak")])
def test_the_sentence_names_source_and_module(far, how):
    with pytest.raises(lm.SourceError, match=rf"source0 is too {how} in layers\.0\.q: a unit of it is not"):
        lm.combine(sources("a scale", far), "svd")


def test_the_sentence_of_a_weight():
    with pytest.raises(lm.UsageError, match=r"weight 1e\+160, which must be 0, or from 1e-30 to 1e\+30"):
        lm.combine(random_adapters(0, (2, 2)), "svd", weights=[1e160, 1])
