"""A routed bundle as sources of a merge: its adapters, with the weights that every token would get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapters.limits import beyond
from loramerge.errors import IncompatibleError, SourceError, UsageError, printable, say, spoken
from loramerge.formats.bundles import instead, task


def members(place: str, record: Mapping[str, Any], row: str | None) -> list[tuple[str, float]]:
    """The folder of each adapter, and its weight.

    Args:
        row: of a table, or the name of a task.

    Raises:
        IncompatibleError: the gate goes by the input.   UsageError: no row is named, or there is no such.
        SourceError: the record does not say the weights.
    """
    gate: Any = record.get("gate")
    name, options = (gate.get("name"), gate.get("options")) if isinstance(gate, dict) else (None, None)
    rows = {} if record.get("gates") or not isinstance(options, dict) else _rows(name, options, row)
    if row is not None or rows:
        found = _named(rows, row, place)
    elif record.get("gates"):
        found = None
    else:
        found = (
            options.get("weights")
            if name == "static" and isinstance(options, dict)
            else record.get("weights")
        )
        if name == "static" and not isinstance(found, list):
            raise SourceError(f"The record of {printable(place)} does not say the weights of its gate.")
    if found is None:
        raise IncompatibleError(instead(printable(place), record))
    experts = record.get("experts")
    if not isinstance(experts, list) or len(found) != len(experts) or not all(map(_is_number, found)):
        raise SourceError(f"The record of {printable(place)} does not say the weights of its gate.")
    return [(str(Path(place) / task(e)), float(weight)) for e, weight in enumerate(found)]


def check_row(row: str | None, weights: object, records: Sequence[Mapping[str, Any] | None] = ({},)) -> None:
    """Raises UsageError: a row is named, and weights too; or no source is a bundle."""
    if row is not None and weights is not None:
        raise UsageError(f"{say('row', row)} says the weights already: leave out {say('weights')}.")
    if row is not None and all(each is None for each in records):
        raise UsageError(f"{say('row', row)} is for bundles of `loramerge route`, and no source is one.")


def _rows(name: object, options: Mapping[str, Any], row: str | None) -> dict[str, Any]:
    """Name -> the weights of each adapter; of tasks, which are many, those of the row alone."""
    rows, tasks = options.get("rows"), options.get("tasks")
    if name == "table" and isinstance(rows, dict):
        return rows
    if name == "task" and isinstance(tasks, list):
        weights = [float(str(task) == row) for task in tasks]
        return dict.fromkeys(map(str, tasks), weights)
    return {}


def _named(rows: Mapping[str, Any], row: str | None, place: str) -> list[Any]:
    some = ", ".join(printable(each, 40) for each in list(rows)[:5]) + (", …" if len(rows) > 5 else "")
    if not rows:
        raise UsageError(f"{say('row', row)}: {printable(place)} has no rows, for its gate is no table.")
    if row is None:
        command = f"`loramerge combine {{}} {say('row', 'NAME')}`"
        how = command if spoken() == "shell" else 'lm.combine(["{}"], row=NAME)'
        raise UsageError(f"{printable(place)} goes by a row, of {some}: {how.format(printable(place))}.")
    if row not in rows:
        raise UsageError(f"{printable(place)} has no row {printable(row, 60)}: it has {some}.")
    return list(rows[row]) if isinstance(rows[row], list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not beyond(value)
