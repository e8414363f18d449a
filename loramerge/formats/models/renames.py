"""What transformers and others have renamed: the same modules before and after.

A family's old names are rewritten only where another source has its new ones; a line of one name alone is
such a new name and nothing more. Experts are told apart here as modules: `experts.3.gate_up_proj`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from loramerge.formats.models.templates import Template, templates

_FUSED = "{gate_up_proj,gate_proj,up_proj,down_proj}"

FAMILIES: Mapping[str, tuple[Template, ...]] = {
    "ViT": templates("""
        encoder.layer.*.attention.attention.{query,key,value} layers.*.attention.{q_proj,k_proj,v_proj}
        encoder.layer.*.attention.output.dense layers.*.attention.o_proj
        encoder.layer.*.intermediate.dense layers.*.mlp.fc1
        encoder.layer.*.output.dense layers.*.mlp.fc2
        encoder.layer.*.{layernorm_before,layernorm_after} layers.*.{layernorm_before,layernorm_after}
    """),
    "DINOv2": templates("""
        attention.attention.{query,key,value} attention.{q_proj,k_proj,v_proj}
        encoder.layer.*.attention.output.dense encoder.layer.*.attention.o_proj
        mlp.weights_out mlp.down_proj
    """),
    "Swin": templates("""
        blocks.*.attention.self.{query,key,value} blocks.*.attention.{q_proj,k_proj,v_proj}
        blocks.*.attention.output.dense blocks.*.attention.o_proj
        blocks.*.{intermediate,output}.dense blocks.*.mlp.{fc1,fc2}
    """),
    "Segformer": templates("""
        encoder.block.*.*.attention.self.{query,key,value} stages.*.blocks.*.attention.{q_proj,k_proj,v_proj}
        encoder.block.*.*.attention.output.dense stages.*.blocks.*.attention.o_proj
        encoder.block.*.*.mlp.{dense1,dense2} stages.*.blocks.*.mlp.{fc1,fc2}
    """),
    "DETR": templates("""
        layers.*.self_attn.out_proj layers.*.self_attn.o_proj
        layers.*.encoder_attn.out_proj layers.*.encoder_attn.o_proj
        layers.*.{fc1,fc2} layers.*.mlp.{fc1,fc2}
    """),
    "experts by lists": templates(f"""
        experts.{{gate_up_projs,gate_projs,up_projs,down_projs}}.* experts.*.{_FUSED}
        experts.*.{{w1,w2,w3}}
    """),
    "PhiMoE": templates("block_sparse_moe.gate mlp.router"),
    "Mixtral": templates(f"""
        block_sparse_moe.experts.*.{{w1,w2,w3}} mlp.experts.*.{{gate_proj,down_proj,up_proj}}
        block_sparse_moe.experts.*.{_FUSED} mlp.experts.*.{_FUSED}
        block_sparse_moe.gate mlp.gate
        mlp.experts.*.{_FUSED}
    """),
    "experts by w1, w2, w3": templates(f"""
        experts.*.{{w1,w2,w3}} experts.*.{{gate_proj,down_proj,up_proj}}
        experts.*.{_FUSED}
    """),
}

EXPERTS = ("Mixtral", "experts by w1, w2, w3", "experts by lists")  # families that name experts


def old(family: tuple[Template, ...], path: str) -> str | None:
    """The new name of a path that has an old one; None if it has not."""
    found = (each.rewrite(path) for each in family if each.old != each.new)
    return next((name for name in found if name is not None), None)


def newer(path: str) -> set[str]:
    """What an old path may be called now: families differ in that.

    >>> sorted(newer("encoder.layer.0.attention.attention.query"))
    ['encoder.layer.0.attention.q_proj', 'layers.0.attention.q_proj']
    """
    return {name for family in FAMILIES.values() if (name := old(family, path)) is not None}


@lru_cache(maxsize=1 << 13)
def is_new(family: tuple[Template, ...], path: str) -> bool:
    """Whether a path has a new name of a family."""
    return any(each.made(path) for each in family) and old(family, path) is None
