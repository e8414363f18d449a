"""Adapters become batches of units: nothing is lost, misplaced or blamed on the wrong file."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine
from loramerge.adapters.adapter import Held, Slot
from loramerge.errors import IncompatibleError, SourceError
from loramerge.merge.measure import measure
from loramerge.sources.batches import BATCH, SQUARES, batches
from loramerge.sources.units import Units, align
from tests.helpers.adapters import cast, changed, random_adapters, units_of, update


def uneven():
    """Three adapters with two rank signatures and a module that one of them lacks."""
    rng = np.random.default_rng(1)
    shapes = {"a": (7, 9), "b": (8, 6), "c": (3, 5), "d": (4, 4)}
    ranks = [{"a": 2, "b": 2, "c": 3, "d": 1}, {"a": 3, "b": 3, "c": 1, "d": 1}, {"a": 1, "b": 1, "d": 1}]
    return [
        Adapter.of({path: update(rng, rank, shapes[path]) for path, rank in each.items()}, f"source{t}")
        for t, each in enumerate(ranks)
    ]


def test_align_is_the_sorted_union_with_rank_0_where_a_source_has_nothing():
    signatures = align(uneven())
    assert list(map(str, signatures)) == ["a", "b", "c", "d"]
    assert list(signatures.values()) == [(2, 3, 1), (2, 3, 1), (3, 1, 0), (1, 1, 1)]


def test_adapters_of_other_shapes_are_refused_by_name():
    rng = np.random.default_rng(2)
    small, large = update(rng, 2, (7, 9)), update(rng, 2, (7, 12))
    sources = [
        Adapter.of({"q": u, "v": small}, name)
        for u, name in [(small, "first"), (small, "second"), (large, "third")]
    ]
    with pytest.raises(IncompatibleError, match="q is 7×9 in first but 7×12 in third: "):
        align(sources)


def test_shapes_need_not_agree_between_modules():
    sources = uneven()
    merge = combine(sources, "linear")
    assert {str(t): s.shape for t, s in merge.adapter.slots.items()} == {
        "a": (7, 9),
        "b": (8, 6),
        "c": (3, 5),
        "d": (4, 4),
    }


def test_a_batch_shares_one_signature_and_every_module_is_in_one_batch():
    sources = uneven()
    signatures = align(sources)
    found = list(batches(sources, signatures))
    assert sorted(t for units in found for t in units.targets) == list(signatures)
    for units in found:
        assert len({signatures[target] for target in units.targets}) == 1
        assert np.bincount(units.owner, minlength=3).tolist() == list(signatures[units.targets[0]])


@pytest.mark.parametrize("memory", [1, 20000, 1 << 30])
def test_batches_hold_what_fits_into_the_memory(memory):
    sources = random_adapters(3, (3, 2), {f"m{i}": (10, 10) for i in range(20)})
    sizes = [len(units.targets) for units in batches(sources, align(sources), memory)]
    factors, squares = 8 * 5 * 20, 8 * SQUARES * 5**2
    assert sum(sizes) == 20
    assert max(sizes) == min(BATCH, max(1, (memory - 2 * factors) // squares))


def test_few_units_make_larger_batches_but_leave_some_for_every_worker():
    small = random_adapters(3, (3, 2), {f"m{i}": (10, 10) for i in range(120)})
    wide = random_adapters(3, (70, 70), {f"m{i}": (150, 150) for i in range(120)})

    def sizes(sources, workers):
        return [len(units.targets) for units in batches(sources, align(sources), workers=workers)]

    assert sizes(small, 1) == [60, 60]
    assert sizes(small, 3) == [20] * 6
    assert sizes(small, 8) == [BATCH] * 7 + [120 - 7 * BATCH]
    assert max(sizes(wide, 1)) == BATCH


def test_how_modules_are_batched_changes_no_bit():
    sources = random_adapters(4, (3, 2, 3), {f"m{i}": (10 + i, 9) for i in range(6)})
    whole = {}
    for limit in (1, 3000, 1 << 30):
        for units in batches(sources, align(sources), limit):
            grams = units.grams()
            for m, target in enumerate(units.targets):
                whole.setdefault(target, set()).add(
                    (grams.up[m].tobytes(), grams.down[m].tobytes(), grams.lift.P[m].tobytes())
                )
    assert len(whole) == 6
    assert all(len(seen) == 1 for seen in whole.values())


@pytest.mark.parametrize("method", ["cat", "svd", "lego"])
def test_a_merge_does_not_depend_on_the_batches(method):
    sources = random_adapters(5, (3, 2, 3), {f"m{i}": (10 + i, 9) for i in range(6)})
    at_once = combine(sources, method).adapter
    one_by_one = combine(sources, method, memory=1).adapter
    for target in at_once:
        for side in ("up", "down"):
            both = (getattr(adapter[target], side).tobytes() for adapter in (at_once, one_by_one))
            assert len(set(both)) == 1


def test_factors_and_scales_are_those_of_the_sources_in_order():
    sources = [changed(s, lambda u, t=t: u * (t + 2.0)) for t, s in enumerate(uneven())]
    for units in units_of(sources):
        for m, target in enumerate(units.targets):
            present = [s[target] for s in sources if target in s]
            up, down = units.up(m), units.down(m)
            assert np.array_equal(up, np.concatenate([u.up for u in present], axis=1))
            assert np.array_equal(down, np.concatenate([u.down for u in present]))
            assert (up * units.scale[m]) @ down == pytest.approx(sum(u.dense() for u in present))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_grams_are_taken_in_float64_whatever_the_type(dtype):
    sources = [cast(source, dtype) for source in random_adapters(6, (3, 2), {"q": (300, 200)})]
    wide = [cast(source, np.float64) for source in sources]
    (stored,), (exact,) = units_of(sources), units_of(wide)
    assert np.array_equal(stored.grams().up, exact.grams().up)
    assert np.array_equal(stored.grams().down, exact.grams().down)


# --- balance ----------------------------------------------------------------------------------------

SPLITS = [1.0, 1e6, 1e-6, 1e-30, 1e30]


@pytest.mark.parametrize("factor", SPLITS)
@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-9])
def test_balancing_is_exact_and_makes_both_halves_alike(factor, scale):
    u = update(np.random.default_rng(7), 4)
    (units,) = units_of([Adapter.of({"q": LowRank(u.up * factor, u.down / factor, scale)})])
    grams = units.grams()
    lift = grams.lift.P[0].diagonal() / scale, grams.lift.Q[0].diagonal()
    for side in lift:
        mantissa, _ = np.frexp(side)
        assert mantissa == pytest.approx(0.5, abs=1e-15)  # powers of two
    assert lift[0] * lift[1] == pytest.approx(1, abs=1e-15)
    ratio = grams.up[0].diagonal() / grams.down[0].diagonal()
    assert (ratio > 0.24).all()
    assert (ratio < 4.1).all()


def test_unbalanced_grams_are_the_raw_factors_with_the_scale_on_up():
    u = update(np.random.default_rng(8), 3, scale=0.5)
    (units,) = units_of([Adapter.of({"q": u})])
    grams = units.grams(balance=False)
    assert grams.up[0] == pytest.approx(0.25 * u.up.T @ u.up)
    assert grams.down[0] == pytest.approx(u.down @ u.down.T)


def test_zero_units_are_dead_and_have_no_length():
    u = update(np.random.default_rng(9), 4)
    (units,) = units_of([Adapter.of({"q": LowRank(u.up * [1, 0, 1, 1], u.down * [[1], [1], [0], [1]])})])
    grams = units.grams()
    assert grams.live[0].tolist() == [True, False, False, True]
    for side in (grams.up[0], grams.down[0]):
        assert not side[1:3].any()
        assert not side[:, 1:3].any()


def test_scale_zero_is_a_zero_update():
    u = update(np.random.default_rng(10), 2)
    (units,) = units_of([Adapter.of({"q": u * 0.0})])
    grams = units.grams()
    assert not grams.live.any()
    assert np.isfinite(grams.lift.P).all()


def test_grams_of_many_scales_serve_the_report_too():
    """The report reads cores of stored factors in the frame of balanced units."""
    rng = np.random.default_rng(11)
    sources = [Adapter.of({"q": LowRank(u.up * 1e7, u.down / 1e7)}) for u in (update(rng, 3), update(rng, 2))]
    (units,) = units_of(sources)
    grams = units.grams()
    (module,) = measure(grams, grams.lift, np.ones(2), (3, 2))
    assert module.lost <= 1e-25 * module.wanted


# --- blame ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_bad_number_is_blamed_on_its_source_side_and_module(value, side, dtype):
    sources = [cast(source, dtype) for source in random_adapters(12, (2, 3))]
    getattr(sources[1][Target("layers.0.v")], side)[1, 2] = value
    with pytest.raises(
        SourceError, match=f"source1 has NaN or infinity in the {side} factor of layers.0.v: "
    ):
        combine(sources, "svd")


def test_numbers_too_large_to_square_are_blamed_on_the_module():
    u = update(np.random.default_rng(13), 2)
    with pytest.raises(SourceError, match="factors of q are so large that their squares overflow float64"):
        combine([Adapter.of({"q": LowRank(u.up * 1e200, u.down)})])


class Once:
    """A tensor that counts how often it is read."""

    def __init__(self, array):
        self.tensor, self.reads = Held(array), 0

    dtype = property(lambda self: self.tensor.dtype)
    shape = property(lambda self: self.tensor.shape)
    held = 0

    def read(self):
        self.reads += 1
        return self.tensor.read()


def test_aligning_reads_no_numbers_and_merging_reads_each_for_its_gram_and_for_its_remix():
    source = random_adapters(14, (3,))[0]
    slots = {t: Slot(Once(s.up.array), Once(s.down.array), 1.0) for t, s in source.slots.items()}
    counted = replace(source, slots=slots)
    tensors = [tensor for slot in slots.values() for tensor in (slot.up, slot.down)]
    align([counted])
    assert [tensor.reads for tensor in tensors] == [0] * 4
    combine([counted, source], "svd", threads=1)
    assert [tensor.reads for tensor in tensors] == [2] * 4


def test_by_hand():
    """[2]·[1 1] and 3·[0 1]: up = [2 1], scale (1, 3), owner (0, 1)."""
    a = LowRank(np.array([[2.0]]), np.array([[1.0, 1.0]]))
    b = LowRank(np.array([[1.0]]), np.array([[0.0, 1.0]]), scale=3.0)
    units = Units((Target("q"),), (Adapter.of({"q": a}), Adapter.of({"q": b})), (1, 1))
    assert units.owner.tolist() == [0, 1]
    assert units.scale.tolist() == [[1, 3]]
    grams = units.grams(balance=False)
    assert grams.up.tolist() == [[[4, 6], [6, 9]]]
    assert grams.down.tolist() == [[[2, 1], [1, 1]]]
