"""XLabs: adapters of Flux kept with its attention processors. Read only; the scale is 1.

double_blocks.N.processor.{qkv,proj}_lora{1,2}.{down,up}.weight     1: the image, 2: the text
single_blocks.N.processor.{qkv,proj}_lora.{down,up}.weight
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import SourceError, printable
from loramerge.formats import models
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.model import Placed
from loramerge.formats.dialects.reader import read_modules
from loramerge.formats.files.views import Shared, rows
from loramerge.formats.forms.form import Update
from loramerge.formats.forms.parts import by_module

KEY = re.compile(
    r"(?:diffusion_model\.)?(?P<module>(?P<kind>double|single)_blocks\.(?P<number>\d{1,2})\.processor\."
    r"(?P<which>(?:qkv|proj)_lora[12]?))\.(?P<side>down|up)\.weight"
)
PARTS = {  # the module of a double block
    "qkv_lora1": "double_blocks.{}.img_attn.qkv",
    "qkv_lora2": "double_blocks.{}.txt_attn.qkv",
    "proj_lora1": "transformer_blocks.{}.attn.to_out.0",
    "proj_lora2": "transformer_blocks.{}.attn.to_add_out",
    "proj_lora": "single_transformer_blocks.{}.proj_out",
    "qkv_lora": "single_blocks.{}.linear1",  # of which these are the first rows
}


class XLabs(Dialect):
    name = "xlabs"
    words = "an XLabs LoRA"
    tools = "XLabs' trainer of Flux"
    spelling = "`double_blocks.N.processor.qkv_lora1.down.weight`"
    strength = "1"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        found = by_module(header.tensors, header.name, _apart)
        modules = read_modules(header, found, _places)
        known = models.known("transformer")
        for target in modules.slots:
            if target.path not in known:
                raise SourceError(f"{printable(header.name)} has {printable(target)}, which is not in Flux.")
        oddities = modules.oddities(header, "the scale is 1, as XLabs has it")
        slots = dict(_cut(modules.slots))
        return header.adapter(
            self,
            slots,
            extras=found.rest,
            oddities=oddities,
            said_alpha=not modules.silent,
            placed=modules.placed,
            full=modules.full,
        )

    def adopt(self, adapter: Adapter) -> Adapter:
        return adapter


XLABS = XLabs()


def _apart(key: str) -> tuple[str, str] | None:
    found = KEY.fullmatch(key)
    return (found["module"], found["side"]) if found else None


def _places(changes: Mapping[str, Update]) -> Placed:
    places = {}
    for module in changes:
        _, number, _, which = module.split(".")
        places[module] = Target(PARTS[which].format(int(number)), component="transformer")
    return Placed(places, ("flux.1",))


def _cut(slots: Mapping[Target, Slot]) -> list[tuple[Target, Slot]]:
    """With q, k and v of single blocks apart: these lack the rows of the MLP in the fused module."""
    found = []
    for target, slot in slots.items():
        names = models.fused("transformer").get(target.path, ())
        if len(names) != 4:
            found.append((target, slot))
            continue
        down = Shared(slot.down)
        for number, name in enumerate(names[:3]):
            part = Target(name, component="transformer")
            found.append((part, Slot(rows(slot.up, number, 3), down, slot.scale)))
    return found
