"""Opened adapters: any number of merges from one reading, each the merge that `combine` makes."""

from dataclasses import replace

import pytest

from loramerge import Lego, Session, UsageError, combine, load, open
from loramerge.adapters.adapter import Slot
from loramerge.errors import OutputError
from tests.helpers.adapters import dense, distance, random_adapters
from tests.sources.test_units import Once

A, B = random_adapters(1, (3, 2))
METHODS = {
    "linear": ("linear", {}),
    "linear, rank 2": ("linear", {"rank": 2}),
    "average": ("average", {}),
    "cat": ("cat", {}),
    "svd": ("svd", {}),
    "svd, 80 %": ("svd", {"energy": 0.8}),
    "lego": ("lego", {"rank": 3}),
    "ctm": ("lego", {"rank": 3, "variant": "ctm"}),
    "nsc": ("lego", {"rank": 3, "variant": "nsc", "rescale": "l2"}),
    "slerp": ("slerp", {}),
    "slerp, whole adapters": ("slerp", {"scope": "adapter"}),
    "knots": ("knots", {}),
    "knots, 80 %": ("knots", {"energy": 0.8}),
}


@pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=METHODS)
def test_every_weighting_is_the_merge_of_combine(method, options):
    pair = open([A, B], threads=1)
    for weights in ([1, 1], [0.3, -2], [0, 1]):
        if method == "average" and weights == [0.3, -2]:
            weights = [0.3, 2]
        again = pair.combine(method, weights=weights, **options)
        fresh = combine([A, B], method, weights=weights, dtype="float64", **options)
        assert distance(dense(again.adapter), dense(fresh.adapter)) < 1e-12
        assert again.method == fresh.method
        assert again.report.energy_lost == pytest.approx(fresh.report.energy_lost, abs=1e-12)
        assert again.report.cosines == pytest.approx(fresh.report.cosines)


def counted(source):
    slots = {t: Slot(Once(s.up.array), Once(s.down.array), s.scale) for t, s in source.slots.items()}
    return replace(source, slots=slots), [side for slot in slots.values() for side in (slot.up, slot.down)]


def test_other_weights_read_no_number_until_the_adapter_is_asked():
    source, tensors = counted(A)
    pair = open([source, B], threads=1)
    assert [tensor.reads for tensor in tensors] == [0] * 4
    merges = [pair.combine("svd", weights=[w, 1]) for w in (0.1, 0.5, 0.9)]
    assert [tensor.reads for tensor in tensors] == [1] * 4
    next(iter(merges[1].adapter.values()))
    assert sorted(tensor.reads for tensor in tensors) == [1, 1, 2, 2]


def test_a_merge_can_be_saved_with_proof_and_provenance(tmp_path):
    merge = open([A, B]).combine("lego", weights=[1, 0.5], rank=3, dtype="float32")
    assert merge.report.rounding_error is None
    assert "rounding error –" in str(merge.report)
    saved = merge.save(tmp_path / "m")
    assert saved.report.rounding_error < 1e-6
    combine([A, B], "lego", weights=[1, 0.5], rank=3, dtype="float32", out=tmp_path / "n")
    for name in ("adapter_model.safetensors", "adapter_config.json", "loramerge.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    assert load(tmp_path / "m").rank == 3
    with pytest.raises(OutputError, match="overwrite=True"):
        merge.save(tmp_path / "m")


def test_mistakes_are_told_at_once():
    pair = open([A, B])
    for weights, options in (([1], {}), (None, {"variant": "ctm"})):
        with pytest.raises(UsageError):
            pair.combine("svd", weights=weights, **options)
    with pytest.raises(UsageError, match="threads=0"):
        open([A], threads=0)
    assert pair.combine(Lego(rank=2)).method == Lego(rank=2)


def test_it_is_made_by_opening_sources():
    with pytest.raises(UsageError, match=r"made by loramerge\.open"):
        Session([A, B])
