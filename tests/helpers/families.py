"""Modules of every family, with sizes that its rules allow, and tiny models of diffusers' own classes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from functools import cache

from loramerge.formats.models.family import FIRST, Family
from loramerge.formats.models.rules import Rule, filled

CUT = (
    "num_layers num_single_layers n_layers n_refiner_layers num_refiner_layers num_mmdit_layers "
    "num_single_dit_layers num_hidden_layers"
).split()
MORE = {  # what a class wants beyond its defaults
    "FluxTransformer2DModel": {"guidance_embeds": True},
    "WanTransformer3DModel": {"added_kv_proj_dim": 5120, "image_dim": 8},
    "WanVACETransformer3DModel": {"vace_layers": (0, 1), "added_kv_proj_dim": 5120, "image_dim": 8},
    "WanAnimateTransformer3DModel": {
        "inject_face_latents_blocks": 1, "added_kv_proj_dim": 5120, "image_dim": 8,
    },
    "LTX2VideoTransformer3DModel": {  # as LTX-2.3 is
        "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True,
    },
    "SD3Transformer2DModel": {"dual_attention_layers": (0,)},
    "AnimaTextConditioner": {"model_dim": 512},
    "PixArtTransformer2DModel": {"caption_channels": 8},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2,
        "caption_channels": [8, 8], "text_emb_dim": 8, "axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8),
        "llama_layers": (0,),
    },
}  # fmt: skip


def size(rule: Rule, width: int = 12) -> tuple[int, int]:
    """(outs, ins) of a whole module that a rule allows."""
    if not rule.ratios:
        return width * len(rule.ours) * 2, width
    ratio = rule.ratios[0]
    unit = width if ratio.denominator == 1 or width % ratio.denominator == 0 else width * ratio.denominator
    down = unit * ratio.denominator if ratio.numerator == 1 else unit
    return int(down * ratio), down


def modules(
    family: Family, naming: str = FIRST, block: int = 0
) -> Iterator[tuple[str, Rule, tuple[int, int]]]:
    """(name in a naming, its rule, (outs, ins)) of the modules of one block of each list, and around them."""
    for rule in family.namings[naming].rules:
        name = filled(rule.theirs, (str(block),) * rule.theirs.count("*"))
        outs, ins = size(rule) if naming != "diffusers" else _part(family, rule)
        yield name, rule, (outs, ins)


def _part(family: Family, rule: Rule) -> tuple[int, int]:
    for whole in family.namings[FIRST].rules:
        if rule.ours[0] in whole.ours:
            outs, ins = size(whole)
            if whole.rows in ("turned", "last"):
                return outs, ins
            return whole.sizes(outs, ins)[whole.ours.index(rule.ours[0])], ins
    return size(rule)


@cache
def model(name: str):
    """A model of diffusers' class with one block of each kind and no numbers."""
    import diffusers
    import torch

    made = getattr(diffusers, name)
    known = inspect.signature(made.__init__).parameters
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(**{key: 2 for key in CUT if key in known}, **MORE.get(name, {}))  # the last is another


def layers(name: str) -> dict[str, tuple[int, ...]]:
    """The layers of such a model that adapters can be for, with the shapes of their weights."""
    kinds = ("Linear", "Conv1d", "Conv2d", "Conv3d", "LoRACompatibleLinear")
    found = model(name).named_modules()
    return {path: tuple(layer.weight.shape) for path, layer in found if type(layer).__name__ in kinds}
