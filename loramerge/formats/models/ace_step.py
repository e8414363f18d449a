"""ACE-Step: songs. The first version has names of its own; 1.5 is a decoder with Llama's."""

from __future__ import annotations

from loramerge.formats.models.family import Family

ACE_STEP = Family(
    "ace-step-1.5",
    "ACE-Step 1.5",
    """
    layers.*.{self_attn,cross_attn}.to_{q,k,v,out.0} = layers.*.{self_attn,cross_attn}.{q,k,v,o}_proj
    layers.*.mlp.{gate,up,down}_proj
    {time_embed,time_embed_r}.{linear_1,linear_2,time_proj}
    condition_embedder
    """,
    said=r"ace\W?step\W?(v?1\W?5)?",
    blocks={"layers": 32},
    widths={2048: "2B"},
    tells=r"cross_attn|time_embed|self_attn.to_",
    model="AceStepTransformer1DModel",
)
ACE_STEP_1 = Family(
    "ace-step-1",
    "ACE-Step 1",
    """
    transformer_blocks.*.{attn,cross_attn}.to_{q,k,v,out.0} 1:1
    transformer_blocks.*.cross_attn.{add_q,add_k,add_v}_proj
    transformer_blocks.*.cross_attn.to_add_out
    transformer_blocks.*.ff.{inverted,depth,point}_conv.conv
    lyric_encoder.encoders.*.self_attn.linear_{q,k,v,out}
    lyric_encoder.encoders.*.feed_forward.w_{1,2}
    {speaker,genre}_embedder
    lyric_embs
    lyric_proj
    timestep_embedder.linear_{1,2}
    t_block.1
    """,
    said=r"ace\W?step\W?v?1?(?!\W?5)",
    blocks={"transformer_blocks": 24},
    widths={2560: "3.5B"},
    tells=r"cross_attn|lyric|speaker|genre",
)
