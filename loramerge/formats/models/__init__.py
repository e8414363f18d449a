"""One name for one module, whatever the tool: tables made by rule from how the models are built.

The name of a module is diffusers' (transformers' in a text encoder). Other tools keep the names under which a
model was first published, and some put `_` for every dot: what a flat name means is then looked up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from loramerge.formats.models import flux, text, unet

PARTS = ("unet", "transformer", "text_encoder", "t5")  # the models with a table


@cache
def first_names(part: str) -> Mapping[str, str]:
    """diffusers' name -> the first name; for U-Nets that of SDXL, where they differ."""
    if part == "unet":
        return dict(unet.modules())
    if part == "transformer":
        return dict(flux.modules())
    return {name: name for name in {"t5": text.t5, "decoder": text.decoder}.get(part, text.clip)()}


@cache
def fused(part: str) -> Mapping[str, tuple[str, ...]]:
    """First name of a module that is several of diffusers' -> these, in the order of its rows."""
    return dict(flux.fused()) if part == "transformer" else {}


@cache
def owner(part: str) -> Mapping[str, str]:
    """diffusers' name -> the fused module that holds its rows."""
    return {name: first for first, names in fused(part).items() for name in names}


@cache
def known(part: str) -> Mapping[str, str]:
    """A dotted name of any spelling -> the name that we use: diffusers', or a fused module's own."""
    pairs = {"unet": unet.modules, "transformer": flux.modules}.get(part, first_names(part).items)()
    found = {spelling: ours for ours, theirs in pairs for spelling in (ours, theirs)}
    return found | {name: name for name in (*fused(part), *owner(part))}


@cache
def ours(part: str) -> frozenset[str]:
    """The names that we use."""
    return frozenset(known(part).values())


@cache
def by_flat(part: str) -> Mapping[str, str]:
    """A flat name of any spelling -> the name that we use.

    >>> by_flat("unet")["input_blocks_4_1_transformer_blocks_0_attn1_to_q"]
    'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    return {flat(spelling): ours for spelling, ours in known(part).items()}


def flat(path: str) -> str:
    """A dotted name as kohya writes it."""
    return path.replace(".", "_")


def of_clip(path: str) -> str:
    """A module of CLIP under its full name: transformers 5 leaves `text_model.` out.

    >>> of_clip("encoder.layers.0.mlp.fc1"), of_clip("encoder.block.0.layer.0.SelfAttention.q")
    ('text_model.encoder.layers.0.mlp.fc1', 'encoder.block.0.layer.0.SelfAttention.q')
    """
    full = f"text_model.{path}"
    return full if full in known("text_encoder") else path


def is_xl(paths: Iterable[str]) -> bool:
    """Whether modules of a U-Net are SDXL's: a second transformer block, or attention in the lowest block."""
    return any(
        path.startswith("up_blocks.0.attentions")
        or (".transformer_blocks." in path and ".transformer_blocks.0." not in path)
        for path in paths
    )
