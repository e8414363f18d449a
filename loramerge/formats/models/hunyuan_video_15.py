"""HunyuanVideo 1.5: smaller, without single blocks, and its authors keep queries, keys and values apart."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_REFINER = "context_embedder.token_refiner.refiner_blocks.*"
_THEIRS = "txt_in.individual_token_refiner.blocks.*"
HUNYUAN_VIDEO_15 = Family(
    "hunyuan-video-1.5",
    "HunyuanVideo 1.5",
    f"""
    transformer_blocks.*.attn.to_{{q,k,v,out.0}} = double_blocks.*.img_attn_{{q,k,v,proj}} 1:1
    transformer_blocks.*.attn.{{add_q_proj,add_k_proj,add_v_proj,to_add_out}} = double_blocks.*.txt_attn_{{q,k,v,proj}} 1:1
    transformer_blocks.*.{{ff,ff_context}}.net.0.proj = double_blocks.*.{{img,txt}}_mlp.fc1 4:1
    transformer_blocks.*.{{ff,ff_context}}.net.2 = double_blocks.*.{{img,txt}}_mlp.fc2 1:4
    transformer_blocks.*.{{norm1,norm1_context}}.linear = double_blocks.*.{{img,txt}}_mod.linear 6:1
    x_embedder.proj = img_in.proj
    image_embedder.linear_{{1,2}} = vision_in.proj.{{1,3}}
    context_embedder_2.linear_{{1,2,3}} = byt5_in.fc{{1,2,3}}
    time_embed.timestep_embedder.linear_{{1,2}} = time_in.mlp.{{0,2}}
    context_embedder.proj_in = txt_in.input_embedder
    context_embedder.time_text_embed.timestep_embedder.linear_{{1,2}} = txt_in.t_embedder.mlp.{{0,2}}
    context_embedder.time_text_embed.text_embedder.linear_{{1,2}} = txt_in.c_embedder.linear_{{1,2}}
    {_REFINER}.attn.to_{{q,k,v}} = {_THEIRS}.self_attn_qkv 3:1
    {_REFINER}.attn.to_out.0 = {_THEIRS}.self_attn_proj 1:1
    {_REFINER}.ff.net.{{0.proj,2}} = {_THEIRS}.mlp.{{fc1,fc2}}
    {_REFINER}.norm_out.linear = {_THEIRS}.adaLN_modulation.1 2:1
    proj_out = final_layer.linear
    norm_out.linear = final_layer.adaLN_modulation.1 turned 2:1
    """,  # noqa: E501
    said=r"(hunyuan\W?(video)?|hv)[\W_]?1[._]5",
    blocks={"transformer_blocks": 54, "context_embedder.token_refiner.refiner_blocks": 2},
    widths={2048: "8.3B"},
    seldom=True,
    variants={"task": (("I2V", word("i2v")), ("T2V", word("t2v")))},
    model="HunyuanVideo15Transformer3DModel",
)
