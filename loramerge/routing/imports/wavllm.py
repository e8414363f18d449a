"""WavLLM: pairs on the attention of a speech model, whose outputs the prompt turns up or down."""

from __future__ import annotations

import re

from loramerge.adapters.adapter import Tensor
from loramerge.errors import SourceError
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate
from loramerge.routing.gates.outchan import Outchan
from loramerge.routing.imports.system import Given, Parts, Stored, System, matrix, read

PROMPT = {  # the adapter of the prompt, one for all modules -> the tensors of the gate
    "scale_fc_1.weight": "inner",
    "scale_fc_1.bias": "inner_bias",
    "scale_fc_2.weight": "outer",
    "scale_fc_2.bias": "outer_bias",
    "scale_weight_attention.weight": "query",
}


class WavLLM(System):
    """`wq_lora_A` (in, r) and `wq_lora_B` (r, out), transposed against PEFT; the same for wk, wv and wo.

    What the prompt says stands in place of α / r.
    """

    name = "wavllm"
    pattern = re.compile(r"(?P<path>.+\.w[qkvo])_(?P<part>lora_[AB])", re.DOTALL)
    must = ("lora_A", "lora_B")

    def gate(self, parts: Parts, given: Given) -> Gate:
        inner, hidden = matrix(self._part(given, "inner"), given.where)
        return Outchan(hidden=hidden, inner=inner)

    def layout(self, parts: Parts, given: Given) -> Layout:
        (ins, rank), (same, outs) = (matrix(parts[name], given.where) for name in self.must)
        if rank != same:
            raise SourceError(f"{given.where} has factors of rank {rank} and {same} in one module.")
        return Layout((outs, ins), (rank,))

    def stored(self, parts: Parts, given: Given) -> Stored:
        tensors = {name: read(self._part(given, name)) for name in PROMPT.values()}
        tensors["query"] = tensors["query"].reshape(-1)
        return Stored(read(parts["lora_B"]).T, read(parts["lora_A"]).T, tensors)

    def shares(self, key: str) -> bool:
        return any(key.endswith(name) for name in PROMPT)

    def _part(self, given: Given, wanted: str) -> Tensor:
        for name, part in PROMPT.items():
            for key, tensor in given.shared.items():
                if part == wanted and key.endswith(name):
                    return tensor
        missing = next(name for name, part in PROMPT.items() if part == wanted)
        raise SourceError(f"{given.where} lacks {missing}, by which its prompt decides.")
