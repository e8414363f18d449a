"""Omni-AVSR: pairs of q and v for each kind of input, and maybe one that all share. Read only.

    ΔW = ALPHA / RANK · (up_task @ down_task + up_shared @ down_shared)
    <layer>.self_attn.lora_{down,up}_{Q,V}[_shared][.task].weight, down (round(in / RANK), in)

RANK is the divisor of the width, not the rank; where one whole number gives the stored rank, it is known. The
alpha is the caller's. `FILE#audio` names one task of a file that has several. (arXiv:2511.07253)
"""

from __future__ import annotations

import re
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.pairs import alpha_scale, once, slots
from loramerge.formats.files.views import joined
from loramerge.formats.peft.alpha import unknown

KEY = re.compile(
    r"(?P<path>.+)\.lora_(?P<side>down|up)_(?P<which>[QV])(?P<shared>_shared)?(?:\.(?P<task>\w+))?\.weight",
    re.DOTALL,
)
MOST = 4096  # of a RANK


class Omni(Dialect):
    name = "omni"
    words = "an Omni-AVSR state dict"
    tools = "Omni-AVSR"
    spelling = "`<layer>.self_attn.lora_down_Q.audio.weight`, `…lora_up_Q…`, V likewise"
    strength = "`alpha/RANK`, where r = round(in / RANK); the alpha is yours to say"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        own, shared, extras = dict[str, dict[str, Tensor]](), dict[str, dict[str, Tensor]](), {}
        tasks = {found["task"] for key in header.tensors if (found := KEY.fullmatch(key)) and found["task"]}
        if len(tasks) > 1:
            some = ", ".join(sorted(map(printable, tasks)))
            raise IncompatibleError(
                f"{printable(header.name)} holds one adapter for each of {some}: name one, as in "
                f"{printable(header.file.path.name)}#{min(tasks)}."
            )
        for key, tensor in header.tensors.items():
            if (found := KEY.fullmatch(key)) is None:
                extras[key] = tensor
                continue
            path = f"{found['path']}.{found['which'].lower()}_proj"
            once(shared if found["shared"] else own, path, found["side"], tensor, header.name)
        made, common = (slots(header, pairs, lambda *_: 1.0) for pairs in (own, shared))
        for target in common.keys() - made.keys():
            raise SourceError(f"{printable(header.name)} has only a shared pair for {printable(target)}.")
        both = {t: _sum(t, slot, common.get(t), header.name) for t, slot in made.items()}
        adapter = header.adapter(self, both, extras=extras, said_alpha=False)  # all checks but the scale
        scaled = {t: replace(slot, scale=_scale(header, made[t])) for t, slot in both.items()}
        return replace(adapter, slots=scaled)


def _scale(header: Header, slot: Slot) -> float:
    """alpha / RANK, by the one whole RANK that gives such a rank."""
    ins, rank = slot.shape[1], slot.rank
    if header.alpha == "rank":
        return 1.0
    if header.alpha is None:
        raise unknown(header.file)
    fitting = [divisor for divisor in range(1, min(ins, MOST) + 1) if round(ins / divisor) == rank]
    if len(fitting) != 1:
        raise IncompatibleError(
            f"{printable(header.name)} has rank {rank} of {ins} inputs, which {len(fitting)} values of RANK "
            "give, so that its scale alpha / RANK is not known."
        )
    return alpha_scale(header, fitting[0])


def _sum(target: Target, own: Slot, shared: Slot | None, name: str) -> Slot:
    if shared is None:
        return own
    if own.shape != shared.shape:
        raise SourceError(f"The two pairs of {printable(target)} in {printable(name)} have different sizes.")
    return Slot(joined(own.up, shared.up, 1), joined(own.down, shared.down, 0), own.scale)


OMNI = Omni()
