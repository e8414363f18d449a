"""Adapters that belong together: opened, checked against each other, under common names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.base_models import check_depths
from loramerge.adapters.limits import check_units
from loramerge.adapters.original import Original, noted
from loramerge.adapters.reading import files_read
from loramerge.adapters.target import Target
from loramerge.algorithms import Method
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Signature
from loramerge.errors import UsageError, say
from loramerge.formats import writer
from loramerge.formats.dialects import FORMATS, PEFT, Dialect
from loramerge.formats.dialects.model import model_of
from loramerge.formats.output import Outline
from loramerge.formats.peft import portable
from loramerge.formats.peft.profiles import Profile, arranged, patterns
from loramerge.request.effort import Effort
from loramerge.request.recipe import Recipe
from loramerge.request.request import Request
from loramerge.request.schedule import Schedule
from loramerge.sources.batches import Asked, ahead, asked, batches, needs, stack_by_stack, there
from loramerge.sources.expand import as_a_shell_sorts
from loramerge.sources.identity import identified
from loramerge.sources.labels import check_labels
from loramerge.sources.links import check_shared
from loramerge.sources.open import check_together, matched, missing_modules, open_all, open_one
from loramerge.sources.projections import check as check_grain
from loramerge.sources.second import check as check_names
from loramerge.sources.select import check_exclude, select
from loramerge.sources.surplus import crowded, folded
from loramerge.sources.units import Units, align


@dataclass(frozen=True, eq=False, repr=False)
class Sources:
    """Adapters that were found to belong together.

    Args:
        whole: as they are.   adapters: without the modules left out.
        signatures: every module with the rank of each source in it.
        notes: sentences about them.   request: what was asked of them.
        dialect: the format of their merge; they are under the names that it gives to modules.
        left_out: name -> similarity of sources that a method has not chosen; nothing of them is read.
        read: every file that was opened for them, of base models too.
        originals: those of them that were opened together with them, as they were then.
    """

    whole: tuple[Adapter, ...]
    adapters: tuple[Adapter, ...]
    signatures: Mapping[Target, Signature]
    notes: tuple[str, ...]
    request: Request
    dialect: Dialect = PEFT
    left_out: Mapping[str, float] = field(default_factory=dict)
    read: tuple[Path, ...] = ()
    originals: Mapping[Path, Original] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Sources: {self.what}>"

    @property
    def what(self) -> str:
        """The number of sources, in words."""
        return f"{len(self.adapters)} sources with {len(self.signatures)} modules"

    @classmethod
    def of(
        cls,
        whole: Sequence[Adapter],
        adapters: Sequence[Adapter],
        request: Request,
        dialect: Dialect,
    ) -> Sources:
        """Adapters that were checked against each other, with notes about what is odd."""
        oddities = check_together(whole, request.allow_base_mismatch, _cuts(request))
        apart = check_shared(whole, request.allow_disjoint)
        check_grain(adapters)
        if not request.allow_disjoint:
            check_names(adapters)
        missing = missing_modules(adapters, request.renormalise)
        order = as_a_shell_sorts([a.name for a in whole], request.weights)
        notes = (*oddities, *apart, *missing, *check_labels(adapters), *order)
        signatures = align(adapters, limited=False)  # units that are folded are never held at once
        return cls(tuple(whole), tuple(adapters), signatures, notes, request, dialect)

    def without(self, left: Mapping[int, float]) -> Sources:
        """The same without the sources at these positions."""
        kept = [i for i in range(len(self.whole)) if i not in left]
        whole, adapters = ([some[i] for i in kept] for some in (self.whole, self.adapters))
        names = {**self.left_out, **{self.whole[i].name: left[i] for i in left}}
        if not any(adapters):
            raise UsageError(
                f"The sources that were chosen have none of the modules of "
                f"{say('only')} and {say('exclude')}."
            )
        return replace(Sources.of(whole, adapters, self.request, self.dialect), left_out=names)

    def confirm(self) -> None:
        """Raises SourceError: a file of them is no longer as it was when it was opened."""
        maps = (self.originals, *(adapter.provenance.originals for adapter in self.whole))
        for original in {id(each): each for files in maps for each in files.values()}.values():
            original.confirm()

    def shape(self, target: Target) -> tuple[int, int]:
        """(out, in) of a module."""
        return next(a.slots[target].shape for a in self.adapters if target in a.slots)

    def held(self, method: Method, outline: Outline | None = None) -> int:
        """Bytes that a worker needs for the most demanding module, written as the outline has it."""
        found = {(s, self.shape(t), self._asked(t, outline)) for t, s in self.signatures.items()}
        least = max((sum(needs(s, shape, method, more)) for s, shape, more in found), default=0)
        device = self.request.device
        if device == "cpu" or not method.batched or (device == "auto" and self.request.effort.gpu is None):
            return least
        from loramerge.cuda import workspace_by_rule  # most merges are made on the host

        def on_gpu(signature: Signature, shape: tuple[int, int], more: Asked) -> int:
            units = sum(signature)
            return (
                sum(needs(signature, shape, method, more)) + workspace_by_rule(units) + there(units, shape, 8)
            )

        return max((on_gpu(*each) for each in found), default=0)

    def _asked(self, target: Target, outline: Outline | None) -> Asked:
        return asked((a.slots[target] for a in self.adapters if target in a.slots), [target], outline)

    def check_units(self) -> None:
        """Raises IncompatibleError: a module has more units than are merged at once."""
        for target, signature in self.signatures.items():
            check_units(str(target), self.shape(target), signature)

    def folded(self, weights: Callable[[Target], Array]) -> Sources:
        """The same sum from fewer units, where there are more than a module has rows or columns."""
        full = [t for t, signature in self.signatures.items() if crowded(signature, self.shape(t))]
        if not full:
            return self
        adapters = tuple(folded(self.adapters, weights, full))
        return replace(self, adapters=adapters, signatures=align(adapters))

    def outline(self, units: Mapping[Target, int], kind: str, profile: Profile) -> Outline:
        """What a merge of these sources with so many units in each module looks like."""
        profile = "compact" if self.dialect.keeps_alpha else profile
        rank, own = arranged(profile, units)
        shapes = {target: self.shape(target) for target in self.signatures}
        said = {
            **portable.config(self.whole, shapes, rank),
            **{name: patterns(own) for name in ("rank_pattern", "alpha_pattern")},
        }
        kept = writer.shared_metadata(self.whole, self.dialect)
        bare = Outline(shapes, rank, kind, said, ranks=own, profile=profile, dialect=self.dialect, kept=kept)
        return replace(bare, scales=self.dialect.scales(bare.widths()))

    @property
    def bare(self) -> bool:
        """Whether their merge is one file: all of them are, or the format knows nothing else."""
        if self.dialect.weights is None or not self.dialect.single:
            return self.dialect.single
        return all(adapter.bare for adapter in self.adapters)

    def batches(
        self,
        effort: Effort,
        schedule: Schedule | None = None,
        method: Method | None = None,
        outline: Outline | None = None,
    ) -> list[Units]:
        """The work, in pieces that one worker can hold and, by schedule and method, that are merged alike."""
        groups: list[Mapping[Target, Signature]] = [self.signatures]
        if schedule is not None and method is not None:
            groups = [*schedule.groups(self.signatures, method)]
        share, workers = effort.share, effort.workers
        made: list[Units] = []
        gpu = effort.gpu  # tried once, by a kernel that runs
        for group in groups:
            ways = [] if schedule is None or method is None else [schedule.way(method, next(iter(group)))[0]]
            place = gpu if all(way.batched for way in ways) else None
            made += batches(self.adapters, group, share, workers, place, method, outline)
        made = stack_by_stack(made)
        ahead(made, workers)
        return made


def open_together(recipe: Recipe, read: Sequence[Adapter] = (), again: bool = False) -> Sources:
    """Open the adapters of a recipe and check that they belong together. Reads headers only.

    Args:
        read: these adapters, where they are loaded already.
        again: they were merged so before, when an `exclude` that finds nothing was no mistake.
    """
    request = recipe.request
    if not recipe.sources:
        raise UsageError("Give a list of adapters to merge.")
    with noted() as originals:
        found = prepared(_opened(recipe, read), request)
    format = request.format
    if request.consumer is not None:
        format = _for(request.consumer, format, found)
    if request.keep_form and format is None:
        format = PEFT.name  # of the plain sum that the merge is held against; some forms are only read
    dialect = writer.written(found if request.consumer is None else _unspelled(found), format)
    if request.consumer is not None:
        dialect = _laid(request.consumer, dialect, found)
    if not again:
        check_exclude(found, request.exclude)
    whole, adapters = alike(found, select(found, request.only, request.exclude), dialect)
    return replace(
        Sources.of(whole, adapters, request, dialect), read=tuple(files_read()), originals=originals
    )


def _opened(recipe: Recipe, read: Sequence[Adapter]) -> list[Adapter]:
    found, base = open_all(recipe.sources, recipe.request, read), recipe.request.heads_as_lora
    if base is None:
        return found
    from loramerge.sources.heads import as_pairs  # it reads the base model

    return as_pairs(found, base)


def prepared(adapters: list[Adapter], request: Request) -> list[Adapter]:
    """The sources under the names of their model, with what is asked of each of them before the merge."""
    if request.project_out is None:
        return _blocked(identified(adapters, request), request)
    guard = open_one(request.project_out, replace(request, alpha="rank"))  # its strength does not matter
    from loramerge.sources.safety import projected  # few merges keep out of another's way

    *found, safety = identified([*adapters, guard], request)
    return projected(_blocked(found, request), safety)


def _cuts(request: Request) -> bool:
    return request.drop_below is not None or request.blocks is not None


def _blocked(adapters: list[Adapter], request: Request) -> list[Adapter]:
    if _cuts(request):  # afterwards nothing tells how deep they are
        check_depths(adapters)
    if request.drop_below is not None:
        from loramerge.sources.blocks import stronger  # most merges take adapters as they are

        adapters = stronger(adapters, request.drop_below)
    if request.blocks is not None:
        from loramerge.sources.strengths import strengthened

        said = cast("str | Mapping[str, str]", request.blocks)  # a list came in as text
        adapters = strengthened(adapters, said)
    return adapters


def _unspelled(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The sources without their own spellings: a merge for a program has the spelling that it reads."""
    return [replace(adapter, spelling=None) for adapter in adapters]


def _for(consumer: str, format: str | None, found: Sequence[Adapter]) -> str | None:
    """The format to write for it. Raises UsageError: the one asked for has names that it does not know."""
    from loramerge.consumers import find  # for merges that are made for one

    wanted = find(consumer)
    if format is None:
        usual = wanted.format_for([adapter.dialect for adapter in found])
        return _read(consumer, usual or found[0].dialect, found) or usual
    if format in FORMATS and format not in (*wanted.formats, *wanted.dialects):
        said = f"{wanted.title} does not load the format {format} (it loads {' and '.join(wanted.formats)})"
        raise UsageError(f"{said}: drop {say('format')} or {say('consumer')}.")
    return format


def _laid(consumer: str, dialect: Dialect, found: Sequence[Adapter]) -> Dialect:
    """The format as the program wants a merge of these laid out in it."""
    from loramerge.consumers import find

    return find(consumer).lays(dialect, found)


def _read(consumer: str, usual: str, found: Sequence[Adapter]) -> str | None:
    """The program itself as a format, where it reads the family so, and not as the usual format spells it."""
    from loramerge.consumers.families import read_as
    from loramerge.formats.tools import TOOLS

    families = [family.name for family in model_of(found).families]
    known = consumer in TOOLS and any(name in TOOLS[consumer].rows for name in families)
    return consumer if known and not read_as(consumer, usual, families) else None


def alike(
    whole: Sequence[Adapter], chosen: Sequence[Adapter], dialect: Dialect
) -> tuple[list[Adapter], list[Adapter]]:
    """The sources, and the modules chosen of them, under the names and in the grain of a dialect.

    Parts of a pipeline that nothing is chosen of are left out of both: they need no name there.
    """
    parts = {target.component for adapter in chosen for target in adapter}
    near = [replace(a, slots={t: slot for t, slot in a.slots.items() if t.component in parts}) for a in whole]
    return matched([dialect.adopt(a) for a in near]), matched([dialect.adopt(a) for a in chosen])


def work_weights(work: Sources, weights: Array) -> Array:
    """The weights of the sources as they are merged: a folded sum has its weights inside already."""
    return np.concatenate([weights, np.ones(len(work.adapters) - len(weights))])
