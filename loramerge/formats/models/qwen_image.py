"""Qwen-Image and Qwen-Image-Edit: every tool uses diffusers' names."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_EDIT = word(r"(qwen|image)?edit(plus)?")

QWEN_IMAGE = Family(
    "qwen-image",
    "Qwen-Image",
    """
    transformer_blocks.*.attn.{to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_add_out} 1:1
    transformer_blocks.*.{img,txt}_mod.1 6:1
    transformer_blocks.*.{img,txt}_mlp.net.0.proj 4:1
    transformer_blocks.*.{img,txt}_mlp.net.2 1:4
    img_in
    txt_in
    norm_out.linear 2:1
    proj_out
    time_text_embed.timestep_embedder.linear_{1,2}
    """,
    said=r"qwen([\W_]?image)?([\W_]?edit(plus)?|[\W_]?layered)?|edit(plus)?[\W_]?25(09|11)",
    blocks={"transformer_blocks": 60},
    widths={3072: "20B"},
    variants={
        "model": (
            ("Edit-2509", rf"{_EDIT}.*2509"),
            ("Edit-2511", rf"{_EDIT}.*2511"),
            ("Edit", rf"{_EDIT}(?!.*25(09|11))"),
            ("Layered", word("layered")),
            ("text to image", r"qwen/qwen-image(-2512)?($|\s)"),
        )
    },
    model="QwenImageTransformer2DModel",
)
