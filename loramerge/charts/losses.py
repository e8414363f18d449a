"""What a merge would lose at other sizes."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import told
from loramerge.charts.style import COLOURS
from loramerge.charts.table import Table


def losses(alt: Any, table: Table) -> Any:
    """Share of energy lost against the size of the file."""
    facts = [*told(alt, table, "rank", "total rank"), alt.Tooltip("bytes:Q", format="~s")]
    return (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=70), color=COLOURS[0], strokeWidth=2)
        .encode(
            x=alt.X("bytes:Q", title="size of the file", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(format="~s", grid=False, labelOverlap=True)),
            y=alt.Y("energy lost:Q", title="energy lost", axis=alt.Axis(format="~%")),
            tooltip=[*facts, alt.Tooltip("energy lost:Q", format=".4~%")],
        )
        .properties(height=240)
    )  # fmt: skip
