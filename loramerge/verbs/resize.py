"""One adapter made smaller: the best of its size in the Frobenius norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.errors import UsageError, printable
from loramerge.formats.output import is_bare
from loramerge.merge.plan import Plan, plan
from loramerge.merge.run import Merge, Progress, run
from loramerge.request.effort import EFFORT, Effort
from loramerge.sources.expand import gather
from loramerge.sources.open import Alphas, Source

SIZES = ("rank", "energy", "total_rank", "size")


def resize(
    source: Source,
    out: str | Path | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    total_rank: int | None = None,
    size: float | str | None = None,
    profile: str = "portable",
    dtype: str | None = None,
    consumer: str | None = None,
    max_rank: int | None = None,
    alpha: Alphas = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Merge:
    """The adapter with fewer units: the leading singular ones, as many as one of the four sizes says.

    Arguments, results and errors as for `loramerge.combine` with `method="svd"`.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> update = lm.LowRank(np.diag([3.0, 1.0]), np.eye(2))
    >>> resize(lm.Adapter.of({"q": update}), rank=1).adapter[lm.Target("q")].dense().round(12)
    array([[3., 0.],
           [0., 0.]])
    """
    where, effort = None if out is None else Path(out), Effort(threads)
    bare = where is None or is_bare(where)
    sizes = {"rank": rank, "energy": energy, "total_rank": total_rank, "size": size}
    settings = {"profile": profile, "dtype": dtype, "consumer": consumer, "max_rank": max_rank}
    todo = resizing(source, sizes, effort, alpha=alpha, bare=bare, **settings)
    return run(todo, where, overwrite=overwrite, effort=effort, progress=progress)


def resizing(source: Source, sizes: dict[str, Any], effort: Effort = EFFORT, **settings: Any) -> Plan:
    """What `resize` would do.

    Raises:
        UsageError: not one adapter, or not one size.
    """
    given = [name for name in SIZES if sizes[name] is not None]
    if len(given) != 1:
        found = f"not {' and '.join(given)}" if given else "and none is given"
        raise UsageError(f"One of rank, energy, total_rank and size says how small it shall be, {found}.")
    sources, _ = gather([source], None)
    if len(sources) != 1:
        raise UsageError(
            f"{printable(source)} stands for {len(sources)} adapters: name one, or merge them with combine."
        )
    return plan(sources, "svd", effort=effort, **sizes, **settings)
