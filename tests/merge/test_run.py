"""The driver, in memory: what goes in, what comes out, and what is refused with a sentence."""

import os
import signal
import threading
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from loramerge import Adapter, Average, Cat, Lego, Linear, LowRank, Svd, Target, combine, plan
from loramerge.adapters.adapter import BaseModel, Held, Slot
from loramerge.errors import IncompatibleError, UsageError, VerificationError
from loramerge.merge.prove import check_rounding, check_written, fingerprint
from loramerge.merge.run import run
from tests.helpers.adapters import cast, dense, distance, random_adapters, weighted

A, B, C = random_adapters(1, (3, 2, 4))


# --- what comes out ---------------------------------------------------------------------------------


def test_a_merge_is_an_adapter_of_scale_1_and_one_rank():
    merge = combine([A, B, C], "svd", rank=5)
    assert list(merge.adapter) == sorted({*A, *B, *C})
    assert {(slot.scale, slot.rank) for slot in merge.adapter.slots.values()} == {(1.0, 5)}
    assert merge.out is None
    assert merge._repr_html_() == merge.report._repr_html_()


def test_a_merge_can_be_merged_again():
    """(A + B) + C = A + B + C."""
    first = combine([A, B], "linear").adapter
    assert distance(dense(combine([first, C], "linear").adapter), weighted([A, B, C], [1, 1, 1])) < 1e-12


def test_modules_that_one_source_lacks_are_kept_and_noted():
    part = Adapter.of({"layers.0.q": A[Target("layers.0.q")]}, "part")
    merge = combine([part, B])
    assert len(merge.adapter) == 2
    assert merge.report.notes == ("part has 1 of the 2 modules; it counts as zero in the others",)


TYPES = {  # of the sources -> of the merge
    "one type": ((np.float16, np.float16), "F16"),
    "the wider of two": ((np.float32, np.float64), "F64"),
    "two that hold different values": ((np.float16, ml_dtypes.bfloat16), "F32"),
}


@pytest.mark.parametrize(("types", "expected"), TYPES.values(), ids=TYPES)
def test_the_type_is_the_narrowest_that_holds_the_sources(types, expected):
    sources = [cast(source, dtype) for source, dtype in zip((A, B), types, strict=True)]
    assert combine(sources).adapter.dtype == expected
    assert combine(sources, dtype="bfloat16").adapter.dtype == "BF16"


def test_settled_methods_have_nothing_open():
    assert combine([A, C], "svd").method == Svd(rank=4)
    assert combine([A, C], "lego").method == Lego(rank=4)
    assert combine([A, C], "linear").method == Linear()
    settled = combine([A, C], "svd", energy=0.5).method
    assert settled.energy is None
    assert settled.rank >= 1


def test_a_method_can_be_named_or_given():
    for name, method in {
        "linear": Linear(rank=2),
        "average": Average(rank=2),
        "svd": Svd(rank=2),
        "lego": Lego(rank=2),
    }.items():
        named, given = combine([A, B], name, rank=2), combine([A, B], method)
        assert named.method == given.method
        assert distance(dense(named.adapter), dense(given.adapter)) == 0
    assert combine([A, B], "cat").method == Cat()


def test_options_that_are_none_are_not_given():
    assert combine([A, B], "svd", rank=None, energy=None).method == Svd(rank=3)
    assert combine([A, B], Svd(rank=1), rank=None).method == Svd(rank=1)


def test_weights_are_one_by_default():
    for method in ("linear", "level"):
        without, ones = combine([A, B], method), combine([A, B], method, weights=[1, 1])
        assert distance(dense(without.adapter), dense(ones.adapter)) == 0


@pytest.mark.parametrize(("only", "exclude", "left"), [("q$", None, "q"), (None, "q$", "v"), ("0", "v", "q")])
def test_modules_can_be_chosen(only, exclude, left):
    merge = combine([A, B], only=only, exclude=exclude)
    assert [str(target) for target in merge.adapter] == [f"layers.0.{left}"]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_progress_sees_every_module_once(threads):
    seen = []
    combine([A, B], progress=lambda *told: seen.append(told), threads=threads)
    assert [told for told in seen if told[0] == "merging"][-1] == ("merging", 2, 2)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_an_interrupt_of_the_library_waits_for_nobody_and_leaves_nothing(
    tmp_path, monkeypatch, threads, name
):
    over, one = threading.Event(), threading.Lock()

    def computing(*_):
        if one.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        over.wait(30)  # as a long call of LAPACK

    monkeypatch.setattr("loramerge.sources.units.Units._gram", computing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            combine([A, B], out=tmp_path / name, threads=threads)
    finally:
        signal.signal(signal.SIGINT, before)
    took = time.monotonic() - began
    over.set()

    assert took < 10, "on a machine that others use too; the call takes 30 s"
    assert os.listdir(tmp_path) == []


LIMITS = [
    ({"max_lost": 0.01}, "misses .* of the energy of the weighted sum, more than max_lost=0.01"),
    ({"min_cosine": 0.9}, "cosine of the merge with .* is .*, below min_cosine=0.9"),
]


@pytest.mark.parametrize(("limit", "words"), LIMITS)
def test_a_merge_beyond_its_limits_is_not_written(tmp_path, limit, words):
    with pytest.raises(VerificationError, match=words):
        combine([A, B], "svd", rank=1, out=tmp_path / "m", **limit)
    assert os.listdir(tmp_path) == []
    with pytest.raises(VerificationError, match=words):
        combine([A, B], "svd", rank=1, **limit)


def test_a_merge_within_its_limits_is_written_and_what_is_subtracted_has_none():
    assert combine([A, A], max_lost=1e-9, min_cosine=0.999).adapter
    assert combine([A, B], weights=[1, -0.01], min_cosine=0.9).report.cosines[1] < 0.9


def test_planning_reads_no_factor_and_says_the_size():
    class Unreadable(Held):
        def read(self):
            raise AssertionError("read while planning")

    slots = {t: Slot(Unreadable(s.up.array), Unreadable(s.down.array), 1.0) for t, s in A.slots.items()}
    todo = plan([replace(A, slots=slots), B], "cat")
    assert todo.outline.rank == 5
    assert todo.outline.nbytes == 8 * 5 * (7 + 9 + 8 + 6)


def test_a_plan_carried_out_is_the_merge():
    todo = plan([A, B], "svd", rank=2, weights=[1, -1])
    assert (
        distance(dense(run(todo).adapter), dense(combine([A, B], "svd", rank=2, weights=[1, -1]).adapter))
        == 0
    )


def test_ranks_above_what_servers_take_are_noted():
    nine = random_adapters(2, (9, 8))
    assert combine(nine, "cat").report.notes == (
        "rank 17 is above 16, vLLM's default --max-lora-rank; "
        "with rank 16, which most methods take, or by loramerge resize it stays within it",
    )
    assert combine(nine, "svd", rank=16).report.notes == ()


def test_sources_of_one_name_are_told_apart():
    assert combine([A, A]).report.sources == ("source0#1", "source0#2")


# --- what is refused --------------------------------------------------------------------------------

REFUSED = {
    "no sources": (([],), {}, "Give a list of adapters to merge"),
    "a path for a list": (("a",), {}, "Give a list of adapters to merge"),
    "an unknown method": (([A], "tise"), {}, "no method 'tise'.* There are: linear, average, cat, svd, lego"),
    "a typo": (([A], "linaer"), {}, r"no method 'linaer'. Did you mean linear\?"),
    "an option of another method": (
        ([A], "svd"),
        {"variant": "ctm"},
        "variant is an option of lego, not of svd",
    ),
    "nobody's option": (
        ([A], "svd"),
        {"rnak": 1},
        "Did you mean rank",
    ),
    "options beside a method": (([A], Svd()), {"rank": 2}, r"Give rank to Svd\("),
    "a rank of 0": (([A], "svd"), {"rank": 0}, "rank=0 is not in the range 1<=x"),
    "half a rank": (([A], "svd"), {"rank": 1.5}, "rank=1.5 must be a whole number"),
    "a rank that is true": (([A], "svd"), {"rank": True}, "rank=True must be a whole number"),
    "no energy": (([A], "svd"), {"energy": 0.0}, "energy=0.0 is not in the range 0<x<=1"),
    "too much energy": (([A], "svd"), {"energy": 1.1}, "energy=1.1 is not in the range 0<x<=1"),
    "rank and energy": (([A], "svd"), {"rank": 1, "energy": 0.5}, "both set the size"),
    "an unknown variant": (
        ([A], "lego"),
        {"variant": "paper"},
        "variant='paper' is not one of 'intrinsic', ",
    ),
    "too few weights": (([A, B],), {"weights": [1]}, "1 weights for 2 adapters"),
    "too many weights": (([A],), {"weights": [1, 2]}, "2 weights for 1 adapters"),
    "a weight that is NaN": (([A],), {"weights": [np.nan]}, "weight nan, which is not a finite number"),
    "an infinite weight": (([A],), {"weights": [np.inf]}, "weight inf, which is not a finite number"),
    "a weight that is true": (([A],), {"weights": [True]}, "weight True, which is not a finite number"),
    "no threads": (([A],), {"threads": 0}, "threads=0 must be a whole number from 1 on"),
    "an unknown type": (([A],), {"dtype": "int8"}, "dtype='int8' is not one of float32, "),
    "no module left": (([A],), {"only": "xyz"}, "No module is left"),
    "no regular expression": (([A],), {"only": "("}, "is not a regular expression"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_said(arguments, options, message):
    with pytest.raises(UsageError, match=message):
        combine(*arguments, **options)


def test_adapters_of_two_bases_are_refused_unless_allowed():
    first, second = replace(A, base=BaseModel("llama")), replace(B, base=BaseModel("qwen"))
    with pytest.raises(IncompatibleError, match="source0 was trained on llama but source1 on qwen"):
        combine([first, second])
    assert combine([first, second], allow_base_mismatch=True).adapter
    assert combine([first, B]).adapter


def test_tensors_beside_the_pairs_are_refused_not_dropped():
    extra = replace(A, extras={"head.weight": Held(np.ones((2, 2)))})
    with pytest.raises(IncompatibleError, match="source0 holds tensors beside its low-rank pairs"):
        combine([extra, B])


# --- proof ------------------------------------------------------------------------------------------


def test_an_error_above_the_limit_is_refused():
    with pytest.raises(
        VerificationError, match=r"layers.0.. is off by .* more than max_error=1e-06: a wider dtype"
    ):
        combine([A, B], dtype="bfloat16", max_error=1e-6)


def test_an_error_below_the_limit_is_not():
    assert combine([A, B], dtype="bfloat16", max_error=0.01).adapter
    assert combine([A, B], dtype="float64", max_error=0.0).adapter


def test_the_limit_holds_for_every_module():
    """One module of two loses ‖·‖ to float16's grid: the mean would hide it."""
    report = combine([A, B], dtype="float16").report
    worst = max(module.rounding_error for module in report.modules)
    check_rounding(report, worst)
    with pytest.raises(VerificationError):
        check_rounding(report, worst * 0.999)


def test_nothing_to_lose_is_within_any_limit():
    zero = Adapter.of({"q": LowRank(np.zeros((3, 2)), np.ones((2, 4)))})
    assert combine([zero], max_error=0.0).report.rounding_error is None


def written(source):
    return {target: fingerprint(u.up, u.down) for target, u in source.items()}


def test_what_is_read_back_as_it_was_written_passes():
    merge = combine([A, B], dtype="bfloat16").adapter
    check_written(merge, written(merge), {})


def tampered(merge, **changes):
    """The merge with something of one module changed."""
    target = Target("layers.0.v")
    return replace(merge, slots={**merge.slots, target: replace(merge.slots[target], **changes)})


def one_bit(tensor):
    array = tensor.read().copy()
    array.view("u1").reshape(-1)[5] ^= 1
    return Held(array)


def negative_zero(tensor):
    """A value that is equal, in other bits."""
    array = np.array(tensor.read())
    return Held(np.where(array == 0, -array, array))


MERGE = combine([A, B], "svd", rank=3).adapter
SLOT = MERGE.slots[Target("layers.0.v")]
TAMPERED = {
    "one bit of up": tampered(MERGE, up=one_bit(SLOT.up)),
    "one bit of down": tampered(MERGE, down=one_bit(SLOT.down)),
    "the scale": tampered(MERGE, scale=0.5),
    "the type": tampered(MERGE, up=Held(SLOT.up.read().astype(np.float32))),
    "rows in another order": tampered(MERGE, down=Held(SLOT.down.read()[::-1].copy())),
    "the rank": tampered(MERGE, up=Held(SLOT.up.read()[:, :2]), down=Held(SLOT.down.read()[:2])),
}


@pytest.mark.parametrize("read", TAMPERED.values(), ids=TAMPERED)
def test_what_was_changed_on_the_disk_is_found(read):
    with pytest.raises(VerificationError, match=r"layers.0.v was read back with other values or scale"):
        check_written(read, written(MERGE), {})


def test_modules_that_are_gone_or_new_are_found():
    fewer = replace(MERGE, slots={Target("layers.0.q"): MERGE.slots[Target("layers.0.q")]})
    more = replace(MERGE, slots={**MERGE.slots, Target("other"): SLOT})
    for read in (fewer, more):
        with pytest.raises(VerificationError, match="2 modules were written"):
            check_written(read, written(MERGE), {})


def test_the_sign_of_zero_counts():
    zeros = Held(np.zeros((8, 3)))
    plain = tampered(MERGE, up=zeros)
    with pytest.raises(VerificationError):
        check_written(tampered(MERGE, up=negative_zero(zeros)), written(plain), {})
