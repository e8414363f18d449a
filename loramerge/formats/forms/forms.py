"""The forms in which an update is stored, each as a pair of factors: exactly, whatever its rank.

    LoRA      up @ down
    Tucker    up @ (mid · down)                 a convolution through a small kernel
    LoHa      (a₁ b₁) ∘ (a₂ b₂)                  = khatri_rao(a₁, a₂) @ face_split(b₁, b₂), rank r₁ r₂
    LoKr      kron(w₁, w₂)                      = kron(a₁, a₂) @ kron(b₁, b₂) for w = a b
    full      the whole matrix                  = ΔW @ 1, or 1 @ ΔW

where that rank is above the smaller side of the matrix, the matrix itself is the smaller exact form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, printable
from loramerge.formats.files.views import View, matrix, widened
from loramerge.formats.forms.parts import Parts
from loramerge.formats.peft.pairs import check_float

FACTORS = {  # the form of a module -> its factors
    "lora": ("up", "down", "mid"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    "full": ("diff",),
}

Pair = tuple[Array, Array]


@dataclass(frozen=True, eq=False, slots=True)
class Update:
    """A module's update before its scale.

    Args:
        up: (out, units).   down: (units, in · Π kernel).
        form: lora, loha, lokr or full.
        rank: what alpha is divided by; None where the form has no alpha.
        kernel: of a convolution, as far as the shapes tell it.
    """

    up: Tensor
    down: Tensor
    form: str
    rank: int | None
    kernel: tuple[int, ...] = ()


def update(parts: Parts, where: str) -> Update:
    """The update that these parts are.

    Args:
        where: what messages call the module.

    Raises:
        SourceError: a part is missing, or the shapes do not fit.
        IncompatibleError: a part of a type that is not read.
    """
    given = [form for form, names in FACTORS.items() if any(name in parts for name in names)]
    if len(given) != 1:
        raise SourceError(
            f"{where} has {' and '.join(given)} in one" if given else f"{where} has an alpha, but no factors."
        )
    factors = {name: tensor for name, tensor in parts.items() if name != "alpha"}  # it may be an integer
    for name, tensor in factors.items():
        check_float(tensor, f"{name} of {where}")
        if 0 in tensor.shape or not 2 <= len(tensor.shape) <= 5:
            raise _odd(where, factors)
    wide = {name: widened(tensor) for name, tensor in factors.items()}
    return _FORMS[given[0]](wide, where)


def _lora(parts: Parts, where: str) -> Update:
    up, down, mid = (parts.get(name) for name in ("up", "down", "mid"))
    if up is None or down is None:
        side = "lora_up" if up is None else "lora_down"
        raise SourceError(f"{side} of {where} is missing: the file was cut or badly saved.")
    if mid is not None:
        return _tucker(up, down, mid, where)
    rank, kernel = down.shape[0], down.shape[2:]
    if (
        up.shape[1] != rank
        or set(up.shape[2:]) - {1}
        or (kernel and len(up.shape) not in (2, len(down.shape)))
    ):
        raise _odd(where, {"lora_up": up, "lora_down": down})
    return Update(matrix(up), matrix(down), "lora", rank, kernel)


def _tucker(up: Tensor, down: Tensor, mid: Tensor, where: str) -> Update:
    """ΔW[i, j, …] = Σ up[i, m] mid[m, n, …] down[n, j]."""
    shapes = {"lora_up": up, "lora_mid": mid, "lora_down": down}
    if mid.shape[:2] != (up.shape[1], down.shape[0]) or {*up.shape[2:], *down.shape[2:]} - {1}:
        raise _odd(where, shapes)
    rank, ins, kernel = mid.shape[0], down.shape[1], mid.shape[2:]

    def core(mid: Array, down: Array) -> Array:
        return np.einsum("mn...,nj->mj...", mid, down.reshape(down.shape[:2])).reshape(rank, -1)

    wide = _made([mid, down], (rank, ins * prod(kernel)), core)
    return Update(matrix(up), wide, "lora", down.shape[0], kernel)


def _loha(parts: Parts, where: str) -> Update:
    halves = [_loha_half(parts, i, where) for i in (1, 2)]
    (_, size1, r1, kernel), (_, size2, r2, other) = halves
    if size1 != size2 or kernel != other:
        raise _odd(where, parts)
    tensors = [t for tensors, *_ in halves for t in tensors]
    cut = len(halves[0][0])

    def pair(*arrays: Array) -> Pair:
        (a1, b1), (a2, b2) = _half(arrays[:cut]), _half(arrays[cut:])
        up = np.einsum("oi,oj->oij", a1, a2).reshape(len(a1), -1)  # (out, r1 r2)
        return up, np.einsum("in,jn->ijn", b1, b2).reshape(-1, b1.shape[1])  # (r1 r2, in)

    def whole(*arrays: Array) -> Array:
        (a1, b1), (a2, b2) = _half(arrays[:cut]), _half(arrays[cut:])
        return (a1 @ b1) * (a2 @ b2)

    up, down = _smaller(tensors, size1, r1 * r2, pair, whole)
    return Update(up, down, "loha", parts["hada_w1_b"].shape[0], kernel)


def _loha_half(
    parts: Parts, i: int, where: str
) -> tuple[list[Tensor], tuple[int, int], int, tuple[int, ...]]:
    """The factors of one half, the shape of their product, its rank, its kernel."""
    a, b, t = (parts.get(name) for name in (f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}"))
    if a is None or b is None:
        raise SourceError(f"A factor of the LoHa {where} is missing: the file was cut or badly saved.")
    if t is None:
        if len(a.shape) != 2 or a.shape[1] != b.shape[0]:
            raise _odd(where, parts)
        return [a, b], (a.shape[0], prod(b.shape[1:])), a.shape[1], b.shape[2:]
    if len(a.shape) != 2 or len(b.shape) != 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
        raise _odd(where, parts)
    return [a, b, t], (a.shape[1], b.shape[1] * prod(t.shape[2:])), a.shape[0], t.shape[2:]


def _half(arrays: tuple[Array, ...]) -> Pair:
    """(out, r) and (r, in); with a core, as in a Tucker convolution, the first factor lies on its side."""
    a, b, *core = arrays
    if not core:
        return a, b.reshape(len(b), -1)
    return a.T, np.einsum("ij...,jn->in...", core[0], b).reshape(len(a), -1)


def _lokr(parts: Parts, where: str) -> Update:
    first, second = _lokr_half(parts, 1, where), _lokr_half(parts, 2, where)
    (o1, i1), (o2, i2) = first.size, second.size
    tensors, cut = [*first.tensors, *second.tensors], len(first.tensors)
    rank = second.rank if second.rank is not None else first.rank
    units = first.units * second.units

    def pair(*arrays: Array) -> Pair:
        (a1, b1), (a2, b2) = _split(first, arrays[:cut]), _split(second, arrays[cut:])
        return np.kron(a1, a2), np.kron(b1, b2)

    def whole(*arrays: Array) -> Array:
        halves = (_split(first, arrays[:cut]), _split(second, arrays[cut:]))
        return np.kron(*(a @ b for a, b in halves))

    up, down = _smaller(tensors, (o1 * o2, i1 * i2), units, pair, whole)
    return Update(up, down, "lokr", rank, second.kernel)


@dataclass(frozen=True, eq=False, slots=True)
class _Kron:
    """One side of a Kronecker product: whole, or two factors, or two and a core."""

    tensors: list[Tensor]
    size: tuple[int, int]
    units: int
    rank: int | None
    kernel: tuple[int, ...]


def _lokr_half(parts: Parts, i: int, where: str) -> _Kron:
    w, a, b, t = (parts.get(name) for name in (f"lokr_w{i}", f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}"))
    if w is not None and a is None and b is None:
        size = w.shape[0], prod(w.shape[1:])
        return _Kron([w], size, min(size), None, w.shape[2:])
    if w is not None or a is None or b is None:
        raise SourceError(f"The factors of side {i} of the LoKr {where} are not those that LyCORIS saves.")
    if t is None:
        if len(a.shape) != 2 or a.shape[1] != b.shape[0]:
            raise _odd(where, parts)
        return _Kron([a, b], (a.shape[0], prod(b.shape[1:])), b.shape[0], b.shape[0], b.shape[2:])
    if len(a.shape) != 2 or len(b.shape) != 2 or t.shape[:2] != (a.shape[0], b.shape[0]):
        raise _odd(where, parts)
    size = a.shape[1], b.shape[1] * prod(t.shape[2:])
    return _Kron([a, b, t], size, a.shape[0], b.shape[0], t.shape[2:])


def _split(side: _Kron, arrays: tuple[Array, ...]) -> Pair:
    if len(arrays) > 1:
        return _half(arrays)
    whole = arrays[0].reshape(side.size)
    outs, ins = side.size
    return (whole, np.eye(ins)) if ins <= outs else (np.eye(outs), whole)


def _full(parts: Parts, where: str) -> Update:
    tensor = parts["diff"]
    size = tensor.shape[0], prod(tensor.shape[1:])
    up, down = _smaller([tensor], size, min(size), None, lambda array: array.reshape(size))
    return Update(up, down, "full", None, tensor.shape[2:])


_FORMS = {"lora": _lora, "loha": _loha, "lokr": _lokr, "full": _full}


def _smaller(
    tensors: list[Tensor],
    size: tuple[int, int],
    units: int,
    pair: Callable[..., Pair] | None,
    whole: Callable[..., Array],
) -> tuple[Tensor, Tensor]:
    """The pair, or the whole matrix beside an identity where that has no more units."""
    outs, ins = size
    if pair is not None and units < min(size):
        left = _made(tensors, (outs, units), lambda *arrays: pair(*arrays)[0])
        return left, _made(tensors, (units, ins), lambda *arrays: pair(*arrays)[1])
    matrix = _made(tensors, size, whole)
    if ins <= outs:
        return matrix, _identity(ins)
    return _identity(outs), matrix


def _made(tensors: list[Tensor], shape: tuple[int, int], make: Callable[..., Array]) -> Tensor:
    """A factor that is computed in float64 and handed over as float32, or wider as its tensors are."""
    kind = dtypes.widest([*(tensor.dtype for tensor in tensors), "F32"])

    def computed(*arrays: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # blamed on its source where it is used
            return make(*(dtypes.wide(array) for array in arrays)).astype(dtypes.FLOATS[kind])

    return View(tuple(tensors), shape, kind, computed)


def _identity(size: int) -> Tensor:
    return View((), (size, size), "F32", lambda: np.eye(size, dtype=np.float32))


def _odd(where: str, parts: Parts) -> SourceError:
    shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(parts.items()))
    return SourceError(f"The factors of {where} do not fit together ({printable(shown)}).")
