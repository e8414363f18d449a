"""ComfyUI: the node Load LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.alphas import ZERO, zeros
from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import Facts, Module
from loramerge.errors import printable

ATTENTION = re.compile(r"(unet\.)?(down|mid|up)_blocks?\..*\.to_(q|k|v|out)\b")
T5 = re.compile(r"text_encoder\w*\.encoder\.block\.")
KOHYA = "convert it to the names of kohya, by `loramerge convert --to kohya`"


def scale(config: Mapping[str, Any], module: Module) -> float:
    """The module's own alpha tensor over its rank; 1 if there is none. No config is read."""
    return 1.0 if module.alpha is None else module.alpha / module.rank


def rules(facts: Facts) -> Iterator[Finding]:
    """What it passes over."""
    if missed := [key for key in facts.tensors if ATTENTION.match(key) and ".processor." not in key]:
        yield COMFYUI.ignoring(
            f"{len(missed)} of {len(facts.tensors)} tensors, such as {printable(missed[0], 100)}: in a UNet "
            "it looks for them under `.processor.to_q` and the like only",
            KOHYA,
        )
    if text := next(filter(T5.match, facts.tensors), None):
        yield COMFYUI.ignoring(f"what is of T5 under the names of diffusers ({printable(text, 80)})", KOHYA)
    yield from COMFYUI.scaling(ZERO, zeros(facts))
    if facts.dialect == "peft":
        yield COMFYUI.ignoring(
            "keys with base_model.model, but for a few models such as SD 3 and PixArt: it logs `lora key not "
            "loaded` and goes on",
            KOHYA,
        )


COMFYUI = Consumer(
    "comfyui",
    "ComfyUI",
    "as of 2026",
    ("kohya", "comfyui", "diffusers", "peft"),
    False,
    scale,
    rules,
    formats=("kohya", "comfy"),
)
