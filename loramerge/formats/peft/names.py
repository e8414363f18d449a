"""PEFT's tensor names: what a key says of its tensor, and how the names of other tools look."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from loramerge.adapters.target import Target
from loramerge.errors import SourceError, printable

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"  # in a folder that PEFT saved
PICKLED = "adapter_model.bin"  # the same, before PEFT 0.6
UNKNOWN = "unknown"  # the format of names that no reader knows

_NAME = re.compile(
    r"(?P<prefix>base_model\.model\.)?(?P<path>.+)\.lora_(?P<part>[ABE]|embedding_[AB])"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?P<end>\.weight|\.bias)?",
    re.DOTALL,
)
_PARTS = {  # (what stands after lora_, the end of the key) -> part
    ("A", ".weight"): "A",
    ("B", ".weight"): "B",
    ("B", ".bias"): "bias",
    ("A", None): "svd_A",
    ("B", None): "svd_B",
    ("E", None): "svd_E",
    ("embedding_A", None): "embedding_A",
    ("embedding_B", None): "embedding_B",
}
_ALPHA = re.compile(r"(?P<prefix>base_model\.model\.)?(?P<path>.+)\.alpha", re.DOTALL)

FOREIGN = (  # the keys of other tools, whatever they hold; first hit wins
    (r"^lora_(unet|te\d?|transformer)_", "a kohya LoRA", "convert it to PEFT first"),
    (r"hada_w|lokr_w|oft_blocks", "a LyCORIS adapter", "these are not read yet"),
    (r"^(?!base_model\.model\.)\S*\.processor\.|_lora\.(up|down)\.|\.lora\.(up|down)\.", "a diffusers LoRA",
     "convert it to PEFT first"),
    (r"^(unet|text_encoder|transformer_\d)(_\d)?[.:]\S*(lora_|up|down)", "a diffusers or cloneofsimo LoRA",
     "convert it to PEFT first"),
    (r"^transformer\.(?!h\.\d)\S*lora_", "a diffusers LoRA", "convert it to PEFT first"),
    (r"^diffusion_model\.", "a ComfyUI LoRA", "convert it to PEFT first"),
)  # fmt: skip
OTHER = (  # what a tensor name says that no other part of the reader takes; first hit wins
    *FOREIGN,
    (r"\.lora_magnitude_vector", "a DoRA magnitude", "DoRA needs the base weights: merge it into its base"),
    (r"^w_[ab]_\d+$", "a numbered SAM LoRA", "nothing tells which module a number means"),
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
    (r"lora_", "a LoRA of an unknown layout", "save it with PEFT's save_pretrained"),
)


@dataclass(frozen=True, slots=True)
class Name:
    """A key taken apart.

    Args:
        path: of the module, as the file has it.   adapter: a name that was left in the key.
        part: which factor: A, B, bias; embedding_A, embedding_B; svd_A, svd_B, svd_E of AdaLoRA.
        prefixed: it begins as PEFT writes it.
    """

    path: str
    part: str
    adapter: str | None
    prefixed: bool


def parse(key: str) -> Name | None:
    """What a key says, or None if it names no factor.

    >>> parse("base_model.model.h.0.q.lora_A.default.weight")
    Name(path='h.0.q', part='A', adapter='default', prefixed=True)
    >>> parse("base_model.model.classifier.weight")
    """
    found = _NAME.fullmatch(key)
    if found is None or (found["part"], found["end"]) not in _PARTS:
        return None
    part = _PARTS[found["part"], found["end"]]
    return Name(found["path"], part, found["adapter"], found["prefix"] is not None)


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
