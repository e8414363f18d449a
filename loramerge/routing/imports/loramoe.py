"""LoRAMoE: numbered pairs in a module, and a softmax over all of them."""

from __future__ import annotations

import re

import numpy as np

from loramerge.errors import SourceError
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.linear import Linear
from loramerge.routing.imports.system import Given, Parts, Stored, System, matrix, read


class LoRAMoE(System):
    """`lora_A{i}` (r, in), `lora_B{i}` (out, r), `lora_route` (N, in); scale α / r."""

    name = "loramoe"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_[AB]\d+|lora_route)\.weight", re.DOTALL)
    must = ("lora_A0", "lora_B0", "lora_route")

    def gate(self, parts: Parts, given: Given) -> Gate:
        return Linear(top_k=parts["lora_route"].shape[0])

    def layout(self, parts: Parts, given: Given) -> Layout:
        ranks = tuple(parts[f"lora_A{e}"].shape[0] for e in self._numbers(parts, given))
        return Layout((matrix(parts["lora_B0"], given.where)[0], parts["lora_A0"].shape[1]), ranks)

    def stored(self, parts: Parts, given: Given) -> Stored:
        numbers = self._numbers(parts, given)
        downs = [read(parts[f"lora_A{e}"]) for e in numbers]
        ups = [read(parts[f"lora_B{e}"]) * given.scale(len(d)) for e, d in zip(numbers, downs, strict=True)]
        tensors = {"weight": read(parts["lora_route"])}
        return Stored(np.concatenate(ups, axis=1), np.concatenate(downs), tensors)

    def _numbers(self, parts: Parts, given: Given) -> range:
        count = parts["lora_route"].shape[0]
        for e in range(count):
            for part in (f"lora_A{e}", f"lora_B{e}"):
                if part not in parts:
                    raise SourceError(f"{given.where} lacks {part}, and its route is for {count} experts.")
        return range(count)
