"""PEFT's tensor names: what a key says of its tensor, and how the names of other tools look."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from loramerge.adapters.late import late
from loramerge.adapters.target import Target
from loramerge.errors import SourceError, printable
from loramerge.formats.forms.table import FORMS

PREFIX = "base_model.model."
WRAPPED = ".base_layer"  # stands in the path of what another adapter lies around
WEIGHTS = "adapter_model.safetensors"  # in a folder that PEFT saved
PICKLED = "adapter_model.bin"  # the same, before PEFT 0.6
UNKNOWN = "unknown"  # the format of names that no reader knows

_PARTS = {  # what ends a key without the name of an adapter -> part
    end: part for form in FORMS.values() for part, ends in form.peft.items() for end in ends
}
_STEMS = "|".join(sorted({end.partition(".")[0] for end in _PARTS}))
_TAILS = "|".join(sorted({end.partition(".")[2] for end in _PARTS} - {""} | {"weight", "bias"}))
_FAMILIES = "|".join(sorted({end.partition("_")[0] for end in _PARTS}))
_NAME = late(
    rf"(?P<prefix>base_model\.model\.)?(?P<path>.+)\.(?P<stem>{_STEMS})"
    rf"(?:\.(?P<adapter>(?!(?:{_TAILS}|weight_\w+|scales?)$)[^.]+))?(?P<end>\.(?:{_TAILS}))?",
    re.DOTALL,
)
_PLAIN = {".lora_A.weight": "down", ".lora_B.weight": "up"}  # what nearly all keys are: no pattern is needed
_LATENT = late(r"\.([^.]+)_lora_latent_mapping\.weight$")
_HEAD = late(  # LoFiT keeps what it does to a head beside the projection behind it
    r"(base_model\.model\.)?(?P<path>.+)\.attn_(?P<what>[Av])\.(?P<head>\d{1,4})", re.DOTALL
)
_LIST = late(  # TriAdaptLoRA keeps lists, to which training added
    r"(base_model\.model\.)?(?P<path>.+)\.lora_(?P<what>A|B|C_row|C_col)(?:\.(?P<adapter>[^.]+))?"
    r"\.(?P<number>\d{1,4})", re.DOTALL,
)  # fmt: skip
_SHARED = {  # what a key is where it belongs to no one module -> its name
    end: part for form in FORMS.values() for part, ends in form.shared.items() for end in ends
}
_SHARED_NAME = late(
    rf"(?:base_model\.)?(?:model\.)?(?P<stem>{'|'.join(map(re.escape, sorted(_SHARED)))})"
    r"(?:\.(?!\d)[^.]+)?(?:\.(?P<number>\d{1,6}))?"
)
_ALPHA = late(r"(?P<prefix>base_model\.model\.)?(?P<path>.+)\.alpha", re.DOTALL)

LANGUAGE = (  # what language and vision models have under `transformer.`, and no image model of diffusers
    r"transformer\.(?:(?:h|wte|wpe|word_embeddings|embedding|output_layer)\b|layers?\.\d+\.\d+\.fn\.|layer\.\d"
    r"|encoder\.layers?\.\d|blocks\.\d+\.(?:attn\.Wqkv|ffn\.(?:up|down)_proj)|resblocks\.\d)"
)
FOREIGN = (  # the keys of other tools, whatever they hold; first hit wins
    (r"\.lora_[AB]\.(coefficients|seed)$", "a NOLA adapter",
     "its bases come from a seed and the generator of the device that drew them, and nothing in the file "
     "checks the draw, so that they cannot be drawn again: multiply them out in the library that wrote it"),
    (r"^lora_(unet|te\d?|transformer)_", "a kohya LoRA", "convert it to PEFT first"),
    (r"^(?!base_model\.model\.)\S*\.processor\.|_lora\.(up|down)\.|\.lora\.(up|down)\.", "a diffusers LoRA",
     "convert it to PEFT first"),
    (r"^(unet|text_encoder|transformer_\d)(_\d)?[.:]\S*(lora_|up|down)", "a diffusers or cloneofsimo LoRA",
     "convert it to PEFT first"),
    (rf"^(?!{LANGUAGE})transformer\.\S*lora_", "a diffusers LoRA", "convert it to PEFT first"),
    (r"^diffusion_model\.", "a ComfyUI LoRA", "convert it to PEFT first"),
)  # fmt: skip
OTHER = (  # what a tensor name says that no other part of the reader takes; first hit wins
    *FOREIGN,
    (r"^w_[ab]_\d+$", "a numbered SAM LoRA", "it is not clear which module a number means"),
    (
        r"\.lora_[ab]\.weight$",
        "a torchtune adapter",
        "its heads are in another order: use the PEFT adapter that torchtune's checkpointer writes",
    ),
    (
        r"\.adapter\.linear_(in|out)\.|\.adapter_(q|k|v|gate|up)\.",
        "a NeMo or Megatron adapter",
        "its heads are in another order: use its PEFT export (AutoBridge.export_adapter_ckpt)",
    ),
    (rf"lora_|\.(?:{_FAMILIES})_", "a LoRA of an unknown layout", "save it with PEFT's save_pretrained"),
)


class Name(NamedTuple):
    """A key taken apart.

    Args:
        path: of the module, as the file has it.   adapter: a name that was left in the key.
        part: which tensor of its form: down, up, bias of a pair; embedding_A, svd_E, hada_w1_a, …
        prefixed: it begins as PEFT writes it.
    """

    path: str
    part: str
    adapter: str | None
    prefixed: bool


def parse(key: str) -> Name | None:
    """What a key says, or None if it names no factor.

    >>> parse("base_model.model.h.0.q.lora_A.default.weight")
    Name(path='h.0.q', part='down', adapter='default', prefixed=True)
    >>> parse("base_model.model.classifier.weight")
    """
    for end, part in _PLAIN.items():
        if key.endswith(end) and (path := key.removesuffix(end)):
            own = path.removeprefix(PREFIX) or path
            return Name(own, part, None, own != path)
    if ".attn_" in key and (head := _HEAD.fullmatch(key)):
        return Name(
            f"{head['path']}.o_proj", f"lofit_{head['what']}.{int(head['head'])}", None, bool(head[1])
        )
    if item := _LIST.fullmatch(key):
        part = f"tri_{item['what'].removeprefix('C_')}.{int(item['number'])}"
        return Name(item["path"], part, item["adapter"], bool(item[1]))
    found = _NAME.fullmatch(_LATENT.sub(_between, key) if "_latent_" in key else key)
    named = _PARTS.get(f"{found['stem']}{found['end'] or ''}") if found else None
    if found is None or named is None:
        return None
    return Name(found["path"], named, found["adapter"], found["prefix"] is not None)


def _between(found: re.Match[str]) -> str:
    """LoRA-XS keeps its core beside the module, under the name of the adapter or of the module."""
    return f"{'' if found[1] == 'default' else f'.{found[1]}'}.lora_latent_mapping.weight"


def shared_part(key: str) -> str | None:
    """What a tensor is that modules share, or None if the key names no such tensor.

    >>> shared_part("base_model.vera_A"), shared_part("base_model.model.h.0.q.vera_lambda_b")
    ('vera_A', None)
    """
    if not any(map(key.__contains__, _SHARED)):
        return None
    found = _SHARED_NAME.fullmatch(key)
    if found is None:
        return None
    return ".".join(filter(None, [_SHARED[found["stem"]], found["number"]]))


def check_names(targets: Iterable[Target], name: str) -> None:
    """Every module has a name: else its key is a prefix alone.

    Raises:
        SourceError: one has none.
    """
    for target in targets:
        if target.path in ("", PREFIX):
            raise SourceError(
                f"{printable(name)} holds factors of {printable(repr(target.path))}, which names no module: "
                "it was badly saved."
            )


def alpha_of(key: str) -> tuple[str, bool] | None:
    """(module path, whether it is prefixed) of an alpha tensor's key."""
    found = _ALPHA.fullmatch(key)
    return (found["path"], found["prefix"] is not None) if found else None


def unmarked(key: str) -> str:
    """A key of a head without what PEFT before 0.4 left in it.

    >>> unmarked("base_model.model.score.modules_to_save.weight")
    'base_model.model.score.weight'
    """
    return key.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
