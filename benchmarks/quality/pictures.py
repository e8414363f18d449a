"""Two pictures of what was measured: accuracy by strength, and methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from benchmarks.quality.findings import curves
from benchmarks.quality.plan import RHO
from benchmarks.quality.report import Row, compared
from loramerge.charts.style import COLOURS, config

SHOWN = 14  # methods in the second picture


def draw(rows: list[Row], chosen: str, reference: str, folder: Path) -> None:
    """Write both as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in {
        "strength": strength(rows, ("linear", chosen)),
        "methods": methods(rows, chosen, reference),
    }.items():
        chart.configure(**config("light") | {"background": "white"}).save(folder / f"{name}.svg")


def strength(rows: list[Row], names: Sequence[str]) -> Any:
    """Accuracy at every strength at rank 8; a circle where the method itself puts it."""
    lines, shipped = [], []
    for curve in curves(rows, names, 8):
        about = {"method": curve["contender"], "adapters": f"{curve['count']} adapters"}
        lines += [about | {"ρ": r, "accuracy": a} for r, a in zip(RHO, curve["accuracy"], strict=True)]
        shipped.append(about | {"ρ": min(max(curve["shipped"], RHO[0]), 3.5)})
    x = alt.X(
        "ρ:Q",
        title="strength (1: that of one adapter)",
        scale=alt.Scale(type="log", domain=[0.3, 4], nice=False),
        axis=alt.Axis(values=[0.3, 0.5, 1, 2, 4], grid=False),
    )
    colour = alt.Color("method:N", title=None, scale=alt.Scale(range=list(COLOURS)))
    column = alt.Column("adapters:N", title=None)
    y = alt.Y("accuracy:Q", title="accuracy kept")
    plain = alt.Chart().mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    marks = alt.Chart().mark_rule(strokeDash=[4, 3], strokeWidth=2).encode(x=x, color=colour)
    data = alt.Data(values=lines + shipped)
    both = alt.layer(
        plain.transform_filter("isValid(datum.accuracy)"), marks.transform_filter("!isValid(datum.accuracy)")
    )
    return both.properties(width=190, height=200, data=data).facet(column=column)


def methods(rows: list[Row], chosen: str, reference: str) -> Any:
    """The best when tuned at rank 8, tuned and as they are, in the mean over 2, 4 and 8 adapters."""
    points = []
    for count in (2, 4, 8):
        for kind in ("tuned", "untuned"):
            lines = {line["contender"]: line for line in compared(rows, count, 8, kind, reference)}
            points += [
                {"method": n, "kind": kind, "adapters": f"{count} adapters", "accuracy": line["accuracy"]}
                for n, line in lines.items()
                if "·" not in n
            ]
    order = sorted({p["method"] for p in points}, key=lambda n: -_mean(points, n, "tuned"))
    kept = list(dict.fromkeys([chosen, *order[:SHOWN], reference, "linear"]))
    order = [name for name in order if name in kept]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(range=list(COLOURS)))
    chart = alt.Chart(alt.Data(values=[p for p in points if p["method"] in kept]))
    return (
        chart.mark_point(filled=True, size=70)
        .encode(
            x=alt.X("accuracy:Q", title="accuracy kept", scale=alt.Scale(zero=False)),
            y=alt.Y("method:N", title=None, sort=order, axis=alt.Axis(grid=True)),
            color=colour,
            shape=alt.Shape("kind:N", title=None),
        )
        .properties(width=170, height=22 * len(order))
        .facet(column=alt.Column("adapters:N", title=None))
        .resolve_scale(x="independent")
    )


def _mean(points: list[dict[str, Any]], name: str, kind: str) -> float:
    found = [p["accuracy"] for p in points if p["method"] == name and p["kind"] == kind]
    return sum(found) / max(len(found), 1)
