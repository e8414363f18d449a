"""Flux: diffusers' names, the first names, and which of these are several of diffusers' in one.

`img_attn.qkv` holds the rows of to_q, to_k and to_v; `linear1` of a single block these and the MLP's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from loramerge.formats.models.family import Family, word

DOUBLE, SINGLE = 19, 38

IN_DOUBLE = {  # diffusers' name in transformer_blocks.N -> the first name in double_blocks.N
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
IN_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
AROUND = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}


def modules() -> Iterator[tuple[str, str]]:
    """(diffusers' name, first name) of the modules that both have."""
    yield "x_embedder", "img_in.proj"  # as OneTrainer calls it; the first name follows
    yield from AROUND.items()
    for block in range(DOUBLE):
        for ours, theirs in IN_DOUBLE.items():
            yield f"transformer_blocks.{block}.{ours}", f"double_blocks.{block}.{theirs}"
    for block in range(SINGLE):
        for ours, theirs in IN_SINGLE.items():
            yield f"single_transformer_blocks.{block}.{ours}", f"single_blocks.{block}.{theirs}"


def fused() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(first name, diffusers' names of its rows, in their order)."""
    yield "final_layer.adaLN_modulation.1", ("norm_out.linear",)
    for block in range(DOUBLE):
        here = f"transformer_blocks.{block}.attn"
        yield f"double_blocks.{block}.img_attn.qkv", tuple(f"{here}.to_{x}" for x in "qkv")
        yield f"double_blocks.{block}.txt_attn.qkv", tuple(f"{here}.add_{x}_proj" for x in "qkv")
    for block in range(SINGLE):
        here = f"single_transformer_blocks.{block}"
        attention = tuple(f"{here}.attn.to_{x}" for x in "qkv")
        yield f"single_blocks.{block}.linear1", (*attention, f"{here}.proj_mlp")


def rows(first: str, outs: int, ins: int) -> list[list[slice]]:
    """Which rows of a fused module (outs, ins) are each of diffusers' modules.

    diffusers keeps the two halves of the last modulation (shift, scale) the other way round.

    >>> rows("single_blocks.0.linear1", 7, 1)[3]
    [slice(3, 7, None)]
    """
    if first.startswith("final_layer"):
        return [[slice(outs // 2, outs), slice(0, outs // 2)]]
    step = ins if first.endswith("linear1") else outs // 3
    ends = [0, step, 2 * step, 3 * step, *([outs] if first.endswith("linear1") else [])]
    return [[slice(start, stop)] for start, stop in pairwise(ends)]


def _lines() -> Iterator[str]:
    """The rules for the names above."""
    double, single = "transformer_blocks.*", "single_transformer_blocks.*"
    yield f"{double}.attn.to_{{q,k,v}} = double_blocks.*.img_attn.qkv 3:1"
    yield f"{double}.attn.add_{{q,k,v}}_proj = double_blocks.*.txt_attn.qkv 3:1"
    yield f"{single}.attn.to_{{q,k,v}} {single}.proj_mlp = single_blocks.*.linear1 square 7:1"
    for ours, theirs in IN_DOUBLE.items():
        yield f"{double}.{ours} = double_blocks.*.{theirs} {RATIOS.get(theirs, '')}"
    for ours, theirs in IN_SINGLE.items():
        yield f"{single}.{ours} = single_blocks.*.{theirs} {RATIOS.get(theirs, '')}"
    yield from (f"{ours} = {theirs}" for ours, theirs in AROUND.items())
    yield "norm_out.linear = final_layer.adaLN_modulation.1 turned 2:1"


RATIOS = {f"{side}_mlp.{n}": ratio for side in ("img", "txt") for n, ratio in ((0, "4:1"), (2, "1:4"))}
RATIOS |= {"linear2": "1:5", "img_mod.lin": "6:1", "txt_mod.lin": "6:1", "modulation.lin": "3:1"}
RATIOS |= {"img_attn.proj": "1:1", "txt_attn.proj": "1:1"}
BLOCKS = {"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE}
FLUX = Family(
    "flux.1",
    "Flux.1",
    "\n".join(_lines()),
    said=r"flux(?![\W_]?[23])([\W_]?1?[\W_]?(dev|schnell|krea|fill))?|(flux[\W_]?1?[\W_]?)?kontext",
    others={"onetrainer": "x_embedder = img_in.proj"},
    blocks=BLOCKS,
    widths={3072: "12B"},
    variants={
        "model": (
            ("Kontext", r"kontext"),
            ("Fill", word("fill")),
            ("Redux", word("redux")),
            ("Krea", word("krea")),
            ("schnell", r"schnell"),
            ("dev", rf"(?s)\A(?!.*(kontext|{word('fill')}|{word('redux')}|krea)).*{word('(flux)?1?dev')}"),
        )
    },
    shows={"model": (("Fill", r"^x_embedder \d+x384 "), ("Canny or Depth", r"^x_embedder \d+x128 "))},
    converter="convert_flux_transformer_checkpoint_to_diffusers",
    model="FluxTransformer2DModel",
)
