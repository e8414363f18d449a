"""Z-Image: diffusers splits the attention that the first model has in one, and calls the rest alike."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_LAYER = """
    {0}.*.attention.to_{{q,k,v}} = {0}.*.attention.qkv 3:1
    {0}.*.attention.to_out.0 = {0}.*.attention.out 1:1
    {0}.*.feed_forward.w{{1,3}} 8:3
    {0}.*.feed_forward.w2 3:8
"""
Z_IMAGE = Family(
    "z-image",
    "Z-Image",
    "".join(map(_LAYER.format, ("layers", "noise_refiner", "context_refiner")))
    + """
    {layers,noise_refiner}.*.adaLN_modulation.0
    cap_embedder.1
    t_embedder.mlp.{0,2}
    all_x_embedder.2-1 = x_embedder
    all_final_layer.2-1.linear = final_layer.linear
    all_final_layer.2-1.adaLN_modulation.1 = final_layer.adaLN_modulation.1
    """,
    said=rf"z[\W_]?image([\W_]?(turbo|edit|base))?|{word('zit')}",
    blocks={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    widths={3840: "6B"},
    tells=r"attention|adaLN|refiner|_embedder|final_layer",
    variants={"model": (("Turbo", word("turbo", "zit")), *((name, word(name)) for name in ("Edit", "Base")))},
    converter="convert_z_image_transformer_checkpoint_to_diffusers",
    model="ZImageTransformer2DModel",
)
