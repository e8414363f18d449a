"""Lumina-Image 2: its keys and values have a third of the rows of its queries."""

from __future__ import annotations

from loramerge.formats.models.family import Family

_LAYER = """
    {0}.*.attn.to_{{q,k,v}} = {0}.*.attention.qkv query 5:3
    {0}.*.attn.to_out.0 = {0}.*.attention.out 1:1
    {0}.*.feed_forward.linear_{{1,3}} = {0}.*.feed_forward.w{{1,3}} 4:1
    {0}.*.feed_forward.linear_2 = {0}.*.feed_forward.w2 1:4
"""
LUMINA_2 = Family(
    "lumina-2",
    "Lumina 2",
    "".join(map(_LAYER.format, ("layers", "noise_refiner", "context_refiner")))
    + """
    {layers,noise_refiner}.*.norm1.linear = {layers,noise_refiner}.*.adaLN_modulation.1
    x_embedder
    time_caption_embed.caption_embedder.1 = cap_embedder.1
    time_caption_embed.timestep_embedder.linear_{1,2} = t_embedder.mlp.{0,2}
    norm_out.linear_1 = final_layer.adaLN_modulation.1
    norm_out.linear_2 = final_layer.linear
    """,
    said=r"lumina",
    blocks={"layers": 26, "noise_refiner": 2, "context_refiner": 2},
    widths={2304: "2B"},
    tells=r"attention|attn|adaLN|norm1|refiner|embed|final_layer",
    converter="convert_lumina2_to_diffusers",
    model="Lumina2Transformer2DModel",
)
