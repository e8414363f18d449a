"""Which spellings of which families the loaders of image models read.

What diffusers reads is held against its own loaders by a test. ComfyUI looks for an adapter under the names
of the tensors that it loads the model from, and under some others; which of these is said only where public
files show it, and the rest is not told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from loramerge.errors import printable
from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.spellings import MET, Met

if TYPE_CHECKING:
    from loramerge.consumers.consumer import Consumer, Finding
    from loramerge.consumers.facts import Facts

LOADERS, OWN, FILES, NONE = "its loaders, run", "tensor names of the model", "public files", "unverified"
_READ = {  # consumer -> spelling, and the families that it reads in it wholly
    "diffusers": """
diffusion_model.: flux.2:first wan:first qwen-image z-image ltx-video ltx-2:first hidream lumina-2:first
diffusion_model.: cosmos:first hunyuan-video:authors
diffusion_model. with alphas: wan:first flux.1:first
lora_unet_: flux.1:first flux.2:first wan:first qwen-image z-image:first z-image chroma:first
transformer.: flux.1 flux.2 chroma sd3 wan qwen-image z-image hunyuan-video ltx-video ltx-2 hidream lumina-2
transformer.: auraflow cosmos cogvideox mochi sana ace-step-1.5 hunyuan-video:authors
transformer_2.: wan
no prefix, default: qwen-image z-image
no prefix, with alphas: qwen-image
base_model.model.: flux.2:first ace-step-1.5:first
""",
    "comfyui": """
diffusion_model.: flux.1:first flux.2:first chroma:first sd3:first wan:first qwen-image z-image:first z-image
diffusion_model.: hunyuan-video:first hunyuan-video:authors ltx-video ltx-2:first hidream lumina-2:first
diffusion_model.: auraflow:first cosmos:first mochi:first pixart:first ace-step-1
diffusion_model. with alphas: wan:first flux.1:first
lora_unet_: flux.1:first flux.2:first chroma:first sd3:first wan:first qwen-image z-image:first
lora_unet_: hunyuan-video:first ltx-video hidream lumina-2:first auraflow:first cosmos:first
lora_unet__: wan:first
lycoris_: qwen-image z-image hidream ace-step-1 flux.1
lora_transformer_: flux.1
transformer.: flux.1 hunyuan-video:authors
transformer. with alphas: flux.1
no prefix, default: qwen-image
no prefix, with alphas: qwen-image
base_model.model.: sd3 pixart
""",
}
_UNTOLD = {  # likewise what nobody can tell
    "comfyui": """
diffusion_model.: sana:first ace-step-1.5:first
lora_unet_: z-image hunyuan-video:authors pixart
lora_transformer_: chroma pixart sd3
lycoris_: flux.2 chroma sd3 z-image:first auraflow ltx-video pixart sana
transformer.: flux.2 chroma wan z-image:first hunyuan-video ltx-video ltx-2 lumina-2 cosmos cogvideox mochi
transformer.: sana ace-step-1 ace-step-1.5 sd3 qwen-image z-image auraflow pixart hidream
transformer_2.: wan
transformer. with alphas: chroma qwen-image
no prefix: qwen-image wan:first z-image ltx-video ace-step-1
no prefix, default: wan:first z-image
base_model.model.: flux.2:first ace-step-1.5:first
""",
}
_TRIPS = {  # a spelling that is read, but for files with such keys
    ("diffusers", "hunyuan-video", "authors"): r"self_attn_qkv",
    ("diffusers", "chroma", "first"): r"distilled_guidance_layer",
}


@cache
def _listed(text: str) -> frozenset[tuple[str, str, str]]:
    """(spelling, family, naming) of a table."""
    found = set()
    for line in text.strip().splitlines():
        spelling, _, families = line.rpartition(": ")
        for word in families.split():
            name, _, naming = word.partition(":")
            found.add((spelling, name, naming or "diffusers"))
    return frozenset(found)


def reads(consumer: str, met: Met) -> bool | None:
    """Whether a program reads a family in a spelling wholly; None if that cannot be told."""
    key = (met.spelling, met.family.name, met.naming)
    if key in _listed(_READ[consumer]):
        return True
    return None if key in _listed(_UNTOLD.get(consumer, "")) else False


def oracle(consumer: str, met: Met) -> str:
    """What the verdict is known from."""
    if consumer == "diffusers":
        return LOADERS
    if reads(consumer, met) is not True:
        return NONE
    own = met.naming == "first" or met.family.namings["first"].rules == met.family.namings[met.naming].rules
    plain = met.spelling.startswith(("diffusion_model.", "lora_unet_"))
    return OWN if own and plain else FILES


def met(facts: Facts) -> list[Met]:
    """The rows that a file can be of: one for each family that it can be of."""
    keys = list(facts.tensors)
    alphas = any(key.endswith(".alpha") for key in keys)
    return [
        row
        for row in MET
        if row.family.name in facts.families
        and row.dialect == facts.dialect
        and row.naming in facts.namings
        and row.alpha is alphas
        and any(_spelled(key, row) for key in keys)
    ]


def _spelled(key: str, row: Met) -> bool:
    inside = key.removeprefix(row.prefix)
    plain = not inside.startswith("_") and key.startswith(row.prefix)
    return plain and key.endswith(row.ends[0])


def known(facts: Facts) -> bool:
    """Whether the table answers for its family; Flux.1 has rules of its own, as does what may be Flux.1."""
    return bool(facts.families) and "flux.1" not in facts.families


def rules(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """What a program does not read of a file of a known family."""
    rows = met(facts)
    some = printable(facts.example, 80)
    titles = " or ".join(dict.fromkeys(row.family.title for row in rows))
    if rows and all(reads(consumer.name, row) is False for row in rows):
        yield consumer.ignoring(f"keys such as {some}: it does not read {titles} in such names")
    for row in rows:
        pattern = _TRIPS.get((consumer.name, row.family.name, row.naming))
        if pattern and (odd := next((key for key in facts.tensors if re.search(pattern, key)), None)):
            yield consumer.rejecting(f"of {titles} in such names it reads no {printable(odd, 80)}")
            return


def untold(consumer: str, facts: Facts) -> str:
    """Why nobody can tell what a program makes of a file of a known family; "" if it can be told."""
    if not known(facts):
        return ""
    verdicts = {reads(consumer, row) for row in met(facts)}
    if verdicts in ({True}, {False}):
        return ""
    title = " or ".join(FAMILIES[name].title for name in facts.families)
    return f"it is for {title}, and nothing public shows whether it is read in such names"
