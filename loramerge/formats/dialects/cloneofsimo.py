"""The library with which LoRA came to Stable Diffusion: numbered layers, ΔW = up @ down, no alpha at all.

    .safetensors   unet:0:up (out, r), unet:0:down (r, in), text_encoder:0:up, …; the metadata has for each
                   component the classes that were searched for layers, and for each number its rank
    .pt            a list of tensors: up, down, up, down, …, of one component (lora_diffusion/lora.py)

A number says only when a layer was met. Layers get names where all shapes are those of a walk through a
Stable Diffusion that is known (`models.walk`); else they keep their numbers, so that files that were numbered
alike still merge. Embeddings of new words lie in the same file (`<s1>`); they are extras.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header, Names, Scales, Widths
from loramerge.formats.files.views import matrix, widened
from loramerge.formats.forms.checks import check_float, check_full
from loramerge.formats.models.walk import named, walked

FACTOR = re.compile(r"(?P<component>\w+):(?P<number>\d{1,6}):(?P<side>up|down)")
NUMBER = re.compile(r"numbered\.(\d+)")
RESIDUAL = "ResnetBlock2D"
CLASSES = {  # of the modules in which the library looks for layers
    "unet": ("CrossAttention", "Attention", "GEGLU", RESIDUAL),
    "text_encoder": ("CLIPAttention",),
}
EMBEDDING = "<embed>"  # what the metadata says of the embedding of a new word
TEXT_FILE = ".text_encoder.pt"  # how the library calls the list of the text encoder

Numbered = Mapping[int, Mapping[str, Tensor]]  # number -> side -> tensor


class Pair(NamedTuple):
    """Factors as they are stored: (out, r[, 1, 1]) and (r, in[, k, k])."""

    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that they update."""
        return self.up.shape[0], *self.down.shape[1:]


class Cloneofsimo(Dialect):
    """cloneofsimo/lora, named and numbered."""

    name = "cloneofsimo"
    words = "a cloneofsimo LoRA"
    tools = "cloneofsimo/lora"
    spelling = "`unet:0:up`, `unet:0:down`, `text_encoder:0:up` …: layers by their number"
    strength = "1"
    writes = True
    kept = ("unet", "text_encoder")

    def detects(self, header: Header) -> bool:
        return _is_list(header) or any(FACTOR.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        found, extras = _of_list(header) if _is_list(header) else _of_file(header)
        slots: dict[Target, Slot] = {}
        oddities: list[str] = []
        for component, numbered in sorted(found.items()):
            pairs = [_pair(each, where) for each, where in _complete(numbered, component, header)]
            names, said = _names(component, pairs, header)
            oddities += [said, *_ranks(component, pairs, header)]
            for name, pair in zip(names, pairs, strict=True):
                slots[_target(component, name, pair)] = Slot(matrix(pair.up), matrix(pair.down), 1.0)
        return header.adapter(self, slots, extras=extras, oddities=[*header.unused_alpha(), *oddities])

    def home(self, target: Target) -> Target:
        if target.kind not in self.kinds or target.layout.blocks > 1 or target.parameter != "weight":
            raise IncompatibleError(
                f"{printable(target)} has no place in {self.words}: use {say('exclude')}."
            )
        return replace(target, layout=Layout(kernel=target.layout.kernel))

    def keys(self, targets: Iterable[Target]) -> Names:
        components: dict[str, list[str]] = {}
        for target in targets:
            components.setdefault(target.component, []).append(target.path)
        numbers = {
            (component, path): number
            for component, paths in components.items()
            for number, path in enumerate(_in_order(component, paths))
        }

        def names(target: Target) -> tuple[str, str]:
            key = f"{target.component}:{numbers[target.component, target.path]}"
            return f"{key}:down", f"{key}:up"

        return names

    def metadata(self, widths: Widths, scales: Scales, kept: Mapping[str, str], bare: bool) -> dict[str, str]:
        names = self.keys(widths)
        ranks = {names(target)[0].replace(":down", ":rank"): str(width) for target, width in widths.items()}
        components = sorted({target.component for target in widths})
        return ranks | {each: kept.get(each) or _classes(each, widths) for each in components}

    def labels(self, extras: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(extras, EMBEDDING)


CLONEOFSIMO = Cloneofsimo()


def _is_list(header: Header) -> bool:
    """A pickled list: the unpickler names its tensors by their numbers."""
    return bool(header.tensors) and list(header.tensors) == [str(n) for n in range(len(header.tensors))]


def _of_list(header: Header) -> tuple[dict[str, Numbered], dict[str, Tensor]]:
    tensors = list(header.tensors.values())
    sides = ("up", "down")
    numbered = {
        at // 2: dict(zip(sides, tensors[at : at + 2], strict=False)) for at in range(0, len(tensors), 2)
    }
    component = "text_encoder" if header.file.path.name.endswith(TEXT_FILE) else "unet"
    return {component: numbered}, {}


def _of_file(header: Header) -> tuple[dict[str, Numbered], dict[str, Tensor]]:
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in header.tensors.items():
        if (name := FACTOR.fullmatch(key)) is None:
            _check_extra(key, header.name)
            extras[key] = tensor
            continue
        sides = found.setdefault(name["component"], {}).setdefault(int(name["number"]), {})
        if name["side"] in sides:
            raise SourceError(f"{printable(header.name)} holds {printable(key)} twice, under two spellings.")
        sides[name["side"]] = tensor
    return dict(found), extras


def _check_extra(key: str, name: str) -> None:
    if "lora_" in key:
        raise IncompatibleError(
            f"{printable(name)} mixes names of cloneofsimo with others ({printable(key, 80)}): save each "
            "adapter by itself."
        )


def _complete(
    numbered: Numbered, component: str, header: Header
) -> Iterator[tuple[Mapping[str, Tensor], str]]:
    """The pairs in order, each with how it is called; none may be missing, or the others would shift."""
    for number in range(max(numbered) + 1):
        for at, side in enumerate(("up", "down")):
            if side not in numbered.get(number, {}):
                key = f"Tensor {2 * number + at}" if _is_list(header) else f"{component}:{number}:{side}"
                raise SourceError(
                    f"{printable(key)} is missing in {printable(header.name)}: the file was cut or badly "
                    "saved."
                )
        yield numbered[number], f"{printable(component)}:{number} in {printable(header.name)}"


def _pair(sides: Mapping[str, Tensor], where: str) -> Pair:
    for side, tensor in sides.items():
        check_float(tensor, f"{side} of {where}")
    up, down = widened(sides["up"]), widened(sides["down"])
    check_full(where, up, down)
    if len(down.shape) not in (2, 4) or up.shape[1:] != (down.shape[0], *(1 for _ in down.shape[2:])):
        raise SourceError(f"up {list(up.shape)} and down {list(down.shape)} of {where} do not share a rank.")
    return Pair(up, down)


def _names(component: str, pairs: Sequence[Pair], header: Header) -> tuple[list[str], str]:
    """The module paths of the pairs in their order, and what was assumed."""
    fitting = named(component, [pair.shape for pair in pairs]) if _searched(component, header) else None
    if fitting is not None:
        return fitting, (
            f"the layers of {printable(component)} are numbered: they are named by their order in Stable "
            f"Diffusion, which all {len(pairs)} shapes fit"
        )
    return [f"numbered.{number}" for number in range(len(pairs))], (
        f"the layers of {printable(component)} keep their numbers, since their shapes fit no Stable "
        "Diffusion that is known: they are matched by position with files that are numbered alike"
    )


def _searched(component: str, header: Header) -> bool:
    """Whether layers were looked for in the classes that a known walk has; a list does not say."""
    if component not in header.metadata:
        return True
    try:
        classes = json.loads(header.metadata[component])
    except (ValueError, RecursionError):
        return False
    return isinstance(classes, list) and all(each in CLASSES.get(component, ()) for each in map(str, classes))


def _ranks(component: str, pairs: Sequence[Pair], header: Header) -> list[str]:
    """Ranks in the metadata decide nothing; wrong ones are told."""
    said = [header.metadata.get(f"{component}:{number}:rank") for number in range(len(pairs))]
    wrong = [n for n, pair in enumerate(pairs) if said[n] not in (None, str(pair.down.shape[0]))]
    if not wrong:
        return []
    return [
        f"its metadata gives {len(wrong)} layers of {printable(component)} another rank than their tensors "
        f"have, such as {printable(component)}:{wrong[0]}"
    ]


def _target(component: str, path: str, pair: Pair) -> Target:
    if len(pair.down.shape) == 2:
        return Target(path, component=component)
    return Target(path, component=component, kind="conv", layout=Layout(kernel=pair.down.shape[2:]))


def _in_order(component: str, paths: Sequence[str]) -> Sequence[str]:
    """The layers of a component as the library counts them: all of a walk, or numbers without a gap."""
    numbers = sorted(int(found[1]) for path in paths if (found := NUMBER.fullmatch(path)))
    if numbers == list(range(len(paths))):
        return [f"numbered.{number}" for number in numbers]
    order = walked(component, paths)
    if order is None:
        raise IncompatibleError(
            f"A cloneofsimo LoRA numbers all layers of a model, and these {len(paths)} of "
            f"{printable(component)} are not all of one that is known, such as {printable(min(paths))}: "
            f"write another {say('format')}."
        )
    return order


def _classes(component: str, widths: Widths) -> str:
    """The library's default for a component, with what convolutions lie in."""
    conv = any(target.kind == "conv" for target in widths if target.component == component)
    classes = [each for each in CLASSES.get(component, ()) if conv or each != RESIDUAL]
    return json.dumps(classes)
