"""What stands before the layers of a model: `model.`, `model.language_model.`, or nothing.

The whole model, the part that AutoModel loads, and the language model inside one that sees call the same
layers differently, and transformers has moved them. Two such stems are one if they differ by wrappers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYERS = re.compile(  # the first list of layers in a path, and all after it
    r"(?:^|(?<=\.))(?:layers|layer|h|blocks|block|resblocks|stages)\.\d+(?:\.|$)", re.DOTALL
)
NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
WRAPS = {"model", "language_model", "thinker", "llm"}
MODELS = set(  # what the class of a task calls the model inside it
    "bert roberta xlm_roberta camembert electra deberta distilbert albert mpnet esm transformer gpt_neox vit "
    "deit beit dinov2 swin hubert wav2vec2 whisper rwkv backbone".split()
)
TOWERS = set(  # parts of one model that have layers of their own
    "visual vision_tower vision_model vision_encoder image_encoder audio_tower audio_encoder encoder decoder "
    "language_model text_model qformer talker multi_modal_projector".split()
)
DECODERS = (  # the names of one language model, that of the newest transformers first
    "model.language_model", "language_model.model", "model.llm", "llm.model", "thinker.model.language_model",
    "thinker.model", "language_model", "llm", "model",
)  # fmt: skip
BESIDE = set(  # modules beside the layers that many models have
    "embed_tokens embed_in wte wpe shared lm_head embed_out score classifier v_head summary norm ln_f".split()
)
INSIDE = set(  # modules beside the layers, in the same stem
    "embed_tokens embed_in embeddings wte wpe embed_positions norm final_layer_norm ln_f".split()
)


def parted(path: str) -> tuple[str, str]:
    """(stem, the rest) of a path; a module that is in no layer and no known place beside them has no stem.

    >>> parted("model.language_model.layers.0.mlp.up_proj")
    ('model.language_model', 'layers.0.mlp.up_proj')
    >>> parted("model.visual.merger.mlp.0"), parted("lm_head")
    (('model.visual', 'merger.mlp.0'), ('', 'lm_head'))
    """
    found = LAYERS.search(path)
    if found is not None:
        return path[: found.start()].rstrip("."), path[found.start() :]
    stem, _, last = path.rpartition(".")
    if last in INSIDE:
        return stem, last
    parts = path.split(".")
    ends = [i + 1 for i, part in enumerate(parts[:-1]) if part in TOWERS and part not in WRAPS]
    return (".".join(parts[: ends[0]]), ".".join(parts[ends[0] :])) if ends else ("", path)


def place(path: str) -> tuple[tuple[str, ...], str]:
    """Which list of layers a module is in, whatever stands before it; or that it lies beside them.

    >>> place("bert.encoder.layer.0.output.dense"), place("encoder.layer.0.output.dense")
    ((('encoder',), 'layer'), (('encoder',), 'layer'))
    """
    stem, rest = parted(path)
    return core(stem), rest.partition(".")[0] if layered(path) else ""


def layered(path: str) -> bool:
    """Whether a module is in a layer."""
    return LAYERS.search(path) is not None


def unnumbered(path: str) -> str:
    """A path with `*` for every number."""
    return NUMBER.sub("*", path)


def core(stem: str) -> tuple[str, ...]:
    """A stem without wrappers: what tells two lists of layers of one model apart.

    >>> core("model.language_model"), core("bert.encoder"), core("model.vision_tower.vision_model.encoder")
    ((), ('encoder',), ('vision_tower', 'encoder'))
    """
    parts = [part for part in stem.split(".") if part and part not in WRAPS]
    while parts and parts[0] in MODELS:
        parts = parts[1:]
    towers = parts[:1] if parts[:1] and parts[0].startswith("vision_") else []
    return (*towers, *(part for part in parts[len(towers) :] if not (towers and part == "vision_model")))


def best(stems: Iterable[str]) -> str:
    """The stem that the whole model has in the newest transformers, from the stems of one list of layers.

    >>> best(["model", "model.language_model", ""])
    'model.language_model'
    """
    return min(stems, key=_order)


def _order(stem: str) -> tuple[int, int, str]:
    known = DECODERS.index(stem) if stem in DECODERS else len(DECODERS)
    return (known if not core(stem) else 0), -(stem.count(".") + bool(stem)), stem
