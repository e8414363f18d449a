"""Tiny pipelines of diffusers, and the update that each layer has after `load_lora_weights`."""

from __future__ import annotations

from functools import cache

import pytest

from tests.helpers.tiny_models import LoraLayer, base, transformers

diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extra `test`")


def unet():
    """The blocks of Stable Diffusion 1.5, of each kind one less."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def unet_xl():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32,
    )


def flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )


def clip():
    config = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    tokens = {"vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config, **tokens))


MODELS = {"unet": unet, "unet_xl": unet_xl, "transformer": flux}
REST = dict.fromkeys(("vae", "tokenizer", "scheduler"))


def pipeline(model: str):
    """A pipeline around one of MODELS, with a text encoder; what no adapter touches is left out."""
    made = {**REST, "text_encoder": base(clip)}
    if model == "unet":
        none = dict.fromkeys(("safety_checker", "feature_extractor"))
        return diffusers.StableDiffusionPipeline(
            unet=base(unet), **made, **none, requires_safety_checker=False
        )
    second = dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    if model == "unet_xl":
        return diffusers.StableDiffusionXLPipeline(unet=base(unet_xl), **made, **second)
    return diffusers.FluxPipeline(transformer=base(flux), **made, **second)


def layers(pipe):
    """Component.path -> layer with factors of every part. CLIP's paths have text_model, as files have."""
    found = {}
    for part in pipe.components.keys() & {"unet", "transformer", "text_encoder"}:
        for path, layer in getattr(pipe, part).named_modules():
            if isinstance(layer, LoraLayer) and layer.lora_A:
                start = f"{part}.text_model." if part == "text_encoder" else f"{part}."
                found[start + path.removeprefix("text_model.")] = layer
    return found


def applied(model: str, file) -> dict:
    """Module -> ΔW (out, in · kernel) in float64 that a pipeline adds after it has loaded a file."""
    pipe = pipeline(model)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    return {name: delta(layer) for name, layer in layers(pipe).items()}


def delta(layer):
    (name,) = layer.lora_A
    found = layer.get_delta_weight(name).detach().double()
    return found.reshape(len(found), -1).numpy()


def shapes(model: str, chosen: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Module with its component -> shape of its weight, of those that end in one of these names."""
    return dict(_shapes(model, chosen))


@cache
def _shapes(model, chosen):
    found = {}
    part = model.removesuffix("_xl")
    for start, module in ((part, base(MODELS[model])), ("text_encoder.text_model", base(clip))):
        for path, layer in module.named_modules():
            if path.endswith(chosen):
                found[f"{start}.{path.removeprefix('text_model.')}"] = tuple(layer.weight.shape)
    return found
