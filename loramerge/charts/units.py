"""Which units fire: the weight that a gate gives to every unit for every token, as a map of colours."""

from __future__ import annotations

from typing import Any

from loramerge.charts.style import ALIKE, AWAY, COLOURS, NOTHING
from loramerge.charts.table import Table

EXPERT, TOKEN, UNIT, WEIGHT = "expert", "token", "unit", "weight"
SCORE, CHOSEN = "score", "chosen"  # what a gate went by, and what came of it


def units(alt: Any, table: Table) -> Any:
    """A band for each expert, a line in it for each of its units, a column for each token.

    A dot in a field is as dark as its score, so that one sees what else was near to being chosen.
    """
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
    place = alt.Chart().encode(
        x=alt.X(f"{TOKEN}:O", title="token", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y(f"{EXPERT}:N", title=None, sort=None),
        yOffset=alt.YOffset(f"{UNIT}:O"),
        tooltip=[
            alt.Tooltip(f"{EXPERT}:N"),
            alt.Tooltip(f"{UNIT}:Q"),
            alt.Tooltip(f"{TOKEN}:Q"),
            alt.Tooltip(f"{SCORE}:Q", format=".4~g"),
            alt.Tooltip(f"{CHOSEN}:N"),
            alt.Tooltip(f"{WEIGHT}:Q", format=".4~g"),
        ],
    )
    fields = place.mark_rect().encode(
        color=alt.Color(f"{WEIGHT}:Q", title="weight", scale=scale, legend=legend)
    )
    dots = place.mark_circle(size=18, color="#555555").encode(
        opacity=alt.Opacity(f"{SCORE}:Q", title="score before the choice", scale=alt.Scale(range=[0, 1]))
    )
    height = max(90, min(experts * (8 * lines + 8), 24 * experts + 300))
    return alt.layer(fields, dots).properties(height=height)
