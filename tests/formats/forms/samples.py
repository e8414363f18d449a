"""Every form with random tensors, what they come to by its definition, and by its authors' code.

A form without a row here fails the laws. A row is a function of a generator that gives a `Sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loramerge.formats.forms.draws import Draws, frame
from tests.formats.forms import authors
from tests.helpers.dialects import matrix, product

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One module.

    Args:
        naming: peft or image.   parts: its float64 tensors, wide enough that no product is larger than ΔW.
        wanted: ΔW before the scale, entry by entry from the definition, as a matrix.
        units: the rank that it is read with.   kernel: as `Update` has it.
        free: (part, axis) of what may have any size: outputs, inputs, kernels.
        rank, config: what a config says.   divisor: what alpha is divided by.
        theirs: the authors' ΔW of the parts; None where no package has the form.
        shared: what its module shares with others, by name.
        size: of its layer, where a form asks for it.   weight, bias: those of the layer, as float32.
        scale: alpha over rank, where a form is not linear in it.
        moved: what is added to the bias.
    """

    naming: str
    parts: Arrays
    wanted: np.ndarray
    units: int
    divisor: int | None
    free: set[tuple[str, int]]
    theirs: Callable[[Arrays], np.ndarray] | None
    kernel: tuple[int, ...] = ()
    rank: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    shared: Arrays = field(default_factory=dict)
    size: tuple[int, int] | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    scale: float = 1.0
    moved: np.ndarray | None = None


def n(rng, *shape):
    return rng.standard_normal(shape)


def tucker(a, b, t):
    """W[p, q, …] = Σ t[i, j, …] a[i, p] b[j, q]."""
    made = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
    for i, j, p, q in np.ndindex(a.shape[0], b.shape[0], a.shape[1], b.shape[1]):
        made[p, q] += t[i, j].astype(np.float64) * float(a[i, p]) * float(b[j, q])
    return made


def kron(left, right):
    """Blocks left[i, j] · right, also where right is a convolution's."""
    rows = [np.concatenate([float(x) * right for x in row], axis=1) for row in left]
    return np.concatenate(rows, axis=0)


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


def vera(rng):
    a, b, over, under = n(rng, 2, 20), n(rng, 19, 2), n(rng, 14), n(rng, 2)
    wanted = np.zeros((14, 12))
    for o, i, k in np.ndindex(14, 12, 2):
        wanted[o, i] += over[o] * b[o, k] * under[k] * a[k, i]
    parts, shared = {"vera_lambda_b": over, "vera_lambda_d": under}, {"vera_A": a, "vera_B": b}
    theirs = authors.peft_merged("VeraConfig", (14, 12), shared, beside=(19, 20), r=2)
    config = {"peft_type": "VERA"}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared, size=(14, 12))


def vera_drawn(rng):
    """Of which only the seed is kept; torch's generator is the oracle."""
    over, under = n(rng, 14), n(rng, 2)
    config = {"peft_type": "VERA", "save_projection": False, "projection_prng_key": 3}
    a, b = (t.read() for t in frame(3, (2, 12), (14, 2)))
    wanted = product(over[:, None] * b, under[:, None] * a)
    theirs = authors.peft_merged("VeraConfig", (14, 12), r=2, save_projection=False, projection_prng_key=3)
    parts = {"vera_lambda_b": over, "vera_lambda_d": under}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, rank=2, config=config, size=(14, 12))


def pvera(rng):
    a, b, over, under = n(rng, 4, 20), n(rng, 19, 2), n(rng, 14), n(rng, 4)
    wanted = np.zeros((14, 12))
    for o, i, k in np.ndindex(14, 12, 2):
        wanted[o, i] += over[o] * b[o, k] * under[k] * a[k, i]
    parts, shared = {"pvera_lambda_b": over, "pvera_lambda_d": under}, {"pvera_A": a, "pvera_B": b}
    theirs = authors.peft_merged("PveraConfig", (14, 12), shared, beside=(19, 20), r=2)
    config = {"peft_type": "PVERA"}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared, size=(14, 12))


def of_type(naming, kind):
    return {"peft_type": kind} if naming == "peft" else {}


def vblora(rng):
    a, b, bank = n(rng, 2, 3, 5), n(rng, 2, 2, 5), n(rng, 5, 7)

    def mixed(logits):
        best = sorted(range(5), key=lambda i: -logits[i])[:2]
        shares = np.exp([logits[i] for i in best])
        return sum(share * bank[i] for share, i in zip(shares / shares.sum(), best, strict=True))

    wanted = np.zeros((14, 21))
    for k, t, u in np.ndindex(2, 2, 3):
        wanted[7 * t : 7 * t + 7, 7 * u : 7 * u + 7] += np.outer(mixed(b[t, k]), mixed(a[k, u]))
    parts, shared = {"vblora_logits_A": a, "vblora_logits_B": b}, {"vblora_vector_bank": bank}
    settings = {"r": 2, "topk": 2, "num_vectors": 5, "vector_length": 7}
    theirs = authors.peft_merged("VBLoRAConfig", (14, 21), shared, **settings)
    free = {("vblora_logits_A", 1), ("vblora_logits_B", 0)}
    config = {"peft_type": "VBLORA", "topk": 2}
    return Sample("peft", parts, wanted, 2, None, free, theirs, config=config, shared=shared)


def vblora_best(rng):
    """Of which only the best are kept."""
    bank, parts, sides = n(rng, 5, 7), {}, {}
    for side, shape in (("A", (2, 3)), ("B", (2, 2))):
        indices = np.argsort(rng.random((*shape, 5)), axis=-1)[..., :2]
        shares = rng.random((*shape, 1))
        parts |= {f"vblora_logits_{side}_topk_indices": indices, f"vblora_logits_{side}_topk_weights": shares}
        sides[side] = shares * bank[indices[..., 0]] + (1 - shares) * bank[indices[..., 1]]
    wanted = np.zeros((14, 21))
    for k, t, u in np.ndindex(2, 2, 3):
        wanted[7 * t : 7 * t + 7, 7 * u : 7 * u + 7] += np.outer(sides["B"][t, k], sides["A"][k, u])
    shared, config = {"vblora_vector_bank": bank}, {"peft_type": "VBLORA"}
    settings = {"r": 2, "topk": 2, "num_vectors": 5, "vector_length": 7, "save_only_topk_weights": True}
    theirs = authors.peft_merged("VBLoRAConfig", (14, 21), shared, single=True, **settings)
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared)


def tinylora(rng):
    parts = {"tinylora_A": n(rng, 2, 12), "tinylora_B": n(rng, 14, 2), "tinylora_P": n(rng, 5, 2, 2)}
    vector = n(rng, 5)
    core = sum(v * p for v, p in zip(vector, parts["tinylora_P"], strict=True))
    wanted = product(product(parts["tinylora_B"], core), parts["tinylora_A"])
    shared, config = {"tinylora_v.0": vector}, {"peft_type": "TINYLORA"}
    theirs = authors.peft_merged("TinyLoraConfig", (14, 12), shared, r=2, u=5)
    free = {("tinylora_A", 1), ("tinylora_B", 0)}
    return Sample("peft", parts, wanted, 2, None, free, theirs, config=config, shared=shared)


def delora(rng):
    a, b, strength, norms = n(rng, 3, 12), n(rng, 14, 3), n(rng, 1), n(rng, 12)
    wanted = np.zeros((14, 12))
    for k in range(3):
        lengths = np.sqrt((a[k] ** 2).sum()) * np.sqrt((b[:, k] ** 2).sum())
        wanted += strength[0] / (3 * lengths) * np.outer(b[:, k], a[k] * norms)
    parts = {"delora_A": a, "delora_B": b, "delora_lambda": strength, "delora_w_norm": norms}
    theirs = authors.peft_merged("DeloraConfig", (14, 12), r=3)
    free, config = {("delora_B", 0)}, {"peft_type": "DELORA"}
    return Sample("peft", parts, wanted, 3, None, free, theirs, config=config)


def gralora(hybrid):
    def make(rng):
        parts = {"gralora_A": n(rng, 2, 9, 4), "gralora_B": n(rng, 2, 4, 10)}
        wanted = np.zeros((20, 18))
        for j, block, t in np.ndindex(2, 2, 2):
            rows, columns = slice(10 * j, 10 * j + 10), slice(9 * block, 9 * block + 9)
            up, down = parts["gralora_B"][j, 2 * block + t], parts["gralora_A"][block, :, 2 * j + t]
            wanted[rows, columns] += np.outer(up, down)
        free = {("gralora_A", 1), ("gralora_B", 2)}
        if hybrid:
            parts |= {"gralora_A_general": n(rng, 3, 18), "gralora_B_general": n(rng, 20, 3)}
            wanted, free = wanted + product(parts["gralora_B_general"], parts["gralora_A_general"]), set()
        config = {"peft_type": "GRALORA", "alpha": 6, "hybrid_r": hybrid}
        settings = {"r": 4, "gralora_k": 2, "hybrid_r": hybrid, "alpha": 6}
        theirs, scale = authors.peft_merged("GraloraConfig", (20, 18), **settings), 6 / (4 + hybrid)
        return Sample("peft", parts, scale * wanted, 8 + hybrid, None, free, theirs, config=config)

    return make


def c3a(rng):
    kernel = n(rng, 3, 2, 4)
    wanted = np.zeros((12, 8))
    for m, k, p, q in np.ndindex(3, 2, 4, 4):
        wanted[4 * m + p, 4 * k + q] = kernel[m, k, (q - p) % 4] / 8
    theirs = authors.peft_merged("C3AConfig", (12, 8), block_size=4)
    free = {("c3a_kernel", axis) for axis in range(3)}
    return Sample("peft", {"c3a_kernel": kernel}, wanted, 8, None, free, theirs, config={"peft_type": "C3A"})


def xs(rng):
    parts = {"down": n(rng, 3, 12), "up": n(rng, 14, 3), "latent": n(rng, 3, 3)}
    wanted = product(product(parts["up"], parts["latent"]), parts["down"])
    free = {("up", 0), ("down", 1)}
    return Sample("peft", parts, wanted, 3, 3, free, authors.lora_xs, rank=3)


def unilora(rng):
    theta, parts, sides = n(rng, 6), {}, {}
    for side, shape in (("A", (2, 12)), ("B", (14, 2))):
        indices, scales = rng.integers(0, 6, shape), n(rng, *shape)
        parts |= {f"unilora_indices_{side}": indices, f"unilora_scales_{side}": scales}
        sides[side] = np.array([theta[i] for i in indices.ravel()]).reshape(shape) * scales
    wanted, config = product(sides["B"], sides["A"]), {"peft_type": "UNILORA"}
    shared = {"unilora_theta_d": theta}
    theirs = authors.peft_merged("UniLoraConfig", (14, 12), shared, r=2, theta_d_length=6, save_indices=True)
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared)


def randlora(size):
    def make(rng):
        (outs, ins), small, large, r = size, min(size), max(size), 3
        bases = -(-small // r)
        parts = {"randlora_lambda": n(rng, r, bases), "randlora_gamma": n(rng, bases, small)}
        a, b = n(rng, r, 1, small + 2), n(rng, large + 3, bases + 1, r)
        wanted = np.zeros((large, small))
        for j in range(bases * r):
            k, base = divmod(j, bases)
            under = parts["randlora_lambda"][k, base] * a[k, 0, :small] * parts["randlora_gamma"][base]
            wanted += np.outer(b[:large, j // r, j % r], under)
        shared, config = {"randlora_A": a, "randlora_B": b}, {"peft_type": "RANDLORA"}
        wanted, theirs = wanted if outs >= ins else wanted.T, authors.randlora(size, a, b)
        return Sample("peft", parts, wanted, small, r, set(), theirs, rank=r,
            config=config, shared=shared, size=size)  # fmt: skip

    return make


def miss(rng):
    block = n(rng, 3, 14)
    wanted = np.zeros((14, 11))
    for o, i in np.ndindex(14, 11):
        wanted[o, i] = block[i % 3, o]
    theirs, config = authors.peft_merged("MissConfig", (14, 11), r=3), {"peft_type": "MISS"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 3, None, set(), theirs, rank=3, config=config, size=(14, 11))


def miss_mini(rng):
    block = n(rng, 3, 7)
    wanted = np.zeros((14, 11))
    for o, i in np.ndindex(14, 11):
        wanted[o, i] = block[i % 3, o % 7]
    theirs = authors.peft_merged("MissConfig", (14, 11), r=3, mini_r=7, init_weights="mini")
    config = {"peft_type": "MISS", "init_weights": "mini"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 3, None, set(), theirs, rank=3, config=config, size=(14, 11))


def miss_bat(rng):
    block, weight = n(rng, 3, 4, 4), n(rng, 12, 8).astype("f4")
    wanted = np.zeros((12, 8))
    for o, i in np.ndindex(3, 2):
        here = slice(4 * o, 4 * o + 4), slice(4 * i, 4 * i + 4)
        wanted[here] = product(weight[here], block[o]) + block[o]
    theirs = authors.peft_merged("MissConfig", (12, 8), weight=weight, r=4, init_weights="bat")
    config = {"peft_type": "MISS", "init_weights": "bat"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 8, None, set(), theirs, config=config, weight=weight)


def shira(rng):
    places = rng.permutation(14 * 12)[:26]
    parts = {"shira_weight": n(rng, 26), "shira_indices": np.stack([places // 12, places % 12])}
    wanted = np.zeros((14, 12))
    for value, place in zip(parts["shira_weight"], places, strict=True):
        wanted[place // 12, place % 12] = value
    theirs, config = authors.peft_merged("ShiraConfig", (14, 12), r=1), {"peft_type": "SHIRA"}
    return Sample("peft", parts, wanted, 12, None, set(), theirs, config=config, size=(14, 12))


def fourierft(count, units):
    def make(rng):
        spectrum, places = n(rng, count), Draws(9).first(count, 14 * 12)
        wanted = np.zeros((14, 12))
        for (o, i), (c, place) in (
            (a, b) for a in np.ndindex(14, 12) for b in zip(spectrum, places, strict=True)
        ):
            wanted[o, i] += 2.5 / 168 * c * np.cos(2 * np.pi * (place // 12 * o / 14 + place % 12 * i / 12))
        settings = {"n_frequency": count, "random_loc_seed": 9, "scaling": 2.5}
        theirs, config = authors.peft_merged("FourierFTConfig", (14, 12), **settings), settings
        config = {"peft_type": "FOURIERFT", **settings}
        parts = {"fourierft_spectrum": spectrum}
        return Sample("peft", parts, wanted, units, None, set(), theirs, config=config, size=(14, 12))

    return make


def waveft(size, **more):
    def make(rng):
        (outs, ins), spectrum, half = size, n(rng, 5), np.sqrt(0.5)
        tall, wide = (side + side % 2 for side in size)
        dense, wanted = np.zeros((tall, wide)), np.zeros((tall, wide))
        for c, place in zip(spectrum, Draws(9).first(5, outs * ins), strict=True):
            dense[place // ins, place % ins] = c
        for o, i in np.ndindex(tall, wide):
            here, low, right = (
                (o // 2, i // 2),
                tall // 2,
                wide // 2,
            )  # of the bands, the lower one differs in i
            for down, across in np.ndindex(2, 2):
                sign = (-1) ** (o * across + i * down)
                wanted[o, i] += half**2 * sign * dense[here[0] + low * down, here[1] + right * across]
        settings = {"n_frequency": 5, "random_loc_seed": 9, "scaling": 2.5, **more}
        wanted = 2.5 * (wanted if more.get("use_idwt", True) else dense)[:outs, :ins]
        theirs = authors.peft_merged("WaveFTConfig", size, **settings)
        config = {"peft_type": "WAVEFT", "wavelet_family": "db1", **settings}
        parts = {"waveft_spectrum": spectrum}
        return Sample("peft", parts, wanted, 5, None, set(), theirs, config=config, size=size)

    return make


def base_weight(rng, outs, ins):
    """As float32, of which laws about number types have no need."""
    return n(rng, outs, ins).astype("f4")


def dora(rng):
    parts, weight = (
        {"down": n(rng, 3, 12), "up": n(rng, 14, 3), "magnitude": 3 + rng.random(14)},
        base_weight(rng, 14, 12),
    )
    turned = weight + 0.5 * product(parts["up"], parts["down"])
    wanted = np.zeros((14, 12))
    for o in range(14):
        wanted[o] = parts["magnitude"][o] * turned[o] / np.sqrt((turned[o] ** 2).sum()) - weight[o]
    config = {"peft_type": "LORA", "use_dora": True}
    theirs = authors.peft_merged("LoraConfig", (14, 12), weight=weight, r=3, lora_alpha=1.5, use_dora=True)
    return Sample(
        "peft", parts, wanted, 12, None, set(), theirs, rank=3, config=config, weight=weight, scale=0.5
    )


def kasa(size, marked, units):
    def make(rng):
        (outs, ins), parts = size, {"down": n(rng, 3, size[1]), "up": n(rng, size[0], 3), "diag": n(rng, 3)}
        weight = base_weight(rng, outs, ins)
        left, sigma, right = np.linalg.svd(weight.astype("f8"), full_matrices=False)
        kept = (min(size) if marked else ins) - 3
        truncated = product(left[:, :kept] * sigma[:kept], right[:kept])
        wanted = 0.5 * product(parts["up"] * parts["diag"], parts["down"]) + truncated - weight
        config = {"peft_type": "LORA", **({"kasa_config": {"beta": 0.1}} if marked else {})}
        theirs = authors.kasa(weight) if marked else None
        return Sample("peft", parts, wanted, units, None, set(), theirs, rank=3,
            config=config, weight=weight, scale=0.5)  # fmt: skip

    return make


def hra(orthogonal):
    def make(rng):
        vectors, weight = n(rng, 12, 3), base_weight(rng, 14, 12)
        chain, units = np.eye(12), []
        for k in range(3):
            unit = vectors[:, k].copy()
            for other in units if orthogonal else []:
                unit -= (other @ unit) * other
            units.append(unit / np.sqrt((unit**2).sum()))
            chain = product(chain, np.eye(12) - 2 * np.outer(units[-1], units[-1]))
        wanted = product(weight, chain) - weight
        config = {"peft_type": "HRA", "apply_GS": orthogonal}
        theirs = authors.peft_merged("HRAConfig", (14, 12), weight=weight, r=3, apply_GS=orthogonal)
        return Sample("peft", {"hra_u": vectors}, wanted, 3, None, set(), theirs, rank=3,
            config=config, weight=weight)  # fmt: skip

    return make


def hira(rng):
    parts, weight = {"hira_A": n(rng, 3, 12), "hira_B": n(rng, 14, 3)}, base_weight(rng, 14, 12)
    wanted = weight * product(parts["hira_B"], parts["hira_A"])
    theirs = authors.peft_merged("HiraConfig", (14, 12), weight=weight, r=3)
    config = {"peft_type": "HIRA"}
    return Sample("peft", parts, wanted, 12, None, set(), theirs, config=config, weight=weight)


def ia3(shape, forward):
    def make(rng):
        factors, weight, bias = n(rng, *shape), base_weight(rng, 14, 12), n(rng, 14).astype("f4")
        wanted = np.zeros((14, 12))
        for o, i in np.ndindex(14, 12):
            wanted[o, i] = (factors[(0, i) if forward else (o, 0)] - 1) * weight[o, i]
        more = {"feedforward_modules": ["m"] if forward else []}
        theirs = authors.peft_merged("IA3Config", (14, 12), weight=weight, **more)
        config, parts = {"peft_type": "IA3"}, {"ia3_l": factors}
        moved = None if forward else (factors[:, 0] - 1) * bias
        return Sample("peft", parts, wanted, 12, None, set(), theirs,
            config=config, weight=weight, bias=bias, moved=moved)  # fmt: skip

    return make


def skew(upper, block):
    """A skew-symmetric matrix by its upper triangle, row by row."""
    made, at = np.zeros((block, block)), 0
    for i in range(block):
        for j in range(i + 1, block):
            made[i, j], made[j, i], at = upper[at], -upper[at], at + 1
    return made


def oft(blocks=3, **settings):
    def make(rng):
        stored, weight = 0.1 * n(rng, blocks, 6), base_weight(rng, 14, 12)
        wanted, one = np.zeros((14, 12)), np.eye(4)
        for k in range(3):
            turn = skew(stored[k % blocks], 4)
            if settings.get("coft"):
                turn = turn * min(1, 0.2 / np.sqrt(blocks) / np.sqrt((turn**2).sum()))
            if settings.get("use_cayley_neumann"):
                square = turn @ turn
                turned = one + 2 * turn + 2 * square + 2 * square @ turn + square @ square
            else:
                turned = product(one - turn, np.linalg.inv(one + turn))
            here = slice(4 * k, 4 * k + 4)
            wanted[:, here] = product(weight[:, here], turned.T) - weight[:, here]
        more = {"use_cayley_neumann": False, "eps": 0.2, **settings}
        theirs = authors.peft_merged("OFTConfig", (14, 12), weight=weight, oft_block_size=4, **more)
        config = {"peft_type": "OFT", **more}
        return Sample(
            "peft", {"oft_R": stored}, wanted, 12, None, set(), theirs, config=config, weight=weight
        )

    return make


def boft(steps):
    def make(rng):
        parts = {"boft_R": n(rng, steps, 4, 4, 4), "boft_s": n(rng, 14, 1)}
        weight, whole = base_weight(rng, 14, 16), np.eye(16)
        orders = [list(range(16)), [*range(0, 2), 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]]
        for step in range(steps):
            blocks = np.zeros((16, 16))
            for k, stored in enumerate(parts["boft_R"][step]):
                turn, here = (stored - stored.T) / 2, slice(4 * k, 4 * k + 4)
                blocks[here, here] = product(np.eye(4) - turn, np.linalg.inv(np.eye(4) + turn))
            order = np.eye(16)[orders[step]]
            whole = product(product(product(order, blocks), order.T), whole)
        wanted = parts["boft_s"] * product(weight, whole.T) - weight
        theirs = authors.boft(weight, steps)
        config = {"peft_type": "BOFT", "boft_n_butterfly_factor": steps}
        return Sample("peft", parts, wanted, 14, None, set(), theirs, config=config, weight=weight)

    return make


def lofit(rng):
    weight = base_weight(rng, 14, 20)
    parts = {"lofit_A.1": n(rng, 4), "lofit_v.1": n(rng, 4), "lofit_A.3": n(rng, 4), "lofit_v.3": n(rng, 4)}
    wanted, moved = np.zeros((14, 20)), np.zeros(14)
    for o, head, i in np.ndindex(14, 5, 4):
        if head in (1, 3):
            wanted[o, 4 * head + i] = weight[o, 4 * head + i] * parts[f"lofit_A.{head}"][i]
            moved[o] += weight[o, 4 * head + i] * parts[f"lofit_v.{head}"][i]
    theirs = authors.lofit(weight)
    return Sample("peft", parts, wanted, 8, None, set(), theirs, weight=weight, moved=moved)


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
    "vera": {"": vera, "drawn": vera_drawn},
    "pvera": {"": pvera},
    "c3a": {"": c3a},
    "delora": {"": delora},
    "fourierft": {"": fourierft(4, 8), "of more coefficients than sides": fourierft(9, 12)},
    "gralora": {"": gralora(0), "hybrid": gralora(3)},
    "miss": {"": miss, "mini": miss_mini},
    "miss_bat": {"": miss_bat},
    "randlora": {
        "": randlora((14, 11)),
        "wide": randlora((11, 14)),
        "square": randlora((12, 12)),
    },
    "shira": {"": shira},
    "tinylora": {"": tinylora},
    "unilora": {"": unilora},
    "vblora": {"": vblora, "of the best alone": vblora_best},
    "waveft": {"": waveft((14, 12)), "odd": waveft((13, 11)), "entries": waveft((14, 12), use_idwt=False)},
    "xs": {"": xs},
    "boft": {"": boft(1), "of two steps": boft(2)},
    "dora": {"": dora},
    "hira": {"": hira},
    "hra": {"": hra(False), "orthogonal": hra(True)},
    "ia3": {"": ia3((14, 1), False), "feed-forward": ia3((1, 12), True)},
    "lofit": {"": lofit},
    "kasa": {
        "PEFT": kasa((14, 12), True, 6),
        "PEFT, wide": kasa((12, 14), True, 6),
    },
    "authors_kasa": {"": kasa((14, 12), False, 6), "wide": kasa((12, 14), False, 4)},
    "oft": {
        "": oft(),
        "series": oft(use_cayley_neumann=True),
        "shared": oft(1, block_share=True),
        "bounded": oft(coft=True),
    },
}
