"""ComfyUI: the node Load LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import Facts, Module


def scale(config: Mapping[str, Any], module: Module) -> float:
    """The module's own alpha tensor over its rank; 1 if there is none. No config is read."""
    return 1.0 if module.alpha is None else module.alpha / module.rank


def rules(facts: Facts) -> Iterator[Finding]:
    """What it passes over."""
    if facts.dialect == "peft":
        yield COMFYUI.ignoring(
            "keys with base_model.model, but for a few models such as SD 3 and PixArt: it logs `lora key not "
            "loaded` and goes on",
            "convert it to the names of kohya",
        )


COMFYUI = Consumer(
    "comfyui",
    "ComfyUI",
    "as of 2026",
    ("kohya", "comfyui", "diffusers", "peft"),
    False,
    scale,
    rules,
)
