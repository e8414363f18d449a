"""A table whose rows lie in files of their own, each loaded when its name is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Table(Mapping[str, Row], Generic[Row]):
    """Name -> row: a merge with one method, form or format does not pay for thirty.

    Args:
        room: the package of the files.   homes: name -> ``file.VALUE`` in it.
    """

    def __init__(self, room: str, homes: Mapping[str, str]) -> None:
        self.room = room
        self.homes = dict(homes)

    def __repr__(self) -> str:
        return f"<{len(self)} names: {', '.join(self)}>"

    def __getitem__(self, name: str) -> Row:
        file, _, value = self.homes[name].rpartition(".")
        row: Row = getattr(import_module(f"{self.room}.{file}"), value)
        return row

    def __contains__(self, name: object) -> bool:
        return name in self.homes

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)
