"""A number of every module over the depth of the model."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import faded, picked, told, whole
from loramerge.charts.spectra import colour
from loramerge.charts.table import MODULE, SOURCE, Table


def depth(alt: Any, table: Table) -> Any:
    """Effective rank of each module by layer; a line for each source through the means."""
    one = picked(alt, MODULE)
    value = "effective rank"
    base = alt.Chart().encode(
        x=alt.X("layer:Q", title="layer", axis=whole(alt, table.column("layer"))),
        color=colour(alt, table),
        detail=f"{SOURCE}:N",
    )
    points = (
        base.mark_circle(size=55)
        .encode(
            y=alt.Y(f"{value}:Q", title=value),
            opacity=faded(alt, one),
            tooltip=told(alt, table, MODULE, SOURCE, "layer", "kind", value),
        )
        .add_params(one)
    )
    line = base.mark_line(strokeWidth=2, opacity=0.6).encode(y=f"mean({value}):Q")
    return alt.layer(line, points).transform_filter("isValid(datum.layer)").properties(height=260)
