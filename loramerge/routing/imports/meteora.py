"""MeteoRA: experts stacked in one pair, and a linear gate for each module."""

from __future__ import annotations

import re

import numpy as np

from loramerge.errors import SourceError, printable
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.linear import Linear
from loramerge.routing.imports.system import Given, Parts, Stored, System, paired, read


class MeteoRA(System):
    """`lora_A` (Σr, in), `lora_B` (out, Σr), `moe_gate` (E, in); `ranks` in the config where they differ.

    Its code finds an expert at index · r, which is wrong for unequal ranks; here each begins where the one
    before it ends.
    """

    name = "meteora"
    pattern = re.compile(r"(?P<path>.+)\.(?P<part>lora_A|lora_B|moe_gate)(?:\.default)?\.weight", re.DOTALL)
    must = ("lora_A", "lora_B", "moe_gate")

    def gate(self, parts: Parts, given: Given) -> Gate:
        experts = given.rows(parts, "moe_gate")
        heat = given.positive("temperature", 1.0)
        return Linear(top_k=min(given.whole("top_k", 2), experts), temperature=heat)

    def layout(self, parts: Parts, given: Given) -> Layout:
        return paired(parts["lora_B"], parts["lora_A"], self._ranks(parts, given), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        ranks = self._ranks(parts, given)
        scale = np.repeat([given.scale(rank) for rank in ranks], ranks)
        tensors = {"weight": read(parts["moe_gate"])}
        return Stored(read(parts["lora_B"]) * scale, read(parts["lora_A"]), tensors)

    def _ranks(self, parts: Parts, given: Given) -> tuple[int, ...]:
        units, experts = given.rows(parts, "lora_A"), given.rows(parts, "moe_gate")
        said = given.config.get("ranks")
        if isinstance(said, list) and all(type(rank) is int and rank > 0 for rank in said):
            if len(said) == experts and sum(said) == units:
                return tuple(said)
        elif said is None and units % experts == 0:
            return (units // experts,) * experts
        raise SourceError(
            f"{given.where} has {units} units for {experts} experts, and its config says ranks "
            f"{printable(said)}: write the rank of each into adapter_config.json as ranks."
        )
