"""The table of sections, in the order of a page. A section joins by a line, and the laws find it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loramerge.pages.section import Section
from loramerge.pages.sections.depth import depth
from loramerge.pages.sections.losses import losses
from loramerge.pages.sections.merge import merged
from loramerge.pages.sections.methods import methods
from loramerge.pages.sections.origin import origin
from loramerge.pages.sections.overlaps import overlaps
from loramerge.pages.sections.pairs import pairs
from loramerge.pages.sections.programs import programs
from loramerge.pages.sections.sources import sources
from loramerge.pages.sections.spectra import spectra
from loramerge.pages.subject import Subject

SECTIONS: Mapping[str, Callable[[Subject], Section | None]] = {
    "merge": merged,
    "sources": sources,
    "origin": origin,
    "programs": programs,
    "overlaps": overlaps,
    "pairs": pairs,
    "spectra": spectra,
    "depth": depth,
    "losses": losses,
    "methods": methods,
}
