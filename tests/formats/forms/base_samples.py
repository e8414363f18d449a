"""Forms that need the weights of the base, by definition and by PEFT."""

from __future__ import annotations

import numpy as np

from tests.formats.forms import authors
from tests.formats.forms.sample import Sample, base_weight, n
from tests.helpers.dialects import product


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


def dora_conv(rng):
    parts = {
        "down": n(rng, 3, 5, 3, 2),
        "up": n(rng, 14, 3, 1, 1),
        "magnitude": 3 + rng.random((1, 14, 1, 1)),
    }
    weight, wanted = base_weight(rng, 14, 30), np.zeros((14, 30))
    whole = weight + 0.5 * product(parts["up"][:, :, 0, 0], parts["down"].reshape(3, 30))
    for o in range(14):
        length = parts["magnitude"][0, o, 0, 0] / np.sqrt((whole[o] ** 2).sum())
        wanted[o] = length * whole[o] - weight[o]
    theirs = authors.peft_dora("dora", weight.reshape(14, 5, 3, 2))
    config = {"peft_type": "LORA", "use_dora": True}
    return Sample("peft", parts, wanted, 14, None, set(), theirs, (3, 2), rank=3,
        config=config, weight=weight, scale=0.5)  # fmt: skip


def dora_embedding(rng):
    """Of a table (tokens, dim): every column has a length."""
    parts = {"embedding_A": n(rng, 3, 13), "embedding_B": n(rng, 12, 3), "magnitude": 3 + rng.random(12)}
    table, wanted = base_weight(rng, 13, 12), np.zeros((12, 13))
    whole = table.T + 0.5 * product(parts["embedding_B"], parts["embedding_A"])
    for dim in range(12):
        length = parts["magnitude"][dim] / np.sqrt((whole[dim] ** 2).sum())
        wanted[dim] = length * whole[dim] - table[:, dim]
    theirs, config = authors.peft_dora("dora_embedding", table), {"peft_type": "LORA", "use_dora": True}
    return Sample("peft", parts, wanted, 12, None, set(), theirs, rank=3,
        config=config, weight=table, scale=0.5)  # fmt: skip


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
                turned = one + 2 * turn + 2 * square + square @ turn
                if "num_cayley_neumann_terms" not in settings:  # five
                    turned = turned + square @ turn + square @ square
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


def psoft(**settings):
    """R of the strongest three parts; the signs of singular vectors are those that torch finds."""

    def make(rng):
        weight, orthogonal = base_weight(rng, 14, 12), settings.get("psoft_orth", True)
        parts = {"psoft_R": 0.3 * n(rng, 3) if orthogonal else n(rng, 3, 3)}
        parts |= {"psoft_a": n(rng, 3), "psoft_b": n(rng, 3)} if settings.get("psoft_mag_a", True) else {}
        left, sigma, right = np.linalg.svd(weight.astype("f8"), full_matrices=False)
        signs, power = authors.signs(weight, right)[:3], 0.5 if "ab_svd_init" in settings else 1.0
        if orthogonal:
            turn, one = skew(parts["psoft_R"], 3), np.eye(3)
            if settings.get("cayley_neumann_eps"):
                turn = turn * min(1, 0.2 / np.sqrt((turn**2).sum()))
            whole = product(one + turn, np.linalg.inv(one - turn))
            if settings.get("use_cayley_neumann"):
                whole = one + 2 * turn + 2 * turn @ turn + turn @ turn @ turn
        turned = np.zeros((3, 3))
        for i, j in np.ndindex(3, 3):
            entry = whole[i, j] if orthogonal else parts["psoft_R"][i, j]
            entry *= parts["psoft_b"][i] * parts["psoft_a"][j] if "psoft_a" in parts else 1
            turned[i, j] = sigma[i] ** power * (entry - (i == j)) * sigma[j] ** (1 - power)
        wanted = product(product(left[:, :3] * signs, turned), signs[:, None] * right[:3])
        theirs = authors.peft_merged("PsoftConfig", (14, 12), weight=weight, single=True, r=3, **settings)
        config = {"peft_type": "PSOFT", "r": 3, **settings}
        return Sample("peft", parts, wanted, 3, None, set(), theirs, rank=3,
            config=config, weight=weight, within=1e-5)  # fmt: skip

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
