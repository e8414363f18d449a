"""What a page is about: sources as they were named, what is known of them, and maybe their merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.original import Original
from loramerge.algorithms.families.size import Ranked
from loramerge.checkpoints.tuned import Tuned
from loramerge.consumers.check import facts_of
from loramerge.consumers.facts import Facts
from loramerge.errors import ChangedError, IncompatibleError, LoramergeError, say
from loramerge.formats.output import is_bare
from loramerge.hub.escape import shell
from loramerge.merge.columns import Measured, numbered
from loramerge.merge.curve import Point, curve
from loramerge.merge.plan import Plan
from loramerge.merge.planner import observer, planned, settle
from loramerge.merge.report import PAIRS, Report
from loramerge.merge.run import Merge, execute, strengthened
from loramerge.merge.session import Session
from loramerge.request.recipe import Ingredient, Recipe, Source
from loramerge.sources.modules import modules
from loramerge.sources.open import apart, open_one
from loramerge.sources.select import select
from loramerge.sources.sources import Sources, open_together
from loramerge.verbs.contents import Contents, contents
from loramerge.verbs.inspect import Inspection

WORK = 2e9  # Σ units³ of the modules, of which a page takes seconds for every method
HELD = 1e8  # bytes of Grams that are kept in each of a few frames, to try several methods on them

UNREAD = "None of the sources can be read as pairs of factors, so there is nothing to measure."


@dataclass(frozen=True, eq=False)
class Subject:
    """Sources to look at. What is costly is computed once, when a section asks for it.

    Args:
        recipe: the sources, collections expanded, and what was asked.
        rank: at which methods are compared; None: the largest of a source.
        methods: that are compared; none: some that need nothing but Grams.
        merge: of these sources, if the page is about one.
        out: where it lies, as its user named it.
    """

    recipe: Recipe
    rank: int | None = None
    methods: tuple[str, ...] = ()
    merge: Merge | None = None
    out: str | None = None
    _reports: dict[str, Report] = field(default_factory=dict, repr=False)

    @property
    def named(self) -> list[Source]:
        """The sources as they were named."""
        return [each.source for each in self.recipe.sources]

    @cached_property
    def looked(self) -> list[Inspection | Contents]:
        """What each source is; of files that cannot be merged, what is in them."""
        return [self._look(each.source) for each in self.recipe.sources]

    def _look(self, source: Source) -> Inspection | Contents:
        request = self.recipe.request
        try:
            adapter = open_one(source, request)
        except IncompatibleError as error:
            if isinstance(source, Adapter | Tuned):
                raise
            return contents(source, error, request.allow_pickle)
        (chosen,) = select([adapter], request.only, request.exclude)
        return Inspection(adapter, modules(chosen, request.tell))

    @property
    def originals(self) -> dict[Path, Original]:
        """The files that its merge was read from; none where it looks at sources itself."""
        whole = self.merge.plan.sources.whole if self.merge is not None else ()
        return {path: file for each in whole for path, file in each.provenance.originals.items()}

    @cached_property
    def names(self) -> list[str]:
        """The sources as the page calls them, each with its number."""
        adapters = self.together.whole if isinstance(self.together, Sources) else ()
        plain = [a.name for a in adapters] or apart([Path(_name(each)) for each in self.looked])
        return numbered(plain)

    @cached_property
    def measured(self) -> Measured:
        """Source -> its modules, of those that can be read."""
        pairs = zip(self.names, self.looked, strict=True)
        return {name: facts.modules for name, facts in pairs if isinstance(facts, Inspection)}

    @cached_property
    def together(self) -> Sources | str:
        """The sources as they would be merged, or the sentence why they cannot be."""
        if self.merge is not None:
            return self.merge.plan.sources
        try:
            return open_together(self.recipe.weighed(), self._read)
        except ChangedError:
            raise
        except LoramergeError as error:
            return str(error)

    @property
    def _read(self) -> list[Adapter]:
        """The sources as they were loaded to be looked at; none where one of them could not be."""
        found = [each.adapter for each in self.looked if isinstance(each, Inspection)]
        return found if len(found) == len(self.looked) and not any(a.provenance.peeked for a in found) else []

    @cached_property
    def facts(self) -> list[Facts | LoramergeError]:
        """What programs see of each source; for some, nothing can be told."""
        return [self._facts(source) for source in self.named]

    def _facts(self, source: Source) -> Facts | LoramergeError:
        try:
            return facts_of(source, self.recipe.request.allow_pickle)  # type: ignore[arg-type]
        except ChangedError:
            raise
        except LoramergeError as error:
            return error

    @cached_property
    def crowd(self) -> str:
        """Why the sources are not merged for the page; "" if they are, or if someone named methods."""
        if self.merge is not None or self.methods or isinstance(self.together, str):
            return ""
        units = [sum(ranks) for ranks in self.together.signatures.values()]
        if sum(float(r) ** 3 for r in units) <= WORK:
            return ""
        return (
            f"{len(self.named)} sources have {max(units):,} units together in a module, so a merge of them "
            f"takes a while: it is computed if you name methods, such as {say('methods', 'svd')}."
        )

    @cached_property
    def session(self) -> Session | None:
        """Their Grams, kept for several methods; None where these would take too much memory."""
        if isinstance(self.together, str):
            return None
        units = [sum(ranks) for ranks in self.together.signatures.values()]
        return Session(self.together) if sum(24.0 * r * r for r in units) <= HELD else None

    @cached_property
    def common(self) -> int:
        """The rank at which methods are compared."""
        if self.rank is not None or isinstance(self.together, str):
            return self.rank or 1
        return max(max(ranks, default=1) for ranks in self.together.signatures.values())

    @cached_property
    def plain(self) -> Report:
        """The report of the merge, or of the best merge of the common rank: all inner products are in it."""
        if self.merge is not None:
            return self.merge.report
        return self.tried("linear" if self.crowd else "svd")  # the sum needs no spectra

    def options(self, method: str) -> dict[str, Any]:
        """What a method is tried with."""
        ranked = issubclass(_class(method), Ranked) and not self.crowd
        return {"rank": self.common} if ranked else {}

    def tried(self, method: str) -> Report:
        """The report of a method at the common rank; nothing is written.

        Raises:
            LoramergeError: it cannot merge these sources.
        """
        if method not in self._reports:
            self._reports[method] = self._tried(method)
        return self._reports[method]

    def _tried(self, method: str) -> Report:
        options = self.options(method)
        if self.session is not None:
            return self.session.combine(method, weights=self.weights, **options).report
        plan = strengthened(self._planned(method, options))
        return execute(plan, _nowhere, _nowhere)

    @property
    def weights(self) -> Any:
        """As they were given, one for each source; None if nobody did."""
        return self.recipe.weighed().request.weights

    def _planned(self, method: str, options: dict[str, Any]) -> Plan:
        recipe = replace(self.recipe, method=method, parameters=options)
        if isinstance(self.together, str):  # which is raised again
            return planned(recipe)
        request = recipe.weighed().request
        return settle(self.together, recipe.chosen, request, observer(request))

    @cached_property
    def losses(self) -> list[Point]:
        """What the best merge of each size would lose."""
        plan = self._planned("svd", {}) if self.merge is None else self.merge.plan
        out = None if self.merge is None else self.merge.out
        bare = plan.sources.bare if out is None else is_bare(out)
        return [] if plan.request.keep_form else curve(plan, bare)

    # How it is told to make a thing again.

    @property
    def words(self) -> list[str]:
        """The sources as words of a command; none if one of them is only in memory."""
        found = [each for each in self.named if not isinstance(each, Adapter | Tuned)]
        return list(map(shell, found)) if len(found) == len(self.named) else []


def subject_of(merge: Merge, sources: tuple[Ingredient, ...] = (), out: str | None = None) -> Subject:
    """The subject of a merge. `sources`: as its user named them; else they are those that it was made of."""
    plan = merge.plan
    asked = plan.asked or Recipe(tuple(map(Ingredient, plan.sources.whole)), plan.method, {}, plan.request)
    named = sources if len(sources) == len(asked.sources) else asked.sources
    recipe = replace(asked, sources=named).asking(out=None, overwrite=False, weights=plan.schedule.weights)
    return Subject(recipe, merge=merge, out=out)


def _name(facts: Inspection | Contents) -> str:
    return facts.adapter.name if isinstance(facts, Inspection) else Path(facts.name).name or facts.name


def _class(method: str) -> type:
    from loramerge.algorithms import find

    return find(method)


def _nowhere(*_: object) -> None:
    """Where the factors of a merge go when only its report is wanted."""


def several(subject: Subject) -> Iterator[str]:
    """Why nothing can be said of several sources together; None if it can."""
    if len(subject.recipe.sources) < 2:
        yield "There is one source: it needs another to be compared with."
    elif isinstance(subject.together, str):
        yield f"They cannot be compared: {subject.together}"


def paired(subject: Subject) -> Iterator[str]:
    """Why nothing can be said of every two sources; None if it can."""
    yield from several(subject)
    if len(subject.recipe.sources) > PAIRS:
        yield f"The pairs of more than {PAIRS} sources are not compared."
