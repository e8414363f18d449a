"""Blocks that diffusers reads whole or not at all: some of its loaders count the blocks of a file, and look
for each module of as many from the first on. A file with chosen blocks, or with attention alone, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from loramerge.formats.models.rules import filled
from loramerge.formats.models.spellings import Met
from loramerge.formats.models.templates import spread

_WHOLE = """
lora_unet_ | wan:first | blocks_*_ | self_attn_{q,k,v,o} cross_attn_{q,k,v,o} ffn_{0,2}
diffusion_model. | lumina-2:first | layers.*. | attention.{qkv,out} feed_forward.w{1,2,3} adaLN_modulation.1
diffusion_model. | lumina-2:first | noise_refiner.*. | attention.{qkv,out} feed_forward.w{1,2,3}
diffusion_model. | lumina-2:first | noise_refiner.*. | adaLN_modulation.1
diffusion_model. | lumina-2:first | context_refiner.*. | attention.{qkv,out} feed_forward.w{1,2,3}
"""  # spelling, family, a list of blocks, and the modules that each must have
_IMAGE = "cross_attn_{k_img,v_img}"  # what Wan's blocks have where it starts from an image
_BOTH = {"k_img": "v_img", "v_img": "k_img"}  # Wan's loaders read both or none, and no file without blocks
_SIGN = {("hunyuan-video", "authors"): "img_attn_qkv"}  # by which a loader knows names that are not its own


def lacking(met: Met, keys: Collection[str]) -> str:
    """A module that diffusers looks for in a file of a row, and does not find; "" if there is none."""
    inside = (key.removeprefix(met.prefix) for key in keys if key.endswith(met.ends[0]))
    names = {name.removesuffix(met.ends[0]) for name in inside}
    alone = _alone(names) if (met.family.name, met.naming) == ("wan", "first") else ""
    return alone or next((name for name in _wanted(met, names) if name not in names), "")


def _alone(names: Collection[str]) -> str:
    """What Wan's loaders do not find beside names."""
    if names and not any("blocks" in name for name in names):
        return "blocks.0"
    ends = {name[-5:]: name for name in names if name[-5:] in _BOTH}
    return "" if len(ends) != 1 else "".join(name[:-5] + _BOTH[end] for end, name in ends.items())


def unsigned(met: Met, keys: Collection[str]) -> str:
    """What is in no name of a file of a row, and tells diffusers whose names these are; "" if it is there."""
    sign = _SIGN.get((met.family.name, met.naming), "")
    return "" if any(sign in key for key in keys) else sign


def _wanted(met: Met, names: Collection[str]) -> Iterator[str]:
    for line in _WHOLE.strip().splitlines():
        spelling, family, blocks, modules = (part.strip() for part in line.split(" | "))
        if (spelling, family) != (met.spelling, f"{met.family.name}:{met.naming}"):
            continue
        known = re.compile(re.escape(blocks).replace(r"\*", r"(\d+)"))
        numbers = {found[1] for name in names if (found := known.match(name))}
        image = _IMAGE if any(name.endswith("_img") for name in names) else ""
        own = [module for word in f"{modules} {image}".split() for module in spread(word)]
        yield from (filled(blocks, (str(n),)) + module for n in range(len(numbers)) for module in own)
