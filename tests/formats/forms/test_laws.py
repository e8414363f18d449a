"""What holds for every form. A new form enters by itself, and fails until it has a sample."""

import re
from dataclasses import fields
from importlib.util import find_spec
from math import prod

import numpy as np
import pytest

from loramerge.adapters.adapter import Computed, Held
from loramerge.errors import IncompatibleError, SourceError
from loramerge.formats.files.views import View
from loramerge.formats.forms.form import Given, Layer, numberless
from loramerge.formats.forms.table import FORMS, ROWS, update
from tests.formats.forms.samples import SAMPLES

CASES = {
    f"{form}{': ' * bool(word)}{word}": (form, make)
    for form, makers in SAMPLES.items()
    for word, make in makers.items()
    if form != "psoft" or find_spec("torch")  # which it needs
}


def sample(make):
    return make(np.random.default_rng(7))


every = pytest.mark.parametrize(("form", "make"), CASES.values(), ids=CASES)


def read(it, tensors, where="m in f", shared=None):
    shared = held(it.shared) if shared is None else shared
    given = Given(where, it.config, it.rank, it.scale, "m", shared, layers(it), "base")
    return update(tensors, given, it.naming)


def layers(it):
    """The layer of the sample: of one whose size is enough, no number may be read."""
    if it.weight is None:
        return {} if it.size is None else {"m": Layer(it.size, shut(it.size))}
    bias = None if it.bias is None else Held(it.bias)
    return {"m": Layer(it.weight.shape, Held(it.weight), bias, it.kernel)}


def shut(shape):
    """A tensor of which nothing but the header may be looked at."""

    def refuse():
        raise AssertionError("a number was read")

    return Computed(tuple(shape), refuse)


def unread(form, part, shape):
    kind = "I64" if part in FORMS[form].whole else "F64"
    return Computed(tuple(shape), shut(shape).compute, kind)


def held(parts):
    return {part: Held(array) if array.dtype.kind == "f" else whole(array) for part, array in parts.items()}


def whole(array):
    return View((), array.shape, "I64", array.astype(np.int64).copy)


def dense(found):
    return np.asarray(found.up.read(), np.float64) @ np.asarray(found.down.read(), np.float64)


def test_every_form_has_a_sample():
    assert set(SAMPLES) == set(FORMS) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_catalogue_says_of_a_form_what_its_file_says(name):
    known, form = FORMS[name], ROWS[name]
    for field in fields(form):
        if field.name != "make":
            assert getattr(known, field.name) == getattr(form, field.name)
    assert known.make.home == f"{form.make.__module__.rpartition('.')[2]}.{form.make.__name__}"


@every
def test_a_form_is_the_update_of_its_definition(form, make):
    it = sample(make)
    found = read(it, held(it.parts))
    assert (found.form, found.rank, found.kernel) == (form, it.divisor, it.kernel)
    assert (found.up.shape[0], found.down.shape[1]) == it.wanted.shape
    assert found.up.read().shape == found.up.shape
    assert found.down.read().shape == found.down.shape
    np.testing.assert_allclose(dense(found), it.wanted, rtol=0, atol=it.within * np.abs(it.wanted).max())
    assert (found.bias is None) == (it.moved is None)
    if found.bias is not None:
        assert found.bias.shape == it.moved.shape
        np.testing.assert_allclose(found.bias.read(), it.moved, rtol=1e-12)


def test_all_forms_but_these_are_held_against_their_authors_code():
    assert {form for form, make in CASES.values() if sample(make).theirs is None} == {
        "stacked",
        "authors_kasa",
    }


@pytest.mark.parametrize("case", [case for case in CASES if sample(CASES[case][1]).theirs])
def test_a_form_is_the_update_of_its_authors_code(case):
    it = sample(CASES[case][1])
    for package in ("torch", "peft", "lycoris", "loralib"):
        pytest.importorskip(package)
    theirs = it.theirs(it.parts)
    np.testing.assert_allclose(
        dense(read(it, held(it.parts))), theirs, rtol=0, atol=1e-6 * np.abs(theirs).max()
    )


@every
def test_a_form_has_the_rank_that_it_declares_and_is_made_from_headers_alone(form, make):
    it = sample(make)
    found = read(it, {part: unread(form, part, array.shape) for part, array in it.parts.items()})
    assert found.down.shape[0] == found.up.shape[1] == it.units
    assert np.linalg.matrix_rank(it.wanted) <= it.units <= min(it.wanted.shape)
    needs = "base" if it.weight is not None else "sizes" if it.size else "file"
    assert FORMS[form].needs == needs, "the sample gives its form what this declares that it needs"


@every
def test_a_form_that_needs_its_base_asks_for_it(form, make):
    it = sample(make)
    if FORMS[form].needs == "file":
        return
    shared = held(it.shared)
    for base, words in ((None, r"m in f is stored as .* needs the .* of the base model"), ("b", "b has no")):
        with pytest.raises(IncompatibleError, match=words):
            update(held(it.parts), Given("m in f", it.config, it.rank, 1.0, "m", shared, {}, base), it.naming)
    size = tuple(side + 1 for side in it.wanted.shape)
    given = Given("m in f", it.config, it.rank, 1.0, "m", shared, {"m": Layer(size, shut(size))}, "b")
    if form in ("fourierft", "psoft", "shira", "waveft"):  # nothing in the file tells the size
        found = update(held(it.parts), given, it.naming)
        assert (found.up.shape[0], found.down.shape[1]) == size
        return
    with pytest.raises((SourceError, IncompatibleError), match="m in f"):
        update(held(it.parts), given, it.naming)


@every
def test_a_convolution_in_the_place_of_its_layer_is_refused(form, make):
    it = sample(make)
    if FORMS[form].needs == "file" or FORMS[form].conv:
        return
    given = layers(it)["m"]
    conv = {"m": Layer(given.size, shut(given.size), None, (3, 3))}
    with pytest.raises(IncompatibleError, match=r"m in f is .* of a convolution, which is not read"):
        update(
            held(it.parts),
            Given("m in f", it.config, it.rank, 1.0, "m", held(it.shared), conv, "b"),
            it.naming,
        )


@every
def test_a_missing_tensor_that_modules_share_is_named(form, make):
    it = sample(make)
    for part in it.shared:
        shared = {name: tensor for name, tensor in held(it.shared).items() if name != part}
        with pytest.raises(SourceError, match=rf"\b{part} of m in f is missing"):
            read(it, held(it.parts), shared=shared)


@every
def test_nothing_dense_is_formed_where_a_form_is_of_low_rank(form, make):
    it = sample(make)
    found = read(it, held(it.parts))
    if it.units == min(it.wanted.shape):
        assert min(found.up.shape) == found.up.shape[1] or min(found.down.shape) == found.down.shape[0]
        return
    entries = max(prod(tensor.shape) for tensor in (found.up, found.down))
    assert entries == it.units * max(it.wanted.shape) < it.wanted.size


OPTIONAL = {  # form -> without which of its tensors the others mean another form, another kernel, or nothing
    **dict.fromkeys(FORMS, ("mid", "lokr_t2")),
    "xs": ("latent",),
    "authors_kasa": ("diag",),
    "lofit": ("lofit_A.1", "lofit_A.3", "lofit_v.1", "lofit_v.3"),
}


@every
def test_a_missing_tensor_is_named(form, make):
    it = sample(make)
    for part in it.parts.keys() - set(OPTIONAL[form]):
        left = {other: array for other, array in held(it.parts).items() if other != part}
        name = re.escape(FORMS[form].call(part))
        lacks = rf"\b{name}( of m in f)? is missing" if left else "m in f has an alpha, but no factors"
        with pytest.raises(SourceError, match=lacks):
            read(it, {**left, "alpha": Held(np.ones(()))})


@every
def test_a_wrong_size_is_refused(form, make):
    it = sample(make)
    for part, array in it.parts.items():
        for axis in range(array.ndim):
            shape = [*array.shape]
            shape[axis] += 1
            tensors = {**held(it.parts), part: unread(form, part, shape)}
            if (part, axis) in it.free:
                found = read(it, tensors)
                assert (found.up.shape[0], found.down.shape[1]) != it.wanted.shape
                continue
            with pytest.raises((SourceError, IncompatibleError), match="m in f"):
                read(it, tensors)


@every
def test_an_empty_tensor_and_one_of_no_float_type_are_refused(form, make):
    it = sample(make)
    for part, array in it.parts.items():
        for axis in range(array.ndim):
            shape = [*array.shape]
            shape[axis] = 0
            with pytest.raises(SourceError, match="m in f"):
                read(it, {**held(it.parts), part: unread(form, part, shape)})
        odd = "F32" if part in FORMS[form].whole else "I8"
        with pytest.raises(IncompatibleError, match=rf"of m in f is stored as {odd}"):
            read(it, {**held(it.parts), part: View((), array.shape, odd, array.copy)})


@every
def test_a_tensor_of_another_form_is_refused(form, make):
    it = sample(make)
    for other in FORMS.values():
        for part in other.spellings(it.naming):
            together = [*it.parts, part]
            if any(all(one.owns(each, it.naming) for each in together) for one in FORMS.values()):
                continue  # they are a form too
            with pytest.raises((SourceError, IncompatibleError), match=r"m in f (has .* in one|.* explains)"):
                read(it, {**held(it.parts), part.replace("#", "0"): shut((2, 2))})


@pytest.mark.parametrize("naming", ["peft", "image"])
def test_the_end_of_a_key_means_one_part(naming):
    meant = {}
    for form in FORMS.values():
        for part, ends in form.spellings(naming).items():
            for end in ends:
                assert meant.setdefault(end, part) == part


@every
def test_factors_are_handed_on_as_wide_as_they_must_be(form, make):
    it = sample(make)
    for kind, least in ((np.float16, ("F16", "F32")), (np.float32, ("F32",)), (np.float64, ("F64", "F32"))):
        cast = {k: Held(v.astype(kind)) for k, v in it.parts.items() if k not in FORMS[form].whole}
        shared = {name: Held(array.astype(kind)) for name, array in it.shared.items()}
        found = read(it, {**held(it.parts), **cast}, shared=shared)
        for tensor in (found.up, found.down):
            assert tensor.dtype in least
            assert tensor.read().dtype.itemsize == {"F16": 2, "F32": 4, "F64": 8}[tensor.dtype]


FROZEN = {  # parts in which ΔW is linear, but which are no coefficients
    **dict.fromkeys(("tinylora_A", "tinylora_B", "tinylora_P"), "drawn"),
    **dict.fromkeys(("unilora_scales_A", "unilora_scales_B"), "drawn"),
    "pvera_lambda_d": "its other half is a variance",
}


@every
def test_the_parts_in_which_its_update_is_linear_are_those_that_it_declares(form, make):
    """f(2 x − 3 y) = 2 f(x) − 3 f(y) in each group, from its neutral value on; in no other part is it so."""
    it, rng, neutral = sample(make), np.random.default_rng(5), FORMS[form].neutral
    values = {**it.parts, **it.shared}
    if not FORMS[form].types:
        return

    def at(changed):
        now = {name: neutral + changed[name] if name in changed else value for name, value in values.items()}
        shared = held({name: now[name] for name in it.shared})
        return dense(read(it, held({name: now[name] for name in it.parts}), shared=shared))

    def combined(group):
        """ΔW at the sample's own parts, at others, and at 2 of the former less 3 of the latter."""
        own = [name for name in values if {name, numberless(name), name.partition(".")[0]} & set(group)]
        ones = {name: values[name] - neutral for name in own}
        others = {name: rng.standard_normal(values[name].shape) for name in own}
        return own, at(ones), at(others), at({name: 2 * ones[name] - 3 * others[name] for name in own})

    for group in FORMS[form].linear:
        own, one, other, both = combined(group)
        if own:
            np.testing.assert_allclose(both, 2 * one - 3 * other, rtol=0, atol=1e-6 * np.abs(both).max())
    known = {part for group in FORMS[form].linear for part in group}
    for name in it.parts.keys() - set(FORMS[form].whole) - FROZEN.keys():
        if not {name, numberless(name)} & known:
            _, one, other, both = combined({name})
            assert not np.allclose(both, 2 * one - 3 * other, rtol=1e-6), name
