"""Which units fire: the weight that a gate gives to every unit for every token, as a map of colours."""

from __future__ import annotations

from typing import Any

from loramerge.charts.style import ALIKE, AWAY, COLOURS, NOTHING
from loramerge.charts.table import Table

EXPERT, TOKEN, UNIT, WEIGHT = "expert", "token", "unit", "weight"


def units(alt: Any, table: Table) -> Any:
    """A band for each expert, a line in it for each of its units, a column for each token."""
    experts, lines = len(set(table.column(EXPERT))), max(table.column(UNIT), default=1)
    weights = [weight for weight in table.column(WEIGHT) if weight]
    most = max(map(abs, weights), default=1.0)
    # Only a gate that turns an expert round has weights below zero, and then zero is the middle.
    signed = min(weights, default=0.0) < 0
    scale = (
        alt.Scale(domain=[-most, 0, most], range=[AWAY, NOTHING, ALIKE])
        if signed
        else alt.Scale(domain=[0, most], range=[NOTHING, COLOURS[0]])
    )
    legend = alt.Legend(gradientLength=180, direction="horizontal")
    return (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X(f"{TOKEN}:O", title="token", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y(f"{EXPERT}:N", title=None, sort=None),
            yOffset=alt.YOffset(f"{UNIT}:O"),
            color=alt.Color(f"{WEIGHT}:Q", title="weight", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip(f"{EXPERT}:N"),
                alt.Tooltip(f"{UNIT}:Q"),
                alt.Tooltip(f"{TOKEN}:Q"),
                alt.Tooltip(f"{WEIGHT}:Q", format=".4~g"),
            ],
        )
        .properties(height=max(90, min(experts * (8 * lines + 8), 24 * experts + 300)))
    )
