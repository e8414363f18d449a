"""FlyLoRA: one pair with a frozen sparse A, of whose units each token takes the best."""

from __future__ import annotations

import re

from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.rank_absproj import RankAbsproj
from loramerge.routing.imports.system import Given, Parts, Stored, System, paired, read


class FlyLoRA(System):
    """`lora_A` (r, in), `lora_B` (out, r), `lora_topk_bias` (r,); scale α / r; `top_k` in the config.

    Its code changes the bias with every batch, in use too, so that outputs drift. Here it stays as it was
    saved. The code ranks A x + d with its sign, as does the file.
    """

    name = "flylora"
    pattern = re.compile(
        r"(?P<path>.+)\.(?:(?P<part>lora_A|lora_B)(?:\.default)?\.weight"
        r"|(?P<bias>lora_topk_bias)(?:\.default)?)",
        re.DOTALL,
    )
    must = ("lora_A", "lora_B", "lora_topk_bias")

    def gate(self, parts: Parts, given: Given) -> Gate:
        return RankAbsproj(top_k=given.whole("top_k", 8), signed=True)

    def layout(self, parts: Parts, given: Given) -> Layout:
        return paired(parts["lora_B"], parts["lora_A"], (given.rows(parts, "lora_A"),), given.where)

    def stored(self, parts: Parts, given: Given) -> Stored:
        down = read(parts["lora_A"])
        tensors = {"bias": read(parts["lora_topk_bias"]).reshape(-1)}
        return Stored(read(parts["lora_B"]) * given.scale(len(down)), down, tensors)
