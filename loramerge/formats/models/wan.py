"""Wan 2.1 and 2.2: video from text or an image."""

from __future__ import annotations

import re

from loramerge.formats.models.family import Family, word

_NOUNS = (  # what is high or low in names of styles
    "quality|res|resolution|details?|detailed|def|definition|contrast|key|angle|speed|poly|fidelity|fps|v?ram|heels?"
    "|fashion|school|light|motion|dynamic|saturation|end|level|strength|rise|cut|waist|tech|fantasy"
)
_NOT = rf"(?![\W_]*({_NOUNS})(?![a-zA-Z]))"
_NEXT = (  # what stands behind the name of a file's half: nothing, a number, a word of trainers
    r"\d|\Z|\n|(v|r|e|a|fp|bf|rank|dim|epoch)\d|(loras?|model|rank|dim|epochs?|steps?|wan|[ti]2v|ti2v|lightning"
    r"|lightx2v|checkpoint|ckpt|final|last|comfy|distill(ed)?)(?![a-zA-Z])"
)
_22 = r"wan[\W_]?(video[\W_]?)?2[\W_]?2(?!\d)"  # the version that has two models
_HIGH, _LOW = ("high", "hn"), ("low", "ln")


def _half(own: tuple[str, str], other: tuple[str, str]) -> str:
    """A pattern for one of the two models of Wan 2.2.

    "High" is a word of every day. Alone it counts where Wan 2.2 is said, or where no noun follows.
    """
    alone, named = word(*own), word(rf"{own[0]}[\W_]?noise")
    either = rf".*{alone}(?=[\W_]*({_NEXT}))|(?=.*{_22}).*{alone}{_NOT}"
    return rf"(?s:{named}|\A(?!.*{word(*other)}{_NOT})({either}))"


NAMES = """
    blocks.*.attn1.{to_q,to_k,to_v,to_out.0} = blocks.*.self_attn.{q,k,v,o} 1:1
    blocks.*.attn2.{to_q,to_k,to_v,to_out.0} = blocks.*.cross_attn.{q,k,v,o} 1:1
    blocks.*.attn2.{add_k_proj,add_v_proj} = blocks.*.cross_attn.{k_img,v_img} 1:1
    blocks.*.ffn.net.{0.proj,2} = blocks.*.ffn.{0,2}
    patch_embedding = patch_embedding
    condition_embedder.{time,text}_embedder.linear_1 = {time,text}_embedding.0
    condition_embedder.{time,text}_embedder.linear_2 = {time,text}_embedding.2
    condition_embedder.time_proj = time_projection.1 6:1
    condition_embedder.image_embedder.ff.net.{0.proj,2} = img_emb.proj.{1,3}
    proj_out = head.head
"""

SHOWS = {  # by a second attention to the image, and by the channels that a patch has
    "task": (
        ("I2V", r"k_img|add_k_proj|^patch_embedding \d+x144 "),
        ("T2V", r"^patch_embedding \d+x64 "),
        ("TI2V", r"^patch_embedding \d+x192 "),
    )
}

WAN = Family(
    "wan",
    "Wan",
    NAMES,
    said=r"wan\W?(ai|video|2|_?[ti]2v|t2v|i2v)|\bwan\b",
    blocks={"blocks": 40},
    widths={1536: "1.3B", 3072: "5B", 5120: "14B"},
    depths={"1.3B": {"blocks": 30}, "5B": {"blocks": 30}},
    variants={
        "version": (("2.2", _22), ("2.1", r"wan[\W_]?(video[\W_]?)?2[\W_]?1(?!\d)")),
        "noise": (
            ("high noise", _half(_HIGH, _LOW)),
            ("low noise", _half(_LOW, _HIGH)),
        ),
        "task": (("TI2V", word("ti2v")), ("I2V", word("i2v")), ("T2V", word("t2v"))),
        "size": tuple((size, word(rf"(?<![\d.])a?{re.escape(size)}")) for size in ("1.3B", "5B", "14B")),
    },
    shows=SHOWS,
    converter="convert_wan_transformer_to_diffusers",
    model="WanTransformer3DModel",
)
