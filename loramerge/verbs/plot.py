"""A chart of what `inspect` found; needs the extra `plot`."""

from __future__ import annotations

from typing import Any

from loramerge.adapters.arguments import checked
from loramerge.charts.draw import drawn
from loramerge.charts.spectra import spectra
from loramerge.errors import UsageError, printable
from loramerge.merge import columns
from loramerge.verbs.inspect import Inspection


@checked("inspection")
def plot_spectra(inspection: Inspection, axes: Any = None) -> Any:
    """Singular values of every module, one line each, on a logarithmic scale.

    Args:
        inspection: what `inspect` returned.
        axes: Axes of matplotlib to draw on, instead of a chart of Altair.

    Returns:
        An Altair chart with the names of the modules, or the Axes.

    Raises:
        UsageError: Altair is not installed, or only a header was read.
    """
    if axes is not None and not hasattr(axes, "plot"):
        raise UsageError(f"axes={printable(repr(axes), 60)} must be the Axes of matplotlib to draw on.")
    if inspection.peeked:
        raise UsageError("Only a header on the Hub was read: inspect(..., download=True) has the spectra.")
    if axes is None:
        return drawn(spectra, columns.spectra({inspection.adapter.name: inspection.modules}))
    for module in inspection.modules:
        assert module.sigma is not None
        sigma = module.sigma[module.sigma > 0]
        axes.plot(range(1, len(sigma) + 1), sigma, color="tab:blue", alpha=0.3)
    title = printable(inspection.adapter.name).replace("$", r"\$")  # which begins a formula there
    axes.set(yscale="log", xlabel="unit", ylabel="σ of ΔW", title=title)
    return axes
