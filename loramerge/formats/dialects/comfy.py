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
from functools import partial
from typing import ClassVar

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Header, Names, Scales, Widths
from loramerge.formats.dialects.diffusers import PUBLISHED, of_authors
from loramerge.formats.dialects.model import PARTS, Placed, identified, said
from loramerge.formats.dialects.places import first_name, is_decoder, is_sdxl, is_t5, part, unnamed
from loramerge.formats.dialects.reader import read_modules
from loramerge.formats.dialects.spelling import AB, Spelled
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module, taken_apart
from loramerge.formats.models.family import FIRST

CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
DECODERS = {"cosmos": "qwen3_06b", "lumina-2": "gemma2_2b"}  # family -> what ComfyUI calls its text encoder


class FirstNames(Spelled):
    """Dialects with the first names of a model's modules, under a prefix for each part of it."""

    strength = "`alpha/r`; without an alpha it is 1"
    differences = True
    prefixes: ClassVar[Mapping[str, str]]  # what a key begins with -> component; T5 is told by its modules
    never: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")  # names that its tools do not give
    hint: ClassVar[str] = FIRST  # the naming that its tools use

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
        modules = read_modules(header, found, partial(self._places, said(header.metadata)))
        return header.adapter(
            self,
            modules.slots,
            extras=found.rest,
            oddities=modules.oddities(header, "the scale is 1 there, as ComfyUI has it"),
            said_alpha=not modules.silent,
            placed=modules.placed,
            full=modules.full,
        )

    def _prefix(self, key: str) -> str | None:
        return next((prefix for prefix in self.prefixes if key.startswith(prefix)), None)

    def _places(self, said: str, changes: Mapping[str, Update]) -> Placed:
        """What the names of modules mean."""
        named = {}
        for module in changes:
            name = self.spelled(module)
            prefix = self._prefix(name) or ""
            named[module] = (self.prefixes[prefix], prefix, name.removeprefix(prefix))
        own = {module: path for module, (component, _, path) in named.items() if component == "unet"}
        sizes = {path: (changes[m].up.shape[0], changes[m].down.shape[1]) for m, path in own.items()}
        found = identified(sizes, said, self.hint)
        table, families = found.table, found.families
        targets = {
            module: Target(table[path], component=PARTS[0])
            if module in own and path in table
            else _target(component, path, "sd3" in families)
            for module, (component, _, path) in named.items()
        }
        prefixes = {targets[m].component: prefix for m, (_, prefix, _) in named.items() if m not in own}
        prefixes |= {PARTS[0]: named[next(iter(own))][1]} if families else {}
        return Placed(targets, families, found.spelling(prefixes))

    def keys(self, targets: Iterable[Target]) -> Names:
        whole = list(targets)
        xl = is_sdxl(whole)

        down, up = self.own.ends or AB

        def names(target: Target) -> tuple[str, str]:
            path = self.spells(target)
            kept = path or target.component.startswith("text_encoder")
            prefix = self.own.prefixes.get(target.component) if kept else None
            prefix = self._written(target) if prefix is None else prefix
            module = f"{prefix}{path or first_name(target, xl)}"
            return f"{module}{down}", f"{module}{up}"

        return names

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        return {**kept, **self.told(widths, kept), "format": "pt"}

    def _decoder(self) -> str:
        """What ComfyUI calls the language model that encodes text for this model; "" where nobody knows."""
        families = self.model.families if self.model else ()
        return DECODERS.get(families[0].name, "") if len(families) == 1 else ""

    def _written(self, target: Target) -> str:
        """What stands before the name of a module."""
        if not target.component.startswith("text_encoder"):
            return next(iter(self.prefixes))
        if is_decoder(target.path):
            return f"text_encoders.{self._decoder()}.transformer.model."
        model = "t5xxl" if is_t5(target.path) else CLIP.get(target.component, "t5xxl")
        return f"text_encoders.{model}.transformer."


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
        **{f"text_encoders.{each}.transformer.model.": "text_encoder" for each in DECODERS.values()},
    }

    def detects(self, header: Header) -> bool:
        return any(self._prefix(key) and taken_apart(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        return self._adapter(header)

    def spelled(self, module: str) -> str:
        return module

    def home(self, target: Target) -> Target:
        if target.component in PARTS:
            return self.settled(target)
        table = models.known(part(target))
        odd = target.kind not in self.kinds or target.layout.blocks > 1
        odd = odd or (is_decoder(target.path) and not self._decoder())
        if odd or target.path not in table or target.component not in ("unet", *CLIP, "text_encoder_3"):
            raise unnamed(target, self.words)
        return replace(target, path=table[target.path])


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
        found = any(TELLING.match(key) and taken_apart(key) for key in header.tensors)
        return found and not any(map(of_authors, header.tensors))

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
TELLING = re.compile(rf"clip_[lg]\.|t5\.|{PUBLISHED.pattern}")
COMFY, ONETRAINER, BFL = Comfy(), OneTrainer(), BlackForest()


def _target(component: str, path: str, sd3: bool) -> Target:
    """What is not of a model whose names are known."""
    if component == "unet":
        return Target(models.known("unet").get(path, path), component=component)
    if is_t5(path):
        return Target(path, component="text_encoder_3" if sd3 else "text_encoder_2")
    return Target(path, component=component)
