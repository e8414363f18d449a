"""An embedding's pair in PEFT: of a table that is kept as (dim, tokens).

    ΔW = lora_embedding_B @ lora_embedding_A        (dim, r) and (r, tokens)

The base's own table is its transpose.
"""

from __future__ import annotations

from loramerge.formats.forms.checks import unlike
from loramerge.formats.forms.form import Form, Given, Parts, Update


def make(parts: Parts, given: Given) -> Update:
    """The pair as it is stored."""
    up, down = parts["embedding_B"], parts["embedding_A"]
    if not len(up.shape) == len(down.shape) == 2 or up.shape[1] != down.shape[0]:
        raise unlike(given.where, up, down)
    return Update(up, down, down.shape[0], kind="embedding")


EMBEDDING = Form(
    name="embedding",
    words="LoRA of an embedding",
    formula="`(B @ A)ᵀ`",
    units="r",
    make=make,
    peft={"embedding_A": ("lora_embedding_A",), "embedding_B": ("lora_embedding_B",)},
    must=("embedding_A", "embedding_B"),
    types={"LORA": "lora_alpha"},
    linear=(("embedding_A",), ("embedding_B",)),
    told=False,
)
