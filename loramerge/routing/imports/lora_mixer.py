"""LoRA-Mixer: named pairs in a module, and the three that a linear router scores best."""

from __future__ import annotations

import re

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.linear import Linear
from loramerge.routing.imports.system import Given, Parts, Stored, System, read, side_by_side


class LoRAMixer(System):
    """`lora_A.expert{i}`, `lora_B.expert{i}`, `router` (E, in); scale α / r.

    Its authors have published no file; these are the names that PEFT gives to several adapters of a module,
    with a router beside them.
    """

    name = "lora-mixer"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_[AB]\.expert\d+|router)\.weight", re.DOTALL)
    must = ("lora_A.expert0", "lora_B.expert0", "router")

    def gate(self, parts: Parts, given: Given) -> Gate:
        experts = given.rows(parts, "router")
        return Linear(top_k=min(given.whole("top_k", 3), experts))

    def layout(self, parts: Parts, given: Given) -> Layout:
        return side_by_side(self._pairs(parts, given), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        pairs = [(read(down), read(up)) for down, up in self._pairs(parts, given)]
        up = np.concatenate([b * given.scale(len(a)) for a, b in pairs], axis=1)
        return Stored(up, np.concatenate([a for a, _ in pairs]), {"weight": read(parts["router"])})

    def _pairs(self, parts: Parts, given: Given) -> list[tuple[Tensor, Tensor]]:
        names = [f"expert{e}" for e in range(given.rows(parts, "router"))]
        return [(given.part(parts, f"lora_A.{e}"), given.part(parts, f"lora_B.{e}")) for e in names]
