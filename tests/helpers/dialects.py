"""Files of other tools with random factors, and what they come to by the published forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from loramerge import Adapter

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SD15 = {  # modules of Stable Diffusion 1.5 in diffusers' names: (out, in, *kernel)
    f"unet.{ATTENTION}": (8, 6),
    "unet.down_blocks.0.attentions.1.proj_in": (6, 6, 1, 1),
    "unet.up_blocks.3.resnets.2.conv1": (6, 4, 3, 3),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (16, 4),
    "text_encoder.text_model.encoder.layers.11.mlp.fc1": (8, 6),
}
SDXL = {
    "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0": (6, 6),
    "unet.up_blocks.0.upsamplers.0.conv": (4, 4, 3, 3),
    "unet.mid_block.resnets.1.conv2": (4, 4, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (6, 6),
    "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj": (8, 8),
}
FLUX = {
    **{f"transformer.transformer_blocks.3.attn.to_{x}": (8, 8) for x in "qkv"},
    **{f"transformer.single_transformer_blocks.37.attn.to_{x}": (8, 8) for x in "qkv"},
    "transformer.single_transformer_blocks.37.proj_mlp": (32, 8),
    "transformer.single_transformer_blocks.0.proj_out": (8, 40),
    "transformer.transformer_blocks.18.ff_context.net.2": (8, 32),
    "transformer.norm_out.linear": (16, 8),
    "text_encoder.text_model.encoder.layers.2.mlp.fc2": (6, 8),
    "text_encoder_2.encoder.block.23.layer.1.DenseReluDense.wi_0": (8, 6),
}
FLUX_KOHYA = {  # the same model in the names of kohya: flat, and fused
    "lora_unet_double_blocks_3_img_attn_qkv": (24, 8),
    "lora_unet_single_blocks_37_linear1": (56, 8),
    "lora_unet_single_blocks_0_linear2": (8, 40),
    "lora_unet_double_blocks_18_txt_mlp_2": (8, 32),
    "lora_unet_final_layer_adaLN_modulation_1": (16, 8),
    "lora_te1_text_model_encoder_layers_2_mlp_fc2": (6, 8),
    "lora_te3_encoder_block_23_layer_1_DenseReluDense_wi_0": (8, 6),
}


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def pairs(
    shapes: Mapping[str, tuple[int, ...]],
    names: tuple[str, str] = ("lora_down", "lora_up"),
    rank: int = 2,
    alpha: float | None = None,
    seed: int = 0,
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
    """A pair of factors for every module, with an alpha if one is given."""
    rng, made = np.random.default_rng(seed), {}
    for module, (outs, ins, *kernel) in shapes.items():
        made[f"{module}.{names[0]}.weight"] = normal(rng, rank, ins, *kernel, dtype=dtype)
        made[f"{module}.{names[1]}.weight"] = normal(rng, outs, rank, *(1 for _ in kernel), dtype=dtype)
        if alpha is not None:
            made[f"{module}.alpha"] = np.array(alpha, dtype)
    return made


def saved(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(t) if t.ndim else t for name, t in tensors.items()}, path, metadata)
    return path


def flat(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Modules of Stable Diffusion 1.5 in kohya's names."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    made = {}
    for name, shape in shapes.items():
        component, _, path = name.partition(".")
        made[f"{prefixes[component]}_{path.replace('.', '_')}"] = shape
    return made


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A matrix product as its definition says, entry by entry, in float64."""
    made = np.zeros((left.shape[0], right.shape[1]))
    for i in range(left.shape[0]):
        for j in range(right.shape[1]):
            made[i, j] = sum(float(left[i, k]) * float(right[k, j]) for k in range(left.shape[1]))
    return made


def matrix(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(tensor.shape[0], -1)


def updates(tensors: Mapping[str, np.ndarray], names: tuple[str, str] = ("lora_down", "lora_up")) -> dict:
    """Module -> alpha / r · up @ down; without an alpha, up @ down."""
    made = {}
    for key, down in tensors.items():
        module, found, _ = key.partition(f".{names[0]}.weight")
        if found:
            up = tensors[f"{module}.{names[1]}.weight"]
            alpha = float(tensors.get(f"{module}.alpha", down.shape[0]))
            made[module] = alpha / down.shape[0] * product(matrix(up), matrix(down))
    return made


def same(adapter: Adapter, wanted: Mapping[str, np.ndarray], tolerance: float = 1e-6) -> None:
    """The adapter has these modules, each with this ΔW."""
    assert {str(target) for target in adapter} == set(wanted)
    for target, update in adapter.items():
        np.testing.assert_allclose(
            update.dense(), wanted[str(target)], rtol=tolerance, atol=tolerance, err_msg=str(target)
        )
