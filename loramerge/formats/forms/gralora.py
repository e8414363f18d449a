"""GraLoRA: a pair for each of k × k blocks of the weight, and maybe a plain pair over all of it.

    ΔW[block j of out, block n of in] = s · Σ_t B[j, n·(r/k) + t] ⊗ A[n, :, j·(r/k) + t]
    s = α / (r + h), A (k, in/k, r), B (k, r, out/k), of the plain pair A (h, in), B (out, h)

(arXiv:2505.20355)
"""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.formats.forms.checks import misfit, missing
from loramerge.formats.forms.factors import Pair, Product
from loramerge.formats.forms.form import Form, Given, Parts, Update

PLAIN = ("gralora_A_general", "gralora_B_general")


def make(parts: Parts, given: Given) -> Update:
    """One pair of k·r units, each of which lives in one block; the plain pair behind them."""
    a, b = parts["gralora_A"], parts["gralora_B"]
    if len(a.shape) != 3 or len(b.shape) != 3 or (a.shape[0], a.shape[2]) != b.shape[:2]:
        raise misfit(given.where, parts)
    (blocks, wide, rank), tall = a.shape, b.shape[2]
    if rank % blocks:
        raise SourceError(f"{given.where} has rank {rank} in {blocks} blocks: they do not fit together.")
    outs, ins, each = tall * blocks, wide * blocks, rank // blocks
    extra = _plain(parts, given, outs, ins)
    scale = given.number("alpha") / (rank + extra)
    plain = [parts[name] for name in PLAIN] if extra else []

    def pair(a: Array, b: Array, *plain: Array) -> Pair:
        up, down = np.zeros((blocks, blocks, each, outs)), np.zeros((blocks, blocks, each, ins))
        for j, n in np.ndindex(blocks, blocks):
            up[j, n, :, j * tall : (j + 1) * tall] = b[j, n * each : (n + 1) * each]
            down[j, n, :, n * wide : (n + 1) * wide] = a[n, :, j * each : (j + 1) * each].T
        left, right = up.reshape(-1, outs).T, down.reshape(-1, ins)
        if plain:
            left, right = np.concatenate([left, plain[1]], 1), np.concatenate([right, plain[0]])
        return scale * left, right

    def whole(*arrays: Array) -> Array:
        left, right = pair(*arrays)
        return left @ right

    product = Product([a, b, *plain], (outs, ins), blocks * rank + extra, pair, whole)
    return Update(*product.factors(), None)


def _plain(parts: Parts, given: Given, outs: int, ins: int) -> int:
    """The rank of the plain pair; 0 where there is none."""
    held = [name for name in PLAIN if name in parts]
    if len(held) == 1:
        raise missing(next(name for name in PLAIN if name not in held), given.where)
    if not held:
        if given.whole("hybrid_r", 0):
            raise missing(PLAIN[0], given.where)
        return 0
    down, up = (parts[name] for name in PLAIN)
    if down.shape[1:] != (ins,) or up.shape != (outs, down.shape[0]):
        raise misfit(given.where, parts)
    return down.shape[0]


GRALORA = Form(
    name="gralora",
    words="GraLoRA",
    formula="a pair for each of k × k blocks",
    units="r·k (+ hybrid r)",
    make=make,
    peft={
        "gralora_A": ("gralora_A",),
        "gralora_B": ("gralora_B",),
        **{name: (f"{name}.weight",) for name in PLAIN},
    },
    must=("gralora_A", "gralora_B"),
    types={"GRALORA": ""},
    linear=(("gralora_A", PLAIN[0]), ("gralora_B", PLAIN[1])),
    bare=False,
    scaled=False,
)
