"""diffusers: PEFT's factors under the name of a part of the pipeline; three older spellings.

    unet.<module>.lora_A.weight (r, in)   .lora_B.weight (out, r)      also transformer., text_encoder., …
    unet.<module>.lora.down.weight        .lora.up.weight
    text_encoder.<module>.lora_linear_layer.down.weight
    <attention>.processor.to_q_lora.down.weight                        with or without unet.

The scale is 1, unless there are alphas, or the header has `lora_adapter_metadata`: PEFT's settings by part.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loramerge.adapters.adapter import Adapter, BaseModel, Slot
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Header, Names, Scales, Widths
from loramerge.formats.dialects.model import PARTS as MODELS
from loramerge.formats.dialects.model import Placed, identified, said
from loramerge.formats.dialects.places import is_flat, unnamed
from loramerge.formats.dialects.reader import Found, read_modules
from loramerge.formats.dialects.spelling import AB, Spelled
from loramerge.formats.files.json import parse_object
from loramerge.formats.forms.checks import missing
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module, taken_apart
from loramerge.formats.models.family import BESIDE, OURS, part_of
from loramerge.formats.peft.alpha import DIFFUSERS as SETTINGS
from loramerge.formats.peft.config import Scaling, check_mergeable, scales
from loramerge.formats.peft.names import LANGUAGE
from loramerge.formats.peft.profiles import arranged, patterns

PARTS = r"unet|transformer(?:_2)?|text_encoder(?:_[23])?|text_conditioner|connectors|prior"
NAMED = re.compile(rf"(?P<component>{PARTS})\.(?P<path>.+)", re.DOTALL)
UNET = re.compile(r"(?:down_blocks|up_blocks|mid_block)\.")  # a U-Net's module, before the parts were named
PROCESSOR = re.compile(
    r"(?P<module>.+?)(?:\.processor)?\.to_(?P<which>q|k|v|out)_lora\.(?P<side>down|up)\.weight", re.DOTALL
)
CLIP = ("text_encoder", "text_encoder_2", "text_encoder_3")
PUBLISHED = re.compile(  # the first names of modules under such parts, as OneTrainer has them
    r"unet\.(?:input_blocks|middle_block|output_blocks)\.|transformer\.(?:double|single)_blocks\."
    r"(?!\d+\.(?:(?:img|txt)_(?:attn_|mlp\.fc|mod\.linear)|modulation\.linear))"
)
AUTHORS = re.compile(r"transformer\.(?:double|single)_blocks\.")  # of HunyuanVideo, which have more of them
OTHERS = re.compile(LANGUAGE)  # in a file of PEFT's names, or of loralib's


class Diffusers(Spelled):
    name = "diffusers"
    words = "a diffusers LoRA"
    tools = "diffusers and its training scripts"
    spelling = (
        "`unet.`, `transformer.`, `text_encoder.` … with `.lora_A.weight`; older: `.lora.down.weight`, "
        "`.lora_linear_layer.down.weight`, `.processor.to_q_lora.down.weight`"
    )
    strength = "by `lora_adapter_metadata` in the header, part by part; else `alpha/r`; else 1"
    writes = True
    weights = "pytorch_lora_weights.safetensors"
    usual = OURS
    part = ""  # of a pipeline, that all modules of its models are of; else each is of its own

    def detects(self, header: Header) -> bool:
        ours = any(_is_ours(key) or of_authors(key) for key in header.tensors)
        return ours and not any(map(OTHERS.match, header.tensors))

    def read(self, header: Header) -> Adapter:
        found = by_module(header.tensors, header.name, _apart)
        if foreign := [module for module in found.modules if not NAMED.match(module)]:
            raise IncompatibleError(
                f"{printable(header.name)} mixes names of diffusers with others "
                f"({printable(foreign[0], 80)}): it is not clear how these are scaled."
            )
        told: list[str] = []

        def settle(modules: Found) -> None:
            if SETTINGS in header.metadata:
                told.extend(filter(None, [_set(modules, header)]))
                modules.silent.clear()

        modules = read_modules(header, found, partial(_places, said(header.metadata)), settle=settle)
        adapter = header.adapter(
            self,
            modules.slots,
            extras=found.rest,
            oddities=modules.oddities(header, "the scale is 1 there, as diffusers has it"),
            said_alpha=not modules.silent,
            placed=modules.placed,
            full=modules.full,
        )
        adapter = replace(adapter, base=BaseModel(next(iter(told), None)))
        return replace(adapter, spelling=Spelling("", {"unet": ""})) if _is_bare(header) else adapter

    def learn(self, adapters: Sequence[Adapter]) -> None:
        own = {t.component for a in adapters if a.dialect == self.name and a.spelling for t in a.slots}
        low = MODELS[1] in own and MODELS[0] not in own
        # `transformer_2.` is written where a source has it, and never for a program: diffusers reads it not
        self.part = MODELS[1] if low else MODELS[0] if self.second else ""

    def home(self, target: Target) -> Target:
        if target.component in MODELS:
            return replace(self.settled(target), component=self.part or target.component)
        table = models.known("unet") if target.component == "unet" else {}
        if is_flat(target):
            raise unnamed(target, self.words)
        if target.component == "unet" and table.get(target.path) != target.path:
            raise unnamed(target, self.words)
        if target.kind not in self.kinds or not re.fullmatch(PARTS, target.component):
            raise unnamed(target, self.words)
        return target

    def keys(self, targets: Iterable[Target]) -> Names:
        down, up = self.own.ends or AB

        def names(target: Target) -> tuple[str, str]:
            path = self.spells(target) or target.path
            prefix = self.own.prefixes.get(target.component, f"{target.component}.")
            module = path if _part(target) != target.component else f"{prefix}{path}"
            return f"{module}{down}", f"{module}{up}"

        return names

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        """PEFT's settings, where ranks differ: without them older versions scale such modules wrongly."""
        parts: dict[str, dict[Target, int]] = defaultdict(dict)
        for target, width in widths.items():
            inside = target.path.removeprefix(f"{part_of(target.path)}.")
            parts[_part(target)][replace(target, path=inside, component="model")] = width
        settings: dict[str, Any] = {}
        mixed = len(set(widths.values())) > 1 and not self.keeps_alpha
        for component, units in sorted(parts.items()) if mixed else ():
            rank, own = arranged("compact", units)
            others = _ends(own) if component in CLIP else patterns(own)
            said = {
                "r": rank,
                "lora_alpha": rank,
                "rank_pattern": others,
                "alpha_pattern": others,
                "target_modules": sorted(_end(t.path) if component in CLIP else t.path for t in units),
            }
            prefix = self.own.prefixes.get(component, f"{component}.")
            settings |= {f"{prefix}{key}": value for key, value in said.items()}
        found = {**kept, **self.told(widths, kept), "format": "pt"}
        return {**found, SETTINGS: json.dumps(settings, sort_keys=True)} if settings else found


DIFFUSERS = Diffusers()


def _part(target: Target) -> str:
    """The part of a pipeline under whose name a module is written."""
    return (part_of(target.path) if target.component in MODELS else "") or target.component


def _end(path: str) -> str:
    """A text encoder's module as every version of transformers has it: from 5 on CLIP has no text_model."""
    return path.removeprefix("text_model.")


def _ends(ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks by keys without an anchor, which PEFT looks for at the end of a module's name."""
    return {re.escape(_end(path)): rank for path, rank in ranks.items()}


def _is_ours(key: str) -> bool:
    if PUBLISHED.match(key) or not (NAMED.match(key) or UNET.match(key)):
        return False
    return bool(taken_apart(key) or PROCESSOR.fullmatch(key))


def _is_bare(header: Header) -> bool:
    """Whether it is of a U-Net's own `save_lora_adapter`, which puts nothing before the names of modules."""
    factors = [key for key in header.tensors if key.endswith(".lora_A.weight")]
    return bool(factors) and all(map(UNET.match, factors))


def of_authors(key: str) -> bool:
    """Whether a key is one that HunyuanVideo's authors, and not OneTrainer, have under `transformer.`."""
    return bool(AUTHORS.match(key)) and not PUBLISHED.match(key) and taken_apart(key) is not None


def _apart(key: str) -> tuple[str, str] | None:
    """(module with its component, part) of a key."""
    named = NAMED.fullmatch(key)
    whole = key if named or not UNET.match(key) else f"unet.{key}"
    if old := PROCESSOR.fullmatch(whole):
        return f"{old['module']}.{_projection(old['module'], old['which'])}", old["side"]
    return taken_apart(whole)


def _projection(module: str, which: str) -> str:
    """The name of a projection that an attention processor had."""
    if module.startswith("text_encoder"):
        return f"{which}_proj"
    return "to_out.0" if which == "out" else f"to_{which}"


def _places(said: str, changes: Mapping[str, Update]) -> Placed:
    apart = ((module, *module.partition(".")) for module in changes)
    split = {m: (part, dot, models.of_clip(path) if part in CLIP else path) for m, part, dot, path in apart}
    own = {module: path for module, (part, _, path) in split.items() if part in MODELS}
    own |= {module: module for module, (part, _, _) in split.items() if part in BESIDE}
    sizes = {path: (changes[m].up.shape[0], changes[m].down.shape[1]) for m, path in own.items()}
    found = identified(sizes, said, OURS)
    table = found.table
    targets = {
        m: Target(table[m], component=MODELS[0])
        if part in BESIDE and table
        else Target(table.get(path, path), component=part)
        for m, (part, _, path) in split.items()
    }
    return Placed(targets, found.families, found.spelling({}))


def _set(modules: Found, header: Header) -> str | None:
    """The scales that the header's settings give, part by part; what they call the base model.

    Raises:
        SourceError: they name other ranks than the tensors have, or leave out a part.
    """
    where = f"the {SETTINGS} of {header.name}"
    settings = parse_object(header.metadata[SETTINGS], where)
    rules: dict[str, Scaling] = {}
    for target, slot in modules.slots.items():
        part, path = _part(target), target.path.removeprefix(f"{part_of(target.path)}.")
        if part not in rules:
            own = {k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(f"{part}.")}
            check_mergeable(own, where)
            rules[part] = scales(own or settings, where)
        if settings.get(f"{part}.use_dora") and target not in modules.turned:
            raise missing("lora_magnitude_vector", f"{printable(target)} in {printable(header.name)}")
        if rules[part].rank(path) != slot.rank:
            raise SourceError(
                f"{printable(where)} gives {printable(target)} rank {rules[part].rank(path)}, but its "
                f"tensors have rank {slot.rank}: they do not belong together, and the scale would be wrong."
            )
        modules.slots[target] = Slot(slot.up, slot.down, rules[part].scale(path))
    named = (value for key, value in settings.items() if key.endswith("base_model_name_or_path"))
    return next((value for value in named if isinstance(value, str) and value), None)
