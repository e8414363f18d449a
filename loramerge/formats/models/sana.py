"""Sana: linear attention, and a feed-forward layer of convolutions."""

from __future__ import annotations

import re

from loramerge.formats.models.family import Family, word

SANA = Family(
    "sana",
    "Sana",
    """
    transformer_blocks.*.attn1.to_{q,k,v} = blocks.*.attn.qkv 3:1
    transformer_blocks.*.attn1.to_{out.0} = blocks.*.attn.proj 1:1
    transformer_blocks.*.attn2.to_{q,out.0} = blocks.*.cross_attn.{q_linear,proj} 1:1
    transformer_blocks.*.attn2.to_{k,v} = blocks.*.cross_attn.kv_linear 2:1
    transformer_blocks.*.ff.conv_{inverted,depth,point} = blocks.*.mlp.{inverted,depth,point}_conv.conv
    time_embed.emb.timestep_embedder.linear_{1,2} = t_embedder.mlp.{0,2}
    time_embed.linear = t_block.1
    caption_projection.linear_{1,2} = y_embedder.y_proj.{fc1,fc2}
    patch_embed.proj = x_embedder.proj
    proj_out = final_layer.linear
    """,
    said=r"(?<![a-zA-Z])sana",
    blocks={"transformer_blocks": 60},
    widths={2240: "1.6B or 4.8B", 1152: "0.6B"},
    depths={"0.6B": {"transformer_blocks": 28}},
    variants={"size": tuple((size, word(re.escape(size))) for size in ("0.6B", "1.6B", "4.8B"))},
    shows={"size": (("4.8B", r"blocks\.[2-5]\d\..*[ x]2240\b"),)},  # which has three times as many blocks
    converter="convert_sana_transformer_to_diffusers",
    model="SanaTransformer2DModel",
)
