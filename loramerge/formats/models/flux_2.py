"""Flux.2: dev and the smaller Klein. Its blocks are wider than Flux.1's, and share their modulation."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

FLUX_2 = Family(
    "flux.2",
    "Flux.2",
    """
    transformer_blocks.*.attn.to_{q,k,v} = double_blocks.*.img_attn.qkv 3:1
    transformer_blocks.*.attn.add_{q,k,v}_proj = double_blocks.*.txt_attn.qkv 3:1
    transformer_blocks.*.attn.to_{out.0,add_out} = double_blocks.*.{img,txt}_attn.proj 1:1
    transformer_blocks.*.{ff,ff_context}.linear_in = double_blocks.*.{img,txt}_mlp.0 6:1
    transformer_blocks.*.{ff,ff_context}.linear_out = double_blocks.*.{img,txt}_mlp.2 1:3
    single_transformer_blocks.*.attn.{to_qkv_mlp_proj} = single_blocks.*.linear1 9:1
    single_transformer_blocks.*.attn.{to_out} = single_blocks.*.linear2 1:4
    x_embedder = img_in
    context_embedder = txt_in
    time_guidance_embed.timestep_embedder.linear_{1,2} = time_in.{in,out}_layer
    time_guidance_embed.guidance_embedder.linear_{1,2} = guidance_in.{in,out}_layer
    double_stream_modulation_{img,txt}.linear = double_stream_modulation_{img,txt}.lin 6:1
    single_stream_modulation.linear = single_stream_modulation.lin 3:1
    proj_out = final_layer.linear
    norm_out.linear = final_layer.adaLN_modulation.1 turned 2:1
    """,
    said=r"flux[\W_]?2([\W_]?(dev|klein))?|klein",
    blocks={"transformer_blocks": 8, "single_transformer_blocks": 48},
    widths={6144: "dev", 4096: "9B", 3072: "4B"},
    depths={
        "4B": {"transformer_blocks": 5, "single_transformer_blocks": 20},
        "9B": {"single_transformer_blocks": 24},
    },
    variants={
        "model": (("Klein", word("klein")), ("dev", word("dev"))),
        "size": (("4B", word(r"(?<!\d)4b")), ("9B", word(r"(?<!\d)9b"))),
    },
    converter="convert_flux2_transformer_checkpoint_to_diffusers",
    model="Flux2Transformer2DModel",
)
