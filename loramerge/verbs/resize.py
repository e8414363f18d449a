"""Make an adapter smaller, with the smallest possible error in the Frobenius norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.adapters.arguments import checked
from loramerge.errors import UsageError, printable, say
from loramerge.formats.output import is_bare
from loramerge.merge.plan import Plan
from loramerge.merge.planner import planned
from loramerge.merge.run import Merge, run
from loramerge.request.recipe import Recipe, Source
from loramerge.request.signature import spelled
from loramerge.sources.expand import expanded

SIZES = ("rank", "energy", "total_rank", "size", "energy_per_module")


@spelled("resize")
@checked("out", "rank", "energy")
def resize(
    source: Source,
    out: str | Path | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    **asked: Any,
) -> Merge:
    """Make an adapter smaller: keep its leading singular units, as many as one of the four sizes allows.

    Results and errors as for `loramerge.combine` with `method="svd"`.

    Args:
        source: as for `combine`.   out: as for `combine`.
        rank: units in every module.
        energy: the smallest common rank that keeps this share of ‖ΔW‖² in every module.
        {asked}

    >>> import numpy as np
    >>> import loramerge as lm
    >>> update = lm.LowRank(np.diag([3.0, 1.0]), np.eye(2))
    >>> resize(lm.Adapter.of({"q": update}), rank=1).adapter[lm.Target("q")].dense().round(12)
    array([[3., 0.],
           [0., 0.]])
    """
    bare = out is None or is_bare(Path(out))
    return run(resized(source, {"rank": rank, "energy": energy, "out": out, **asked}, bare))


def resized(source: Source, asked: dict[str, Any], bare: bool | None) -> Plan:
    """What `resize` would do.

    Args:
        bare: whether it will be one file; None: as the source.

    Raises:
        UsageError: not one adapter, or not one size.
    """
    recipe = Recipe.of("resize", [source], "svd", asked)
    given = [name for name in SIZES if asked.get(name) is not None]
    if len(given) != 1 and given != ["rank", "energy_per_module"]:  # whose rank is the most
        words = {name: say(name).rstrip("=") for name in SIZES}
        *first, last = words.values()
        found = f"not {' and '.join(words[name] for name in given)}" if given else "for there is none"
        raise UsageError(f"Give one of {', '.join(first)} or {last}, {found}.")
    recipe = expanded(recipe)
    if len(recipe.sources) != 1:
        raise UsageError(
            f"{printable(source)} stands for {len(recipe.sources)} adapters: name one, or merge them with "
            "combine."
        )
    return planned(recipe.asking(bare=bare))
