"""Chroma: Flux.1 with one guidance model in place of the modulation in every block."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word
from loramerge.formats.models.flux import BLOCKS

CHROMA = Family(
    "chroma",
    "Chroma",
    """
    transformer_blocks.*.attn.to_{q,k,v} = double_blocks.*.img_attn.qkv 3:1
    transformer_blocks.*.attn.add_{q,k,v}_proj = double_blocks.*.txt_attn.qkv 3:1
    transformer_blocks.*.attn.to_{out.0,add_out} = double_blocks.*.{img,txt}_attn.proj 1:1
    transformer_blocks.*.{ff,ff_context}.net.0.proj = double_blocks.*.{img,txt}_mlp.0 4:1
    transformer_blocks.*.{ff,ff_context}.net.2 = double_blocks.*.{img,txt}_mlp.2 1:4
    single_transformer_blocks.*.attn.to_{q,k,v} single_transformer_blocks.*.proj_mlp = single_blocks.*.linear1 square 7:1
    single_transformer_blocks.*.proj_out = single_blocks.*.linear2 1:5
    x_embedder = img_in
    context_embedder = txt_in
    proj_out = final_layer.linear
    distilled_guidance_layer.{in,out}_proj
    distilled_guidance_layer.layers.*.linear_{1,2} = distilled_guidance_layer.layers.*.{in,out}_layer 1:1
    """,  # noqa: E501
    said=r"chroma([\W_]?(1|hd|radiance|v\d))?",
    blocks=BLOCKS,
    widths={3072: "8.9B"},
    variants={"model": (("HD", word("hd")), ("Radiance", r"radiance"))},
    converter="convert_chroma_transformer_checkpoint_to_diffusers",
    model="ChromaTransformer2DModel",
)
