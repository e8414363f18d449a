"""Which program loads which adapter: a map of green, red and grey, with a sign in each square."""

from __future__ import annotations

from typing import Any

from loramerge.charts.draw import faded, picked, told
from loramerge.charts.style import FINE, UNTOLD, WRONG
from loramerge.charts.table import SOURCE, Table

ANSWERS = {"loads": ("✓", FINE), "does not": ("✗", WRONG), "cannot be told": ("?", UNTOLD)}


def answers(alt: Any, table: Table) -> Any:
    """A square for each program and source. The sign says the same as the colour."""
    words, colours = list(ANSWERS), [colour for _, colour in ANSWERS.values()]
    sources = len(set(table.column(SOURCE)))
    one = picked(alt, SOURCE)
    facts = told(alt, table, SOURCE, "program", "answer", "why")
    sign = " : ".join(f"datum.answer == '{word}' ? '{sign}'" for word, (sign, _) in ANSWERS.items())
    base = (
        alt.Chart()
        .transform_calculate(sign=f"{sign} : ''")
        .encode(
            x=alt.X("program:N", title=None, sort=None, axis=alt.Axis(orient="top", labelAngle=-90)),
            y=alt.Y(f"{SOURCE}:N", title=None, sort=None),
        )
    )
    colour = alt.Color("answer:N", title=None, scale=alt.Scale(domain=words, range=colours))
    squares = base.mark_rect(stroke="#ffffff", strokeOpacity=0.4).encode(
        color=colour, tooltip=facts, opacity=faded(alt, one, 1.0)
    )
    signs = base.mark_text(fontSize=13, fontWeight="bold", color="#ffffff").encode(
        text="sign:N", tooltip=facts
    )
    return (squares.add_params(one) + signs).properties(height=max(50, 28 * sources))
