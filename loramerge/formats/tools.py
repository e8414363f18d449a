"""Programs and spellings as formats: how each family is written for a program, or in a spelling.

A line is a program, what it calls itself, a spelling of `models.spellings`, and the families it reads so.
`U-Net` stands for Stable Diffusion 1, 2 and XL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.errors import UsageError, printable, say
from loramerge.formats.dialects import Dialect, named
from loramerge.formats.dialects.diffusers import Diffusers
from loramerge.formats.dialects.model import PARTS, model_of
from loramerge.formats.dialects.peft import Peft
from loramerge.formats.dialects.places import located
from loramerge.formats.dialects.spelling import Spelled
from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.spellings import MET, Met

UNET = "U-Net"
_READ = """
musubi-tuner | musubi-tuner | lora_unet_ | flux.1:first flux.2:first wan:first hunyuan-video:authors
musubi-tuner | musubi-tuner | lora_unet_ | qwen-image z-image
sd-scripts | sd-scripts | lora_unet_ | U-Net flux.1:first chroma:first sd3:first lumina-2:first cosmos:first
comfyui | ComfyUI | diffusion_model. | flux.1:first flux.2:first chroma:first sd3:first wan:first qwen-image
comfyui | ComfyUI | diffusion_model. | z-image:first hunyuan-video:first ltx-video:first ltx-2:first hidream
comfyui | ComfyUI | diffusion_model. | lumina-2:first auraflow:first cosmos:first mochi:first pixart:first
comfyui | ComfyUI | diffusion_model. | ace-step-1 wan-vace:first wan-animate:first
comfyui | ComfyUI | diffusion_model. | U-Net
comfyui | ComfyUI | base_model.model. | ace-step-1.5:first
ai-toolkit | AI-toolkit | diffusion_model. | flux.2:first chroma:first wan:first qwen-image z-image hidream
ai-toolkit | AI-toolkit | diffusion_model. | ltx-video:first ltx-2:first lumina-2:first
ai-toolkit | AI-toolkit | transformer. | flux.1
diffsynth | DiffSynth-Studio | no prefix, default | wan:first qwen-image z-image
lightning | Qwen-Image-Lightning | no prefix, with alphas | qwen-image
videox-fun | VideoX-Fun | lora_unet__ | wan:first
onetrainer | OneTrainer | lora_transformer_ | flux.1 chroma sd3 pixart
onetrainer | OneTrainer | transformer. with alphas | flux.2 qwen-image z-image hidream
diffusion-pipe | diffusion-pipe | diffusion_model. | chroma:first wan:first cosmos:first lumina-2:first
diffusion-pipe | diffusion-pipe | diffusion_model. | qwen-image hidream
diffusion-pipe | diffusion-pipe | transformer. | flux.1 hunyuan-video:authors
simpletuner | SimpleTuner | transformer. | flux.1 flux.2 chroma sd3 wan qwen-image z-image ltx-video ltx-2
simpletuner | SimpleTuner | transformer. | hidream
simpletuner | SimpleTuner | transformer. | lumina-2 auraflow cosmos pixart sana
lycoris | LyCORIS in SimpleTuner | lycoris_ | flux.1 flux.2 chroma sd3 qwen-image z-image hidream auraflow
lycoris | LyCORIS in SimpleTuner | lycoris_ | ltx-video
lycoris | LyCORIS in SimpleTuner | lycoris_ | pixart sana ace-step-1
"""
_UNETS = {"lora_unet_": "kohya", "diffusion_model.": "comfy"}


@dataclass(frozen=True)
class Tool:
    """A program: its name as a format, its title, family -> the row that it reads, the format for U-Nets."""

    name: str
    title: str
    rows: Mapping[str, Met]
    unets: str = ""

    def dialect(self, adapters: Sequence[Adapter]) -> Dialect:
        """How a merge of these is written for it.

        Raises:
            UsageError: it is not known to read adapters of their model.
        """
        model = model_of([located(adapter) for adapter in adapters])
        targets = {target for adapter in adapters for target in adapter.slots}
        # of families that nothing tells apart, those that the program does not read are not meant
        rows = [self.rows[family.name] for family in model.families if family.name in self.rows]
        if rows and len({_called(row, targets) for row in rows}) == 1:
            return self._made(adapters, rows[0])
        if not model.families and self.unets and all(_of_unets(target) for target in targets):
            return self._plain(named(self.unets).bound(adapters))
        titles = " or ".join(family.title for family in model.families) or "a model that is not known here"
        known = ", ".join([*([UNET] if self.unets else []), *(FAMILIES[name].title for name in self.rows)])
        raise UsageError(
            f"{say('format', self.name)}: {printable(adapters[0].name)} is for {titles}, and how "
            f"{self.title} calls modules is known of {known}. {say('format')} also takes a format, such as "
            "comfy."
        )

    def _made(self, adapters: Sequence[Adapter], row: Met) -> Dialect:
        made = copy(named(row.dialect).bound(adapters))
        prefixes = {PARTS[0]: row.prefix} if row.dialect in ("kohya", "comfy", "bare") else {}
        if isinstance(made, Spelled):
            made.spell(Spelling(row.naming, prefixes, row.ends), adapters)
        if isinstance(made, Diffusers):
            made.part = row.prefix.removesuffix(".")
        if isinstance(made, Peft):
            made.model, made.naming = model_of(adapters), row.naming
        made.asked = self.name
        return made

    def _plain(self, dialect: Dialect) -> Dialect:
        made = copy(dialect)
        if isinstance(made, Spelled):
            made.own = Spelling()
        made.asked = self.name
        return made


def _called(row: Met, targets: Iterable[Target]) -> tuple[object, ...]:
    """What a row makes of names."""
    family, naming = row.family, row.naming
    wholes = {t.path: family.owner(t.path, naming) for t in targets if t.component in PARTS}
    names = sorted(family.spelled(path, naming) or (own and own[0]) or path for path, own in wholes.items())
    return row.dialect, row.ends, *map(row.stem, names)


def _of_unets(target: Target) -> bool:
    return target.component == "unet" or target.component.startswith("text_encoder")


def _tools() -> dict[str, Tool]:
    rows = {(met.spelling, met.family.name, met.naming): met for met in MET}
    found: dict[str, tuple[str, dict[str, Met], str]] = {}
    for line in _READ.strip().splitlines():
        name, title, spelling, families = (part.strip() for part in line.split("|"))
        _, own, unets = found.setdefault(name, (title, {}, ""))
        for word in families.split():
            family, _, naming = word.partition(":")
            if word == UNET:
                unets = _UNETS[spelling]
            else:
                own[family] = rows[spelling, family, naming or "diffusers"]
        found[name] = title, own, unets
    return {name: Tool(name, *each) for name, each in found.items()}


TOOLS: Mapping[str, Tool] = _tools()


def _spellings() -> dict[str, Tool]:
    """Every spelling, and where it is met with several names of modules, each of these behind a colon."""
    found: dict[str, Tool] = {}
    for spelling in dict.fromkeys(met.spelling for met in MET):
        own = [met for met in MET if met.spelling == spelling]
        ways = {spelling: own[::-1]}  # of several namings of a family, the first
        if len({met.family.name for met in own}) < len(own):
            namings = dict.fromkeys(met.naming for met in own)
            ways |= {f"{spelling}:{each}": [m for m in own if m.naming == each] for each in namings}
        for name, rows in ways.items():
            found[name] = Tool(name, f"a file with {name}", {met.family.name: met for met in rows})
    return found


SPELLINGS: Mapping[str, Tool] = _spellings()
"""The name of a spelling as a format, such as ``lora_unet__`` or ``transformer. with alphas``."""
