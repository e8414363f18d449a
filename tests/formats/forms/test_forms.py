"""LyCORIS' forms: each is exactly the ΔW of its definition."""

import numpy as np
import pytest

import loramerge as lm
from tests.formats.forms.sample import kron, tucker
from tests.helpers.dialects import matrix, normal, product, same, saved

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
NAMES = {
    LINEAR: "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    CONV: "unet.mid_block.resnets.0.conv1",
}


def loha(r, outs, ins, scale):
    def make(rng):
        parts = {f"hada_w{i}_a": normal(rng, outs, r) for i in (1, 2)}
        parts |= {f"hada_w{i}_b": normal(rng, r, ins) for i in (1, 2)}
        halves = [product(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]) for i in (1, 2)]
        return parts, scale * halves[0] * halves[1]

    return make


def loha_tucker(rng):
    parts = {f"hada_w{i}_a": normal(rng, 2, 5) for i in (1, 2)}
    parts |= {f"hada_w{i}_b": normal(rng, 2, 4) for i in (1, 2)}
    parts |= {f"hada_t{i}": normal(rng, 2, 2, 3, 3) for i in (1, 2)}
    halves = [tucker(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts[f"hada_t{i}"]) for i in (1, 2)]
    return parts, 0.5 * matrix(halves[0] * halves[1])


def loha_flat(rng):
    """As older tools keep a convolution: the kernel is in the columns."""
    return loha(2, 5, 4 * 9, 0.5)(rng)


def lokr(rng):
    w1, a, b = normal(rng, 2, 3), normal(rng, 4, 2), normal(rng, 2, 5)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, 0.5 * kron(w1, product(a, b))


def lokr_both(rng):
    parts = {"lokr_w1_a": normal(rng, 4, 1), "lokr_w1_b": normal(rng, 1, 4)}
    parts |= {"lokr_w2_a": normal(rng, 6, 2), "lokr_w2_b": normal(rng, 2, 6)}
    left, right = (product(parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]) for i in (1, 2))
    return parts, 0.5 * kron(left, right)


def lokr_full(rng):
    w1, w2 = normal(rng, 2, 3), normal(rng, 4, 5)
    return {"lokr_w1": w1, "lokr_w2": w2}, kron(w1, w2.astype(np.float64))  # alpha then means nothing


def lokr_conv(rng):
    w1, a, b = normal(rng, 2, 2), normal(rng, 3, 2), normal(rng, 2, 4, 3, 3)
    right = product(a, matrix(b)).reshape(3, 4, 3, 3)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, 0.5 * matrix(kron(w1, right))


def lokr_tucker(rng):
    w1, a, b, t = normal(rng, 2, 2), normal(rng, 2, 3), normal(rng, 2, 4), normal(rng, 2, 2, 3, 3)
    right = tucker(a, b, t)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": t}
    return parts, 0.5 * matrix(kron(w1, right))


def full(rng):
    diff = normal(rng, 6, 5)
    return {"diff": diff}, diff.astype(np.float64)


def full_conv(rng):
    diff = normal(rng, 5, 4, 3, 3)
    return {"diff": diff}, matrix(diff).astype(np.float64)


CASES = {  # what is made, its module, the rank that it has
    "LoHa": (loha(2, 9, 8, 0.5), LINEAR, 4),
    "LoHa of a rank above the matrix": (loha(4, 6, 5, 0.25), LINEAR, 5),
    "LoHa, Tucker": (loha_tucker, CONV, 4),
    "LoHa, an old convolution": (loha_flat, CONV, 4),
    "LoKr": (lokr, LINEAR, 4),
    "LoKr, both sides factored": (lokr_both, LINEAR, 2),
    "LoKr of whole matrices": (lokr_full, LINEAR, 8),
    "LoKr, convolution": (lokr_conv, CONV, 4),
    "LoKr, Tucker": (lokr_tucker, CONV, 4),
    "full": (full, LINEAR, 5),
    "full convolution": (full_conv, CONV, 5),
}


@pytest.mark.parametrize(("make", "module", "rank"), CASES.values(), ids=CASES)
def test_a_form_is_the_update_of_its_definition(tmp_path, make, module, rank):
    parts, wanted = make(np.random.default_rng(7))
    parts["alpha"] = np.array(1.0, np.float32)
    path = saved(tmp_path / "a.safetensors", {f"{module}.{name}": part for name, part in parts.items()})
    adapter = lm.load(path)

    same(adapter, {NAMES[module]: wanted}, 1e-5)
    assert adapter.rank == rank
    assert np.linalg.matrix_rank(wanted) <= rank
    assert next(iter(adapter)).layout.kernel == ((3, 3) if module == CONV else ())


@pytest.mark.parametrize(("make", "module", "rank"), CASES.values(), ids=CASES)
def test_every_form_converts_with_the_same_update(tmp_path, make, module, rank):
    parts, wanted = make(np.random.default_rng(8))
    parts["alpha"] = np.array(1.0, np.float32)
    path = saved(tmp_path / "a.safetensors", {f"{module}.{name}": part for name, part in parts.items()})

    for to in ("diffusers", "comfy", "kohya"):
        done = lm.convert(path, tmp_path / f"{to}.safetensors", to, dtype="float32")
        same(done.adapter, {NAMES[module]: wanted}, 1e-5)
        assert not done.copied
        assert done.error < 1e-6


MALFORMED = {
    "a factor is missing": ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2)}, "missing"),
    "halves of two shapes": (
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 5)},
        "do not fit together",
    ),
    "two ranks": (
        {"hada_w1_a": (4, 3), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)},
        "do not fit together",
    ),
    "one side": ({"lokr_w1": (2, 2)}, "side 2.*lokr_w2 is missing"),
    "both kinds of a side": (
        {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (2, 2)},
        "side 1",
    ),
    "an alpha alone": ({"alpha": ()}, "no factors"),
}


@pytest.mark.parametrize(("shapes", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_form_that_lacks_something_is_refused_by_name(tmp_path, shapes, words):
    parts = {f"{LINEAR}.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(lm.SourceError, match=words):
        lm.load(saved(tmp_path / "a.safetensors", parts))
