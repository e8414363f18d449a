"""The tensors of an image adapter by module: what the end of a key says, in all spellings that are in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loramerge.adapters.adapter import Tensor
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.forms.form import Parts
from loramerge.formats.forms.refusals import refuse_keys
from loramerge.formats.forms.table import ALPHA, FORMS

MAGNITUDE = ("lora_magnitude_vector", "lora_magnitude_vector.weight")  # PEFT's, of DoRA
ENDS = {  # what ends a key, with # for a number -> the part of the module that it is
    ALPHA: ALPHA,
    **{end: part for form in FORMS.values() for part, ends in form.image.items() for end in ends},
    "dora_scale": "dora_scale",
    **dict.fromkeys((*MAGNITUDE, f"{MAGNITUDE[0]}.default", f"{MAGNITUDE[0]}.default.weight"), "magnitude"),
}
_LONGEST = max(end.count(".") for end in ENDS) + 1
_FAMILIES = "|".join(sorted({end.partition("_")[0] for end in ENDS if "_" in end}))
_UNKNOWN = re.compile(rf".+\.(?:{_FAMILIES})_.*", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Sorted:
    """The tensors of a file.

    Args:
        modules: name of a module, as the file has it -> its parts (down, up, mid, alpha, lokr_w1, …; down.0
            and up.0 where several pairs are stacked).
        rest: key -> tensor of everything else.
    """

    modules: Mapping[str, Parts]
    rest: Mapping[str, Tensor] = field(default_factory=dict)


def taken_apart(key: str) -> tuple[str, str] | None:
    """(module, part) of a key; None if it is no part of an update.

    >>> taken_apart("lora_unet_mid.lora_up.weight"), taken_apart("x.processor.to_q_lora.down.weight")
    (('lora_unet_mid', 'up'), None)
    >>> taken_apart("double_blocks.0.qkv.lora_up.02.weight")
    ('double_blocks.0.qkv', 'up.2')
    """
    words = key.split(".")
    for count in range(1, min(_LONGEST + 1, len(words))):
        module, last = ".".join(words[:-count]), words[-count:]
        part = ENDS.get(".".join(map(_sign, last)))
        if part is not None and module:
            number = next(filter(_is_number, last), "")
            return module, part.replace("#", str(int(number))) if number else part
    return None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 2


def _sign(word: str) -> str:
    """A word of a key as `ENDS` has it."""
    return "#" if _is_number(word) else word.replace("#", "##")


def by_module(
    tensors: Mapping[str, Tensor], name: str, apart: Callable[[str], tuple[str, str] | None] = taken_apart
) -> Sorted:
    """The tensors by module.

    Raises:
        SourceError: one part is there twice, under two spellings.
        IncompatibleError: a part of something that is no sum of low-rank updates, or of no form at all.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    refuse_keys(tensors, "image", name)
    for key, tensor in tensors.items():
        found = apart(key)
        if found is None or (found[1] == "diff" and len(tensor.shape) == 1):  # that of a norm is a vector
            _check_known(key, name)
            rest[key] = tensor
            continue
        parts = modules.setdefault(found[0], {})
        if found[1] in parts:
            raise SourceError(f"{printable(name)} holds {printable(key)} twice, under two spellings.")
        parts[found[1]] = tensor
    return Sorted(modules, rest)


def _check_known(key: str, name: str) -> None:
    if _UNKNOWN.fullmatch(key):
        raise IncompatibleError(
            f"{printable(name)} holds {printable(key, 80)}, which is not a tensor of any form that loramerge "
            "reads: what it does to its module is not known."
        )
