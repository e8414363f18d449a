"""HunyuanVideo: ComfyUI has Flux.1's names for it, its authors and their trainers others."""

from __future__ import annotations

from loramerge.formats.models.family import Family, word

_BESIDE = """
    context_embedder.proj_in = txt_in.input_embedder
    context_embedder.token_refiner.refiner_blocks.*.ff.net.{{0.proj,2}} = {1}.mlp.{3}
    context_embedder.time_text_embed.timestep_embedder.linear_{{1,2}} = txt_in.t_embedder.{4}
    context_embedder.time_text_embed.text_embedder.linear_{{1,2}} = txt_in.c_embedder.{5}
    time_text_embed.{{timestep,guidance}}_embedder.linear_1 = {{time,guidance}}_in.{6}
    time_text_embed.{{timestep,guidance}}_embedder.linear_2 = {{time,guidance}}_in.{7}
    time_text_embed.text_embedder.linear_{{1,2}} = vector_in.{{in,out}}_layer
    {0}.to_out.0 = {1}.self_attn{2}proj 1:1
    {0}.to_{{q,k,v}} = {1}.self_attn{2}qkv 3:1
    context_embedder.token_refiner.refiner_blocks.*.norm_out.linear = {1}.adaLN_modulation.1 2:1
    proj_out = final_layer.linear
    norm_out.linear = final_layer.adaLN_modulation.1 turned 2:1
"""
_REFINER = (
    "context_embedder.token_refiner.refiner_blocks.*.attn",
    "txt_in.individual_token_refiner.blocks.*",
)
_FIRST = """
    transformer_blocks.*.attn.to_{q,k,v} = double_blocks.*.img_attn.qkv 3:1
    transformer_blocks.*.attn.add_{q,k,v}_proj = double_blocks.*.txt_attn.qkv 3:1
    transformer_blocks.*.attn.to_{out.0,add_out} = double_blocks.*.{img,txt}_attn.proj 1:1
    transformer_blocks.*.{ff,ff_context}.net.0.proj = double_blocks.*.{img,txt}_mlp.0 4:1
    transformer_blocks.*.{ff,ff_context}.net.2 = double_blocks.*.{img,txt}_mlp.2 1:4
    transformer_blocks.*.{norm1,norm1_context}.linear = double_blocks.*.{img,txt}_mod.lin 6:1
    single_transformer_blocks.*.attn.to_{q,k,v} single_transformer_blocks.*.proj_mlp = single_blocks.*.linear1 square 7:1
    single_transformer_blocks.*.proj_out = single_blocks.*.linear2 1:5
    single_transformer_blocks.*.norm.linear = single_blocks.*.modulation.lin 3:1
"""  # noqa: E501
_MADE = {"_attn.qkv": "_attn_qkv", "_attn.proj": "_attn_proj", "_mlp.0": "_mlp.fc1", "_mlp.2": "_mlp.fc2"}
_MADE |= {"_mod.lin": "_mod.linear", "modulation.lin": "modulation.linear"}


def _authors() -> str:
    lines = _FIRST
    for first, theirs in _MADE.items():
        lines = lines.replace(f"{first} ", f"{theirs} ")
    return lines + _BESIDE.format(*_REFINER, "_", "{fc1,fc2}", "mlp.{0,2}", "linear_{1,2}", "mlp.0", "mlp.2")


HUNYUAN_VIDEO = Family(
    "hunyuan-video",
    "HunyuanVideo",
    _FIRST
    + _BESIDE.format(*_REFINER, ".", "{0,2}", "{in,out}_layer", "{in,out}_layer", "in_layer", "out_layer"),
    said=r"hunyuan(?![\W_]?(video)?[\W_]?1[._]5|[\W_]?(image|dit|3d))(video)?|framepack",
    others={"authors": _authors()},
    blocks={
        "transformer_blocks": 20,
        "single_transformer_blocks": 40,
        "context_embedder.token_refiner.refiner_blocks": 2,
    },
    widths={3072: "13B"},
    variants={"task": (("I2V", word("i2v")), ("T2V", word("t2v"))), "model": (("FramePack", r"framepack"),)},
    converter="convert_hunyuan_video_transformer_to_diffusers",
    model="HunyuanVideoTransformer3DModel",
)
