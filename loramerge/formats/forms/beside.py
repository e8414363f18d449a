"""What a module may hold beside its factors. Anything else may change the update in an unknown way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.late import late
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.models.stems import layered, parted

OWN = late(  # the base's own parameters, and what is added to its biases and norms
    r"(?:base_layer\.)*(?:weight|bias)|lora_B\.bias|diff_b|[wb]_norm|(?:token_adapter\.)?trainable_tokens_delta"
)
ADDED = (".diff", ".diff_b", ".w_norm", ".b_norm")  # what image adapters add to biases and norms
# new words' embeddings, and the head of NOLA
WORDS = late(r"<[^<>]*>|bundle_emb\..+|emb_params|clip_[lgh]|t5(?:xxl)?|fc_\d+in_\d+out", re.DOTALL)
ROUTER = late(r"(?:.*\.)?(?:\w+_)?(?:gate|gates|router|route|routing)\.(?:weight|bias)", re.DOTALL)


TOKENS = "trainable_tokens_delta"
KNOWN = late(  # what a module beside the layers is called that is trained as a whole, in any model; and norms
    r"(?:\w+_)?(?:heads?|classifiers?|scorer?|regressor|summary|logits?|pooler|projector|projection|merger)(?:_\w+)?"
    r"|cls|qa_outputs|predictions?|output_layer|proj_out|fc_out|out_proj|unembed|vocab_\w+|fc"
    r"|\w*emb(?:ed\w*|s)?|emb_\w+|w[tp]e|shared|\w*norm\w*|(?:\w+_)?ln(?:_?\w)?",
    re.IGNORECASE,
)  # fmt: skip
NORM = late(r"\w*norm\w*|(?:\w+_)?ln(?:_?\w)?", re.IGNORECASE)


def refuse_inside(keys: Iterable[str], modules: Collection[str], name: str) -> None:
    """Refuse a file with an unknown tensor inside one of these modules, whatever is done with extras.

    Raises:
        IncompatibleError: it has one.
    """
    for key in keys:
        if (end := inside(key, modules)) and not OWN.fullmatch(end):
            raise _unknown(key, " beside the factors of that module", name)


def refuse_around(
    tensors: Mapping[str, Tensor], modules: Collection[str], name: str, biased: bool = False
) -> None:
    """The same of whatever no config lists, unless its name says that it is a head, an embedding, a norm
    or a bias.

    Args:
        biased: the config says that biases are trained.

    Raises:
        IncompatibleError: it has one.
    """
    blocks = {path[: dot.start()] for path in modules for dot in re.finditer(r"\.", path)}
    for key, tensor in tensors.items():
        parent, _, leaf = key.rpartition(".")
        if inside(key, modules):
            continue
        if not OWN.fullmatch(leaf):
            raise _unknown(key, f" beside the modules of {printable(parent) or 'the model'}", name)
        if ROUTER.fullmatch(key):
            raise _unknown(key, " among the modules that it may choose from", name)
        home = parent.rpartition(".")[0]
        if len(tensor.shape) > 1 and home in blocks and layered(home):
            raise _unknown(
                key, f" among the modules of {printable(home)}, and no modules_to_save lists it", name
            )
        if not _recognised(parent, leaf, biased):
            raise _unknown(
                key,
                ", which by its name is no head, embedding or norm, and no modules_to_save lists it",
                name,
            )


def refuse_odd(keys: Iterable[str], modules: Collection[str], name: str) -> None:
    """The same of a file without a config, which lists neither heads nor biases.

    Raises:
        IncompatibleError: it has one.
    """
    for key in keys:
        parent, _, leaf = key.rpartition(".")
        ours = inside(key, modules) or key.endswith(ADDED) or WORDS.fullmatch(key) or leaf == TOKENS
        whole = leaf == "bias" or any(map(KNOWN.fullmatch, parent.split(".")))
        if ROUTER.fullmatch(key) or not (ours or (leaf in ("weight", "bias", "scale") and whole)):
            raise _unknown(key, ", which by its name is no head, embedding, norm or bias", name)


def _recognised(module: str, leaf: str, biased: bool) -> bool:
    """Whether a module that no config lists is one that models have and that is trained as a whole."""
    stem, rest = parted(module)
    if leaf == TOKENS:
        return True
    if layered(module):  # a bias in a layer is the base's own
        return leaf != "weight" or any(map(NORM.fullmatch, rest.split(".")))
    whole = f"{stem}.{rest}".replace(".base_layer", "").strip(".")
    return (biased and leaf == "bias") or any(map(KNOWN.fullmatch, whole.split(".")))


def _unknown(key: str, where: str, name: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(name)} holds {printable(key, 80)}{where}: what it does to the update is not known. "
        "Merge it with the library that wrote it."
    )


def inside(key: str, modules: Collection[str]) -> str:
    """What a key says behind the name of one of these modules; "" if it is in none.

    >>> inside("h.0.q.gate", {"h.0.q"}), inside("h.0.norm.weight", {"h.0.q"})
    ('gate', '')
    """
    ends = (found.start() for found in re.finditer(r"[.:]", key))
    return next((key[end + 1 :] for end in ends if key[:end] in modules), "")
