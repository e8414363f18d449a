"""CLIP-LoRA: pairs by layer number, and in the metadata which encoder and layers these are. Read only.

    ΔW = alpha/r · w_lora_B @ w_lora_A        weights: {layer_i: {q_proj: {w_lora_A, w_lora_B}}}
    metadata: {r, alpha, encoder: text | vision | both, position, params}

Layers are counted through the text encoder first. They get the names of OpenAI's CLIP. (arXiv:2405.18541)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.pairs import alpha_scale, once, slots

KEY = re.compile(
    r"(?:weights\.)?layer_(?P<number>\d{1,3})\.(?P<which>[qkvo]_proj|proj)\.w_lora_(?P<side>[AB])"
)
SETTINGS = "metadata"
POSITIONS: Mapping[str, range] = {  # what `position` means in each encoder; `all` is every layer
    "top": range(11, 12), "top1": range(11, 12), "top2": range(10, 12), "top3": range(9, 12),
    "bottom": range(4), "mid": range(4, 8), "up": range(8, 12), "half-up": range(6, 12),
    "half-bottom": range(6),
}  # fmt: skip
TEXT = 12  # layers of any text encoder
PREFIX = {"text": "transformer.resblocks", "vision": "visual.transformer.resblocks"}


class ClipLora(Dialect):
    name = "clip-lora"
    words = "a CLIP-LoRA file"
    tools = "CLIP-LoRA, GLAD, SG-LoRA"
    spelling = "`layer_0.q_proj.w_lora_A`, `layer_0.q_proj.w_lora_B`"
    strength = "`alpha/r` by its metadata"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        said = _said(header)
        pairs, extras = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
        numbers = {int(found["number"]) for key in header.tensors if (found := KEY.fullmatch(key))}
        places = _places(len(numbers), said)
        for key, tensor in header.tensors.items():
            if (found := KEY.fullmatch(key)) is None:
                extras[key] = tensor
                continue
            number = int(found["number"])
            if number >= len(places):
                raise SourceError(f"{printable(header.name)} has a layer {number} of {len(places)}.")
            which = "out_proj" if found["which"] in ("o_proj", "proj") else found["which"]
            side = "down" if found["side"] == "A" else "up"
            once(pairs, f"{places[number]}.attn.{which}", side, tensor, header.name)
        alpha = said.get("alpha")

        def rate(_: Target, slot: Slot) -> float:
            if said and said.get("r") != slot.rank:
                raise SourceError(
                    f"The metadata of {printable(header.name)} says another r than its tensors."
                )
            return float(alpha) / slot.rank if said else alpha_scale(header, slot.rank)  # type: ignore[arg-type]

        unused = header.unused_alpha() if said else []
        made = slots(header, pairs, rate)
        return header.adapter(self, made, extras=extras, oddities=unused, said_alpha=bool(said))


def _said(header: Header) -> dict[str, Any]:
    """The metadata, empty where the file has none.

    Raises:
        SourceError: it is not what CLIP-LoRA writes.
    """
    if SETTINGS not in header.metadata:
        return {}
    said = json.loads(header.metadata[SETTINGS])
    alpha = said.get("alpha") if isinstance(said, dict) else None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e30:
        raise SourceError(f"The metadata of {printable(header.name)} does not say its alpha as a number.")
    found: dict[str, Any] = said
    return found


def _places(count: int, said: Mapping[str, Any]) -> list[str]:
    """The modules of so many layers, in order.

    Raises:
        IncompatibleError: the metadata does not tell which these are.
    """
    if not said:
        return [f"layer_{number}" for number in range(count)]
    encoder, position = said.get("encoder"), said.get("position")
    parts = {"both": ("text", "vision")}.get(str(encoder), (encoder,))
    found: list[str] = []
    for part in parts:
        left = TEXT if part == "text" else count - len(found)
        layers = range(left) if position == "all" else POSITIONS.get(str(position))
        if part not in PREFIX or layers is None:
            raise IncompatibleError(
                f"Layers of the encoder {printable(encoder)} at {printable(position)} are not known here."
            )
        found += [f"{PREFIX[part]}.{layer}" for layer in layers]
    return found


CLIP_LORA = ClipLora()
