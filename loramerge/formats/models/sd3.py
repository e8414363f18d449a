"""Stable Diffusion 3 and 3.5. Medium 3.5 has more attention in its first blocks; large is 3.5 only."""

from __future__ import annotations

from loramerge.formats.models.family import Family

SD3 = Family(
    "sd3",
    "Stable Diffusion 3",
    """
    transformer_blocks.*.attn.to_{q,k,v} = joint_blocks.*.x_block.attn.qkv 3:1
    transformer_blocks.*.attn2.to_{q,k,v} = joint_blocks.*.x_block.attn2.qkv 3:1
    transformer_blocks.*.attn.add_{q,k,v}_proj = joint_blocks.*.context_block.attn.qkv 3:1
    transformer_blocks.*.{attn,attn2}.to_out.0 = joint_blocks.*.x_block.{attn,attn2}.proj 1:1
    transformer_blocks.*.attn.{to_add_out} = joint_blocks.*.context_block.attn.proj 1:1
    transformer_blocks.*.{ff,ff_context}.net.0.proj = joint_blocks.*.{x,context}_block.mlp.fc1 4:1
    transformer_blocks.*.{ff,ff_context}.net.2 = joint_blocks.*.{x,context}_block.mlp.fc2 1:4
    transformer_blocks.*.norm1.linear = joint_blocks.*.x_block.adaLN_modulation.1
    transformer_blocks.*.norm1_context.linear = joint_blocks.*.context_block.adaLN_modulation.1 last 6:1|2:1
    context_embedder
    pos_embed.proj = x_embedder.proj
    time_text_embed.timestep_embedder.linear_{1,2} = t_embedder.mlp.{0,2}
    time_text_embed.text_embedder.linear_{1,2} = y_embedder.mlp.{0,2}
    proj_out = final_layer.linear
    norm_out.linear = final_layer.adaLN_modulation.1 turned 2:1
    """,
    said=r"sd3|stable\W?diffusion\W?(v?3)|sd_?3",
    blocks={"transformer_blocks": 38},
    widths={1536: "medium", 2432: "large"},
    depths={"medium": {"transformer_blocks": 24}},
    variants={
        "name": (
            ("Stable Diffusion 3.5", r"(sd|diffusion)[\W_]*v?3[\W_]?5|3[\W_]5[\W_]?(m|l)"),
            ("Stable Diffusion 3", r"(?<!3[\W_])(?<!\d)3[\W_]?m(edium)?(?![a-z])"),
        )
    },
    shows={
        "name": (
            ("Stable Diffusion 3.5", r"\battn2\b|norm1\.linear .* 9:1$|[ x]2432\b"),
            ("Stable Diffusion 3", r"^transformer_blocks\.(\d|1[0-2])\.norm1\.linear 9216x1536 "),
        )
    },
    untold="Stable Diffusion 3 or 3.5",
    converter="convert_sd3_transformer_checkpoint_to_diffusers",
    model="SD3Transformer2DModel",
)
