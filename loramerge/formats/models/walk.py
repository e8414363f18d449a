"""Stable Diffusion's layers in the order in which cloneofsimo's library met them, which is all its files say.

The library walks the model's modules and counts the linear layers (in its extended form convolutions too)
inside modules of certain classes. A file is given names only if its shapes are those of a whole walk, one
by one: Stable Diffusion 1 and 2 (`context` 768 and 1024), before and after diffusers moved the feed-forward
layer behind the second attention. The queries, keys and values of one attention have one shape: that they
come in this order follows from the library, not from the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

Shape = tuple[int, ...]
Place = tuple[str, Shape]  # module path, shape of its weight

WIDTHS = (320, 640, 1280, 1280)  # of the four levels of the U-Net
TIME = 1280
CONTEXTS = (768, 1024)
TEXT = ((12, 768), (23, 1024))  # layers and width of the text encoders


def named(component: str, shapes: Sequence[Shape]) -> list[str] | None:
    """The module paths of all layers of a component, if a known walk has just these shapes.

    >>> named("text_encoder", [(768, 768)] * 48)[:2]
    ['text_model.encoder.layers.0.self_attn.k_proj', 'text_model.encoder.layers.0.self_attn.v_proj']
    >>> named("text_encoder", [(768, 768)] * 47)
    """
    for walk in _walks(component):
        if [shape for _, shape in walk] == [tuple(shape) for shape in shapes]:
            return [path for path, _ in walk]
    return None


def walked(component: str, names: Iterable[str]) -> list[str] | None:
    """The same paths in the order of a walk that meets just these; of several, that of the library's time.

    >>> walked("text_encoder", ["text_model.encoder.layers.0.self_attn.q_proj"])
    """
    wanted = set(names)
    for walk in _walks(component):
        if len(walk) == len(wanted) and all(path in wanted for path, _ in walk):
            return [path for path, _ in walk]
    return None


def _walks(component: str) -> Iterator[list[Place]]:
    if component == "text_encoder":
        yield from (list(_text(layers, width)) for layers, width in TEXT)
    if component == "unet":
        options = product(CONTEXTS, (False, True), (False, True), (True, False))
        yield from (list(_unet(*each)) for each in options)


def _text(layers: int, width: int) -> Iterator[Place]:
    for layer in range(layers):
        path = f"text_model.encoder.layers.{layer}.self_attn"
        yield from ((f"{path}.{side}_proj", (width, width)) for side in ("k", "v", "q", "out"))


def _unet(context: int, late: bool, residual: bool, gated: bool) -> Iterator[Place]:
    """`late`: the feed-forward layer comes last. `residual`, `gated`: with ResnetBlock2D, with GEGLU."""

    def attentions(block: str, count: int, width: int) -> Iterator[Place]:
        for each in range(count):
            yield from _transformer(
                f"{block}.attentions.{each}.transformer_blocks.0", width, context, late, gated
            )

    def resnets(block: str, widths: Sequence[tuple[int, int]]) -> Iterator[Place]:
        for each, (ins, outs) in enumerate(widths if residual else ()):
            yield from _resnet(f"{block}.resnets.{each}", ins, outs)

    before = WIDTHS[0]
    skips = [before]
    for level, width in enumerate(WIDTHS):
        block = f"down_blocks.{level}"
        yield from attentions(block, 2 if level < 3 else 0, width)
        yield from resnets(block, [(before, width), (width, width)])
        skips += [width, width, *([width] if level < 3 else [])]
        before = width
    for level, width in enumerate(reversed(WIDTHS)):
        block = f"up_blocks.{level}"
        yield from attentions(block, 3 if level else 0, width)
        yield from resnets(block, [(each + skips.pop(), width) for each in (before, width, width)])
        before = width
    yield from attentions("mid_block", 1, WIDTHS[-1])
    yield from resnets("mid_block", [(WIDTHS[-1], WIDTHS[-1])] * 2)


def _transformer(path: str, width: int, context: int, late: bool, gated: bool) -> Iterator[Place]:
    first, second = _attention(f"{path}.attn1", width, width), _attention(f"{path}.attn2", width, context)
    feed = [(f"{path}.ff.net.0.proj", (8 * width, width))] if gated else []
    yield from (*first, *second, *feed) if late else (*first, *feed, *second)


def _attention(path: str, width: int, source: int) -> list[Place]:
    ins = {"to_q": width, "to_k": source, "to_v": source, "to_out.0": width}
    return [(f"{path}.{side}", (width, each)) for side, each in ins.items()]


def _resnet(path: str, ins: int, outs: int) -> Iterator[Place]:
    yield f"{path}.conv1", (outs, ins, 3, 3)
    yield f"{path}.time_emb_proj", (outs, TIME)
    yield f"{path}.conv2", (outs, outs, 3, 3)
    if ins != outs:
        yield f"{path}.conv_shortcut", (outs, ins, 1, 1)
