"""The text encoders that adapters are trained on, under transformers' names: CLIP and T5."""

from __future__ import annotations

from collections.abc import Iterator

CLIP_LAYERS, T5_LAYERS = 32, 24  # at most: the larger CLIP of SDXL, T5-XXL


def clip() -> Iterator[str]:
    """The modules of CLIP's text model."""
    yield "text_projection"
    yield "text_model.final_layer_norm"
    yield from (f"text_model.embeddings.{each}_embedding" for each in ("token", "position"))
    for layer in range(CLIP_LAYERS):
        here = f"text_model.encoder.layers.{layer}"
        yield from (f"{here}.self_attn.{each}_proj" for each in ("q", "k", "v", "out"))
        yield from (f"{here}.{each}" for each in ("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"))


def t5() -> Iterator[str]:
    """The modules of T5's encoder."""
    yield from ("shared", "encoder.final_layer_norm")
    for block in range(T5_LAYERS):
        here = f"encoder.block.{block}.layer"
        yield from (f"{here}.0.SelfAttention.{each}" for each in "qkvo")
        yield from (f"{here}.1.DenseReluDense.{each}" for each in ("wi", "wi_0", "wi_1", "wo"))
        yield from (f"{here}.{place}.layer_norm" for place in (0, 1))
