"""PEFT: a folder with adapter_config.json, or one file with PEFT's names. What no other dialect detects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header, Names, Scales, Widths
from loramerge.formats.dialects.grain import regrained
from loramerge.formats.dialects.model import PARTS, Model, model_of
from loramerge.formats.dialects.places import is_flat
from loramerge.formats.models.family import OURS, part_of
from loramerge.formats.peft.exchange import HEADER, is_turned, marked
from loramerge.formats.peft.keys import Keys, Shape, laid, shapes
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
    model: Model | None = None  # where a source has other names than diffusers' for it
    naming: str = OURS
    turned: frozenset[str] = frozenset()  # how the names of layers end whose factors are exchanged

    def detects(self, header: Header) -> bool:
        return True

    def read(self, header: Header) -> Adapter:
        return read_file(header.file, header.name, header.alpha, header.optional, header.base)

    def bound(self, adapters: Sequence[Adapter]) -> Peft:
        own = (a.spelling.naming for a in adapters if a.dialect == self.name and a.spelling)
        if (naming := next(own, "")) in ("", OURS):
            return self
        made = copy(self)
        made.model, made.naming = model_of(adapters), naming
        return made

    def adopt(self, adapter: Adapter) -> Adapter:
        if adapter.dialect == self.name and {t.component for t in adapter.slots} <= {"model"}:
            return adapter
        whole = regrained(adapter, self.model or model_of([adapter]), self.naming)
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
        name = self.model.name(target, self.naming) if self.model and self.model.holds(target) else None
        path = name or target.path
        if target.component in PARTS and part_of(path):
            raise IncompatibleError(
                f"{printable(target)} is in a model of its own in diffusers ({part_of(path)}), and a PEFT "
                f"adapter is for one: leave it out with {say('exclude', f'{part_of(path)}[.]')}, or write "
                f"another {say('format')}."
            )
        return replace(target, path=path, component="model")

    def keys(self, targets: Iterable[Target]) -> Names:
        return Keys(targets).of

    def turning(self, names: Collection[str]) -> Peft:
        """The same with the factors of layers of these names exchanged, for a converter that turns them."""
        made = copy(self)
        made.turned = frozenset(names)
        return made

    def shapes(self, target: Target, size: tuple[int, int], width: int) -> tuple[Shape, Shape]:
        return shapes(target, size[::-1] if self._turns(target) else size, width)

    def lay(self, target: Target, up: Array, down: Array) -> tuple[Array, Array]:
        return laid(target, down.T, up.T) if self._turns(target) else laid(target, up, down)

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        ends = self._ends(widths)
        return {} if bare else {"format": "pt", **({HEADER: " ".join(ends)} if ends else {})}

    def sidecars(self, widths: Widths, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        ends = self._ends(widths)
        return {CONFIG: marked(config, ends) if ends else config}

    def _turns(self, target: Target) -> bool:
        return target.kind == "linear" and is_turned(target.path, self.turned)

    def _ends(self, targets: Iterable[Target]) -> list[str]:
        """How the names of those of these targets end that are exchanged."""
        return sorted({target.path.rpartition(".")[2] for target in targets if self._turns(target)})


PEFT = Peft()
