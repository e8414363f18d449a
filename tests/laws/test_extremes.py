"""Numbers at the ends of float64: a merge that is right, or a sentence; never zeros, warnings or a bug."""

import dataclasses
import typing
from functools import cache

import numpy as np
import pytest

import loramerge as lm
from loramerge import METHODS, LowRank
from loramerge.errors import LoramergeError
from tests.helpers.adapters import dense, distance, merged, random_adapters
from tests.laws.rows import TIGHT, every_kind, every_method, plain, taken

FARS = [1e30, 1e38, 1e75, 1e160, 1e308, 5e-324, 1e-160, 1e-75, 1e-38, 1e-30]
PLACES = {  # where the number stands -> (the update, the position of its source, the number) -> the update
    "a weight": lambda u, i, far: u,
    "all weights": lambda u, i, far: u,
    "a scale": lambda u, i, far: u if i else u * far,
    "all scales": lambda u, i, far: u * far,
    "up": lambda u, i, far: LowRank(u.up * far, u.down, u.scale),
    "up and down": lambda u, i, far: LowRank(u.up * far, u.down * far, u.scale),
    "up against down": lambda u, i, far: LowRank(u.up * far, u.down * (1 / far), u.scale),
    "up against the scale": lambda u, i, far: LowRank(u.up * far, u.down, u.scale * min(1 / far, 1e308)),
}
WEIGHTS = {"a weight": lambda far: [far, 1.0], "all weights": lambda far: [far, far]}


def common(traits, far):
    return {"times": far, "same": 1.0}.get(traits.common)


TIMES = {  # place -> (the traits, the number) -> how many times as large the merge is, where a law says it
    "all weights": common,
    "all scales": lambda traits, far: far if traits.homogeneous else None,
    "up": lambda traits, far: far if traits.homogeneous else None,
    "up and down": lambda traits, far: far * far if traits.gauge == "invariant" else None,
    "up against down": lambda traits, far: 1.0 if traits.gauge == "invariant" else None,
    "up against the scale": lambda traits, far: 1.0,
}
NARROW = {"float16": 2**-7, "bfloat16": 2**-5, "float32": 1e-5}  # how far a merge of ten entries may be off


@cache
def sources(place, far):
    change = PLACES[place]
    with np.errstate(all="ignore"):
        return tuple(
            lm.Adapter.of({t.path: change(a[t], i, far) for t in a}, a.name)
            for i, a in enumerate(random_adapters(0, (2, 2)))
        )


def right_or_refused(method, adapters, weights, dtype=None):
    """The merge, which has no zeros where the sources and their sum are none; nothing if it is refused."""
    try:
        made = lm.combine(adapters, method, weights=weights, dtype=dtype, threads=1)
    except LoramergeError:
        return {}
    matrices = dense(made.adapter)
    assert all(np.isfinite(matrix).all() for matrix in matrices.values())
    assert method.traits.vanishes or any(matrix.any() for matrix in matrices.values()), "zeros"
    assert str(made.report)
    return matrices


def far_merge(method, place, far, dtype=None):
    """The merge with a number at its place; if a law says how large it is, it is that."""
    weights = WEIGHTS.get(place, lambda far: [1.0, 1.0])
    found = right_or_refused(method, *taken(method, sources(place, far), weights(far)), dtype)
    times = TIMES.get(place, lambda *_: None)(method.traits, far)
    if found and times:
        near = plain(*taken(method, sources(place, 1.0), weights(1.0))[:1], method, weights(1.0))
        apart = distance({path: matrix / times for path, matrix in found.items()}, near)
        assert apart < NARROW.get(dtype, TIGHT), f"{far:g}: {apart:.1e} off"
    return found


@every_method
@pytest.mark.parametrize("place", PLACES)
def test_a_number_far_from_one(method, place, chosen):
    for far in chosen(FARS):
        far_merge(method, place, far)


@every_method
@pytest.mark.parametrize("place", ["a weight", "all weights", "a scale", "all scales", "up"])
def test_what_real_files_may_hold_is_merged(method, place):
    for far in (1e-20, 1e20):
        assert far_merge(method, place, far)


@every_kind
@pytest.mark.parametrize("dtype", NARROW)
def test_a_narrow_type_holds_a_far_merge_or_refuses_it(method, dtype, chosen):
    for far in chosen([1e-30, 1e-8, 1e-3, 1e3, 1e8, 1e30]):
        assert far_merge(method, "all scales", far, dtype) or dtype == "float16"


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


@every_kind
def test_the_strength_of_a_merge(method, chosen):
    pair, weights = taken(method, random_adapters(0, (2, 2)), [1.0, 1.0])
    near = merged(pair, method, weights)
    for far in chosen(FARS):
        try:
            found = merged(pair, method, weights, scale=far)
        except LoramergeError:
            assert method.masks or not 1e-30 <= far <= 1e30  # masks are for one strength
        else:
            assert distance({path: matrix / far for path, matrix in found.items()}, near) < TIGHT


def test_a_unit_that_is_faint_beside_others_is_no_error():
    up, down = np.eye(6, 2), np.diag([1.0, 1e-120])[:, :2] @ np.eye(2, 5)
    made = lm.combine([lm.Adapter.of({"q": LowRank(up, down)})], "svd", threads=1)
    assert made.adapter[lm.Target("q")].dense()[0, 0] == pytest.approx(1.0)
    assert made.report.sources


@pytest.mark.parametrize(("far", "how"), [(1e50, "strong"), (1e-50, "weak")])
def test_the_sentence_names_source_and_module(far, how):
    with pytest.raises(lm.SourceError, match=rf"source0 is too {how} in layers\.0\.q: a unit of it is not"):
        lm.combine(sources("a scale", far), "svd")


@pytest.mark.parametrize(
    ("place", "far"),
    [("up against down", 1e80), ("up against down", 1e-80), ("up against the scale", 1e-150)],
)
def test_the_sentence_of_a_half_names_source_and_module(place, far):
    with pytest.raises(
        lm.SourceError, match=r"source0 is stored too unevenly in layers\.0\.q: half of a unit"
    ):
        lm.combine(sources(place, far), "svd", rank=2)


def test_the_sentence_of_a_weight():
    with pytest.raises(lm.UsageError, match=r"weight 1e\+160, which must be 0, or from 1e-30 to 1e\+30"):
        lm.combine(random_adapters(0, (2, 2)), "svd", weights=[1e160, 1])


def test_a_scale_is_a_number():
    with pytest.raises(lm.UsageError, match=r"The scale of q is inf: give a number\."):
        lm.Adapter.of({"q": LowRank(np.eye(2), np.eye(2), float("inf"))})


@pytest.mark.parametrize(
    ("up", "down", "scale"), [(1e160, 1e-160, 2), (1e-200, 1, 2e200), (1, 1e300, 2e-300)]
)
def test_a_norm_is_that_of_the_update_and_not_of_its_factors(up, down, scale):
    update = LowRank(np.array([[3 * up], [4 * up]]), np.array([[down]]), scale)
    assert update.norm() == pytest.approx(10)
    assert update.inner(update) == pytest.approx(100)
    assert (update * 1e100).norm() == pytest.approx(1e101)
