"""The table of methods: every name, and where its class lies. A file is loaded when its method is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from loramerge.algorithms.method import Method

if TYPE_CHECKING:
    from loramerge.algorithms.entries.elementwise import Elementwise

Kind = TypeVar("Kind", bound=Method)


class Table(Mapping[str, type[Kind]], Generic[Kind]):
    """Name -> class, imported when first asked for: a merge with one method does not pay for thirty.

    Args:
        homes: name -> ``file.Class`` in this folder.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = dict(homes)

    def __repr__(self) -> str:
        return f"<{len(self)} methods: {', '.join(self)}>"

    def __getitem__(self, name: str) -> type[Kind]:
        file, _, found = self._homes[name].rpartition(".")
        method: type[Kind] = getattr(import_module(f"loramerge.algorithms.{file}"), found)
        return method

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def name_of(self, method: type[Method]) -> str | None:
        """The name of a class, without loading others."""
        home = f"{method.__module__}.{method.__qualname__}".removeprefix("loramerge.algorithms.")
        return next((name for name, where in self._homes.items() if where == home), None)


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
RULES: Table[Elementwise] = Table(_RULES)
METHODS: Table[Method] = Table(
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
    }
)
