"""Which U-Net it is, Stable Diffusion 1, 2, XL or XL's refiner: by widths, by where it attends, by names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from loramerge.adapters.late import late

ONE, TWO, XL, REFINER = (f"Stable Diffusion {name}" for name in ("1", "2", "XL", "XL's refiner"))
ALL = frozenset({ONE, TWO, XL, REFINER})
CONTEXT = {768: ONE, 1024: TWO, 2048: XL, 1280: REFINER}  # the inputs of attention that looks at the text
TEXT = {768: frozenset({ONE, XL}), 1024: frozenset({TWO})}  # the width of a pipeline's first text encoder
LOOKS = late(r"attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_[kv]$")
DEPTH = late(r"attentions\.\d+\.transformer_blocks\.(\d+)\.")
PLACES = (  # where some of them have modules, and the others do not
    (late(r"down_blocks\.0\.attentions|up_blocks\.3\.attentions"), frozenset({ONE, TWO})),
    (late(r"down_blocks\.3\.|up_blocks\.3\."), frozenset({ONE, TWO, REFINER})),
    (late(r"up_blocks\.0\.attentions"), frozenset({XL})),
    (late(r"up_blocks\.2\.attentions|down_blocks\.2\.downsamplers"), frozenset({ONE, TWO, REFINER})),
    (late(r"add_embedding"), frozenset({XL, REFINER})),
)
SAID = (  # what metadata and names of base models call them
    (late(r"refiner", re.IGNORECASE), frozenset({REFINER})),
    (late(r"sd_?xl|diffusion-?xl|\bxl\b", re.IGNORECASE), frozenset({XL, REFINER})),
    (late(r"\bsd_?v1|diffusion-v1|sd-?v?1[-.][45]", re.IGNORECASE), frozenset({ONE})),
    (late(r"\bsd_?v2|diffusion-v?2|sd-?v?2[-.][01]", re.IGNORECASE), frozenset({TWO})),
)
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Parts:
    """The modules of a pipeline: path -> (outs, ins) of its U-Net, and of its first text encoder."""

    unet: Shapes
    text: Shapes
    second: bool = False  # whether it has another text encoder


def possible(parts: Parts, said: str) -> frozenset[str]:
    """The models that have all these modules, and that metadata does not exclude.

    >>> sorted(possible(Parts({"up_blocks.3.attentions.0.proj_in": (320, 320)}, {}), ""))
    ['Stable Diffusion 1', 'Stable Diffusion 2']
    """
    found = ALL.intersection(*_told(parts))
    named = found.intersection(*(models for pattern, models in SAID if pattern.search(said)))
    return named or found


def _told(parts: Parts) -> Iterator[Iterable[str]]:
    for path, (_, ins) in parts.unet.items():
        if ins in CONTEXT and LOOKS.search(path):
            yield {CONTEXT[ins]}
        if (depth := DEPTH.search(path)) and depth[1] != "0":
            yield {XL, REFINER} if int(depth[1]) < 4 else {XL}
        yield from (models for pattern, models in PLACES if pattern.match(path))
    yield from (TEXT[ins] for path, (_, ins) in parts.text.items() if ins in TEXT and "self_attn" in path)
    if parts.second:
        yield {XL, REFINER}
