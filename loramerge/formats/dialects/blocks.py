"""Which block of its model a module is in, as makers of images count them."""

from __future__ import annotations

import re

from loramerge.adapters.target import Target
from loramerge.formats.dialects.places import first_name

UNET = {"input_blocks": "IN", "middle_block": "M", "output_blocks": "OUT"}
TEXT, BESIDE = "BASE", "beside the blocks"
LIST = re.compile(r"(?:^|.*?\.)([A-Za-z_]+\.\d+)\.")


def block(target: Target) -> str:
    """The name of a module's block: `IN04` of a U-Net, `BASE` for text encoders, else its list and number.

    >>> block(Target("down_blocks.1.attentions.0.proj_in", component="unet"))
    'IN04'
    >>> block(Target("single_transformer_blocks.7.proj_mlp", component="transformer"))
    'single_transformer_blocks.07'
    """
    if target.component.startswith("text_encoder"):
        return TEXT
    path = first_name(target) if target.component == "unet" else target.path
    stem, number, *_ = [*path.split("."), ""]
    if target.component == "unet" and stem in UNET:
        return f"{UNET[stem]}{0 if stem == 'middle_block' else int(number):02}"
    found = LIST.match(path)
    if found is None:
        return BESIDE
    name, _, count = found[1].rpartition(".")
    return f"{name}.{int(count):02}"
