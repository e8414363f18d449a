"""The U-Nets of Stable Diffusion 1, 2 and XL: every module under diffusers' name and under its first name.

The first names count all layers of one side through, so that layer `l` of block `b` is number 3b + l there:
two residual layers and a sampler in each block going down, three layers going up.
"""

from __future__ import annotations

from collections.abc import Iterator

DEPTH = 10  # transformer blocks in one attention, at most (SDXL); Stable Diffusion 1 and 2 have one
BLOCKS = range(4)

ATTENTION = [
    "norm",
    "proj_in",
    "proj_out",
    *(
        f"transformer_blocks.{depth}.{leaf}"
        for depth in range(DEPTH)
        for leaf in [
            *(f"attn{i}.{each}" for i in (1, 2) for each in ("to_q", "to_k", "to_v", "to_out.0")),
            "ff.net.0.proj",
            "ff.net.2",
            *(f"norm{i}" for i in (1, 2, 3)),
        ]
    ),
]
RESIDUAL = {  # diffusers' name -> the first name
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
THREE_BY_THREE = ("conv_in", "conv_out", "conv1", "conv2", "conv")


def modules() -> Iterator[tuple[str, str]]:
    """(diffusers' name, first name); where there are several first names, SDXL's comes last."""
    yield from AROUND.items()
    for block in BLOCKS:
        for layer in range(2):
            yield from _layer(f"down_blocks.{block}", layer, f"input_blocks.{3 * block + layer + 1}")
        yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{3 * block + 3}.0.op"
        for layer in range(3):
            yield from _layer(f"up_blocks.{block}", layer, f"output_blocks.{3 * block + layer}")
        for place in (1, 2):  # after the attention, where the block has one
            yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{3 * block + 2}.{place}.conv"
    yield from _attention("mid_block.attentions.0", "middle_block.1")
    yield from _residual("mid_block.resnets.0", "middle_block.0")
    yield from _residual("mid_block.resnets.1", "middle_block.2")


def _layer(block: str, layer: int, first: str) -> Iterator[tuple[str, str]]:
    yield from _residual(f"{block}.resnets.{layer}", f"{first}.0")
    yield from _attention(f"{block}.attentions.{layer}", f"{first}.1")


def _residual(name: str, first: str) -> Iterator[tuple[str, str]]:
    return ((f"{name}.{ours}", f"{first}.{theirs}") for ours, theirs in RESIDUAL.items())


def _attention(name: str, first: str) -> Iterator[tuple[str, str]]:
    return ((f"{name}.{leaf}", f"{first}.{leaf}") for leaf in ATTENTION)


def kernel(path: str) -> tuple[int, ...]:
    """The kernel of a convolution, by its name; () for other modules, and where a model decides (proj_in)."""
    last = path.rpartition(".")[2]
    return (3, 3) if last in THREE_BY_THREE else (1, 1) if last == "conv_shortcut" else ()
