"""The text encoders that adapters are trained on, under transformers' names: CLIP, T5, and decoders.

Decoders are Qwen3 0.6B of Anima, and Gemma 2 of Lumina 2.
"""

from __future__ import annotations

from collections.abc import Iterator

CLIP_LAYERS, T5_LAYERS, DECODER_LAYERS = 32, 24, 28  # at most: SDXL's larger CLIP, T5-XXL, Qwen3 0.6B


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


def decoder() -> Iterator[str]:
    """The modules of Qwen3 and Gemma 2 without what stands before their layers."""
    for layer in range(DECODER_LAYERS):
        yield from (f"layers.{layer}.self_attn.{each}_proj" for each in "qkvo")
        yield from (f"layers.{layer}.mlp.{each}_proj" for each in ("gate", "up", "down"))
