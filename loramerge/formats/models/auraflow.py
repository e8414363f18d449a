"""AuraFlow, and Pony V7, which is trained from it."""

from __future__ import annotations

from loramerge.formats.models.family import Family

AURAFLOW = Family(
    "auraflow",
    "AuraFlow",
    """
    joint_transformer_blocks.*.attn.to_{q,k,v,out.0} = double_layers.*.attn.w2{q,k,v,o} 1:1
    joint_transformer_blocks.*.attn.add_{q,k,v}_proj = double_layers.*.attn.{w1q,w1k,w1v} 1:1
    joint_transformer_blocks.*.attn.{to_add_out} = double_layers.*.attn.w1o 1:1
    joint_transformer_blocks.*.ff.{linear_1,linear_2,out_projection} = double_layers.*.mlpX.{c_fc1,c_fc2,c_proj}
    joint_transformer_blocks.*.ff_context.{linear_1,linear_2,out_projection} = double_layers.*.mlpC.{c_fc1,c_fc2,c_proj}
    joint_transformer_blocks.*.{norm1,norm1_context}.linear = double_layers.*.{modX,modC}.1 6:1
    single_transformer_blocks.*.attn.to_{q,k,v,out.0} = single_layers.*.attn.w1{q,k,v,o} 1:1
    single_transformer_blocks.*.ff.{linear_1,linear_2,out_projection} = single_layers.*.mlp.{c_fc1,c_fc2,c_proj}
    single_transformer_blocks.*.norm1.linear = single_layers.*.modCX.1 6:1
    context_embedder = cond_seq_linear
    time_step_proj.linear_{1,2} = t_embedder.mlp.{0,2}
    pos_embed.proj = init_x_linear
    proj_out = final_linear
    norm_out.linear = modF.1 turned 2:1
    """,  # noqa: E501
    said=r"aura\W?flow|pony\W?v?7",
    blocks={"joint_transformer_blocks": 4, "single_transformer_blocks": 32},
    widths={3072: "6.8B"},
    converter="convert_auraflow_transformer_checkpoint_to_diffusers",
    model="AuraFlowTransformer2DModel",
)
