"""One number of each module by layer and kind, as a map of colours."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import faded, picked, told
from loramerge.charts.overlaps import alignment
from loramerge.charts.table import MODULE, Table


def layers(alt: Any, table: Table) -> Any:
    """The cosine of the pair that overlaps most, in each module."""
    return _map(alt, table, alignment(alt), told(alt, table, "pair", "cosine"))


def losses_by_layer(alt: Any, table: Table) -> Any:
    """The share of energy that each module lost."""
    scale = alt.Scale(scheme="blues", domainMin=0)
    legend = alt.Legend(gradientLength=180, format=".1%", direction="horizontal")
    colour = alt.Color("energy lost:Q", title="energy lost", scale=scale, legend=legend)
    return _map(alt, table, colour, [alt.Tooltip("energy lost:Q", format=".3~%"), alt.Tooltip("rank:Q")])


def _map(alt: Any, table: Table, colour: Any, hover: list[Any]) -> Any:
    one, kinds = picked(alt, MODULE), len(set(table.column("kind")))
    return (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("kind:N", title=None),
            color=colour,
            opacity=faded(alt, one, 1.0),
            tooltip=[alt.Tooltip(f"{MODULE}:N"), *hover],
        )
        .add_params(one)
        .properties(height=max(90, min(26 * kinds, 9 * kinds + 340)))
    )
