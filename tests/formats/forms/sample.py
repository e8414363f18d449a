"""One module of a form: its tensors, what they come to, and what its form is given beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
        moved: what is added to the bias.   within: how near to `wanted` the form comes.
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
    within: float = 1e-12


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


def of_type(naming, kind):
    return {"peft_type": kind} if naming == "peft" else {}


def base_weight(rng, outs, ins):
    """As float32, of which laws about number types have no need."""
    return n(rng, outs, ins).astype("f4")
