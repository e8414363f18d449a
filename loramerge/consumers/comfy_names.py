"""Under which names ComfyUI finds the modules of a family, and where that can be seen.

It finds a module under the name of its own tensor, behind `diffusion_model.` or flat behind `lora_unet_`.
Other names have to be known to it model by model. A line says whether some are, and names a public thread in
which files with such names load, or do not. What no line names cannot be told.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from loramerge.formats.models.family import FIRST
from loramerge.formats.models.spellings import MET, Met

OWN, FILES, NONE = "tensor names of the model", "public files", "unverified"
PLAIN = ("diffusion_model.", "diffusion_model. with alphas", "lora_unet_")
_SEEN = """
+ lora_unet__ | wan:first | ComfyUI#7242
+ lora_transformer_ | flux.1 chroma | OneTrainer#1544
+ lycoris_ | flux.1 | ComfyUI#4476
+ lycoris_ | chroma | ComfyUI#6531
+ lycoris_ | sd3 | ComfyUI#5340
+ lycoris_ | hidream | ComfyUI#8318
+ lycoris_ | qwen-image | ComfyUI#9280
+ lycoris_ | z-image | ComfyUI#10978
+ lycoris_ | ace-step-1 | public files
+ transformer. | flux.1 | ComfyUI#4202
+ transformer. | flux.2 | ComfyUI#11980
+ transformer. | sd3 | ComfyUI#3759
+ transformer. | auraflow | ComfyUI#4060
+ transformer. | hidream | ComfyUI#8313
+ transformer. | z-image | ComfyUI#14182
+ transformer. | pixart | OneTrainer#1563
+ transformer. | qwen-image | OneTrainer#1544
+ transformer. | chroma | OneTrainer#1544
+ transformer. | hunyuan-video:authors | ComfyUI#6673
+ transformer. with alphas | flux.1 chroma qwen-image | OneTrainer#1544
+ transformer. with alphas | flux.2 | ComfyUI#11980
+ transformer. with alphas | z-image | ComfyUI#14182
+ transformer. with alphas | hidream | ComfyUI#8313
+ diffusion_model. | z-image | ComfyUI#10978
+ diffusion_model. | hunyuan-video:authors | ComfyUI#6673
+ no prefix | qwen-image | public files
+ no prefix | z-image | ComfyUI#11805
+ no prefix | ltx-video | ComfyUI#14349
+ no prefix | ace-step-1 | ComfyUI#8094
+ no prefix, default | qwen-image | public files
+ no prefix, default | z-image | ComfyUI#11805
+ no prefix, with alphas | qwen-image | public files
+ base_model.model. | sd3 pixart | public files
+ base_model.model. | ace-step-1.5:first | ComfyUI#12252
- diffusion_model. | ace-step-1.5:first | tensor names of the model
- lora_unet_ | z-image | ComfyUI#11487
- lora_unet_ | hunyuan-video:authors | musubi-tuner#26
- lora_unet_ | pixart | tensor names of the model
- lora_transformer_ | pixart | OneTrainer#1544
- lycoris_ | z-image:first | ComfyUI#14182
- lycoris_ | ltx-video | ComfyUI#14349
- lycoris_ | sana | ComfyUI#6136
- transformer. | z-image:first | ComfyUI#14182
- transformer. | wan wan-vace wan-animate | WanVideoWrapper#176
- transformer. | ltx-video | ComfyUI#6174
- transformer. | ltx-2 | ComfyUI#14349
- transformer. | lumina-2 | ComfyUI#7502
- transformer. | cosmos | ComfyUI#14182
- transformer. | hunyuan-video | OneTrainer#1563
- transformer. | sana | ComfyUI#6136
- transformer. | ace-step-1.5 | OneTrainer#1515
- transformer_2. | wan | WanVideoWrapper#176
- no prefix | wan:first | ChronoEdit#22
- no prefix, default | wan:first | ChronoEdit#22
"""
UNSEEN = {  # (family, naming) -> keys of which it cannot be told, beside those that are known to load
    ("flux.2", "diffusers"): r"transformer\.(?!(single_)?transformer_blocks\.)",
    ("chroma", "diffusers"): r"distilled_guidance_layer",
    ("hunyuan-video", "first"): r"(time|guidance|txt)_in",
    ("hunyuan-video", "authors"): r"(time|guidance|txt)_in",
}
# whose tensors it has under other names, or not at all
_FOREIGN = frozenset({"sana", "ace-step-1.5", "hunyuan-video-1.5"})


@cache
def _seen() -> dict[tuple[str, str, str], tuple[bool, str]]:
    """(spelling, family, naming) -> (whether it is read, where that is seen)."""
    found = {}
    for line in _SEEN.strip().splitlines():
        spelling, families, where = (part.strip() for part in line[1:].split("|"))
        for word in families.split():
            family, _, naming = word.partition(":")
            found[spelling, family, naming or "diffusers"] = line[0] == "+", where
    return found


def verdict(met: Met) -> tuple[bool | None, str]:
    """(whether ComfyUI reads a family in a spelling wholly, where that is seen); None: cannot be told."""
    if found := _seen().get((met.spelling, met.family.name, met.naming)):
        return found
    names = met.family.namings
    own = met.naming == FIRST or names[FIRST].rules == names[met.naming].rules
    if own and met.spelling in PLAIN and met.family.name not in _FOREIGN:
        return True, OWN
    return None, NONE


def doubtful(families: Collection[str]) -> bool:
    """Whether nobody can tell what it makes of what is written for it of such a model."""
    unseen = {family for family, _ in UNSEEN}
    written = {
        row.family.name for row in MET if row.dialect in ("kohya", "comfy", "peft") and verdict(row)[0]
    }
    return "flux.1" not in families and any(name in unseen or name not in written for name in families)
