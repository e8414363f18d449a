"""Files whose factors a gate weighs for each input: known by their tensors, and never read as one adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loramerge.errors import IncompatibleError, printable
from loramerge.hub.escape import shell


@dataclass(frozen=True, slots=True)
class Routed:
    """A system with a gate.

    Args:
        mark: a part of a key that only such files have, which is looked for first.
        keys: patterns of tensors, all of which such a file has.
        type: its name as a PEFT type, if it has one.
    """

    name: str
    words: str
    mark: str
    keys: tuple[str, ...]
    type: str = ""


ROUTED = (
    Routed("meteora", "MeteoRA", "moe_gate", (r".+\.moe_gate\.weight",)),
    Routed("loramoe", "LoRAMoE", "lora_route", (r".+\.lora_route\.weight",)),
    Routed("smora", "SMoRA", "lora_biases", (r".+\.lora_biases(\.\w+)?",), "SRMOLE"),
    Routed(
        "lora-mixer",
        "LoRA-Mixer",
        ".router.weight",
        (r".+\.router\.weight", r".+\.lora_A\.expert\d+\.weight"),
    ),
    Routed("flylora", "FlyLoRA", "lora_topk_bias", (r".+\.lora_topk_bias(\.\w+)?",)),
    Routed("wavllm", "WavLLM", "_lora_A", (r".+\.w[qkvo]_lora_A",)),
    Routed(
        "dmoerm", "DMoERM", "base_value_head", (r"(.+\.)?base_value_head\.weight", r".+\.lora_A\.\w+\.weight")
    ),
)
_KEYS = {each.name: [re.compile(key, re.DOTALL) for key in each.keys] for each in ROUTED}


def system_of(keys: Iterable[str], config: Mapping[str, Any] | None = None) -> Routed | None:
    """The system whose file this is, if it is one of them.

    >>> system_of(["h.0.q.lora_A.weight", "h.0.q.moe_gate.weight"]).words
    'MeteoRA'
    >>> system_of(["h.0.q.lora_A.weight", "h.0.q.lora_B.weight"])
    """
    names = list(keys)
    for each in ROUTED:
        if each.type and (config or {}).get("peft_type") == each.type:
            return each
        if any(each.mark in key for key in names) and all(
            any(pattern.fullmatch(key) for key in names) for pattern in _KEYS[each.name]
        ):
            return each
    return None


def refuse_routed(keys: Iterable[str], name: str, config: Mapping[str, Any] | None = None) -> None:
    """Refuse a file that is not one adapter but several under a gate.

    Raises:
        IncompatibleError: it is of one of these systems.
    """
    if found := system_of(keys, config):
        raise IncompatibleError(
            f"{printable(name)} is of {found.words}: a gate weighs its units for each input, so that no "
            f"single adapter does the same. `loramerge route {shell(name)} -o bundle` keeps units and gate."
        )
