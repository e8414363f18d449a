"""diffusers: `pipe.load_lora_weights`, `model.load_lora_adapter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import printable
from loramerge.formats.config import scales


def scale(config: Mapping[str, Any], module: Module) -> float:
    """PEFT's rule if the header holds its settings; else the module's alpha / rank; else 1."""
    if "r" in config and "lora_alpha" in config:
        return scales(config, "lora_adapter_metadata").scale(module.place)
    return 1.0 if module.alpha is None else module.alpha / module.rank


def rules(facts: Facts) -> Iterator[Finding]:
    """What it refuses or drops of a file."""
    alphas = [key for key in facts.tensors if key.endswith(".alpha")]
    if alphas and "r" in facts.config and facts.dialect == "diffusers":
        yield DIFFUSERS.rejecting(
            "it has alpha tensors and lora_adapter_metadata, and either says the scale", "remove one"
        )
    if lost := [key for key in facts.tensors if key.endswith(".dora_scale")]:
        yield DIFFUSERS.ignoring(
            f"the DoRA magnitudes ({printable(lost[0])} and others)", "load it with ComfyUI"
        )


DIFFUSERS = Consumer(
    "diffusers",
    "diffusers",
    "0.42.1",
    ("diffusers", "kohya", "comfyui"),
    False,
    scale,
    rules,
    heeds=frozenset(SPECIAL),
    patterns=True,
    formats=("diffusers", "kohya", "comfy"),
)
