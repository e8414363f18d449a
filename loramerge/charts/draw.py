"""From a table to a chart: Altair is loaded here, when somebody wants to look."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from loramerge.charts.style import WIDTH, config
from loramerge.charts.table import Table
from loramerge.errors import UsageError

Chart = Any  # of Altair, which only those have who draw
Draw = Callable[[Any, Table], Chart]  # (altair, table) -> a chart whose data are named TABLE
TABLE = "table"
TICKS = 10  # that have room side by side on a small screen
PICKED = "picked"  # the selection of what a reader singles out


def altair() -> Any:
    """The library. Raises UsageError: it is not installed."""
    try:
        import altair
    except ImportError:
        raise UsageError('A chart needs Altair: pip install "loramerge[plot]".') from None
    return altair


def drawn(draw: Draw, table: Table) -> Chart:
    """The chart of a table, for a notebook or a file (`chart.save("name.svg")`)."""
    alt = altair()
    chart = draw(alt, table)
    rows = [{name: inert(value) for name, value in row.items()} for row in table.records()]
    chart.data = alt.Data(values=rows)
    return chart.properties(width=WIDTH).configure(**config("light"))


# Altair puts a chart's data between tags of a script as they are, for `chart.save("name.html")` and notebooks
def inert(value: Any) -> Any:
    """Text that ends or begins no tag: another sign stands for its `<`.

    >>> inert("</script>"), inert("a < b"), inert(0.5)
    ('‹/script>', 'a < b', 0.5)
    """
    return re.sub("<(?=[/!?A-Za-z])", "‹", value) if isinstance(value, str) else value


def spec(draw: Draw, table: Table) -> dict[str, Any]:
    """Vega-Lite for a page, which brings the data: those of the table that it shows."""
    # The tests hold every chart against the schema; here that would cost more than drawing it.
    alt = altair()
    chart = draw(alt, table)
    chart.data = alt.NamedData(name=TABLE)
    found: dict[str, Any] = chart.properties(width="container").to_dict(validate=False)
    for each in ("config", "$schema"):  # the page has a config for each scheme, and no address
        found.pop(each, None)
    return found


def picked(alt: Any, field: str) -> Any:
    """What a click singles out; a click beside it lets go."""
    return alt.selection_point(name=PICKED, fields=[field], on="click", clear="dblclick")


def faded(alt: Any, one: Any, full: float = 0.75) -> Any:
    """What is singled out comes forward, and all else steps back; `full` where nothing is."""
    forward = alt.when(one, empty=False).then(alt.value(1.0))
    return forward.when(one).then(alt.value(full)).otherwise(alt.value(0.06))


def whole(alt: Any, numbers: Iterable[Any]) -> Any:
    """An axis with ticks at whole numbers alone: at each of these, where they are few."""
    found = sorted({number for number in numbers if number is not None})
    few = {"values": found} if 0 < len(found) <= TICKS else {"tickMinStep": 1}
    return alt.Axis(format="d", grid=False, **few)


def told(alt: Any, table: Table, *names: str) -> list[Any]:
    """What hovering shows: columns of the table by name, as far as it has them."""
    known = {column.name: column.kind for column in table.columns}
    return [
        alt.Tooltip(f"{name}:Q", format=".4~g") if known[name] == "number" else alt.Tooltip(f"{name}:N")
        for name in names
        if name in known
    ]
