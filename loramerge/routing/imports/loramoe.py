"""LoRAMoE: numbered pairs in a module, and a softmax over all of them."""

from __future__ import annotations

import re

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.linear import Linear
from loramerge.routing.imports.system import Given, Parts, Stored, System, read, side_by_side


class LoRAMoE(System):
    """`lora_A{i}` (r, in), `lora_B{i}` (out, r), `lora_route` (N, in); scale α / r."""

    name = "loramoe"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_[AB]\d+|lora_route)\.weight", re.DOTALL)
    must = ("lora_A0", "lora_B0", "lora_route")

    def gate(self, parts: Parts, given: Given) -> Gate:
        return Linear(top_k=given.rows(parts, "lora_route"))

    def layout(self, parts: Parts, given: Given) -> Layout:
        return side_by_side(self._pairs(parts, given), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        pairs = [(read(down), read(up)) for down, up in self._pairs(parts, given)]
        ups = [up * given.scale(len(down)) for down, up in pairs]
        tensors = {"weight": read(parts["lora_route"])}
        return Stored(np.concatenate(ups, axis=1), np.concatenate([down for down, _ in pairs]), tensors)

    def _pairs(self, parts: Parts, given: Given) -> list[tuple[Tensor, Tensor]]:
        numbers = range(given.rows(parts, "lora_route"))
        return [(given.part(parts, f"lora_A{e}"), given.part(parts, f"lora_B{e}")) for e in numbers]
