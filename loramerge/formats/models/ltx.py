"""LTX-Video, and LTX-2, which has sound: every tool uses diffusers' names, but around the blocks."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_EMBEDDED = "{emb.timestep_embedder.linear_1,emb.timestep_embedder.linear_2,linear}"
_2 = r"[\W_]?2(?![\d_.]*b)"  # of LTX-2, and not of `ltxv-2b`
_ATTENTION = "{to_q,to_k,to_v,to_out.0}"
LTX = Family(
    "ltx-video",
    "LTX-Video",
    f"""
    transformer_blocks.*.{{attn1,attn2}}.{_ATTENTION} 1:1
    transformer_blocks.*.ff.net.0.proj 4:1
    transformer_blocks.*.ff.net.2 1:4
    proj_in = patchify_proj
    time_embed.{_EMBEDDED} = adaln_single.{_EMBEDDED}
    caption_projection.linear_1 1:1|1:2
    caption_projection.linear_2 1:1
    proj_out
    """,
    said=rf"ltx[\W_]?(video|v(?!ideo))(?!{_2})|ltx[\W_]?0[._]?9",
    blocks={"transformer_blocks": 48},
    widths={2048: "2B", 4096: "13B"},
    depths={"2B": {"transformer_blocks": 28}},
    converter="convert_ltx_transformer_checkpoint_to_diffusers",
    model="LTXVideoTransformer3DModel",
)
_LATER, _EARLIER = r"to_gate_logits|prompt_adaln", r"caption_projection"  # in LTX-2.3; in LTX-2 before it
_GATES = "{av_cross_attn_video_scale_shift,av_cross_attn_video_a2v_gate,"
_GATES += "av_cross_attn_audio_scale_shift,av_cross_attn_audio_v2a_gate}"
_THEIRS = "{av_ca_video_scale_shift_adaln_single,av_ca_a2v_gate_adaln_single,"
_THEIRS += "av_ca_audio_scale_shift_adaln_single,av_ca_v2a_gate_adaln_single}"
LTX_2 = Family(
    "ltx-2",
    "LTX-2",
    f"""
    transformer_blocks.*.{{attn1,attn2,audio_attn1,audio_attn2}}.{_ATTENTION} 1:1
    transformer_blocks.*.{{audio_to_video_attn,video_to_audio_attn}}.{_ATTENTION}
    transformer_blocks.*.{{attn1,attn2,audio_attn1,audio_attn2,audio_to_video_attn,video_to_audio_attn}}.to_gate_logits
    transformer_blocks.*.{{ff,audio_ff}}.net.0.proj 4:1
    transformer_blocks.*.{{ff,audio_ff}}.net.2 1:4
    {{proj_in,audio_proj_in}} = {{patchify_proj,audio_patchify_proj}}
    time_embed.{_EMBEDDED} = adaln_single.{_EMBEDDED}
    audio_time_embed.{_EMBEDDED} = audio_adaln_single.{_EMBEDDED}
    prompt_adaln.{_EMBEDDED} = prompt_adaln_single.{_EMBEDDED}
    audio_prompt_adaln.{_EMBEDDED} = audio_prompt_adaln_single.{_EMBEDDED}
    {_GATES}.{_EMBEDDED} = {_THEIRS}.{_EMBEDDED}
    caption_projection.linear_1 16:15
    audio_caption_projection.linear_1 8:15
    {{caption_projection,audio_caption_projection}}.linear_2 1:1
    {{proj_out,audio_proj_out}}
    """,
    said=rf"ltx[\W_]?(video|v)?{_2}",
    blocks={"transformer_blocks": 48},
    widths={4096: "19B or 22B"},  # of the video; what is trained without sound may be LTX-Video's
    variants={
        "name": (
            ("LTX-2.3", rf"ltx[\W_]?(video|v)?{_2}[._]?3(?!\d)"),
            ("LTX-2", r"ltx[\W_]?(video|v)?[\W_]?2[\W_]19b"),
        ),
        "size": (("19B", word("19b")), ("22B", word("22b"))),
    },
    shows={
        "name": (("LTX-2.3", _LATER), ("LTX-2", _EARLIER)),
        "size": (("22B", _LATER), ("19B", _EARLIER)),
    },
    untold="LTX-2 or 2.3",
    converter="convert_ltx2_transformer_to_diffusers",
    model="LTX2VideoTransformer3DModel",
)
