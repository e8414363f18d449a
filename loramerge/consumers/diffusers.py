"""diffusers: `pipe.load_lora_weights`, `model.load_lora_adapter`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import Consumer, Finding
from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import printable
from loramerge.formats.config import scales

COMFY = re.compile(
    r"diffusion_model\.(input_blocks|middle_block|output_blocks|double_blocks|single_blocks)\."
)
OTHER_FORMS = re.compile(r"lora_(?!.*norm).*\.(hada_|lokr_|lora_mid\b|diff$|diff_b$)")
OWN = "convert it to its own names, by `loramerge convert --to diffusers`"


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
    if nameless := [key for key in facts.tensors if COMFY.match(key)]:
        yield DIFFUSERS.ignoring(
            f"keys such as {printable(nameless[0], 80)}: with Stable Diffusion and Flux.1 it loads nothing "
            "of the names of ComfyUI",
            OWN,
        )
    if odd := [key for key in facts.tensors if OTHER_FORMS.match(key)]:
        why = f"of the names of kohya it loads lora_down and lora_up only, and no {printable(odd[0], 80)}"
        yield DIFFUSERS.rejecting(why)
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
    formats=("diffusers", "kohya"),
)
