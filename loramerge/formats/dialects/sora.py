"""SoRA: a pair with a gate for each of its units, many of which training has closed. Read only.

    ΔW = α/r · lora_B @ diag(gate) @ lora_A        lora_A (r, in), lora_B (out, r), gate (1, r)

Units whose gate is 0 are left out; alpha is still divided by the stored r. (arXiv:2311.11696)
"""

from __future__ import annotations

import re

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, printable
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.pairs import alpha_scale, once, slots
from loramerge.formats.files.views import View

KEY = re.compile(r"(?P<path>.+)\.lora\.(?P<part>lora_A|lora_B|gate)", re.DOTALL)
SIDES = {"lora_A": "down", "lora_B": "up"}


class Sora(Dialect):
    name = "sora"
    words = "a SoRA state dict"
    tools = "SoRA"
    spelling = "`<module>.lora.lora_A`, `<module>.lora.lora_B`, `<module>.lora.gate`"
    strength = "`alpha/r` of the stored r; the alpha is yours to say"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        modules, gates, extras = dict[str, dict[str, Tensor]](), dict[str, Tensor](), dict[str, Tensor]()
        for key, tensor in header.tensors.items():
            if (found := KEY.fullmatch(key)) is None:
                extras[key] = tensor
            elif found["part"] == "gate":
                gates[found["path"]] = tensor
            else:
                once(modules, found["path"], SIDES[found["part"]], tensor, header.name)
        for path in gates.keys() - modules.keys():
            raise SourceError(f"{printable(header.name)} has a gate for {printable(path)}, but no pair.")
        whole = slots(header, modules, lambda _, slot: alpha_scale(header, slot.rank))
        open_ = {t: _gated(t, slot, gates.get(t.path), header.name) for t, slot in whole.items()}
        closed = sum(whole[t].rank - slot.rank for t, slot in open_.items())
        notes = [f"{closed} units whose gate is closed are left out"] if closed else []
        return header.adapter(self, open_, extras=extras, oddities=notes, said_alpha=False)


def _gated(target: Target, slot: Slot, gate: Tensor | None, name: str) -> Slot:
    """The open units, with their gates in `up`; one unit of zeros where all are closed."""
    if gate is None:
        return slot
    if gate.shape not in ((slot.rank,), (1, slot.rank)):
        raise SourceError(
            f"The gate of {printable(target)} in {printable(name)} is {list(gate.shape)}, and its rank is "
            f"{slot.rank}."
        )
    values = np.asarray(gate.read(), np.float64).reshape(-1)
    live = np.flatnonzero(values) if values.any() else np.zeros(1, np.int64)

    def up(array: Array) -> Array:
        return (array[:, live].astype(np.float64) * values[live]).astype(array.dtype)

    def down(array: Array) -> Array:
        return array[live]

    (outs, ins), rank = slot.shape, len(live)
    left = View((slot.up,), (outs, rank), slot.up.dtype, up)
    return Slot(left, View((slot.down,), (rank, ins), slot.down.dtype, down), slot.scale)


SORA = Sora()
