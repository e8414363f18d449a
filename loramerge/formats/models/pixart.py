"""PixArt-α and Σ."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_EMBEDDED = "{timestep,resolution,aspect_ratio}_embedder.linear_"
_SIGMA = word("sigma")
PIXART = Family(
    "pixart",
    "PixArt",
    f"""
    transformer_blocks.*.attn1.to_{{q,k,v}} = blocks.*.attn.qkv 3:1
    transformer_blocks.*.attn2.to_{{q,out.0}} = blocks.*.cross_attn.{{q_linear,proj}} 1:1
    transformer_blocks.*.attn2.to_{{k,v}} = blocks.*.cross_attn.kv_linear 2:1
    transformer_blocks.*.attn1.to_{{out.0}} = blocks.*.attn.proj 1:1
    transformer_blocks.*.ff.net.0.proj = blocks.*.mlp.fc1 4:1
    transformer_blocks.*.ff.net.2 = blocks.*.mlp.fc2 1:4
    adaln_single.emb.{_EMBEDDED}1 = {{t,csize,ar}}_embedder.mlp.0
    adaln_single.emb.{_EMBEDDED}2 = {{t,csize,ar}}_embedder.mlp.2
    adaln_single.linear = t_block.1
    caption_projection.linear_{{1,2}} = y_embedder.y_proj.{{fc1,fc2}}
    pos_embed.proj = x_embedder.proj
    proj_out = final_layer.linear
    """,
    said=r"pixart",
    blocks={"transformer_blocks": 28},
    widths={1152: "0.6B"},
    variants={"model": (("Sigma", _SIGMA), ("Alpha", rf"(?s)\A(?!.*{_SIGMA}).*{word('alpha')}"))},
    shows={"model": (("Alpha", r"resolution_embedder|aspect_ratio_embedder"),)},
    model="PixArtTransformer2DModel",
)
