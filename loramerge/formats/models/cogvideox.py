"""CogVideoX: known by diffusers' names alone."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

COGVIDEOX = Family(
    "cogvideox",
    "CogVideoX",
    """
    transformer_blocks.*.attn1.to_{q,k,v,out.0} 1:1
    transformer_blocks.*.ff.net.0.proj 4:1
    transformer_blocks.*.ff.net.2 1:4
    transformer_blocks.*.{norm1,norm2}.linear
    patch_embed.{proj,text_proj}
    time_embedding.linear_{1,2}
    norm_out.linear
    proj_out
    """,
    said=r"cogvideo",
    blocks={"transformer_blocks": 42},
    widths={1920: "2B", 3072: "5B"},
    depths={"2B": {"transformer_blocks": 30}},
    variants={"task": (("I2V", word("i2v")), ("T2V", word("t2v")))},
    model="CogVideoXTransformer3DModel",
)
