"""diffusers: `pipe.load_lora_weights`, `model.load_lora_adapter`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.consumers.consumer import REWRITE, Consumer, Finding
from loramerge.consumers.facts import SPECIAL, Facts, Module
from loramerge.errors import printable
from loramerge.formats.config import scales

COMFY = re.compile(
    r"diffusion_model\.((input_blocks|middle_block|output_blocks)\.|(double|single)_blocks\..*\.lora_[AB]\b)"
)
OTHER_FORMS = re.compile(r"lora_(?!.*norm).*\.(hada_|lokr_|lora_mid\b|diff$|diff_b$)")
KEPT = (".lora_B.bias", ".lora_magnitude_vector", ".dora_scale")
CONTROL = "query_norm.scale"
UNET = re.compile(r"(down_blocks|up_blocks|mid_block)\.")
OLD = re.compile(r"unet\..*\.(lora_(down|up)|lora_linear_layer\.(down|up))\.weight$")
OUTSIDE = re.compile(
    r"transformer\.(final_layer\.|x_embedder|context_embedder|time_text_embed\.|norm_out\.|proj_out$)"
)
OTHER_PREFIXES = re.compile(r"(lycoris|lora_prior_unet|lora_prior_te)_")


def scale(config: Mapping[str, Any], module: Module) -> float:
    """PEFT's rule if the header holds its settings; else the module's alpha / rank; else 1."""
    if "r" in config and "lora_alpha" in config:
        return scales(config, "lora_adapter_metadata").scale(module.place)
    return 1.0 if module.alpha is None else module.alpha / module.rank


def alphas(facts: Facts) -> bool:
    """Whether it heeds alpha tensors: in its own names only where they are of a transformer, such as Flux."""
    return facts.dialect != "diffusers" or any(key.startswith("transformer") for key in facts.tensors)


def rules(facts: Facts) -> Iterator[Finding]:
    """What it refuses or drops of a file."""
    yield from _unnamed(facts)
    yield from _settings(facts)
    yield from _outside(facts)
    if facts.dialect == "diffusers":
        yield from DIFFUSERS.passing_over([key for key in facts.beyond or () if not key.endswith(KEPT)])
    if odd := [key for key in facts.tensors if OTHER_FORMS.match(key)]:
        why = f"of the names of kohya it loads lora_down and lora_up only, and no {printable(odd[0], 80)}"
        yield DIFFUSERS.rejecting(why)
    if lost := [key for key in facts.tensors if key.endswith(".dora_scale")]:
        yield DIFFUSERS.ignoring(
            f"the DoRA magnitudes ({printable(lost[0])} and others)", "load it with ComfyUI"
        )


def _unnamed(facts: Facts) -> Iterator[Finding]:
    """Names in which it finds no module."""
    if nameless := [key for key in facts.tensors if COMFY.match(key)]:
        yield DIFFUSERS.ignoring(
            f"keys such as {printable(nameless[0], 80)}: of Stable Diffusion, and of Flux.1 with "
            "lora_A and lora_B, it loads nothing in the names of ComfyUI"
        )
    if facts.dialect == "bfl" and not any(CONTROL in key for key in facts.tensors):
        some = printable(facts.example, 80)
        yield DIFFUSERS.ignoring(f"keys such as {some}: of these names it loads control LoRAs of Flux only")
    if others := [key for key in facts.tensors if OTHER_PREFIXES.match(key)]:
        yield DIFFUSERS.ignoring(f"keys such as {printable(others[0], 80)}, whose prefix it does not know")
    if bare := [key for key in facts.tensors if facts.dialect == "diffusers" and UNET.match(key)]:
        yield DIFFUSERS.ignoring(f"keys without unet. before them, such as {printable(bare[0], 80)}")
    if old := [key for key in facts.tensors if facts.dialect == "diffusers" and OLD.match(key)]:
        yield DIFFUSERS.rejecting(f"of a UNet in its own names it reads no {printable(old[0], 80)}")
    if named := [key for key in facts.tensors if facts.dialect == "diffusers" and ".default." in key]:
        yield DIFFUSERS.ignoring(f"keys that hold an adapter's name, such as {printable(named[0], 80)}")


def _settings(facts: Facts) -> Iterator[Finding]:
    """What it stops at in `lora_adapter_metadata`."""
    if not facts.parts:
        return
    if alphas(facts) and any(key.endswith(".alpha") for key in facts.tensors):
        yield DIFFUSERS.rejecting(
            "it has alpha tensors and lora_adapter_metadata, and either says the scale", "remove one"
        )
    named = [key for key in facts.tensors if key not in facts.others and not UNET.match(key)]
    for component in sorted({key.partition(".")[0] for key in named}):
        said = facts.parts.get(component, {})
        if not said:
            yield DIFFUSERS.rejecting(f"lora_adapter_metadata says nothing of {printable(component, 40)}")
        elif "target_modules" not in said:
            why = f"lora_adapter_metadata does not give {printable(component, 40)}.target_modules"
            yield DIFFUSERS.rejecting(why)


def _outside(facts: Facts) -> Iterator[Finding]:
    """It takes what Flux has beside its blocks from the names of kohya, but without its prefix."""
    spelled = any(key.startswith("lora_unet_") for key in facts.tensors)
    if spelled and (lost := [m.place for m in facts.modules if OUTSIDE.match(m.place)]):
        yield DIFFUSERS.ignoring(
            f"{len(lost)} of {len(facts.modules)} modules, such as {printable(lost[0], 80)}: of Flux in the "
            "names of kohya it loads the blocks only",
            command=f"{REWRITE} --format diffusers",
        )


DIFFUSERS = Consumer(
    "diffusers",
    "diffusers",
    "0.42.1",
    ("diffusers", "kohya", "comfy", "xlabs", "bfl"),
    False,
    scale,
    rules,
    heeds=frozenset(SPECIAL),
    patterns=True,
    formats=("diffusers", "kohya"),
    alphas=alphas,
)
