"""Who overlaps with whom: the cosines of all pairs as a square of colours."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import picked
from loramerge.charts.style import ALIKE, AWAY, NOTHING
from loramerge.charts.table import SOURCE, Table

FEW = 8  # sources, whose cosines have room to be written in their squares


def overlaps(alt: Any, table: Table) -> Any:
    """Cosine of each source with each other; columns are sources by number."""
    one, count = picked(alt, SOURCE), len(table)
    base = (
        alt.Chart()
        .transform_fold(table.names[1:], as_=["other", "cosine"])
        .transform_filter("isValid(datum.cosine)")
        .encode(
            x=alt.X(
                "other:O",
                title="with source",
                sort=None,
                axis=alt.Axis(orient="top", labelAngle=0, labelOverlap=True),
            ),
            y=alt.Y(f"{SOURCE}:O", title=None, sort=None),
        )
    )
    squares = base.mark_rect(stroke="#808080").encode(
        color=alignment(alt),
        strokeWidth=alt.when(one, empty=False).then(alt.value(2.5)).otherwise(alt.value(0)),
        tooltip=[
            alt.Tooltip(f"{SOURCE}:N"),
            alt.Tooltip("other:O", title="with source"),
            alt.Tooltip("cosine:Q", format=".4f"),
        ],
    )
    squares = squares.add_params(one)
    if count <= FEW:
        far = "abs(datum.cosine) > 0.6"
        ink = alt.when(far).then(alt.value("#ffffff")).otherwise(alt.value("#1a1a1a"))
        squares += base.mark_text(fontSize=12).encode(text=alt.Text("cosine:Q", format=".3f"), color=ink)
    return squares.properties(height=max(110, min(44 * count, 12 * count + 330)))


def alignment(alt: Any, field: str = "cosine") -> Any:
    """Orange for against each other, blue for the same, nearly white for nothing to do with each other."""
    scale = alt.Scale(domain=[-1, 0, 1], range=[AWAY, NOTHING, ALIKE])
    legend = alt.Legend(gradientLength=180, values=[-1, 0, 1], direction="horizontal")
    return alt.Color(f"{field}:Q", title="cosine", scale=scale, legend=legend)
