"""Which Stable Diffusion a U-Net is of: 1, 2 and XL call their modules alike, but sizes and blocks differ."""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.adapters.late import late
from loramerge.formats.models import is_xl, known

ONE, TWO, XL, REFINER = (f"Stable Diffusion {each}" for each in ("1", "2", "XL", "XL's refiner"))
CONTEXTS = {768: (ONE,), 1024: (TWO,), 2048: (XL,), 1280: (REFINER,)}  # the width of what describes an image
CROSS = late(r".*\.attn2\.to_[kv]$")
FIRST = late(r"(down_blocks\.0|up_blocks\.3)\.attentions\.")  # the largest level, where XL has no attention
SELF = late(r".*\.attn1\.to_[qkv]$")
REFINED = (384, 768, 1536)  # widths of the refiner's levels


def kinds(sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The models that a U-Net with these modules can be of; () where it is not known, or nothing tells.

    >>> kinds({"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 2048)})
    ('Stable Diffusion XL',)
    >>> kinds({"down_blocks.0.attentions.0.proj_in": (320, 320)})
    ('Stable Diffusion 1', 'Stable Diffusion 2')
    """
    table = known("unet")
    if not sizes or any(path not in table for path in sizes):
        return ()
    contexts = {ins for path, (_, ins) in sizes.items() if CROSS.match(path)}
    if contexts:
        return CONTEXTS.get(contexts.pop(), ()) if len(contexts) == 1 else ()
    if is_xl(sizes):
        levels = {ins for path, (_, ins) in sizes.items() if SELF.match(path)}
        return (REFINER,) if levels and levels <= {*REFINED} else (XL,)
    return (ONE, TWO) if any(FIRST.match(path) for path in sizes) else ()
