"""The model that adapters are for: of which family it is, by everything that they say together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.late import late
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.models.families import FAMILIES, likely, naming, ours, possible
from loramerge.formats.models.family import FIRST, Family, Sizes

PARTS = ("transformer", "transformer_2")  # of a pipeline that a model with a family is
RAW = ("unet", *PARTS)  # where modules lie whose family is not known
VARIANT = "loramerge.variant"  # what the file's names said of its model before they were changed
SAID = ("loramerge.family", "modelspec.architecture", "ss_base_model_version", "ss_network_module")

USUAL = late(  # names that tools give
    r"pytorch_lora_weights|adapter_model|diffusion_pytorch_model|adapters?|model|lora|final|last"
    r"|(epoch|step|checkpoint|global_step)[-_]?\d*",
    re.IGNORECASE,
)
LONGEST = 400  # letters of a title or a name that are looked at
TITLES = ("modelspec.title", "ss_output_name", "ss_sd_model_name")


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """The families that a model can be of; of several, those that nothing tells apart.

    Args:
        namings: family -> how it is to be called, where that depends on the family.
    """

    families: tuple[Family, ...] = ()
    namings: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Family:
        return self.families[0]

    def holds(self, target: Target) -> bool:
        """Whether a target is a module of it."""
        return bool(self.families) and target.component in PARTS and self.first.place(target.path) is not None

    def name(self, target: Target, naming: str) -> str | None:
        """What a module is called in a naming; None where that has it in parts, or in a whole.

        Raises:
            IncompatibleError: its families call it differently.
        """
        return self._alike(target, [f.spelled(target.path, self._of(f, naming)) for f in self.families])

    def owner(self, target: Target, naming: str) -> str | None:
        """The module of which a naming has it as a part. Errors as for `name`."""
        found = [family.owner(target.path, self._of(family, naming)) for family in self.families]
        return self._alike(target, [each and each[0] for each in found])

    def _of(self, family: Family, naming: str) -> str:
        """A naming as a family has it."""
        own = self.namings.get(family.name, naming)
        return own if own in family.namings else FIRST

    def _alike(self, target: Target, found: Sequence[str | None]) -> str | None:
        if len(set(found)) > 1:
            several = " or ".join(family.title for family in self.families)
            raise IncompatibleError(
                f"{printable(target)} is a module of {several}, which nothing in the files tells apart, and "
                f"this format calls it differently in each: write another {say('format')}."
            )
        return found[0]


def model_of(adapters: Iterable[Adapter]) -> Model:
    """What adapters are for, as far as they say together: a family that one of them cannot be of is out."""
    listed = [adapter for adapter in adapters if own_sizes(adapter.slots)]
    sizes = {path: size for adapter in listed for path, size in own_sizes(adapter.slots).items()}
    named = [families_of(adapter) for adapter in listed]
    shared = [family for family in named[0] if all(family in each for each in named)] if named else []
    return Model(likely(shared, sizes))


def families_of(adapter: Adapter) -> tuple[Family, ...]:
    """The families that the model of an adapter can be of; none where its own file did not tell."""
    if adapter.families or adapter.spelling is not None:
        found = tuple(FAMILIES[name] for name in adapter.families)
    else:
        found = possible(own_sizes(adapter.slots), said(adapter.metadata, adapter.base.name))
    wide = tuple(each for each in found if each.sizes(own_sizes(adapter.slots))) or found
    named = tuple(each for each in wide if each.named(called(adapter)))
    return named if len(named) == 1 else found


def called(adapter: Adapter) -> str:
    """What makers and users call an adapter, a line each: its file, and the titles in its metadata."""
    own = adapter.provenance
    at = own.hub.split("/") if own.hub else own.files[0].parts[:-1] if own.files else ()
    name = own.name.removesuffix(".safetensors")
    if USUAL.fullmatch(name):  # every file of that tool is called so: the folder is the maker's
        name = next((part for part in reversed(at) if not USUAL.fullmatch(part)), name)
    return _lines([name, *(adapter.metadata.get(key) for key in TITLES)])


def _lines(texts: Iterable[str | None]) -> str:
    return "\n".join(text[:LONGEST] for text in texts if text)


def own_sizes(slots: Mapping[Target, Slot]) -> dict[str, tuple[int, int]]:
    """Path -> (outs, ins) of the modules that are of a model with a family."""
    return {target.path: slot.shape for target, slot in slots.items() if target.component in PARTS}


def said(metadata: Mapping[str, str], base: str | None = None) -> str:
    """What metadata and the name of the base model call the model."""
    words = [*(metadata.get(key) for key in SAID), base]
    if (own := metadata.get(SAID[0])) is not None:
        words = [FAMILIES[own].title if own in FAMILIES else ""]
    return _lines([*words, metadata.get(VARIANT)])


class Placed(NamedTuple):
    """The targets that the names of modules mean, the families they are of, and how they are spelled."""

    targets: Mapping[str, Target]
    families: tuple[str, ...] = ()
    spelling: Spelling | None = None


class Identity(NamedTuple):
    """What the names of modules say of their model.

    Args:
        table: name -> our name.   namings: family that can be meant -> its naming that has them.
    """

    table: Mapping[str, str]
    namings: Mapping[str, str]

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(self.namings)

    def spelling(self, prefixes: Mapping[str, str]) -> Spelling:
        """How the file calls its modules, behind these prefixes."""
        return Spelling(next(iter(self.namings.values()), ""), prefixes, namings=self.namings)


def identified(names: Sizes, said: str, hint: str = "") -> Identity:
    """What the names of modules say; nothing where no family has them, or some call them differently.

    Args:
        hint: the naming that tools use where such names stand.
    """
    found = possible(names, said)
    best = likely(found, names, hint)
    table = ours(best, names)
    if table is None:
        return Identity({}, {})
    alike = [*best, *(each for each in found if each not in best and ours([each], names) == table)]
    return Identity(table, {family.name: naming(family, names) for family in alike})
