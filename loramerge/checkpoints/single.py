"""What the tensors of an image model in one file are called: Stable Diffusion 1, 2, XL and Flux.

Such files keep the names under which the models were first published. OpenCLIP's text encoders keep queries,
keys and values in one tensor, and so does Flux.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from loramerge.formats import models
from loramerge.formats.models import flux

DIFFUSION = "model.diffusion_model."
TEXT = {  # prefix of a text encoder under transformers' names -> component
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.t5xxl.transformer.": "text_encoder_2",
}
OPEN_CLIP = {  # prefix of one under OpenCLIP's names -> component
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
IN_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
LAYER = re.compile(r"transformer\.resblocks\.(?P<number>\d+)\.(?P<rest>.+)", re.DOTALL)
AROUND = {
    "token_embedding.weight": ("text_model.embeddings.token_embedding", "weight"),
    "positional_embedding": ("text_model.embeddings.position_embedding", "weight"),
    "ln_final.weight": ("text_model.final_layer_norm", "weight"),
    "ln_final.bias": ("text_model.final_layer_norm", "bias"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter of a module that a tensor holds.

    Args:
        component, path, parameter: whose it is.
        rows: of the tensor, if it holds others too.   turned: it is stored as (in, out).
    """

    component: str
    path: str
    parameter: str
    rows: tuple[slice, ...] = ()
    turned: bool = False


def is_image(keys: Iterable[str]) -> bool:
    """Whether these are names of an image model in one file."""
    return any(key.startswith((DIFFUSION, "double_blocks.", *TEXT, *OPEN_CLIP)) for key in keys)


def parts(key: str, shape: tuple[int, ...]) -> list[Part]:
    """What a tensor holds: first the whole of it, then its parts where it is several modules.

    Empty for what no adapter changes, such as the VAE.

    >>> parts("model.diffusion_model.input_blocks.4.1.proj_in.weight", (640, 640))[0].path
    'down_blocks.1.attentions.0.proj_in'
    """
    for prefix, component in TEXT.items():
        if key.startswith(prefix):
            path, _, parameter = key.removeprefix(prefix).rpartition(".")
            return [Part(component, path, parameter)]
    for prefix, component in OPEN_CLIP.items():
        if key.startswith(prefix):
            return list(_open_clip(component, key.removeprefix(prefix), shape))
    if not key.startswith((DIFFUSION, *FLUX)):
        return []
    path, _, parameter = key.removeprefix(DIFFUSION).rpartition(".")
    return list(_diffusion(path, parameter, shape))


FLUX = ("double_blocks.", "single_blocks.", "img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.",
        "final_layer.")  # fmt: skip


def _diffusion(path: str, parameter: str, shape: tuple[int, ...]) -> Iterator[Part]:
    if (ours := models.known("unet").get(path)) is not None:
        yield Part("unet", ours, parameter)
        return
    if (ours := models.known("transformer").get(path)) is None:
        return
    yield Part("transformer", ours, parameter)
    names = models.fused("transformer").get(ours, ())
    if names and shape:
        spans = flux.rows(ours, shape[0], shape[1] if len(shape) > 1 else _inputs(ours, shape[0]))
        for name, rows in zip(names, spans, strict=True):
            yield Part("transformer", name, parameter, tuple(rows))


def _inputs(path: str, outs: int) -> int:
    """The inputs of a fused module by its outputs, for its bias."""
    return outs // 7 if path.endswith("linear1") else outs // 3


def _open_clip(component: str, key: str, shape: tuple[int, ...]) -> Iterator[Part]:
    if key == "text_projection":
        yield Part(component, "text_projection", "weight", turned=True)
    if key in AROUND:
        yield Part(component, *AROUND[key])
    if (layer := LAYER.fullmatch(key)) is None:
        return
    here = f"text_model.encoder.layers.{layer['number']}"
    if layer["rest"] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        parameter = layer["rest"].rpartition("_")[2]
        ends = [shape[0] * i // 3 for i in range(4)]
        for side, (start, stop) in zip("qkv", pairwise(ends), strict=True):
            yield Part(component, f"{here}.self_attn.{side}_proj", parameter, (slice(start, stop),))
        return
    path, _, parameter = layer["rest"].rpartition(".")
    if path in IN_LAYER:
        yield Part(component, f"{here}.{IN_LAYER[path]}", parameter)


def by_name(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, str, str], tuple[str, Part]]:
    """(component, path, parameter) -> the tensor that holds it, and which part of it."""
    found = {}
    for key, shape in shapes.items():
        for part in parts(key, shape):
            found[part.component, part.path, part.parameter] = key, part
    return found
