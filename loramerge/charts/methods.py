"""Methods side by side."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import picked, told
from loramerge.charts.style import COLOURS
from loramerge.charts.table import Table

NUMBERED = "cos("  # the cosine with a source: cos(1), cos(2) …


def methods(alt: Any, table: Table) -> Any:
    """Cosine of each method's merge with each source; the further to the right, the more it kept of it."""
    one, count = picked(alt, "method"), len(table)
    cosines = [name for name in table.names if name.startswith(NUMBERED)]
    rule, points = (
        alt.Chart()
        .transform_fold(cosines, as_=["other", "cosine"])
        .transform_filter("isValid(datum.cosine)")
        .encode(
            x=alt.X("cosine:Q", title="cosine with each source", scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("method:N", title=None, sort=None, axis=alt.Axis(grid=True)),
            opacity=alt.when(one).then(alt.value(1)).otherwise(alt.value(0.15)),
        )
        for _ in range(2)
    )
    facts = [alt.Tooltip("cosine:Q", format=".4f"), alt.Tooltip("energy lost:Q", format=".3~%")]
    facts = [*told(alt, table, "method"), *facts, *told(alt, table, "strength", "most lost in")]
    if len(cosines) <= len(COLOURS):
        colour = alt.Color("other:N", title=None, scale=alt.Scale(range=list(COLOURS)))
        marks = points.mark_point(filled=True, size=110).encode(
            color=colour, shape=alt.Shape("other:N", title=None), tooltip=facts
        )
    else:
        marks = points.mark_tick(thickness=2, color=COLOURS[0]).encode(tooltip=facts)
    return alt.layer(rule.mark_line(color="#8C8C8C", strokeWidth=1).encode(detail="method:N"),
        marks.add_params(one)).properties(height=max(110, 26 * count))  # fmt: skip
