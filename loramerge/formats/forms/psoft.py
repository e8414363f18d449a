"""PSOFT: the strongest singular parts of the base, turned and stretched among each other.

    ΔW = U S (R − 1) Vᵀ, R = diag(b) C(Q) diag(a)        U S Vᵀ the r strongest parts of W, a, b (r,)
    C(Q) = (1 + Q) (1 − Q)⁻¹, or the first terms of its series; or R is stored as it is

With `pissa_init` it is U √S (R − 1) √S Vᵀ. Q belongs to singular vectors of one sign each, and no file keeps
these signs: they are taken as torch finds them on a CPU, where PEFT looks for them each time it loads.
"""

from __future__ import annotations

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.forms.checks import check_rank, misfit, missing
from loramerge.formats.forms.factors import Pair, made
from loramerge.formats.forms.form import Form, Given, Parts, Update
from loramerge.formats.forms.oft import TERMS, bounded, cayley, series, skewed

INITS = {"psoft_init": 1.0, "pissa_init": 0.5}  # how the first factor was chosen -> its power of S
VECTORS = {"psoft_a": "psoft_mag_a", "psoft_b": "psoft_mag_b"}  # part -> the setting that it is there


def make(parts: Parts, given: Given) -> Update:
    """The pair of the span, with R in `up`."""
    weight, rank, power = given.layer.weight, given.whole("r", 32), _power(given)
    check_rank(given, rank)
    stored, vectors, orthogonal = parts["psoft_R"], _vectors(parts, given), _says(given, "psoft_orth")
    shape = (rank * (rank - 1) // 2,) if orthogonal else (rank, rank)
    if stored.shape != shape or any(tensor.shape != (rank,) for tensor in vectors.values()):
        raise misfit(given.where, {PSOFT.call(part): tensor for part, tensor in parts.items()})
    if not 1 <= rank <= min(given.layer.size):
        raise misfit(given.where, {"its layer": weight, PSOFT.call("psoft_R"): stored})

    def up(stored: Array, weight: Array, *sides: Array) -> Array:
        turn = _turn(stored, rank, given) if orthogonal else stored
        for name, side in zip(vectors, sides, strict=True):
            turn = turn * (side[None, :] if name == "psoft_a" else side[:, None])
        core: Array = span(weight, rank, power, given.where)[0] @ (turn - np.eye(rank))
        return core

    def down(weight: Array) -> Array:
        return span(weight, rank, power, given.where)[1]

    outs, ins = given.layer.size
    left = made([stored, weight, *vectors.values()], (outs, rank), up, outs * ins)
    return Update(left, made([weight], (rank, ins), down, outs * ins), None)


def span(weight: Array, rank: int, power: float, where: str) -> Pair:
    """The strongest parts as two factors, with so high a power of S in the first.

    Raises:
        IncompatibleError: torch is not installed, and another library may find other signs.
    """
    try:
        import torch  # whose signs PEFT takes
    except ImportError:
        raise IncompatibleError(
            f"{where} is PSOFT, whose file means the singular vectors that torch finds: install torch to "
            "read it."
        ) from None
    left, sigma, right = torch.linalg.svd(torch.from_numpy(weight.astype(np.float32)), full_matrices=False)
    scales = sigma.numpy().astype(np.float64)[:rank]
    return left.numpy()[:, :rank] * scales**power, scales[:, None] ** (1 - power) * right.numpy()[:rank]


def _turn(stored: Array, rank: int, given: Given) -> Array:
    """(r, r) by Cayley's transform, or so many terms of its series."""
    skew = skewed(stored[None], rank)
    if given.config.get("use_cayley_neumann") is not True:
        return cayley(-skew)[0]
    if given.config.get("cayley_neumann_eps") is not None:
        skew = bounded(skew, given.number("cayley_neumann_eps"))
    return series(skew, given.whole("num_cayley_neumann_terms", TERMS))[0]


def _vectors(parts: Parts, given: Given) -> dict[str, Tensor]:
    """The vectors that its config says are there.

    Raises:
        SourceError: one is not.
    """
    for part, setting in VECTORS.items():
        if _says(given, setting) != (part in parts):
            raise missing(PSOFT.call(part), given.where) if part not in parts else misfit(given.where, parts)
    return {part: parts[part] for part in VECTORS if part in parts}


def _says(given: Given, setting: str) -> bool:
    return given.config.get(setting, True) is not False


def _power(given: Given) -> float:
    """Raises IncompatibleError: what its factors are cannot be computed again."""
    init, way = given.config.get("ab_svd_init", "psoft_init"), given.config.get("psoft_svd", "full")
    if way != "full" or init not in INITS:
        said = f"psoft_svd {printable(repr(way), 40)} and ab_svd_init {printable(repr(init), 40)}"
        raise IncompatibleError(
            f"{given.where} is PSOFT with {said}: only factors of the full SVD can be found again. Convert "
            "it with PEFT's save_as_lora where it was trained."
        )
    return INITS[init]


PSOFT = Form(
    name="psoft",
    words="PSOFT",
    formula="`U S (R − 1) Vᵀ`, of the strongest parts of W",
    units="r",
    make=make,
    peft={
        "psoft_R": ("psoft_R.weight",),
        "psoft_a": ("psoft_R.vector_a",),
        "psoft_b": ("psoft_R.vector_b",),
    },
    must=("psoft_R",),
    types={"PSOFT": ""},
    bare=False,
    needs="base",
    scaled=False,
    caveat="PSOFT keeps no signs of the singular vectors that it turns: they are taken as PEFT finds them on "
    "a CPU; if it was trained on a GPU, PEFT's save_as_lora there is the way to be sure",
)
