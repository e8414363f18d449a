"""Every form with random tensors, what they come to by its definition, and by its authors' code.

A form without a row here fails the laws. A row is a function of a generator that gives a `Sample`.
"""

from __future__ import annotations

import numpy as np

from tests.formats.forms import authors, base_samples, file_samples, sized_samples
from tests.formats.forms.sample import Sample, kron, n, of_type, tucker
from tests.helpers.dialects import matrix, product


def lora(rng):
    parts = {"down": n(rng, 3, 12), "up": n(rng, 14, 3)}
    wanted = product(parts["up"], parts["down"])
    free = {("up", 0), ("down", 1)}
    return Sample("peft", parts, wanted, 3, 3, free, authors.peft_lora, rank=3)


def lora_conv(rng):
    parts = {"down": n(rng, 3, 4, 3, 2), "up": n(rng, 14, 3, 1, 1)}
    wanted = product(matrix(parts["up"]), matrix(parts["down"]))
    free = {("up", 0), ("down", 1), ("down", 2), ("down", 3)}
    return Sample("peft", parts, wanted, 3, 3, free, authors.peft_lora, (3, 2), rank=3)


def merged(rng):
    r, enabled = 2, [True, False, True]
    parts = {"down": n(rng, 2 * r, 12), "up": n(rng, 10, r)}
    wanted = np.zeros((15, 12))
    for block, part in enumerate((0, 2)):
        rows = parts["up"][5 * block : 5 * block + 5]
        wanted[5 * part : 5 * part + 5] = product(rows, parts["down"][r * block : r * block + r])
    config = {"enable_lora": enabled}
    free = {("down", 1)}
    return Sample("peft", parts, wanted, 2 * r, r, free, authors.loralib_merged, rank=r, config=config)


def embedding(rng):
    parts = {"embedding_A": n(rng, 3, 13), "embedding_B": n(rng, 12, 3)}
    wanted = product(parts["embedding_B"], parts["embedding_A"])
    free = {("embedding_A", 1), ("embedding_B", 0)}
    return Sample("peft", parts, wanted, 3, 3, free, authors.peft_embedding, rank=3)


def adalora(rng):
    parts = {"svd_A": n(rng, 3, 12), "svd_B": n(rng, 13, 3), "svd_E": n(rng, 3, 1)}
    wanted = product(parts["svd_B"] * parts["svd_E"].T, parts["svd_A"])
    free = {("svd_A", 1), ("svd_B", 0)}
    config = {"peft_type": "ADALORA"}
    return Sample("peft", parts, wanted, 3, 3, free, authors.peft_adalora, rank=3, config=config)


def locon(rng):
    parts = {"down": n(rng, 3, 4, 3, 3), "up": n(rng, 14, 3, 1, 1)}
    wanted = product(matrix(parts["up"]), matrix(parts["down"]))
    free = {("up", 0), ("down", 1), ("down", 2), ("down", 3)}
    return Sample("image", parts, wanted, 3, 3, free, authors.lycoris_locon, (3, 3))


def locon_tucker(rng):
    parts = {"down": n(rng, 2, 7, 1, 1), "up": n(rng, 14, 2, 1, 1), "mid": n(rng, 2, 2, 3, 3)}
    wanted = tucker(matrix(parts["up"]).T, matrix(parts["down"]), parts["mid"])
    free = {("up", 0), ("down", 1), ("mid", 2), ("mid", 3)}
    return Sample("image", parts, matrix(wanted), 2, 2, free, authors.lycoris_locon, (3, 3))


def stacked(rng):
    parts = {
        f"{side}.{i}": n(rng, *shape) for i in (0, 1) for side, shape in (("up", (9, 2)), ("down", (2, 12)))
    }
    wanted = np.concatenate([product(parts[f"up.{i}"], parts[f"down.{i}"]) for i in (0, 1)])
    return Sample("image", parts, wanted, 4, 2, {("up.0", 0), ("up.1", 0)}, None)


def _loha(rng, outs, ins, r):
    parts = {f"hada_w{i}_a": n(rng, outs, r) for i in (1, 2)}
    parts |= {f"hada_w{i}_b": n(rng, r, ins) for i in (1, 2)}
    one, two = (product(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]) for i in (1, 2))
    return parts, one * two


def loha(naming, theirs):
    def make(rng):
        parts, wanted = _loha(rng, 14, 12, 2)
        return Sample(naming, parts, wanted, 4, 2, set(), theirs, rank=2, config=of_type(naming, "LOHA"))

    return make


def loha_tucker(naming, theirs):
    def make(rng):
        parts = {f"hada_w{i}_a": n(rng, 2, 14) for i in (1, 2)} | {
            f"hada_w{i}_b": n(rng, 2, 5) for i in (1, 2)
        }
        parts |= {f"hada_t{i}": n(rng, 2, 2, 3, 3) for i in (1, 2)}
        one, two = (tucker(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts[f"hada_t{i}"]) for i in (1, 2))
        config = of_type(naming, "LOHA")
        return Sample(naming, parts, matrix(one * two), 4, 2, set(), theirs, (3, 3), rank=2, config=config)

    return make


def loha_above(rng):
    """Of a rank above that of the matrix, which then is the smaller form."""
    parts, wanted = _loha(rng, 9, 8, 3)
    return Sample("image", parts, wanted, 8, 3, set(), authors.lycoris_loha)


def lokr(naming, theirs):
    def make(rng):
        parts = {"lokr_w1": n(rng, 2, 3), "lokr_w2_a": n(rng, 7, 2), "lokr_w2_b": n(rng, 2, 5)}
        wanted = kron(parts["lokr_w1"], product(parts["lokr_w2_a"], parts["lokr_w2_b"]))
        free = {("lokr_w1", 0), ("lokr_w1", 1), ("lokr_w2_a", 0), ("lokr_w2_b", 1)}
        return Sample(naming, parts, wanted, 4, 2, free, theirs, rank=2, config=of_type(naming, "LOKR"))

    return make


def lokr_both(naming, theirs):
    def make(rng):
        parts = {f"lokr_w{i}_a": n(rng, 5, 2) for i in (1, 2)} | {
            f"lokr_w{i}_b": n(rng, 2, 6) for i in (1, 2)
        }
        wanted = kron(*(product(parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]) for i in (1, 2)))
        free = {(f"lokr_w{i}_{side}", axis) for i in (1, 2) for side, axis in (("a", 0), ("b", 1))}
        return Sample(naming, parts, wanted, 4, 2, free, theirs, rank=2, config=of_type(naming, "LOKR"))

    return make


def lokr_tucker(naming, theirs):
    def make(rng):
        parts = {"lokr_w1": n(rng, 2, 2), "lokr_w2_a": n(rng, 2, 7), "lokr_w2_b": n(rng, 2, 4)}
        parts |= {"lokr_t2": n(rng, 2, 2, 3, 3)}
        right = tucker(parts["lokr_w2_a"], parts["lokr_w2_b"], parts["lokr_t2"])
        free = {
            ("lokr_w1", 0),
            ("lokr_w1", 1),
            ("lokr_w2_a", 1),
            ("lokr_w2_b", 1),
            ("lokr_t2", 2),
            ("lokr_t2", 3),
        }
        wanted, config = matrix(kron(parts["lokr_w1"], right)), of_type(naming, "LOKR")
        return Sample(naming, parts, wanted, 4, 2, free, theirs, (3, 3), rank=2, config=config)

    return make


def lokr_whole(naming, theirs):
    """Of which PEFT takes alpha / r, and LyCORIS neither."""

    def make(rng):
        parts = {"lokr_w1": n(rng, 2, 3), "lokr_w2": n(rng, 4, 5, 3, 3)}
        free = {(part, axis) for part, array in parts.items() for axis in range(array.ndim)}
        wanted, config = matrix(kron(parts["lokr_w1"], parts["lokr_w2"])), of_type(naming, "LOKR")
        divisor = 7 if naming == "peft" else None
        rank = 7 if naming == "peft" else None
        return Sample(naming, parts, wanted, 8, divisor, free, theirs, (3, 3), rank=rank, config=config)

    return make


def lokr_whole_line(rng):
    """A 1-d convolution in PEFT: w₂[p, q, l] w₁[i, j] at output (p, i), input (q, j)."""
    w1, w2 = n(rng, 2, 3), n(rng, 4, 5, 3)
    wanted = np.zeros((8, 15, 3))
    for (i, j), (p, q, k) in ((a, b) for a in np.ndindex(w1.shape) for b in np.ndindex(w2.shape)):
        wanted[p * 2 + i, q * 3 + j, k] = w1[i, j] * w2[p, q, k]
    free = {("lokr_w1", 0), ("lokr_w1", 1), *(("lokr_w2", axis) for axis in range(3))}
    parts, config = {"lokr_w1": w1, "lokr_w2": w2}, of_type("peft", "LOKR")
    return Sample("peft", parts, matrix(wanted), 8, 7, free, authors.peft_lokr, (3,), rank=7, config=config)


def full(rng):
    diff = n(rng, 5, 4, 3, 3)
    free = {("diff", axis) for axis in range(4)}
    return Sample("image", {"diff": diff}, matrix(diff), 5, None, free, authors.lycoris_full, (3, 3))


SAMPLES = {  # name of a form -> what is special -> its maker
    "lora": {"": lora, "convolution": lora_conv},
    "merged": {"": merged},
    "embedding": {"": embedding},
    "adalora": {"": adalora},
    "locon": {"": locon, "Tucker": locon_tucker},
    "stacked": {"": stacked},
    "loha": {
        "PEFT": loha("peft", authors.peft_loha),
        "PEFT, effective convolution": loha_tucker("peft", authors.peft_loha),
        "LyCORIS": loha("image", authors.lycoris_loha),
        "LyCORIS, Tucker": loha_tucker("image", authors.lycoris_loha),
        "above the matrix": loha_above,
    },
    "lokr": {
        "": lokr("image", authors.lycoris_lokr),
        "both sides factored": lokr_both("image", authors.lycoris_lokr),
        "Tucker": lokr_tucker("image", authors.lycoris_lokr),
        "whole": lokr_whole("image", authors.lycoris_lokr),
    },
    "peft_lokr": {
        "": lokr("peft", authors.peft_lokr),
        "both sides factored": lokr_both("peft", authors.peft_lokr),
        "effective convolution": lokr_tucker("peft", authors.peft_lokr),
        "whole": lokr_whole("peft", authors.peft_lokr),
        "whole, 1-d": lokr_whole_line,
    },
    "full": {"": full},
    "vera": {"": sized_samples.vera, "drawn": sized_samples.vera_drawn},
    "pvera": {"": sized_samples.pvera},
    "c3a": {"": file_samples.c3a},
    "delora": {"": file_samples.delora},
    "fourierft": {
        "": sized_samples.fourierft(4, 8),
        "of more coefficients than sides": sized_samples.fourierft(9, 12),
    },
    "gralora": {"": file_samples.gralora(0), "hybrid": file_samples.gralora(3)},
    "miss": {"": sized_samples.miss, "mini": sized_samples.miss_mini},
    "miss_bat": {"": sized_samples.miss_bat},
    "randlora": {
        "": sized_samples.randlora((14, 11)),
        "wide": sized_samples.randlora((11, 14)),
        "square": sized_samples.randlora((12, 12)),
    },
    "shira": {"": sized_samples.shira},
    "tinylora": {"": file_samples.tinylora},
    "triadapt": {"": file_samples.triadapt},
    "unilora": {"": file_samples.unilora},
    "vblora": {"": file_samples.vblora, "of the best alone": file_samples.vblora_best},
    "waveft": {
        "": sized_samples.waveft((14, 12)),
        "odd": sized_samples.waveft((13, 11)),
        "entries": sized_samples.waveft((14, 12), use_idwt=False),
    },
    "xs": {"": file_samples.xs},
    "boft": {"": base_samples.boft(1), "of two steps": base_samples.boft(2)},
    "dora": {"": base_samples.dora, "convolution": base_samples.dora_conv},
    "dora_embedding": {"": base_samples.dora_embedding},
    "hira": {"": base_samples.hira},
    "hra": {"": base_samples.hra(False), "orthogonal": base_samples.hra(True)},
    "ia3": {"": base_samples.ia3((14, 1), False), "feed-forward": base_samples.ia3((1, 12), True)},
    "lofit": {"": base_samples.lofit},
    "kasa": {
        "PEFT": base_samples.kasa((14, 12), True, 6),
        "PEFT, wide": base_samples.kasa((12, 14), True, 6),
    },
    "authors_kasa": {
        "": base_samples.kasa((14, 12), False, 6),
        "wide": base_samples.kasa((12, 14), False, 4),
    },
    "psoft": {
        "": base_samples.psoft(),
        "PiSSA's factors": base_samples.psoft(ab_svd_init="pissa_init", psoft_mag_a=False, psoft_mag_b=False),
        "free": base_samples.psoft(psoft_orth=False),
        "series": base_samples.psoft(
            use_cayley_neumann=True, num_cayley_neumann_terms=3, cayley_neumann_eps=0.2
        ),
    },
    "oft": {
        "": base_samples.oft(),
        "series": base_samples.oft(use_cayley_neumann=True),
        "series of three": base_samples.oft(use_cayley_neumann=True, num_cayley_neumann_terms=3),
        "shared": base_samples.oft(1, block_share=True),
        "bounded": base_samples.oft(coft=True),
    },
}
