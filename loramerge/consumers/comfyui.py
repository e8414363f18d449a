"""ComfyUI: the node Load LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loramerge.consumers import families
from loramerge.consumers.alphas import ZERO, zeros
from loramerge.consumers.consumer import IMAGE, Consumer
from loramerge.consumers.facts import Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.errors import printable

ATTENTION = re.compile(r"(unet\.)?(down|mid|up)_blocks?\..*\.to_(q|k|v|out)\b")
WHOLE = {  # the keys by which it knows the names of others
    "bfl": ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"),
    "xlabs": (
        "single_blocks.37.processor.qkv_lora.up.weight",
        "double_blocks.18.processor.qkv_lora2.up.weight",
    ),
}
ONLY = {"bfl": "control LoRAs of Flux", "xlabs": "files that have every block of Flux"}
T5 = re.compile(r"text_encoder\w*\.encoder\.block\.")


def scale(config: Mapping[str, Any], module: Module) -> float:
    """The module's own alpha tensor over its rank; 1 if there is none. No config is read."""
    return 1.0 if module.alpha is None else module.alpha / module.rank


def rules(facts: Facts) -> Iterator[Finding]:
    """What it passes over."""
    if missed := [key for key in facts.tensors if ATTENTION.match(key) and ".processor." not in key]:
        share = "all" if len(missed) == len(facts.tensors) else f"{len(missed)} of {len(facts.tensors)}"
        yield COMFYUI.ignoring(
            f"{share} tensors, such as {printable(missed[0], 100)}: in a UNet "
            "it looks for them under `.processor.to_q` and the like only"
        )
    if facts.dialect in WHOLE and not all(key in facts.tensors for key in WHOLE[facts.dialect]):
        some = printable(facts.example, 80)
        yield COMFYUI.ignoring(f"keys such as {some}: of these names it loads only {ONLY[facts.dialect]}")
    if families.known(facts):
        yield from families.rules(COMFYUI, facts)
    if facts.dialect in ("kohya", "comfy", "diffusers", "bare"):
        yield from COMFYUI.passing_over([key for key in facts.strange if not COMFYUI.keeps(key)])
    if text := next(filter(T5.match, facts.tensors), None):
        yield COMFYUI.ignoring(f"what is of T5 under the names of diffusers ({printable(text, 80)})")
    yield from COMFYUI.scaling(ZERO, zeros(facts))
    if facts.dialect == "peft" and not families.known(facts):
        yield COMFYUI.ignoring(
            "keys with base_model.model, but for a few models such as SD 3 and PixArt: it logs `lora key not "
            "loaded` and goes on"
        )


COMFYUI = Consumer(
    "comfyui",
    "ComfyUI",
    "as of 2026",
    ("kohya", "comfy", "diffusers", "xlabs", "bfl", "peft", "bare"),
    False,
    scale,
    rules,
    formats=("kohya", "comfy"),
    asked=IMAGE,
    partly={
        "diffusers": "a UNet's attention under `.processor.` only, and no T5",
        "xlabs": "files with every block of Flux.1",
        "bfl": "control LoRAs of Flux.1",
        "peft": "a few models, such as SD 3 and PixArt",
        "bare": "a few models, such as Qwen-Image",
    },
    beside={
        "differences": r".*\.diff(_b)?",
        "norms": r".*\.[wb]_norm",
        "magnitudes": r".*\.dora_scale",
        "`set_weight`, `reshape_weight`": r".*\.(set|reshape)_weight",
    },
    untold=partial(families.untold, "comfyui"),
    remarks="logs the keys that it passes over",
)
