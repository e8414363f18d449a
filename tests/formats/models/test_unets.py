"""Which U-Net it is, held against diffusers' own class in the four published shapes."""

import pytest

from loramerge.formats.models import known
from loramerge.formats.models.unets import ALL, ONE, REFINER, TWO, XL, Parts, possible

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
SHAPES = {  # model -> (attention by level going down, widths, context, depth)
    ONE: ((1, 1, 1, 0), (320, 640, 1280, 1280), 768, 1),
    TWO: ((1, 1, 1, 0), (320, 640, 1280, 1280), 1024, 1),
    XL: ((0, 1, 1), (320, 640, 1280), 2048, (1, 2, 5)),
    REFINER: ((0, 1, 1, 0), (384, 768, 1536, 1536), 1280, 4),
}


def layers(model):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    levels, widths, context, depth = SHAPES[model]
    kinds = [CROSS if level else PLAIN for level in levels]
    with torch.device("meta"):
        made = diffusers.UNet2DConditionModel(
            down_block_types=[kind.format("Down") for kind in kinds],
            up_block_types=[kind.format("Up") for kind in reversed(kinds)],
            block_out_channels=widths,
            cross_attention_dim=context,
            transformer_layers_per_block=depth,
            layers_per_block=1,
            attention_head_dim=64,
        )
    found = {path: each.weight.shape for path, each in made.named_modules() if hasattr(each, "weight")}
    return {path: (shape[0], shape[1:].numel()) for path, shape in found.items() if path in known("unet")}


@pytest.mark.parametrize("model", SHAPES)
def test_a_whole_model_is_told_and_no_part_of_it_is_told_to_be_another(model):
    found = layers(model)
    assert len(found) > 50
    assert possible(Parts(found, {}), "") == {model}
    assert all(model in possible(Parts({path: size}, {}), "") for path, size in found.items())


SAID = {
    "sd_v1": {ONE},
    "sd_v2_v": {TWO},
    "sdxl_base_v1-0": {XL},
    "stable-diffusion-xl-v1-base/lora": {XL},
    "stable-diffusion-v1/lora": {ONE},
    "stabilityai/stable-diffusion-2-1": {TWO},
    "stabilityai/stable-diffusion-xl-refiner-1.0": {REFINER},
    "someone/foxl": set(ALL),
    "networks.lora": set(ALL),
}


@pytest.mark.parametrize("said", SAID)
def test_metadata_tells_it_where_modules_do_not(said):
    assert possible(Parts({"mid_block.attentions.0.proj_in": (8, 8)}, {}), said) >= SAID[said]
    assert len(possible(Parts({"mid_block.attentions.0.proj_in": (8, 8)}, {}), said)) <= len(SAID[said]) + 1


def test_widths_are_believed_before_words():
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert possible(Parts({path: (1280, 768)}, {}), "sdxl") == {ONE}
