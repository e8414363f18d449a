"""PEFT's tensor names: which tensors form a low-rank pair, and which do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loramerge.adapter import Tensor
from loramerge.dtypes import FLOATS
from loramerge.errors import IncompatibleError, SourceError, printable

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"  # in a folder that PEFT saved
FACTOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight", re.DOTALL)
ALPHA = re.compile(r"base_model\.model\.(?P<path>.+)\.alpha", re.DOTALL)

OTHER = (  # what a tensor name says that is not a pair of linear layers; first hit wins
    (r"\.lora_magnitude_vector", "a DoRA magnitude", "DoRA needs the base weights: merge it into its base"),
    (r"\.lora_embedding_[AB]", "an embedding LoRA", "these are not read yet"),
    (r"\.lora_[AB]\.bias$", "a bias of lora_B", "train without lora_bias"),
    (r"\.lora_[ABE]\.[^.]+\.weight$", "a pair under an adapter name", "save it with PEFT's save_pretrained"),
    (r"\.lora_E$|\.lora_[AB]$", "an AdaLoRA factor", "these are not read yet"),
    (r"\.experts\.(base_layer\.)?lora_", "a LoRA of fused experts", "these are not read yet"),
    (r"^lora_(unet|te\d?|transformer)_", "a kohya LoRA", "convert it to PEFT first"),
    (r"hada_w|lokr_w|oft_blocks", "a LyCORIS adapter", "these are not read yet"),
    (r"\.processor\.|_lora\.(up|down)\.|\.lora\.(up|down)\.", "a diffusers LoRA", "convert it to PEFT first"),
    (r"^(unet|transformer|text_encoder)(_\d)?[.:]\S*(lora_|up|down)", "a diffusers or cloneofsimo LoRA",
     "convert it to PEFT first"),
    (r"^diffusion_model\.", "a ComfyUI LoRA", "convert it to PEFT first"),
    (r"\.lora_[ab]$", "an mlx-lm adapter", "convert it to PEFT first"),
    (r"^w_[ab]_\d+$", "a numbered SAM LoRA", "there is no telling which module a number means"),
    (r"lora_", "a LoRA of an unknown layout", "save it with PEFT's save_pretrained"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pairs:
    """The tensors of a file, sorted by what they are.

    Args:
        factors: module path -> (up, down).   alphas: module path -> scalar tensor.   extras: the rest.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alphas: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]


def sort_tensors(tensors: Mapping[str, Tensor], name: str) -> Pairs:
    """Find the pairs by their names and check their shapes.

    Raises:
        SourceError: a partner is missing, or the two do not share a rank.
        IncompatibleError: a LoRA tensor that is not a pair of matrices, or no pair at all.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := FACTOR.fullmatch(key):
            sides.setdefault(match["path"], {})[match["side"]] = tensor
        elif match := ALPHA.fullmatch(key):
            alphas[match["path"]] = tensor
        else:
            extras[key] = tensor
    _refuse_other(extras, name, any_pair=bool(sides))
    factors = {path: _pair(path, sides[path], name) for path in sorted(sides)}
    return Pairs(factors, alphas, extras)


def _refuse_other(extras: Mapping[str, Tensor], name: str, any_pair: bool) -> None:
    for pattern, what, help in OTHER:
        for key in extras:
            if re.search(pattern, key):
                raise IncompatibleError(f"{printable(name)} holds {what} ({printable(key, 80)}): {help}.")
    if not any_pair:
        some = ", ".join(printable(key, 40) for key in list(extras)[:3]) or "no tensors"
        raise IncompatibleError(f"{printable(name)} holds no LoRA pair ({some}): it is no LoRA adapter.")


def _pair(path: str, sides: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    where = f"{printable(path)} in {printable(name)}"
    for side in "AB":
        if side not in sides:
            raise SourceError(f"lora_{side} of {where} is missing: the file was cut or badly saved.")
    up, down = sides["B"], sides["A"]
    for side, tensor in (("A", down), ("B", up)):
        if tensor.dtype not in FLOATS:
            raise IncompatibleError(
                f"lora_{side} of {where} is stored as {tensor.dtype}; save it as float32 or bfloat16."
            )
        if len(tensor.shape) > 2:
            raise IncompatibleError(
                f"lora_{side} of {where} has shape {list(tensor.shape)}: LoRA on convolutions is not read."
            )
    if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
        raise SourceError(
            f"lora_B {list(up.shape)} and lora_A {list(down.shape)} of {where} do not share a rank."
        )
    if 0 in (*up.shape, *down.shape):
        raise SourceError(f"lora_A or lora_B of {where} is empty.")
    return up, down
