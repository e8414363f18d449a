"""How strong each adapter is."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import faded, picked, told
from loramerge.charts.style import COLOURS
from loramerge.charts.table import SOURCE, Table


def strengths(alt: Any, table: Table) -> Any:
    """‖ΔW‖ of each source, as a bar."""
    one = picked(alt, SOURCE)
    facts = told(alt, table, SOURCE, "format", "family", "base", "modules", "ranks", "‖ΔW‖")
    return (
        alt.Chart()
        .mark_bar(color=COLOURS[0], height={"band": 0.7})
        .encode(
            x=alt.X("‖ΔW‖:Q", title="strength ‖ΔW‖"),
            y=alt.Y(f"{SOURCE}:N", title=None, sort=None),
            opacity=faded(alt, one, 1.0),
            tooltip=facts,
        )
        .add_params(one)
        .properties(height=max(60, min(30 * len(table), 9 * len(table) + 250)))
    )
