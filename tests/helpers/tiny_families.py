"""Tiny random models of the families whose modules have several names, from transformers' own configs."""

from tests.helpers.tiny_models import TOKENS, torch, transformers

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


def of(name, **more):
    """A causal language model of a family, by the name of its config."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def phi3():
    return of("Phi3")


def glm():
    return of("Glm", head_dim=8)


def qwen3_moe():
    return of("Qwen3Moe", head_dim=8, num_experts=4, decoder_sparse_step=1, **EXPERTS)


def mixtral():
    return of("Mixtral", num_local_experts=4)


def gpt_oss():
    kinds = ["full_attention"]
    return of("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=kinds)


def deepseek():
    latent = dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim"), 8)
    latent |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4)
    groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0}
    return of("DeepseekV3", n_shared_experts=1, **latent, **groups, **EXPERTS)


def llama4():
    config = transformers.Llama4TextConfig(
        **{**SIZES, "intermediate_size": 24},
        intermediate_size_mlp=48,
        head_dim=8,
        num_local_experts=4,
        interleave_moe_layer_step=1,
    )
    return transformers.Llama4ForCausalLM(config)


def qwen_vl():
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    text = {name: size for name, size in SIZES.items() if name != "pad_token_id"} | {"vocab_size": 64}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
        num_channels=1,
    )
    return transformers.ViTForImageClassification(config)


PIXELS = torch.linspace(-1, 1, 2 * 16 * 16).reshape(2, 1, 16, 16)


@torch.no_grad()
def answers(model):
    """The logits of such a model for the tokens of the tests, or for their pixels."""
    sees = "pixel_values" in model.get_base_model().main_input_name
    return model(**({"pixel_values": PIXELS} if sees else {"input_ids": TOKENS})).logits.double()
