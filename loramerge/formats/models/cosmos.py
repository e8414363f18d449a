"""Cosmos-Predict 2, and Anima, which is trained from it and has a text adapter of its own."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

COSMOS = Family(
    "cosmos",
    "Cosmos or Anima",
    """
    transformer_blocks.*.attn1.to_{q,k,v,out.0} = blocks.*.self_attn.{q,k,v,output}_proj 1:1
    transformer_blocks.*.attn2.to_{q,out.0} = blocks.*.cross_attn.{q,output}_proj 1:1
    transformer_blocks.*.attn2.to_{k,v} = blocks.*.cross_attn.{k,v}_proj 2:1|4:1|5:1
    transformer_blocks.*.ff.net.0.proj = blocks.*.mlp.layer1 4:1
    transformer_blocks.*.ff.net.2 = blocks.*.mlp.layer2 1:4
    transformer_blocks.*.norm1.linear_{1,2} = blocks.*.adaln_modulation_self_attn.{1,2}
    transformer_blocks.*.norm2.linear_{1,2} = blocks.*.adaln_modulation_cross_attn.{1,2}
    transformer_blocks.*.norm3.linear_{1,2} = blocks.*.adaln_modulation_mlp.{1,2}
    time_embed.t_embedder.linear_{1,2} = t_embedder.1.linear_{1,2}
    patch_embed.proj = x_embedder.proj.1
    norm_out.linear_{1,2} = final_layer.adaln_modulation.{1,2}
    proj_out = final_layer.linear
    text_conditioner.blocks.*.self_attn.{q,k,v,o}_proj = llm_adapter.blocks.*.self_attn.{q,k,v,o}_proj 1:1
    text_conditioner.blocks.*.cross_attn.{q,o}_proj = llm_adapter.blocks.*.cross_attn.{q,o}_proj 1:1
    text_conditioner.blocks.*.cross_attn.{k,v}_proj = llm_adapter.blocks.*.cross_attn.{k,v}_proj
    text_conditioner.blocks.*.mlp.0 = llm_adapter.blocks.*.mlp.0 4:1
    text_conditioner.blocks.*.mlp.2 = llm_adapter.blocks.*.mlp.2 1:4
    text_conditioner.{in,out}_proj = llm_adapter.{in,out}_proj
    """,
    said=rf"cosmos|{word('anima')}",
    blocks={"transformer_blocks": 36, "text_conditioner.blocks": 6},
    widths={2048: "2B", 4096: "7B", 5120: "14B"},
    depths={"2B": {"transformer_blocks": 28}, "7B": {"transformer_blocks": 28}},
    variants={"name": (("Anima", word("anima")), ("Cosmos", word("cosmos")))},
    shows={"name": (("Anima", r"^(text_conditioner|llm_adapter)\."),)},
    converter="convert_cosmos_transformer_checkpoint_to_diffusers",
    model="CosmosTransformer3DModel",
    beside={"text_conditioner": "AnimaTextConditioner"},
)
