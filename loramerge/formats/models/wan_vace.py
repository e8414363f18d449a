"""Wan VACE: Wan with blocks that read what controls a video."""

from __future__ import annotations

from loramerge.formats.models.family import Family
from loramerge.formats.models.wan import NAMES, WAN

WAN_VACE = Family(
    "wan-vace",
    "Wan VACE",
    f"""{NAMES.rstrip()}
    vace_blocks.*.attn1.{{to_q,to_k,to_v,to_out.0}} = vace_blocks.*.self_attn.{{q,k,v,o}} 1:1
    vace_blocks.*.attn2.{{to_q,to_k,to_v,to_out.0}} = vace_blocks.*.cross_attn.{{q,k,v,o}} 1:1
    vace_blocks.*.attn2.{{add_k_proj,add_v_proj}} = vace_blocks.*.cross_attn.{{k_img,v_img}} 1:1
    vace_blocks.*.ffn.net.{{0.proj,2}} = vace_blocks.*.ffn.{{0,2}}
    vace_blocks.*.proj_{{in,out}} = vace_blocks.*.{{before,after}}_proj 1:1
    vace_patch_embedding
    """,
    said="vace",
    blocks={"blocks": 40, "vace_blocks": 15},
    widths={1536: "1.3B", 5120: "14B"},
    depths={"1.3B": {"blocks": 30}, "14B": {"vace_blocks": 8}},
    tells="vace_",
    variants={"version": WAN.variants["version"], "noise": WAN.variants["noise"]},
    converter="convert_wan_transformer_to_diffusers",
    model="WanVACETransformer3DModel",
)
