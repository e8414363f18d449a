"""How a file calls the modules of its models, so that what is made of it can be called alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False, repr=False)
class Spelling:
    """One spelling.

    Args:
        naming: which of the names of its family a file has; "" if its family is not known.
        prefixes: part of a pipeline -> what stands before the names of its modules.
        ends: of the keys of down and up; () where the format has its own.
        namings: the same as `naming` for each family that a file can be of, where they differ.
    """

    naming: str = ""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, str] | tuple[()] = ()
    namings: Mapping[str, str] = field(default_factory=dict)

    def of(self, family: str) -> str:
        """Which of the names of a family a file has."""
        return self.namings.get(family, self.naming)
