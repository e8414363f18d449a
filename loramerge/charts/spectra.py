"""Singular values of every module, one line each."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import faded, picked, told, whole
from loramerge.charts.style import COLOURS
from loramerge.charts.table import MODULE, SOURCE, Table

FEW = 60  # lines, whose points can be told apart


def spectra(alt: Any, table: Table) -> Any:
    """A line for each row: σ of ΔW, the largest first, on a logarithmic scale."""
    one = picked(alt, MODULE)
    # Of many lines the points are there for the mouse alone, and where lines meet they darken.
    dots, lines = (0.8, 0.5) if len(table) <= FEW else (0.0, 0.25)
    units = range(1, max(map(len, table.column("σ")), default=0) + 1)
    kept = told(alt, table, MODULE, SOURCE, "rank", "norm", "effective rank")
    return (
        alt.Chart()
        .transform_flatten(["σ"], ["value"])
        .transform_window(unit="row_number()", groupby=[MODULE, SOURCE])
        .transform_filter("datum.value > 0")
        .mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=45, fillOpacity=dots, strokeOpacity=dots))
        .encode(
            x=alt.X("unit:Q", title="unit", axis=whole(alt, units)),
            y=alt.Y(
                "value:Q",
                title="σ of ΔW",
                scale=alt.Scale(type="log", nice=False, padding=6),
                axis=alt.Axis(format="~g", tickCount=4),
            ),
            color=colour(alt, table),
            detail=[f"{MODULE}:N", f"{SOURCE}:N"],
            opacity=faded(alt, one, lines),
            tooltip=[*kept, alt.Tooltip("unit:Q"), alt.Tooltip("value:Q", title="σ", format=".4~g")],
        )
        .add_params(one)
        .properties(height=300)
    )


def colour(alt: Any, table: Table) -> Any:
    """A colour for each source; one for all where there are more sources than colours."""
    if len(set(table.column(SOURCE))) > len(COLOURS):
        return alt.value(COLOURS[0])
    return alt.Color(f"{SOURCE}:N", title=None, scale=alt.Scale(range=list(COLOURS)), sort=None)
