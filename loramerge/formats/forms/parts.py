"""The tensors of a file by module: what the end of a key says, in all the spellings that are in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loramerge.adapters.adapter import Tensor
from loramerge.errors import IncompatibleError, SourceError, printable

ENDINGS = {  # what ends a key -> the part of the module that it is
    r"lora_(?:down|A)(?:\.default)?\.weight|lora_A": "down",
    r"lora_(?:up|B)(?:\.default)?\.weight|lora_B": "up",
    r"lora(?:_linear_layer)?\.down\.weight": "down",
    r"lora(?:_linear_layer)?\.up\.weight": "up",
    r"lora_mid\.weight": "mid",
    r"lora_down\.(?P<down>\d{1,2})\.weight": "down",
    r"lora_up\.(?P<up>\d{1,2})\.weight": "up",
    r"alpha": "alpha",
    r"hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|hada_t1|hada_t2": "",
    r"lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b|lokr_t1|lokr_t2": "",
    r"diff": "",
}
REFUSED = (  # the end of a key -> what it is, and what would help
    (r"dora_scale|lora_magnitude_vector(?:\.\w+)*", "DoRA",
     "it needs the base weights to become an update: merge it into its base model"),
    (r"oft_blocks|oft_diag|oft_R\.weight|rescale", "OFT",
     "it turns the base weights, and adds nothing to them"),
    (r"[ab][12]\.weight|bm\.weight", "GLoRA", "its update depends on the base weights"),
    (r"on_input", "IA3", "it multiplies the base weights, and has no low-rank update"),
    (r"set_weight|reshape_weight|row_offset", "a replaced weight", "it is no update of the base weights"),
)  # fmt: skip

Parts = Mapping[str, Tensor]
_KNOWN = [(re.compile(rf"(?P<module>.+)\.(?P<end>{end})", re.DOTALL), part) for end, part in ENDINGS.items()]
_REFUSED = [(re.compile(rf".+\.(?:{end})", re.DOTALL), what, help) for end, what, help in REFUSED]


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
    """
    for pattern, part in _KNOWN:
        if found := pattern.fullmatch(key):
            number = next((n for n in found.groupdict().values() if n and n.isdigit()), None)
            return found["module"], (f"{part}.{int(number)}" if number else part or found["end"])
    return None


def by_module(
    tensors: Mapping[str, Tensor], name: str, apart: Callable[[str], tuple[str, str] | None] = taken_apart
) -> Sorted:
    """The tensors by module.

    Raises:
        SourceError: one part is there twice, under two spellings.
        IncompatibleError: a part of something that is no sum of low-rank updates.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        _refuse(key, name)
        found = apart(key)
        if found is None or (found[1] == "diff" and len(tensor.shape) == 1):  # that of a norm is a vector
            rest[key] = tensor
            continue
        parts = modules.setdefault(found[0], {})
        if found[1] in parts:
            raise SourceError(f"{printable(name)} holds {printable(key)} twice, under two spellings.")
        parts[found[1]] = tensor
    return Sorted(modules, rest)


def _refuse(key: str, name: str) -> None:
    for pattern, what, help in _REFUSED:
        if pattern.fullmatch(key):
            raise IncompatibleError(f"{printable(name)} holds {what} ({printable(key, 80)}): {help}.")
