"""A page about sources, or about a merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loramerge.adapters.arguments import checked
from loramerge.adapters.original import confirm_places, noted, one_state
from loramerge.algorithms import find
from loramerge.errors import UsageError
from loramerge.formats.files.destination import check_apart
from loramerge.merge.run import Merge
from loramerge.pages.page import Page, check_page, write_page
from loramerge.pages.sections.table import SECTIONS
from loramerge.pages.subject import Subject, subject_of
from loramerge.request.recipe import Recipe, Source
from loramerge.request.signature import spelled
from loramerge.sources.expand import expanded
from loramerge.verbs.inspect import Inspection


@spelled("report")
@checked("rank", "methods")
def report(
    sources: Sequence[Source] | Merge,
    *,
    rank: int | None = None,
    methods: str | Sequence[str] = (),
    **asked: Any,
) -> Page:
    """A page to look at: what adapters are, who overlaps with whom, spectra, loss against size, and methods
    side by side. Sources that cannot be merged have a page too, which says why.

    Args:
        sources: as for `combine`; or a merge, for a page about it.
        rank: at which methods are compared; by default the largest of a source.
        methods: that are compared; by default those that need nothing but Grams.
        {asked}

    Returns:
        Page: `save("page.html")` writes it as one file, `plot.spectra()` draws one of its charts.

    Raises:
        UsageError, SourceError: a sentence each; a source that changes meanwhile is one.

    >>> page = report(["fixtures/a.safetensors", "fixtures/b.safetensors"], methods=["svd"])
    >>> page.names[:3], page["losses"].table.names
    (['sources', 'programs', 'overlaps'], ['rank', 'total rank', 'bytes', 'energy lost'])
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UsageError(f"rank={rank!r} must be a whole number from 1 on.")
    for name in (given := tuple([methods] if isinstance(methods, str) else methods)):
        find(name)  # says which there are
    if isinstance(sources, Merge):
        if asked:
            raise UsageError(f"{next(iter(asked))} is for sources: the page of a merge has `save`.")
        return page_of(replace(subject_of(sources), rank=rank, methods=given))
    recipe = Recipe.of("report", sources, None, asked)
    out, overwrite = recipe.request.out, recipe.request.overwrite
    if out is not None:
        check_page(out, overwrite)
    with one_state() as read:  # programs and sections look at the same files again
        subject = Subject(expanded(recipe.asking(out=None, overwrite=False)), rank, given)
        if out is not None:  # what the sections show takes a while
            check_apart(out, [each.adapter for each in subject.looked if isinstance(each, Inspection)])
        page = page_of(subject)
    if out is not None:
        write_page(page, out, overwrite, lambda: confirm_places(read))
    return page


def page_of(subject: Subject) -> Page:
    """The page about a subject: every section that has something to do with it."""
    with noted() as read:
        read |= subject.originals
        made = [section(subject) for section in SECTIONS.values()]
    names = ", ".join(name.partition(" ")[2] for name in subject.names[:4])
    more = len(subject.names) - 4
    title = f"{names} and {more} more" if more > 0 else names
    if subject.merge is not None:
        title = f"A merge of {title}"
    page = Page(title, tuple(section for section in made if section is not None))
    if subject.merge is not None:
        subject.merge.plan.sources.confirm()
    return page
