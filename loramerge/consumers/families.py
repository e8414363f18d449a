"""Which spellings of which families the loaders of image models read.

What diffusers reads is held against its own loaders by a test. What ComfyUI reads is known from the names of
its tensors, and from public threads: `comfy_names`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from loramerge.adapters.late import late
from loramerge.consumers import comfy_names
from loramerge.errors import printable
from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.family import OURS
from loramerge.formats.models.spellings import MET, Met

if TYPE_CHECKING:
    from loramerge.consumers.consumer import Consumer
    from loramerge.consumers.facts import Facts
    from loramerge.consumers.finding import Finding

TEXT, NEVER = late(r"text_encoder|lora_te\d?_"), late(r"(?!)")
HEARD = {"chroma": TEXT, "sd3": late(r"text_encoder(_2)?\.")}  # text encoders that diffusers' loaders take
DECODED = r"^lora_te_layers_\d"  # language models that encode text, in the names of sd-scripts
LOADERS, LOADERLESS = "its loaders, run", "it has no loader for the family"
# families whose adapters no pipeline of diffusers loads
WITHOUT = frozenset({"pixart", "ace-step-1", "hunyuan-video-1.5"})
_READ = """
diffusion_model.: flux.2:first wan:first qwen-image z-image ltx-video:first ltx-2:first hidream lumina-2:first
diffusion_model.: cosmos:first hunyuan-video:authors
diffusion_model. with alphas: wan:first flux.1:first
lora_unet_: flux.1:first flux.2:first wan:first qwen-image z-image:first z-image chroma:first
transformer.: flux.1 flux.2 chroma sd3 wan qwen-image z-image hunyuan-video ltx-video ltx-2 hidream lumina-2
transformer.: auraflow cosmos cogvideox mochi sana ace-step-1.5 hunyuan-video:authors wan-vace wan-animate
no prefix, default: qwen-image z-image
no prefix, with alphas: qwen-image
base_model.model.: flux.2:first ace-step-1.5:first
"""  # spelling, and the families that diffusers reads in it wholly
_TRIPS = """
refuses | transformer., diffusion_model. | hunyuan-video:authors | self_attn_qkv
turns   | transformer., diffusion_model. | hunyuan-video:authors | final_layer.adaLN_modulation
turns   | diffusion_model., base_model.model. | flux.2:first | final_layer.adaLN_modulation
ignores | lora_unet_ | flux.2:first | guidance_in|_modulation
refuses | lora_unet_ | chroma:first | img_in|txt_in|final_layer|distilled_guidance_layer
ignores | lora_unet_ | z-image:first | x_embedder|final_layer
refuses | lora_unet_ | wan:first | _(patch|time|text)_embedding|time_projection|img_emb|head_head
refuses | diffusion_model. with alphas | wan:first | [.](patch|time|text)_embedding|time_projection|img_emb|head.head
refuses | diffusion_model. | wan:first | [.]patch_embedding
ignores | diffusion_model. | ltx-video:first | patchify_proj|adaln_single
refuses | diffusion_model. | lumina-2:first | [.](x|cap|t)_embedder|final_layer
"""  # what diffusers does with modules of such names, in spellings that it reads  # noqa: E501


ASIDE = {  # (program, spelling) -> what its users look for
    ("diffusers", "transformer_2."): "; under `transformer.` they go into the second model with "
    "load_into_transformer_2=True"
}


@cache
def _listed() -> frozenset[tuple[str, str, str]]:
    """(spelling, family, naming) of what diffusers reads."""
    found = set()
    for line in _READ.strip().splitlines():
        spelling, _, families = line.rpartition(": ")
        for word in families.split():
            name, _, naming = word.partition(":")
            found.add((spelling, name, naming or "diffusers"))
    return frozenset(found)


def trips(met: Met) -> list[tuple[str, str]]:
    """(what diffusers does with them, a pattern for their keys) of modules that it does not read in a row."""
    own = f"{met.family.name}:{met.naming}"
    lines = ([part.strip() for part in line.split(" | ")] for line in _TRIPS.strip().splitlines())
    return [
        (how, keys)
        for how, names, family, keys in lines
        if family == own and met.spelling in names.split(", ")
    ]


def reads(consumer: str, met: Met) -> bool | None:
    """Whether a program reads a family in a spelling wholly; None if that cannot be told."""
    if consumer == "diffusers":
        return (met.spelling, met.family.name, met.naming) in _listed()
    return comfy_names.verdict(met)[0]


def oracle(consumer: str, met: Met) -> str:
    """What the verdict is known from."""
    if consumer == "diffusers":
        return LOADERLESS if met.family.name in WITHOUT else LOADERS
    return comfy_names.verdict(met)[1]


def read_as(consumer: str, dialect: str, families: Collection[str]) -> bool:
    """Whether a program is known to read one of these families in a spelling of a format."""
    rows = (row for row in MET if row.family.name in families and row.dialect == dialect)
    return any(reads(consumer, row) for row in rows)


def held_against(met: Met) -> str:
    """What a test holds the names of a row against."""
    if met.naming == OURS:
        return "layers of diffusers' class" if met.family.model else "public files alone"
    if met.family.converter:
        return "diffusers' converter of checkpoints"
    loaded = any(
        reads("diffusers", row) for row in MET if (row.family, row.naming) == (met.family, met.naming)
    )
    return "diffusers' loader of adapters" if loaded else "public files alone"


def met(facts: Facts) -> list[Met]:
    """The rows that a file can be of: one for each family, and for each way to call its modules."""
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
    if rows and _verdicts(consumer.name, rows) == {False}:
        what = f"keys such as {some}: it does not read {titles} in such names"
        yield consumer.ignoring(what + ASIDE.get((consumer.name, rows[0].spelling), ""))
    if consumer.name == "diffusers":
        yield from _tripped(consumer, facts, rows)
        yield from _unheard(consumer, facts)


def _unheard(consumer: Consumer, facts: Facts) -> Iterator[Finding]:
    """What becomes of text encoders for which diffusers' loader of a family has no place."""
    places = [HEARD.get(name, NEVER) for name in facts.families]
    texts = [key for key in facts.tensors if TEXT.match(key)]
    if odd := next((key for key in texts if not any(each.match(key) for each in places)), ""):
        titles = " or ".join(FAMILIES[name].title for name in facts.families)
        why = f"its loader of {titles} has no place for them"
        yield consumer.ignoring(f"modules of a text encoder, such as {printable(odd, 80)}: {why}")


def _split(rows: list[Met]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(the trips of all families that a file can be of, those of some of them only)."""
    own: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        own.setdefault(row.family.name, set()).update(trips(row))
    found = dict.fromkeys(trip for row in rows for trip in trips(row))
    shared = [trip for trip in found if all(trip in each for each in own.values())]
    return shared, [trip for trip in found if trip not in shared]


def _in_dispute(facts: Facts, rows: list[Met]) -> str | None:
    """A key that diffusers reads of one family that a file can be of, and not of another."""
    return next((key for _, pattern in _split(rows)[1] if (key := _first(pattern, facts))), None)


def _tripped(consumer: Consumer, facts: Facts, rows: list[Met]) -> Iterator[Finding]:
    """What becomes of modules that diffusers has no place for in a spelling."""
    for effect, pattern in _split(rows)[0]:
        if odd := printable(_first(pattern, facts) or "", 80):
            if effect == "refuses":
                yield consumer.rejecting(f"of {rows[0].family.title} in such names it reads no {odd}")
            elif effect == "ignores":
                yield consumer.ignoring(f"modules such as {odd}: in such names it loads the blocks only")
            else:
                yield consumer.ignoring(f"that the halves of {odd} lie the other way round in its own model")


def _verdicts(consumer: str, rows: list[Met]) -> set[bool | None]:
    """One verdict for each family: a file whose names are alike in two ways is read if one of them is."""
    found = set()
    for _, own in groupby(sorted(rows, key=lambda row: row.family.name), lambda row: row.family.name):
        each = {reads(consumer, row) for row in own}
        found.add(next((verdict for verdict in (True, None) if verdict in each), False))
    return found


def _first(pattern: str | None, facts: Facts) -> str | None:
    """A key that has this somewhere."""
    return next((key for key in facts.tensors if pattern and re.search(pattern, key)), None)


def untold(consumer: str, facts: Facts) -> str:
    """Why nobody can tell what a program makes of a file of a known family; "" if it can be told."""
    if facts.stranger:
        some = printable(facts.stranger, 80)
        return f"by names and sizes, such as those of {some}, it is of no image model that is known here"
    if facts.twice:
        whole, part = (printable(each, 80) for each in facts.twice)
        return f"it has {whole} and also {part}, which is a part of it: one weight under two names"
    if not facts.families:
        return ""
    rows = met(facts)
    if consumer == "diffusers" and (odd := _in_dispute(facts, rows)):
        titles = " or ".join(dict.fromkeys(row.family.title for row in rows))
        return f"it is for {titles}, and not of all of them it reads {printable(odd, 80)}"
    if consumer == "comfyui" and (odd := _first(DECODED, facts)):
        return f"nothing public shows whether it reads {printable(odd, 80)}, of a text encoder, in such names"
    for row in rows if consumer == "comfyui" else ():
        pattern = comfy_names.UNSEEN.get((row.family.name, row.naming))
        if reads(consumer, row) and (odd := _first(pattern, facts)):
            return f"nothing public shows whether it reads {printable(odd, 80)} of {row.family.title}"
    if not known(facts) or _verdicts(consumer, rows) in ({True}, {False}):
        return ""
    title = " or ".join(FAMILIES[name].title for name in facts.families)
    return f"it is for {title}, and nothing public shows whether it is read in such names"
