"""SMoRA: one pair whose units a trained matrix chooses."""

from __future__ import annotations

import re

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import SourceError
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.rank_sigmoid import RankSigmoid
from loramerge.routing.imports.system import Given, Parts, Stored, System, paired, read


class SMoRA(System):
    """`lora_A`, `lora_B`, `lora_router` (r / part, in), `lora_biases` (r,); scale α / k, k = `activate_r`."""

    name = "smora"
    pattern = re.compile(
        r"(?P<path>.+)\.(?:(?P<part>lora_A|lora_B|lora_router)(?:\.default)?\.weight"
        r"|(?P<bias>lora_biases)(?:\.default)?)",
        re.DOTALL,
    )
    must = ("lora_A", "lora_B", "lora_router", "lora_biases")

    def gate(self, parts: Parts, given: Given) -> Gate:
        units, rows = given.rows(parts, "lora_A"), given.rows(parts, "lora_router")
        if units % rows:
            raise SourceError(f"{given.where} has {units} units for a router of {rows} rows.")
        return RankSigmoid(top_k=given.whole("activate_r", 8), part=units // rows)

    def layout(self, parts: Parts, given: Given) -> Layout:
        return paired(parts["lora_B"], parts["lora_A"], (given.rows(parts, "lora_A"),), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        chosen = given.whole("activate_r", 8)
        up = read(parts["lora_B"]) * given.scale(chosen)
        return Stored(up, read(parts["lora_A"]), {"weight": read(parts["lora_router"]), "bias": _bias(parts)})

    def uniform(self, parts: Parts, given: Given) -> float:
        """k / r: with it the scale of all units is α / r, that of plain LoRA."""
        return given.whole("activate_r", 8) / given.rows(parts, "lora_A")


def _bias(parts: Parts) -> Array:
    return read(parts["lora_biases"]).reshape(-1) if "lora_biases" in parts else np.zeros(0)
