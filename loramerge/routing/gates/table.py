"""Table: a row of weights for each user, or task, or whatever a request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from loramerge.errors import UsageError, printable, say, spoken
from loramerge.routing.gates.gate import ByRequest, numbers, told


@dataclass(frozen=True, kw_only=True)
class Table(ByRequest):
    """A row of weights for each user: the request names its row.

        w  = rows[user], given from outside: the α of RecLoRA's gate, say
        ΔW = Σ_e w_e ΔW_e for that request

    Source: RecLoRA, 2024, arXiv:2408.03533.

    Fails: for a name that has no row; nothing is guessed from the other rows.
    """

    asks: ClassVar[Literal["", "row", "prompt"]] = "row"
    rows: Mapping[str, Sequence[float]] = told(None, "The weights of each user, by name.")

    def settled(self, experts: int) -> Self:
        if not isinstance(self.rows, Mapping) or not self.rows:
            asked = say("rows", "FILE") if spoken() == "shell" else f"{say('rows')}{{name: weights}}"
            raise UsageError(f"The gate table needs {asked}: by name one weight for each expert.")
        rows = {str(name): numbers(f"row {name}", row) for name, row in self.rows.items()}
        for name, row in rows.items():
            if len(row) != experts:
                raise UsageError(
                    f"The row {printable(name)} of the table has {len(row)} numbers for {experts} experts: "
                    "give one for each."
                )
        return replace(self, rows=rows)

    def row(self, name: str | None) -> tuple[float, ...]:
        return named(self.rows, name)


def named(rows: Mapping[str, Sequence[float]], name: str | None) -> tuple[float, ...]:
    """The row of that name.

    Raises:
        UsageError: there is none, or none is named.
    """
    if name is None or name not in rows:
        some = ", ".join(map(printable, list(rows)[:5])) + (", …" if len(rows) > 5 else "")
        what = "This gate goes by a row" if name is None else f"There is no row {printable(name)}"
        raise UsageError(f"{what}: name one with {say('row')}. There are {some}.")
    return tuple(rows[name])
