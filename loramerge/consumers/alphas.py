"""Alphas that are not taken as they are meant: by diffusers under misunderstood names, and zeros."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from loramerge.consumers.facts import Facts

DOWN = re.compile(r"(?P<stem>.+)\.(lora_down|lora_A)\.weight", re.DOTALL)
PART = re.compile(r"(lora_)?(?P<part>unet|transformer|te\d?|text_encoder(_\d)?)[._]")
FLUX = re.compile(r"(double|single)_blocks|single_transformer_blocks")
DIFFUSION = re.compile(
    r"lora_unet_((down|up|input|output)_blocks|mid(dle)?_block|conv_(in|out)|time_embed|label_emb|out_2)"
    r"|lora_te"
)
MISNAMED = re.compile(r"lora_unet_.*_to_(q|k|v|out_0)|lora_te.*|text_encoder.*", re.DOTALL)
ZERO = "takes an alpha of 0 as no strength, where kohya means the rank"

Said = tuple[int, float | None]  # the rank of a module, and its alpha if it says one


def misnamed(facts: Facts) -> dict[str, float]:
    """Module -> the scale that diffusers takes, by the one that is meant; empty if alphas are no matter.

    Alphas go into PEFT's alpha_pattern, but those of attention and of text encoders under names that no
    module has. There, as where a module has none, the alpha counts that most modules of its part have.
    """
    flux = any(map(FLUX.search, facts.tensors))
    sd = facts.dialect == "kohya" and all(map(DIFFUSION.match, facts.tensors))
    if not sd and not (facts.dialect == "diffusers" and flux):
        return {}
    found: dict[str, float] = {}
    for modules in _said(facts).values():
        found |= _taken(modules)
    return found


def dropped(facts: Facts) -> dict[str, float]:
    """Module -> rank / alpha, where diffusers reads no alpha: of Flux.1 in its own names with `lora_down`."""
    keys = list(facts.tensors)
    split = any(map(FLUX.search, keys)) and any(key.endswith(".lora_down.weight") for key in keys)
    if facts.dialect != "diffusers" or not split:
        return {}
    modules = [each for part in _said(facts).values() for each in part.items()]
    return {stem: rank / alpha for stem, (rank, alpha) in modules if alpha}


def zeros(facts: Facts) -> dict[str, float]:
    """Module -> 0 where kohya's alpha is 0, by which sd-scripts means the rank; else 1."""
    if facts.dialect != "kohya":
        return {}
    return {stem: 0.0 if alpha == 0 else 1.0 for stem, alpha in facts.alphas.items()}


def _said(facts: Facts) -> Mapping[str, dict[str, Said]]:
    """Part of the pipeline -> module -> what the file says of it."""
    parts: dict[str, dict[str, Said]] = defaultdict(dict)
    for key, shape in facts.tensors.items():
        name, part = DOWN.fullmatch(key), PART.match(key)
        if name and part and shape and shape[0]:
            stem, rank = name["stem"], shape[0]
            alpha = facts.alphas.get(stem, float(rank)) if f"{stem}.alpha" in facts.tensors else None
            parts[part["part"]][stem] = (rank, alpha)
    return parts


def _taken(modules: Mapping[str, Said]) -> dict[str, float]:
    """The factors of one part."""
    alphas = Counter(alpha for _, alpha in modules.values() if alpha is not None)
    if not alphas:
        return {}
    ((most, _),) = alphas.most_common(1)
    return {
        stem: (most if alpha is None or MISNAMED.fullmatch(stem) else alpha) / (alpha or rank)
        for stem, (rank, alpha) in modules.items()
    }
