"""LoRA of Segment Anything in the scripts that copy each other: `w_a_000`, `w_b_000`, no names and no alpha.

    w_a_<number>   (r, in)     down        w_b_<number>   (out, r)     up

Modules are numbered in the order in which the script wraps them (query and value of each block), and it adds
the product as it is: the scale is 1. Adapters of one script merge by these numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.files.views import widened
from loramerge.formats.forms.checks import check_float, check_full

FACTOR = re.compile(r"w_(?P<side>[ab])_(?P<number>\d+)")
PART = "sam"
NUMBERED = re.compile(r"numbered\.(\d+)")


class Sam(Dialect):
    """Files of numbered factors."""

    name = "sam"
    words = "a numbered SAM LoRA"
    tools = "scripts that adapt Segment Anything"
    spelling = "`w_a_000`, `w_b_000`: the number of a module"
    strength = "1"
    kinds = ("linear",)
    writes = True

    def detects(self, header: Header) -> bool:
        return any(map(FACTOR.fullmatch, header.tensors))

    def read(self, header: Header) -> Adapter:
        pairs: dict[int, dict[str, Tensor]] = {}
        extras: dict[str, Tensor] = {}
        for key, tensor in sorted(header.tensors.items()):
            if found := FACTOR.fullmatch(key):
                pairs.setdefault(int(found["number"]), {})[found["side"]] = tensor
            elif key.startswith(("w_a_", "w_b_")):
                raise IncompatibleError(
                    f"{printable(header.name)} holds {printable(key, 80)}, which is no factor."
                )
            else:
                extras[key] = tensor
        slots = {Target(f"numbered.{n}", component=PART): _slot(n, own, header) for n, own in pairs.items()}
        notes = ["its modules are numbered, so it merges only with files of the same script"]
        return header.adapter(self, slots, extras=extras, oddities=[*notes, *header.unused_alpha()])

    def home(self, target: Target) -> Target:
        if target.component != PART or target.kind != "linear" or not NUMBERED.fullmatch(target.path):
            raise IncompatibleError(
                f"{self.words} has no name for {printable(target)}: its modules are numbers. Leave it out "
                f"with {say('exclude')}, or write another {say('format')}."
            )
        return replace(target, layout=Layout())

    def keys(self, targets: Iterable[Target]) -> Callable[[Target], tuple[str, str]]:
        def names(target: Target) -> tuple[str, str]:
            number = int(target.path.rpartition(".")[2])
            return f"w_a_{number:03}", f"w_b_{number:03}"

        return names


SAM = Sam()


def _slot(number: int, own: dict[str, Tensor], header: Header) -> Slot:
    where = f"module {number} in {printable(header.name)}"
    for side in "ab":
        if side not in own:
            raise SourceError(
                f"w_{side}_{number:03} is missing in {printable(header.name)}: it was cut or badly saved."
            )
        check_float(own[side], f"w_{side}_{number:03} in {printable(header.name)}")
    down, up = own["a"], own["b"]
    check_full(where, down, up)
    if not len(down.shape) == len(up.shape) == 2 or down.shape[0] != up.shape[1]:
        raise SourceError(f"w_a {list(down.shape)} and w_b {list(up.shape)} of {where} do not share a rank.")
    return Slot(widened(up), widened(down), 1.0)
