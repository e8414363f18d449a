"""The table of methods: every name, and where its class lies. A file is loaded when its method is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from loramerge.algorithms.method import Method


class Table(Mapping[str, type[Method]]):
    """Name -> class, imported when first asked for: a merge with one method does not pay for thirty.

    Args:
        homes: name -> ``file.Class`` in this folder.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = dict(homes)

    def __getitem__(self, name: str) -> type[Method]:
        file, _, found = self._homes[name].rpartition(".")
        method: type[Method] = getattr(import_module(f"loramerge.algorithms.{file}"), found)
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


METHODS = Table(
    {
        "linear": "linear.Linear",
        "average": "average.Average",
        "cat": "cat.Cat",
        "svd": "svd.Svd",
        "lego": "lego.Lego",
        "iso_c": "iso_c.IsoC",
    }
)
