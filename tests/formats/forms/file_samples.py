"""Forms that their file explains, by definition and by PEFT."""

from __future__ import annotations

import numpy as np

from tests.formats.forms import authors
from tests.formats.forms.sample import Sample, n
from tests.helpers.dialects import product


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


def triadapt(rng):
    """Of rank 1, to which training added 2."""
    parts = {"tri_A.0": n(rng, 1, 12), "tri_A.1": n(rng, 2, 12), "tri_B.0": n(rng, 14, 1)}
    parts |= {"tri_B.1": n(rng, 14, 2), "tri_row.0": n(rng, 1, 1), "tri_row.1": n(rng, 2, 3)}
    parts |= {"tri_col.0": n(rng, 1, 1), "tri_col.1": n(rng, 3, 2)}
    core = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        core[i, j] += parts["tri_row.1"][i - 1, j] if i else parts["tri_row.0"][0, 0] * (j == 0)
        core[i, j] += parts["tri_col.1"][i, j - 1] if j else parts["tri_col.0"][0, 0] * (i == 0)
    up, down = (
        np.hstack([parts["tri_B.0"], parts["tri_B.1"]]),
        np.vstack([parts["tri_A.0"], parts["tri_A.1"]]),
    )
    wanted = 6 / (3 + 1e-5) * product(product(up, core), down)
    config = {"peft_type": "TRIADAPTLORA", "lora_alpha": 6, "init_rank": 1, "r": 8}
    return Sample("peft", parts, wanted, 3, None, set(), authors.triadapt, rank=8, config=config)
