"""The spellings in which files of every family are met: what stands before a name, which name, how it ends.

A line is a spelling, and the families that are met in it; `:first` that modules have their published names,
`:authors` those of the trainers of its authors, nothing that they have diffusers'.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.family import OURS, Family, part_of

AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")


@dataclass(frozen=True)
class Met:
    """How one group of tools spells a family.

    Args:
        dialect: the format that reads it.   prefix: before every name.   flat: `_` for every dot.
        ends: of the keys of down and up.   alpha: every module has one.   naming: of the family.
    """

    spelling: str
    family: Family
    naming: str
    dialect: str
    prefix: str
    ends: tuple[str, str]
    flat: bool = False
    alpha: bool = False

    def stem(self, name: str) -> str:
        """The keys of a module up to their ends, by its name in the naming."""
        if self.dialect == "diffusers" and part_of(name):
            return name
        return f"{self.prefix}{name.replace('.', '_') if self.flat else name}"


_WAYS = {  # spelling -> (format, prefix, ends, flat, alpha)
    "diffusion_model.": ("comfy", "diffusion_model.", AB, False, False),
    "diffusion_model. with alphas": ("comfy", "diffusion_model.", DOWN_UP, False, True),
    "lora_unet_": ("kohya", "lora_unet_", DOWN_UP, True, True),
    "lora_unet__": ("kohya", "lora_unet__", DOWN_UP, True, True),
    "lora_transformer_": ("kohya", "lora_transformer_", DOWN_UP, True, True),
    "lycoris_": ("kohya", "lycoris_", DOWN_UP, True, True),
    "transformer.": ("diffusers", "transformer.", AB, False, False),
    "transformer_2.": ("diffusers", "transformer_2.", AB, False, False),
    "transformer. with alphas": ("diffusers", "transformer.", DOWN_UP, False, True),
    "no prefix": ("bare", "", AB, False, False),
    "no prefix, default": ("bare", "", DEFAULT, False, False),
    "no prefix, with alphas": ("bare", "", DOWN_UP, False, True),
    "base_model.model.": ("peft", "base_model.model.", AB, False, False),
}
_LINES = """
diffusion_model.: flux.1:first flux.2:first chroma:first sd3:first wan:first qwen-image z-image:first
diffusion_model.: wan-vace:first wan-animate:first
diffusion_model.: z-image hunyuan-video:first hunyuan-video:authors ltx-video:first ltx-2:first hidream
diffusion_model.: lumina-2:first auraflow:first cosmos:first mochi:first pixart:first sana:first
diffusion_model.: ace-step-1 ace-step-1.5:first
diffusion_model. with alphas: wan:first flux.1:first
lora_unet_: flux.1:first flux.2:first chroma:first sd3:first wan:first qwen-image z-image:first z-image
lora_unet_: hunyuan-video:first hunyuan-video:authors ltx-video:first hidream lumina-2:first auraflow:first
lora_unet_: cosmos:first pixart
lora_unet_: wan-vace:first wan-animate:first
lora_unet__: wan:first
lora_transformer_: flux.1 sd3 chroma pixart
lycoris_: flux.1 flux.2 chroma sd3 qwen-image z-image z-image:first hidream auraflow ltx-video pixart sana
lycoris_: ace-step-1
transformer.: flux.1 flux.2 chroma sd3 wan qwen-image z-image z-image:first hunyuan-video ltx-video ltx-2
transformer.: hunyuan-video:authors hidream lumina-2 auraflow cosmos cogvideox mochi pixart sana ace-step-1
transformer.: ace-step-1.5 wan-vace wan-animate hunyuan-video-1.5
transformer_2.: wan
transformer. with alphas: qwen-image flux.1 chroma flux.2 z-image hidream
no prefix: wan:first qwen-image z-image ltx-video ace-step-1
no prefix, default: wan:first qwen-image z-image
no prefix, with alphas: qwen-image
base_model.model.: sd3 flux.2:first pixart ace-step-1.5:first
"""


def _met() -> list[Met]:
    found = []
    for line in _LINES.strip().splitlines():
        spelling, _, families = line.rpartition(": ")
        for word in families.split():
            name, _, naming = word.partition(":")
            dialect, prefix, ends, flat, alpha = _WAYS[spelling]
            family = FAMILIES[name]
            found.append(Met(spelling, family, naming or OURS, dialect, prefix, ends, flat, alpha))
    return found


MET: tuple[Met, ...] = tuple(_met())
