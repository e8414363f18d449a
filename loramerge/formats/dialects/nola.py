"""NOLA of vision transformers: factors that are mixed of random matrices. Only --keep-form writes it.

    ΔW = 1/r · (Σ_b alpha_b A_b · Σ_b beta_b B_b)ᵀ        A (k, in, r), B (l, r, out), drawn in turn
    fc1_alpha_000, fc1_beta_000 of block 0, fc2_… likewise; fc1_A_000 the first numbers that were drawn

torch draws both on a CPU from seed 0. The kept numbers prove it, and tell r. The sizes come from the base.
Of NOLA in language models nothing is kept that could prove a draw. (arXiv:2310.02556)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.forms.checks import check_float, check_full, missing
from loramerge.formats.forms.draws import Draws, bound
from loramerge.formats.forms.factors import made

KEY = re.compile(r"(?P<which>fc[12])_(?P<what>alpha|beta|A)_(?P<block>\d{3})")
SEED, SLOPE, MOST = 0, sqrt(5), 256  # of torch's draw; of ranks that are tried
LINEAR = (("alpha",), ("beta",))  # parts in which ΔW is linear while all others stay the same
LEAST, NEAR = 4, 2**-22  # kept numbers that prove a draw, and how near: CPUs differ in the last digit


class Nola(Dialect):
    name = "nola"
    words = "a NOLA file"
    tools = "NOLA, for vision transformers"
    spelling = "`fc1_alpha_000`, `fc1_beta_000`, `fc1_A_000`, fc2 likewise"
    strength = "`1/r`; the numbers that it keeps of its draw tell r"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        parts, extras = _sorted(header)
        paths = sorted(path for path, own in parts.items() if own.keys() & {"alpha", "beta"})
        known = header.base.layers(paths) if header.base else {}
        slots = {}
        for path in paths:
            where = f"{printable(path)} in {printable(header.name)}"
            if path not in known:
                raise _without(header, where)
            first = f"{path.rpartition('.')[0]}.fc1"
            kept = parts.get(first, {}).get("A")
            if kept is None:
                raise missing(f"The first numbers that were drawn (fc1_A) of {printable(first)}", where)
            if first not in known:
                raise _without(header, where)
            rank = _rank(kept, known[first].size[1], where)
            slots[Target(path)] = _slot(parts[path], known[path].size, rank, where)
        return header.adapter(self, slots, extras=extras, oddities=header.unused_alpha())


def place(key: str) -> tuple[str, str]:
    """The module and the part that a key is; an extra is no part.

    >>> place("fc2_beta_003"), place("fc_12in_3out")
    (('blocks.3.mlp.fc2', 'beta'), ('fc_12in_3out', ''))
    """
    found = KEY.fullmatch(key)
    return (f"blocks.{int(found['block'])}.mlp.{found['which']}", found["what"]) if found else (key, "")


def _sorted(header: Header) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Module -> its tensors by what they are; and the rest."""
    parts, extras = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for key, tensor in header.tensors.items():
        if not KEY.fullmatch(key):
            extras[key] = tensor
            continue
        path, part = place(key)
        check_float(tensor, f"{key} of {printable(header.name)}")
        check_full(f"{printable(path)} in {printable(header.name)}", tensor)
        parts.setdefault(path, {})[part] = tensor
    return parts, extras


def _without(header: Header, where: str) -> IncompatibleError:
    """The base is not given, or has no such layer."""
    if header.base is not None:
        return IncompatibleError(
            f"{printable(header.base.name, 1000)} has no linear layer for {where}: it was trained on another "
            "model, or that has other names than timm's."
        )
    return IncompatibleError(
        f"{where} is NOLA, which needs the layer sizes of the base model to become an update: name that "
        f"model by {say('base', 'BASE')}, a path or a name on the Hub."
    )


def _rank(kept: Tensor, ins: int, where: str) -> int:
    """The rank at which the draw begins with these numbers.

    Raises:
        IncompatibleError: there is none.
    """
    values = np.asarray(kept.read(), np.float32)
    if values.ndim == 1 and LEAST <= len(values) <= ins:
        for rank in range(1, MOST + 1):
            most = bound(ins * rank, SLOPE)
            drawn = Draws(SEED).uniform(((len(values) - 1) * rank + 1,), most)[::rank]
            if np.abs(drawn - values).max() <= NEAR * most:
                return rank
    raise IncompatibleError(
        f"{where} is NOLA, and what it keeps of its draw is not what torch draws on a CPU from seed {SEED} "
        f"for {ins} inputs, so that it cannot be drawn again: multiply it out in the library that wrote it."
    )


def _slot(own: Mapping[str, Tensor], size: tuple[int, int], rank: int, where: str) -> Slot:
    """The pair of the two mixtures."""
    for what in ("alpha", "beta"):
        if what not in own:
            raise missing(f"The {what}", where)
        if len(own[what].shape) != 1:
            raise SourceError(f"The {what} of {where} must be a vector, not {list(own[what].shape)}.")
    (outs, ins), alpha, beta = size, own["alpha"], own["beta"]

    def down(alpha: Array) -> Array:
        return _mixed(Draws(SEED), alpha, (ins, rank)).T

    def up(beta: Array) -> Array:
        draws = Draws(SEED)
        for _ in range(alpha.shape[0]):  # the numbers of A come first
            draws.raw(ins * rank)
        return _mixed(draws, beta, (rank, outs)).T

    return Slot(made([beta], (outs, rank), up), made([alpha], (rank, ins), down), 1 / rank)


def _mixed(draws: Draws, shares: Array, shape: Sequence[int]) -> Array:
    """Σ shares_b times the next matrix that is drawn."""
    total, most = np.zeros(tuple(shape)), bound(shape[0] * shape[1], SLOPE)
    for share in shares:
        total += share * draws.uniform((shape[0], shape[1]), most)
    return total


NOLA = Nola()
