"""ComfyUI and the tools of model authors: the first names of a model's modules, with their dots.

    diffusion_model.<module>.lora_A.weight (r, in)    .lora_B.weight (out, r)    maybe .alpha
    text_encoders.clip_l.transformer.<module>, text_encoders.t5xxl.transformer.<module>, …

A module without an alpha has scale 1.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Dialect, Header, Names, Scales, Widths
from loramerge.formats.dialects.diffusers import FIRST
from loramerge.formats.dialects.grain import fused, placed
from loramerge.formats.dialects.places import first_name, is_sdxl, is_t5, part, unnamed
from loramerge.formats.dialects.reader import read_modules
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module, taken_apart

CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class FirstNames(Dialect):
    """Dialects with the first names of a model's modules, under a prefix for each part of it."""

    strength = "`alpha/r`; without an alpha it is 1"
    differences = True
    prefixes: ClassVar[Mapping[str, str]]  # what a key begins with -> component; T5 is told by its modules
    never: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")  # names that its tools do not give

    @abstractmethod
    def spelled(self, module: str) -> str:
        """A module's name as it is looked up."""

    def _adapter(self, header: Header) -> Adapter:
        """What `read` gives, whatever parts of a model its modules are of."""
        found = by_module(header.tensors, header.name)
        if foreign := [m for m in found.modules if self._prefix(m) is None or self.never.match(m)]:
            raise IncompatibleError(
                f"{printable(header.name)} mixes names of {self.tool} with others "
                f"({printable(foreign[0], 80)}): it is not clear how the latter are scaled."
            )
        modules = read_modules(header, found, self._places)
        return modules.adapter(self, header, found.rest, "the scale is 1 there, as ComfyUI has it")

    def _prefix(self, key: str) -> str | None:
        return next((prefix for prefix in self.prefixes if key.startswith(prefix)), None)

    def _places(self, changes: Mapping[str, Update]) -> dict[str, Target]:
        """Module name -> the target it means."""
        named = {}
        for module in changes:
            name = self.spelled(module)
            prefix = self._prefix(name) or ""
            named[module] = (self.prefixes[prefix], name.removeprefix(prefix))
        table = models.known("transformer")
        flux = models.is_flux(
            {
                table.get(path, ""): (changes[module].up.shape[0], changes[module].down.shape[1])
                for module, (component, path) in named.items()
                if component == "unet"
            }
        )
        sd3 = any(path.startswith("joint_blocks.") for _, path in named.values())
        return {module: _target(component, path, flux, sd3) for module, (component, path) in named.items()}


class Comfy(FirstNames):
    name = "comfy"
    words = "a ComfyUI LoRA"
    tools = "ComfyUI, AI-toolkit"
    spelling = (
        "`diffusion_model.<first name>`, `text_encoders.clip_l.transformer.<name>`; `.lora_A.weight` or "
        "`.lora_down.weight`, maybe `.alpha`"
    )
    writes = True
    prefixes: ClassVar[Mapping[str, str]] = {
        "diffusion_model.": "unet",
        "text_encoders.clip_l.transformer.": "text_encoder",
        "text_encoders.clip_h.transformer.": "text_encoder",
        "text_encoders.clip_g.transformer.": "text_encoder_2",
        "text_encoders.t5xxl.transformer.": "text_encoder_3",
    }

    def detects(self, header: Header) -> bool:
        return any(self._prefix(key) and taken_apart(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        return self._adapter(header)

    def spelled(self, module: str) -> str:
        return module

    def adopt(self, adapter: Adapter) -> Adapter:
        if adapter.dialect == self.name:
            return fused(adapter, strict=False)
        return self._renamed(placed(adapter, self.words), self.home)

    def home(self, target: Target) -> Target:
        table = models.known(part(target))
        odd = target.kind not in self.kinds or target.layout.blocks > 1
        if (
            odd
            or target.path not in table
            or target.component not in ("unet", "transformer", *CLIP, "text_encoder_3")
        ):
            raise unnamed(target, self.words)
        return replace(target, path=table[target.path])

    def keys(self, targets: Iterable[Target]) -> Names:
        whole = list(targets)
        xl = is_sdxl(whole)

        def names(target: Target) -> tuple[str, str]:
            module = f"{_written_prefix(target)}{first_name(target, xl)}"
            return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

        return names

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        return {**kept, "format": "pt"}


class OneTrainer(FirstNames):
    """OneTrainer's own names: parts called unet, transformer, clip_l, clip_g and t5, with the first names.

    A fused module of Flux is kept as its parts: `qkv.0`, `qkv.1`, `qkv.2`.
    """

    name = "onetrainer"
    words = "a OneTrainer LoRA"
    tools = "OneTrainer, in its own names"
    spelling = "`unet.input_blocks…`, `transformer.double_blocks…qkv.0`, `clip_l.`, `clip_g.`, `t5.`"
    prefixes: ClassVar[Mapping[str, str]] = {
        "unet.": "unet",
        "transformer.": "unet",
        "clip_l.": "text_encoder",
        "clip_g.": "text_encoder_2",
        "t5.": "text_encoder_3",
    }
    never = re.compile(  # as diffusers calls the same modules
        r"unet\.(?:down_blocks|mid_block|up_blocks)\.|transformer\.(?:single_)?transformer_blocks\."
    )

    def detects(self, header: Header) -> bool:
        return any(TELLING.match(key) and taken_apart(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        return self._adapter(header)

    def adopt(self, adapter: Adapter) -> Adapter:
        return adapter

    def spelled(self, module: str) -> str:
        """`….qkv.1` as the module of diffusers that it is."""
        prefix, _, path = module.partition(".")
        first, _, number = path.rpartition(".")
        parts = models.fused("transformer").get(first, ())
        return f"{prefix}.{parts[int(number)]}" if number in map(str, range(len(parts))) else module


class BlackForest(FirstNames):
    """The names of Black Forest Labs with nothing before them, as in their own adapters of Flux."""

    name = "bfl"
    words = "a Black Forest Labs LoRA"
    tools = "Black Forest Labs"
    spelling = "`double_blocks.N.img_attn.qkv.lora_A.weight`, with nothing before it"
    prefixes: ClassVar[Mapping[str, str]] = {"": "unet"}

    def detects(self, header: Header) -> bool:
        return any(BARE.match(key) and taken_apart(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        adapter = self._adapter(header)
        foreign = next((target for target in adapter if target.component != "transformer"), None)
        if foreign is not None:
            raise IncompatibleError(
                f"{printable(header.name)} has modules of Flux beside others "
                f"({printable(foreign.path, 80)}): it is not clear what these belong to."
            )
        return adapter

    def spelled(self, module: str) -> str:
        return module

    def adopt(self, adapter: Adapter) -> Adapter:
        return adapter


BARE = re.compile(r"(double|single)_blocks\.\d")
TELLING = re.compile(rf"clip_[lg]\.|t5\.|{FIRST.pattern}")
COMFY, ONETRAINER, BFL = Comfy(), OneTrainer(), BlackForest()


def _target(component: str, path: str, flux: bool, sd3: bool) -> Target:
    if component == "unet":
        if flux:
            return Target(models.known("transformer")[path], component="transformer")
        return Target(models.known("unet").get(path, path), component=component)
    if is_t5(path):
        return Target(path, component="text_encoder_3" if sd3 else "text_encoder_2")
    return Target(path, component=component)


def _written_prefix(target: Target) -> str:
    if not target.component.startswith("text_encoder"):
        return "diffusion_model."
    model = "t5xxl" if is_t5(target.path) else CLIP.get(target.component, "t5xxl")
    return f"text_encoders.{model}.transformer."
