"""Mochi 1: the gate of its MLP is the other half in diffusers; its last block differs."""

from __future__ import annotations

from loramerge.formats.models.family import Family

MOCHI = Family(
    "mochi",
    "Mochi 1",
    """
    transformer_blocks.*.attn1.to_{q,k,v} = blocks.*.attn.qkv_x 3:1
    transformer_blocks.*.attn1.add_{q,k,v}_proj = blocks.*.attn.qkv_y
    transformer_blocks.*.attn1.to_{out.0,add_out} = blocks.*.attn.proj_{x,y}
    transformer_blocks.*.{ff,ff_context}.net.0.proj = blocks.*.mlp_{x,y}.w1 turned
    transformer_blocks.*.{ff,ff_context}.net.2 = blocks.*.mlp_{x,y}.w2
    transformer_blocks.*.norm1.linear = blocks.*.mod_x 4:1
    transformer_blocks.47.norm1_context.linear_1 = blocks.47.mod_y 1:2
    transformer_blocks.*.norm1_context.linear = blocks.*.mod_y 2:1
    time_embed.timestep_embedder.linear_{1,2} = t_embedder.mlp.{0,2}
    time_embed.pooler.{to_kv,to_q,to_out} = t5_y_embedder.{to_kv,to_q,to_out}
    time_embed.caption_proj = t5_yproj
    patch_embed.proj = x_embedder.proj
    norm_out.linear = final_layer.mod turned 2:1
    proj_out = final_layer.linear
    """,
    said=r"mochi",
    blocks={"transformer_blocks": 48},
    widths={3072: "10B"},
    converter="convert_mochi_transformer_checkpoint_to_diffusers",
    model="MochiTransformer3DModel",
)
