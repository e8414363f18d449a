"""Which part of a pipeline an adapter belongs to, and the first names of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.model import PARTS as MODELS
from loramerge.formats.models.families import likely, listed, ours, possible

PARTS = {"unet": "unet", "transformer": "transformer", "text_encoder": "text_encoder", "t5": "text_encoder_2"}


def located(adapter: Adapter) -> Adapter:
    """The adapter with every module in a part of a pipeline; one of a single model is told by its names.

    Raises:
        IncompatibleError: its names are not those of a model that we know.
    """
    loose = {target.path for target in adapter.slots if target.component == "model"}
    if not loose:
        return adapter
    part = next((part for part in PARTS if loose <= models.ours(part)), None)
    if part is None and (known := _of_family(adapter)) is not None:
        return known
    if part is None:
        raise IncompatibleError(
            f"{printable(adapter.name)} has modules such as {printable(min(loose))}, which belong to no "
            "image model that loramerge knows: this format has no names for them."
        )
    return moved(adapter, "model", PARTS[part])


def _of_family(adapter: Adapter) -> Adapter | None:
    """The adapter of one model under our names for its family; None if nothing tells which it is."""
    own = {target: slot for target, slot in adapter.slots.items() if target.component == "model"}
    names = {target.path: slot.shape for target, slot in own.items()}
    found = possible(names, adapter.base.name or "")
    table = ours(likely(found, names), names)
    if table is None:
        return None
    there = {t: replace(t, path=table[t.path], component="transformer") for t in own}
    slots = {there.get(target, target): slot for target, slot in adapter.slots.items()}
    return replace(adapter, slots=slots, families=tuple(family.name for family in found))


def unnamed(target: Target, words: str) -> IncompatibleError:
    """A module that has no name in a dialect."""
    return IncompatibleError(
        f"{printable(target)} {_why(target)}has no name in {words}: leave it out with "
        f"{say('exclude')}, or write another {say('format')}."
    )


def _why(target: Target) -> str:
    known = target.path in models.known(part(target))
    return "" if known else "belongs to an unknown model, so it "


def moved(adapter: Adapter, old: str, new: str) -> Adapter:
    """The adapter with the modules of one component in another."""

    def there(target: Target) -> Target:
        return replace(target, component=new) if target.component == old else target

    return replace(
        adapter,
        slots={there(target): slot for target, slot in adapter.slots.items()},
        biases={there(target): bias for target, bias in adapter.biases.items()},
    )


def part(target: Target) -> str:
    """The table of names that a target is found in."""
    if target.component.startswith("text_encoder"):
        return next((each for each in ("t5", "decoder") if target.path in models.known(each)), "text_encoder")
    return target.component if target.component in models.PARTS else "unet"


def is_flat(target: Target) -> bool:
    """Whether a path is a flat name that no table knows: what its dots were cannot be told."""
    if "." in target.path or target.path in models.known(part(target)):
        return False
    return target.component not in MODELS or not listed(target.path)


def is_t5(path: str) -> bool:
    """Whether a text encoder's module is T5's."""
    return path in models.known("t5")


def is_decoder(path: str) -> bool:
    """Whether a text encoder's module is that of a language model."""
    return path in models.known("decoder")


def is_sdxl(targets: Iterable[Target]) -> bool:
    """Whether a pipeline with a U-Net is SDXL: by its layers, or by a second text encoder."""
    whole = list(targets)
    paths = [target.path for target in whole if target.component == "unet"]
    return bool(paths) and (
        models.is_xl(paths) or any(target.component == "text_encoder_2" for target in whole)
    )


def first_name(target: Target, xl: bool = True) -> str:
    """The name under which a module's model was first published; its own where that is not known."""
    first = models.first_names(part(target)).get(target.path, target.path)
    if not xl and target.path == "up_blocks.0.upsamplers.0.conv":  # no attention before it
        return "output_blocks.2.1.conv"
    return first
