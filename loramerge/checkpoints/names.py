"""What transformers calls the tensors of a model whose file has older names, or shorter ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loramerge.formats.models.architectures import architectures
from loramerge.formats.models.stems import layered, parted

NEWER = {  # how a name ended in older files -> how it ends in the model that is loaded from them
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
OLDER = {newer: older for older, newer in NEWER.items()}
INSIDE = {  # what a class with a head calls the model inside it -> types of models
    "transformer": "bloom codegen ctrl falcon gpt2 gpt_bigcode gpt_neo gptj mpt openai-gpt xlnet".split(),
    "model": "gemma gemma2 llama mistral mixtral opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe".split(),
    "roberta": "camembert roberta xlm-roberta".split(),
    "deberta": "deberta deberta-v2".split(),
    **{each: [each] for each in ("albert", "bert", "distilbert", "electra", "esm", "mpnet", "vit")},
}
BY_TYPE = {each: name for name, types in INSIDE.items() for each in types}
# Type -> its head in files, and in the model.
RENAMED_HEADS = {"gpt_neox": ("embed_out.weight", "lm_head.weight")}
WITH_HEAD = ("LMHeadModel", "DoubleHeadsModel", "ForPreTraining")


def newer(key: str) -> str:
    """A name as it is once the model is loaded.

    >>> newer("encoder.layer.0.output.LayerNorm.gamma"), newer("ls.gamma")
    ('encoder.layer.0.output.LayerNorm.weight', 'ls.gamma')
    """
    return _ended(key, NEWER)


def older(key: str) -> str:
    """A name as an older file may have it."""
    return _ended(key, OLDER)


def _ended(key: str, ends: Mapping[str, str]) -> str:
    for end, other in ends.items():
        if key == end or key.endswith(f".{end}"):
            return key.removesuffix(end) + other
    return key


def _is_bare(key: str, name: str) -> bool:
    """Whether a name begins with a list of layers, or with the tower that it is in; or is of none."""
    return not layered(key) or parted(key)[0] in {"", "encoder", "decoder", "transformer"} - {name}


def inside(config: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """What the class of a model puts before these names, where a file leaves it out, as GPT-2's on the Hub.

    None where the config does not name the class.

    >>> inside({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["h.0.ln_1.weight"])
    'transformer.'
    """
    kind = config.get("model_type")
    name = BY_TYPE.get(kind) if isinstance(kind, str) else None
    if name is None or not all(_is_bare(key, name) for key in keys):
        return ""
    classes = architectures(config)
    if not classes:
        return None
    return f"{name}." if any(each.endswith(WITH_HEAD) or "For" in each for each in classes) else ""
