"""The names of a model's modules with nothing before them: Lightning, DiffSynth-Studio and others.

    <module>.lora_A.weight (r, in)   .lora_B.weight (out, r)           maybe .alpha
    <module>.lora_A.default.weight, <module>.lora_down.weight          likewise

Language models have such names too, so a file is read so only if its names are those of a known family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.formats.dialects.comfy import BFL, FirstNames
from loramerge.formats.dialects.dialect import Header
from loramerge.formats.dialects.model import PARTS
from loramerge.formats.dialects.places import unnamed
from loramerge.formats.dialects.spelling import AB, DOWN_UP
from loramerge.formats.forms.parts import taken_apart
from loramerge.formats.models.families import having
from loramerge.formats.models.family import OURS
from loramerge.formats.peft.names import PREFIX


class Bare(FirstNames):
    name = "bare"
    words = "a LoRA without prefixes"
    tools = "DiffSynth-Studio, Qwen-Image-Lightning"
    spelling = (
        "the names of the model with nothing before them; `.lora_A.weight`, `.lora_A.default.weight` or "
        "`.lora_down.weight`"
    )
    writes = True
    kinds = ("linear",)
    differences = False
    prefixes: ClassVar[Mapping[str, str]] = {"": "unet"}
    never = re.compile(re.escape(PREFIX))
    hint = ""
    usual = OURS

    def detects(self, header: Header) -> bool:
        found = [apart[0] for key in header.tensors if (apart := taken_apart(key)) is not None]
        own = dict.fromkeys(module for module in found if not self.never.match(module))
        return bool(own) and not BFL.detects(header) and bool(having(own))

    def read(self, header: Header) -> Adapter:
        adapter = self._adapter(header)
        ends = next((each for each in ENDS if any(key.endswith(each[0]) for key in header.tensors)), ())
        spelling = adapter.spelling or Spelling()
        return replace(adapter, spelling=replace(spelling, ends=ends))

    def spelled(self, module: str) -> str:
        return module

    def home(self, target: Target) -> Target:
        if target.component not in PARTS:
            raise unnamed(target, self.words)
        return self.settled(target)


ENDS = (DOWN_UP, (".lora_A.default.weight", ".lora_B.default.weight"), AB)
BARE = Bare()
