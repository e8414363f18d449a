"""The table of methods: every name, and where its class lies. A file is loaded when its method is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from loramerge.adapters.table import Table
from loramerge.algorithms.method import Method

if TYPE_CHECKING:
    from loramerge.algorithms.entries.elementwise import Elementwise

Kind = TypeVar("Kind", bound=Method)


class Methods(Table[type[Kind]], Generic[Kind]):
    """Name -> class of a method."""

    def _repr_html_(self) -> str:
        from loramerge.charts.table import Table as Cells
        from loramerge.charts.table import texts

        rows = [(name, (kind.__doc__ or "").partition("\n")[0]) for name, kind in self.items()]
        return Cells(texts("method", "for"), rows)._repr_html_()

    def name_of(self, method: type[Method]) -> str | None:
        """The name of a class, without loading others."""
        home = f"{method.__module__}.{method.__qualname__}".removeprefix(f"{ROOM}.")
        return next((name for name, where in self.homes.items() if where == home), None)


_RULES = {  # elementwise: core, ctm, pico, knots and mergevla take them by these names
    "ties": "ties.Ties",
    "dare": "dare.Dare",
    "dare_ties": "dare_ties.DareTies",
    "magnitude": "magnitude.Magnitude",
    "della": "della.Della",
    "breadcrumbs": "breadcrumbs.Breadcrumbs",
    "sce": "sce.Sce",
    "emr": "emr.Emr",
}
ROOM = "loramerge.algorithms"
RULES: Methods[Elementwise] = Methods(ROOM, _RULES)
METHODS: Methods[Method] = Methods(
    ROOM,
    {
        "linear": "linear.Linear",
        "average": "average.Average",
        "cat": "cat.Cat",
        "svd": "svd.Svd",
        "lego": "lego.Lego",
        "slerp": "slerp.Slerp",
        "karcher": "karcher.Karcher",
        "model_stock": "model_stock.ModelStock",
        "iso_c": "iso_c.IsoC",
        "iso_cts": "iso_cts.IsoCTS",
        "tsv": "tsv.Tsv",
        "shrunk_tsv": "shrunk_tsv.ShrunkTsv",
        "level": "level.Level",
        "dc_merge": "dc_merge.DcMerge",
        "core": "core.Core",
        "ctm": "ctm.Ctm",
        "pico": "pico.Pico",
        "wudi": "wudi.Wudi",
        "knots": "knots.Knots",
        **_RULES,
        "ffa": "ffa.Ffa",
        "fair": "fair.Fair",
        "fedavg": "fedavg.FedAvg",
        "mergevla": "mergevla.MergeVla",
        "sg": "sg.Sg",
    },
)
