"""Pictures for notebooks; needs the extra `plot`."""

from __future__ import annotations

from typing import Any

import numpy as np

from loramerge.adapters.arguments import checked
from loramerge.errors import UsageError, printable
from loramerge.verbs.inspect import Inspection


@checked("inspection")
def plot_spectra(inspection: Inspection, axes: Any = None) -> Any:
    """Singular values of every module, one line each, on a logarithmic scale.

    Args:
        inspection: what `inspect` returned.   axes: the matplotlib Axes to draw on; by default new ones.

    Returns:
        The Axes.

    Raises:
        UsageError: matplotlib is not installed, or only a header was read.
    """
    if axes is not None and not hasattr(axes, "plot"):
        raise UsageError(f"axes={printable(repr(axes), 60)} must be the Axes of matplotlib to draw on.")
    if inspection.peeked:
        raise UsageError("Only a header on the Hub was read: inspect(..., download=True) has the spectra.")
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UsageError('A plot needs matplotlib: pip install "loramerge[plot]".') from None
    axes = pyplot.subplots()[1] if axes is None else axes
    for module in inspection.modules:
        sigma = np.asarray(module.sigma)
        sigma = sigma[sigma > 0]
        axes.plot(np.arange(1, len(sigma) + 1), sigma, color="tab:blue", alpha=0.3)
    axes.set(yscale="log", xlabel="unit", ylabel="σ of ΔW", title=inspection.adapter.name)
    return axes
