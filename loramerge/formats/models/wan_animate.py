"""Wan Animate: Wan with an encoder of faces, and an adapter for it beside some of the blocks."""

from __future__ import annotations

from loramerge.formats.models.family import Family
from loramerge.formats.models.wan import NAMES, WAN

WAN_ANIMATE = Family(
    "wan-animate",
    "Wan Animate",
    f"""{NAMES.rstrip()}
    pose_patch_embedding
    face_encoder.{{conv1_local,conv2,conv3}} = face_encoder.{{conv1_local,conv2,conv3}}.conv
    face_encoder.out_proj
    face_adapter.*.to_q = face_adapter.fuser_blocks.*.linear1_q 1:1
    face_adapter.*.to_{{k,v}} = face_adapter.fuser_blocks.*.linear1_kv 2:1
    face_adapter.*.to_out = face_adapter.fuser_blocks.*.linear2 1:1
    """,
    said="animate",
    blocks={"blocks": 40, "face_adapter": 8},
    widths={5120: "14B"},
    tells="face_|pose_patch",
    variants={"version": WAN.variants["version"]},
    converter="convert_wan_transformer_to_diffusers",
    model="WanAnimateTransformer3DModel",
)
