"""PEFT: a folder with adapter_config.json, or one file with PEFT's names. What no other dialect detects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header, Names, Scales, Widths
from loramerge.formats.dialects.grain import split
from loramerge.formats.dialects.places import is_flat
from loramerge.formats.peft.keys import Keys
from loramerge.formats.peft.names import WEIGHTS
from loramerge.formats.peft.read import CONFIG, read_file


class Peft(Dialect):
    name = "peft"
    words = "a PEFT adapter"
    tools = "PEFT, and the trainers built on it"
    spelling = "`base_model.model.<module>.lora_A.weight`, `.lora_B.weight`"
    strength = "`alpha/r`, or `alpha/√r` for rsLoRA, with patterns by PEFT's rule"
    kinds = ("linear", "conv", "embedding", "expert")
    writes = True
    weights = WEIGHTS
    sidecar = True

    def detects(self, header: Header) -> bool:
        return True

    def read(self, header: Header) -> Adapter:
        return read_file(header.file, header.name, header.alpha, header.optional, header.base)

    def adopt(self, adapter: Adapter) -> Adapter:
        if adapter.dialect == self.name:
            return adapter
        whole = split(adapter)
        components = sorted({target.component for target in whole.slots})
        if len(components) > 1:
            raise IncompatibleError(
                f"{printable(adapter.name)} adapts several models ({printable(', '.join(components))}), and "
                f"a PEFT adapter is for one: choose it with {say('only', f'^{components[0]}[.]')}."
            )
        return self._renamed(whole, self.home)

    def home(self, target: Target) -> Target:
        if target.component != "model" and is_flat(target):
            raise IncompatibleError(
                f"{printable(target)} is the flat name of a module of an unknown model, and "
                "PEFT needs its dotted name."
            )
        return replace(target, component="model")

    def keys(self, targets: Iterable[Target]) -> Names:
        return Keys(targets).of

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        return {} if bare else {"format": "pt"}

    def sidecars(self, widths: Widths, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {CONFIG: config}


PEFT = Peft()
