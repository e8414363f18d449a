"""HiDream-I1: all tools use one set of names."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

HIDREAM = Family(
    "hidream",
    "HiDream",
    """
    {double,single}_stream_blocks.*.block.attn1.{to_q,to_k,to_v,to_out} 1:1
    double_stream_blocks.*.block.attn1.{to_q_t,to_k_t,to_v_t,to_out_t} 1:1
    {double,single}_stream_blocks.*.block.ff_i.shared_experts.{w1,w2,w3}
    {double,single}_stream_blocks.*.block.ff_i.experts.*.{w1,w2,w3}
    double_stream_blocks.*.block.ff_t.{w1,w2,w3}
    {double,single}_stream_blocks.*.block.adaLN_modulation.1
    caption_projection.*.linear
    t_embedder.timestep_embedder.linear_{1,2}
    p_embedder.pooled_embedder.linear_{1,2}
    x_embedder.proj
    final_layer.{linear,adaLN_modulation.1}
    """,
    said=r"hidream",
    blocks={"double_stream_blocks": 16, "single_stream_blocks": 32},
    widths={2560: "17B"},
    variants={"model": tuple((name, word(name)) for name in ("Full", "Dev", "Fast", "E1"))},
    converter="convert_hidream_transformer_to_diffusers",
    model="HiDreamImageTransformer2DModel",
)
