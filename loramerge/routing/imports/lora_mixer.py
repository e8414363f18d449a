"""LoRA-Mixer: named pairs in a module, and the three that a linear router scores best."""

from __future__ import annotations

import re

import numpy as np

from loramerge.errors import SourceError
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.linear import Linear
from loramerge.routing.imports.system import Given, Parts, Stored, System, matrix, read


class LoRAMixer(System):
    """`lora_A.expert{i}`, `lora_B.expert{i}`, `router` (E, in); scale α / r.

    Its authors have published no file; these are the names that PEFT gives to several adapters of a module,
    with a router beside them.
    """

    name = "lora-mixer"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_[AB]\.expert\d+|router)\.weight", re.DOTALL)
    must = ("lora_A.expert0", "lora_B.expert0", "router")

    def gate(self, parts: Parts, given: Given) -> Gate:
        experts = parts["router"].shape[0]
        return Linear(top_k=min(given.whole("top_k", 3), experts))

    def layout(self, parts: Parts, given: Given) -> Layout:
        ranks = tuple(parts[a].shape[0] for a, _ in self._pairs(parts, given))
        outs = matrix(parts["lora_B.expert0"], given.where)[0]
        return Layout((outs, parts["lora_A.expert0"].shape[1]), ranks)

    def stored(self, parts: Parts, given: Given) -> Stored:
        pairs = [(read(parts[a]), read(parts[b])) for a, b in self._pairs(parts, given)]
        up = np.concatenate([b * given.scale(len(a)) for a, b in pairs], axis=1)
        return Stored(up, np.concatenate([a for a, _ in pairs]), {"weight": read(parts["router"])})

    def _pairs(self, parts: Parts, given: Given) -> list[tuple[str, str]]:
        count = parts["router"].shape[0]
        names = [(f"lora_A.expert{e}", f"lora_B.expert{e}") for e in range(count)]
        for pair in names:
            for part in pair:
                if part not in parts:
                    raise SourceError(f"{given.where} lacks {part}, and its router is for {count} experts.")
        return names
