"""diffusers: `pipe.load_lora_weights`, `model.load_lora_adapter`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loramerge.consumers import families
from loramerge.consumers.alphas import FLUX, ZERO, dropped, misnamed, zeros
from loramerge.consumers.consumer import IMAGE, Consumer
from loramerge.consumers.facts import SCALING, SPECIAL, Facts, Module
from loramerge.consumers.finding import Finding
from loramerge.errors import printable
from loramerge.formats.peft.config import scales
from loramerge.formats.peft.names import UNKNOWN

COMFY = re.compile(
    r"text_encoders\.|diffusion_model\.(input_blocks|middle_block|output_blocks|double_blocks|single_blocks)\."
)
OTHER_FORMS = re.compile(
    r"(?:unet|transformer|text_encoder).*\.(?:hada_|lokr_|lora_mid\b|diff(?:_b)?$|[wb]_norm$)",
    re.DOTALL,
)
OTHER_ENDS = re.compile(  # of kohya's names
    r"lora_[^.]*\.(?P<form>(?!(?:lora_(?:down|up)\.weight|alpha|dora_scale)$).+)", re.DOTALL
)
BARE = re.compile(r"(down_blocks|up_blocks|mid_block)\.")
NESTED = re.compile(r"unet\.base_model\.")
LYCORIS = re.compile(r"lycoris_")
ONETRAINER = re.compile(r"lora_transformer_(single_)?transformer_blocks_\d+_(?!attn_)")
T5 = re.compile(r"text_encoders\.t5|text_encoder.*\.encoder\.block\.|lora_te\d?_encoder_block_")
AROUND = re.compile(r"(lora_unet_|diffusion_model\.)((img|txt|time|vector|guidance)_in|final_layer)[._]")
CLIP = re.compile(r"lora_te\d?_text_model_.*_self_attn_(?P<which>q|k|v|out)_proj\.")
TEXT = re.compile(r"(?P<part>text_encoder\w*)\.(?P<module>.+)\.lora_A\.weight", re.DOTALL)
OLD = re.compile(r"unet\..*\.(lora_(down|up)|lora_linear_layer\.(down|up))\.weight$")
OTHER_PREFIXES = re.compile(r"lora_prior_(unet|te)_")
CONTROL = "query_norm.scale"
LEAVE = "a merge without them is made by `loramerge combine --exclude`"


def scale(config: Mapping[str, Any], module: Module) -> float:
    """PEFT's rule if the header holds its settings; else the module's alpha / rank; else 1."""
    if "r" in config and "lora_alpha" in config:
        return scales(config, "lora_adapter_metadata").scale(module.place)
    return 1.0 if module.alpha is None else module.alpha / module.rank


def rules(facts: Facts) -> Iterator[Finding]:
    """What it refuses, drops, or scales otherwise."""
    if families.known(facts):
        yield from families.rules(DIFFUSERS, facts)
    for rule in (_settings,) if families.known(facts) else (_settings, _alphas, _names, _forms, _parts):
        yield from rule(facts)
    if facts.dialect == "diffusers":
        yield from DIFFUSERS.passing_over([key for key in facts.strange if not DIFFUSERS.keeps(key)])
    if lost := _first(re.compile(r".*\.dora_scale$", re.DOTALL), facts):
        yield DIFFUSERS.ignoring(
            f"the DoRA magnitudes ({printable(lost)} and others)", "load it with ComfyUI"
        )


def _first(pattern: re.Pattern[str], facts: Facts) -> str | None:
    """A key that begins so."""
    return next(filter(pattern.match, facts.tensors), None)


def _is_flux(facts: Facts) -> bool:
    return any(map(FLUX.search, facts.tensors))


def _is_split(facts: Facts) -> bool:
    """Whether its factors are called as kohya calls them, so that it renames what is of Flux.1."""
    return any(key.endswith(".lora_down.weight") for key in facts.tensors)


def _settings(facts: Facts) -> Iterator[Finding]:
    """What it stops at in `lora_adapter_metadata`."""
    if not facts.parts:
        return
    if any(key.endswith(".alpha") and not key.startswith("unet.") for key in facts.tensors):
        yield DIFFUSERS.rejecting(
            "it has alpha tensors and lora_adapter_metadata, and either says the scale", "remove one"
        )
    named = [key for key in facts.tensors if key not in facts.others and not BARE.match(key)]
    for component in sorted({key.partition(".")[0] for key in named}):
        said = facts.parts.get(component, {})
        if not said:
            yield DIFFUSERS.rejecting(f"lora_adapter_metadata says nothing of {printable(component, 40)}")
        elif "target_modules" not in said:
            why = f"lora_adapter_metadata does not give {printable(component, 40)}.target_modules"
            yield DIFFUSERS.rejecting(why)


def _alphas(facts: Facts) -> Iterator[Finding]:
    alphas = [key for key in facts.tensors if key.endswith(".alpha")]
    if any(key.startswith("unet.") for key in alphas):
        yield DIFFUSERS.rejecting(
            f"beside its own names it takes no alpha, such as {printable(alphas[0], 80)}"
        )
    elif lost := dropped(facts):
        yield from DIFFUSERS.scaling("reads no alpha beside lora_down and lora_up under transformer.", lost)
    else:
        why = "takes one alpha for attention, for a text encoder and where a module has none"
        wrong = misnamed(facts)
        yield from DIFFUSERS.scaling(why, wrong) if wrong else DIFFUSERS.scaling(ZERO, zeros(facts))


def _names(facts: Facts) -> Iterator[Finding]:
    renamed = _is_flux(facts) and (_is_split(facts) or any(".processor." in key for key in facts.tensors))
    if (key := _first(COMFY, facts)) and not renamed:
        yield DIFFUSERS.ignoring(
            f"keys such as {printable(key, 80)}: of Stable Diffusion, and of Flux.1 with lora_A and lora_B, "
            "it loads nothing in the names of ComfyUI"
        )
    if (key := _first(BARE, facts)) and facts.dialect == "diffusers":
        yield DIFFUSERS.ignoring(f"keys without unet. before them, such as {printable(key, 80)}")
    if (key := _first(OLD, facts)) and facts.dialect == "diffusers":
        yield DIFFUSERS.rejecting(f"of a UNet in its own names it reads no {printable(key, 80)}")
    if named := [key for key in facts.tensors if facts.dialect == "diffusers" and ".default." in key]:
        yield DIFFUSERS.ignoring(f"keys that hold an adapter's name, such as {printable(named[0], 80)}")
    yield from _others(facts)


def _others(facts: Facts) -> Iterator[Finding]:
    """Names that other tools write."""
    if facts.dialect == "bfl" and not any(CONTROL in key for key in facts.tensors):
        some = printable(facts.example, 80)
        yield DIFFUSERS.ignoring(f"keys such as {some}: of these names it loads only control LoRAs of Flux")
    if key := _first(OTHER_PREFIXES, facts):
        yield DIFFUSERS.ignoring(f"keys such as {printable(key, 80)}, whose prefix it does not know")
    if key := _first(NESTED, facts):
        yield DIFFUSERS.rejecting(f"no module of a U-Net is called {printable(key, 80)}")
    if key := _first(LYCORIS, facts):
        why = f"it loads names such as {printable(key, 80)} with Flux.2 alone, and there LoKr alone"
        yield DIFFUSERS.rejecting(why)
    if key := _first(ONETRAINER, facts):
        why = f"of names with lora_transformer_ it loads attention only, and no {printable(key, 80)}"
        yield DIFFUSERS.rejecting(why)


def _forms(facts: Facts) -> Iterator[Finding]:
    odd = _first(OTHER_ENDS if facts.dialect == "kohya" else OTHER_FORMS, facts)
    if odd is None:
        return
    only = f"of the names of kohya it loads lora_down and lora_up only, and no {printable(odd, 80)}"
    if facts.dialect != "kohya":
        yield DIFFUSERS.rejecting(f"under its own names it loads pairs only, and no {printable(odd, 80)}")
    elif _is_flux(facts) and (not _is_split(facts) or _forms_of(facts) == {"diff_b"}):
        yield DIFFUSERS.ignoring(f"all but the pairs: {only}")
    else:
        yield DIFFUSERS.rejecting(only)


def _forms_of(facts: Facts) -> set[str]:
    return {found["form"] for found in map(OTHER_ENDS.match, facts.tensors) if found}


def _parts(facts: Facts) -> Iterator[Finding]:
    if key := _first(T5, facts):
        yield DIFFUSERS.ignoring(f"what is of T5, such as {printable(key, 80)}: it loads CLIP only", LEAVE)
    downs = [key for key in facts.tensors if key.endswith(".lora_down.weight")]
    if _is_flux(facts) and (lost := list(filter(AROUND.match, downs))):
        yield DIFFUSERS.ignoring(
            f"{len(lost)} of {len(downs)} modules, such as {printable(lost[0], 80)}: of Flux.1 in such "
            "names it loads the blocks only"
        )
    yield from _text(facts)


def _text(facts: Facts) -> Iterator[Finding]:
    """CLIP is renamed by what its attention is called."""
    which = {name["which"] for name in map(CLIP.match, facts.tensors) if name}
    if which and "out" not in which and not _is_flux(facts):
        yield DIFFUSERS.ignoring(
            "the attention of a text encoder that has no out_proj, in the names of kohya"
        )
    text = [name for name in map(TEXT.fullmatch, facts.tensors) if name and not T5.match(name[0])]
    attended = {name["part"] for name in text if "self_attn" in name["module"]}
    if alone := [name["part"] for name in text if name["part"] not in attended]:
        why = f"under its own names it loads no {alone[0]} without a module of its attention"
        yield DIFFUSERS.rejecting(why, "convert it to the names of kohya, by `loramerge convert --to kohya`")


DIFFUSERS = Consumer(
    "diffusers",
    "diffusers",
    "0.42.1",
    ("diffusers", "kohya", "comfy", "xlabs", "bfl", "bare"),
    False,
    scale,
    rules,
    # not kohya: under its names diffusers loses what Flux has beside its blocks
    formats=("diffusers",),
    asked=(*IMAGE, UNKNOWN),
    partly={
        "kohya": "pairs only; no prefix of LyCORIS, and of Flux.1 the blocks only",
        "diffusers": "of a UNet only keys that begin with `unet.`",
        "comfy": "models such as Wan; of Flux.1 `lora_down` and `lora_up`, of Stable Diffusion nothing",
        "bfl": "control LoRAs of Flux.1",
        "bare": "Qwen-Image and Z-Image, with alphas or an adapter's name",
    },
    heeds=frozenset(SPECIAL),
    reads=SCALING,
    beside={"`lora_B.bias`": r".*\.lora_B\.bias", "magnitudes": r".*\.(lora_magnitude_vector|dora_scale)"},
    untold=partial(families.untold, "diffusers"),
    remarks="see below",
)
