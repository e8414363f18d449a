"""How charts look: colours that everybody can tell apart, on a light or a dark ground."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Scheme = Literal["light", "dark"]
# Okabe and Ito 2008, told apart with any kind of colour blindness; violet and brown for their yellow and
# black, which a light or a dark page does not show. The tests measure the distances.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9000F0", "#904830")
FINE, WRONG, UNTOLD = "#009E73", "#D55E00", "#646464"  # green, red and grey that differ in lightness too
AWAY, NOTHING, ALIKE = (
    "#B35806",
    "#F7F7F7",
    "#2166AC",
)  # cosine -1, 0 and 1: orange and blue, not red and green
NARROW = 400  # of a chart: two names of a legend have no room side by side
LIMIT = {"expr": f"width < {NARROW} ? 130 : 320"}  # of a name beside an axis: the end tells many apart
WIDTH = 600  # where nobody says: in a notebook, in a file

_INK: Mapping[Scheme, tuple[str, str, str]] = {  # words, lines of axes, lines of a grid
    "light": ("#1a1a1a", "#767676", "#e4e4e4"),
    "dark": ("#ececec", "#9a9a9a", "#3a3a3a"),
}


def config(scheme: Scheme) -> dict[str, Any]:
    """Vega-Lite's config of a scheme: the page puts it on, so that one chart serves both."""
    ink, line, grid = _INK[scheme]
    words = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": {**words, "domainColor": line, "tickColor": line, "gridColor": grid, "labelLimit": LIMIT},
        "legend": {
            **words,
            "orient": "bottom",
            "columns": {"expr": f"width < {NARROW} ? 1 : 2"},
            "labelLimit": 220,
            "titleLimit": 260,
            "symbolOpacity": 1,
        },
        "range": {"category": list(COLOURS)},
        "text": {"color": ink},
        "view": {"stroke": "transparent"},
    }
