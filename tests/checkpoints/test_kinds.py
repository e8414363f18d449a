"""What a weight is, is told by its name, its shape and the config; what cannot be told is no module."""

import pytest

from loramerge.checkpoints import kinds

KNOWN = [
    ("model.layers.0.self_attn.q_proj", "weight", (8, 4), "linear"),
    ("model.layers.0.mlp.experts.3.gate_proj", "weight", (8, 4), "linear"),
    ("model.layers.0.mlp.experts", "gate_up_proj", (4, 8, 4), "expert"),
    ("model.layers.0.mlp.experts", "gate_up_proj_bias", (4, 8), None),
    ("lm_head", "weight", (32, 4), "linear"),
    ("embed_out", "weight", (32, 4), "linear"),
    ("model.embed_tokens", "weight", (32, 4), "embedding"),
    ("transformer.wpe", "weight", (32, 4), "embedding"),
    ("bert.embeddings.word_embeddings", "weight", (32, 4), "embedding"),
    ("shared", "weight", (32, 4), "embedding"),
    ("text_model.embeddings.position_embedding", "weight", (77, 4), "embedding"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "weight", (32, 4), "embedding"),
    ("x_embedder", "weight", (8, 4), "linear"),
    ("time_embedding.linear_1", "weight", (8, 4), "linear"),
    ("conv_in", "weight", (8, 4, 3, 3), "conv"),
    ("down_blocks.0.resnets.0.conv1", "weight", (8, 8, 3, 3), "conv"),
    ("backbone.mixer.conv1d", "weight", (8, 1, 4), None),
    ("model.norm", "weight", (8,), None),
    ("model.layers.0.self_attn.q_proj", "bias", (8,), None),
    ("model.layers.0.mixer", "A_log", (8, 4), None),
]


@pytest.mark.parametrize(("path", "parameter", "shape", "kind"), KNOWN)
def test_the_kind_of_a_module(path, parameter, shape, kind):
    assert kinds.kind(path, parameter, shape) == kind


@pytest.mark.parametrize(
    ("config", "shape", "turned"),
    [
        ({"model_type": "gpt2"}, (4, 4), True),
        ({"model_type": "gpt_bigcode"}, (4, 12), False),
        ({}, (4, 12), True),
        ({}, (12, 4), False),
    ],
)
def test_gpt2_keeps_its_linear_layers_the_other_way_round(config, shape, turned):
    shapes = {"h.0.attn.c_attn.weight": shape, "h.0.attn.c_proj.weight": (4, 4)}
    assert kinds.is_conv1d("h.0.attn.c_proj", config, shapes) == turned
    assert not kinds.is_conv1d("h.0.attn.q_proj", config, shapes)


@pytest.mark.parametrize(
    ("path", "router"),
    [("model.layers.0.mlp.gate", True), ("model.layers.0.block_sparse_moe.gate", True),
     ("model.layers.0.mlp.router", True), ("model.layers.0.mlp.gate_proj", False)],
)  # fmt: skip
def test_a_router_is_no_module_of_an_adapter(path, router):
    assert kinds.is_router(path) == router
