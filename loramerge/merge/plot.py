"""Charts of a merge: `merge.plot.spectra()`, `.overlaps()` and `.layers()`, for notebooks and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.charts.draw import drawn
from loramerge.charts.layers import layers, losses_by_layer
from loramerge.charts.overlaps import overlaps
from loramerge.charts.spectra import spectra
from loramerge.errors import UsageError
from loramerge.merge import columns
from loramerge.merge.report import PAIRS, Report
from loramerge.sources.modules import modules


@dataclass(frozen=True, eq=False)
class Plots:
    """What can be drawn of a merge. Each gives an Altair chart; ``.save("name.svg")`` writes one.

    Raises:
        UsageError: Altair is not installed.
    """

    report: Report
    sources: Sequence[Adapter]
    merged: Adapter

    def spectra(self) -> Any:
        """Singular values of every module of the merge, and of its sources."""
        adapters = (*self.sources, self.merged)
        names = [*columns.numbered(a.name for a in adapters[:-1]), "the merge"]
        measured = {name: modules(adapter) for name, adapter in zip(names, adapters, strict=True)}
        return drawn(spectra, columns.spectra(measured))

    def overlaps(self) -> Any:
        """Cosine of each source with each other. Raises UsageError: they are too many to be compared."""
        table = columns.overlaps(self.report)
        if not table.rows:
            raise UsageError(
                f"The pairs of more than {PAIRS} sources are not compared: merge fewer to see them."
            )
        return drawn(overlaps, table)

    def layers(self) -> Any:
        """Energy lost by layer and kind of module."""
        return drawn(losses_by_layer, columns.losses(self.report))

    def pairs(self) -> Any:
        """By layer and kind of module, the cosine of the two sources that overlap most there.

        Raises:
            UsageError: no two sources have a module together.
        """
        table = columns.layers(self.report)
        if not table.rows:
            raise UsageError("No two of the sources have a module together: there is no pair to show.")
        return drawn(layers, table)
