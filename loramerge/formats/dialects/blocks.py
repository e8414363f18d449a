"""Which block of its model a module is in, as makers of images count them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os.path import commonprefix

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.formats.dialects.model import PARTS, families_of
from loramerge.formats.dialects.places import first_name
from loramerge.formats.models.families import having
from loramerge.formats.models.family import FIRST, Family
from loramerge.formats.models.rules import filled

UNET = {"input_blocks": "IN", "middle_block": "M", "output_blocks": "OUT"}
TEXT, BESIDE = "BASE", "beside the blocks"
LIST = re.compile(r"(?:^|.*?\.)([A-Za-z_]+\.\d+)\.")


def blocks_of(adapter: Adapter) -> dict[Target, str]:
    """Module -> its block. A module that is fused in the file counts as its parts do."""
    families = families_of(adapter)
    family = families[0] if families else None
    return {target: block(target, family) for target in adapter.slots}


def block(target: Target, family: Family | None = None) -> str:
    """The name of a module's block: `IN04` of a U-Net, `BASE` for text encoders, else its list and number.

    >>> block(Target("down_blocks.1.attentions.0.proj_in", component="unet"))
    'IN04'
    >>> block(Target("single_transformer_blocks.7.proj_mlp", component="transformer"))
    'single_transformer_blocks.07'
    """
    if target.component.startswith("text_encoder"):
        return TEXT
    path = first_name(target) if target.component == "unet" else _ours(target, family)
    stem, number, *_ = [*path.split("."), ""]
    if target.component == "unet" and stem in UNET:
        return f"{UNET[stem]}{0 if stem == 'middle_block' else int(number):02}"
    found = LIST.match(path)
    if found is None:
        return BESIDE
    name, _, count = found[1].rpartition(".")
    return f"{name}.{int(count):02}"


def _ours(target: Target, family: Family | None) -> str:
    """diffusers' name of a module, or of the first of its rows."""
    place = family.place(target.path) if family and target.component in PARTS else None
    return target.path if place is None else filled(place.rule.ours[0], place.numbers)


def called(targets: Iterable[Target]) -> dict[Target, tuple[str, ...]]:
    """Module -> all names by which a user may choose it: ours, that under which it was published, its block.

    >>> called([Target("down_blocks.1.attentions.0.proj_in", component="unet")]).popitem()[1][1:]
    ('unet.input_blocks.4.1.proj_in', 'IN04')
    """
    whole = list(targets)
    families = having([target.path for target in whole if target.component in PARTS])
    return {target: (str(replace(target, index=-1)), *_others(target, families)) for target in whole}


def _others(target: Target, families: Sequence[Family]) -> Iterator[str]:
    if target.component == "unet":
        yield from (f"unet.{first_name(target)}", block(target))
    if target.component not in PARTS:
        return
    for family in families:
        place, owner = family.place(target.path), family.owner(target.path, FIRST)
        if owner is not None:
            yield f"{target.component}.{owner[0]}"
        elif place is not None:
            ours = commonprefix([filled(part, place.numbers) for part in place.rule.ours])  # noqa: RUF071
            published = family.spelled(target.path, FIRST)
            yield from (f"{target.component}.{name}" for name in (ours, published) if name)


def lists(family: Family) -> dict[str, set[str]]:
    """List of blocks, as `block` calls it -> all its names, of diffusers and of those who published it."""
    found: dict[str, set[str]] = {}
    for path in family.blocks:
        own = {path.rpartition(".")[2]}
        for rule in family.namings[FIRST].rules:
            if rule.ours[0].startswith(f"{path}.*"):
                own.add(rule.theirs.partition(".*")[0].rpartition(".")[2])
        found[path.rpartition(".")[2]] = own
    return found
