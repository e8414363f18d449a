"""What a merge would do, without merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loramerge.adapters.arguments import checked
from loramerge.algorithms import Method
from loramerge.merge.plan import Plan
from loramerge.merge.planner import planned
from loramerge.request.effort import Effort
from loramerge.request.recipe import Recipe, Source
from loramerge.request.signature import spelled


@spelled("plan", options=True)
@checked("effort")
def plan(
    sources: Sequence[Source],
    method: str | Method | None = None,
    *,
    effort: Effort | None = None,
    **asked: Any,
) -> Plan:
    """What `combine` would do, without merging. The arguments are the same. It reads headers, and factors
    only where something depends on them: the size (`energy`, `total_rank`, `size`), or a method that looks.

    Args:
        sources, method: as for `combine`.
        effort: `threads` and `memory` as one value.
        {asked}
        options: options of the method, if it is given by name.

    >>> todo = plan(["fixtures/a.safetensors", "fixtures/b.safetensors"], "svd")
    >>> todo.method, todo.outline.rank, len(todo.outline.shapes)
    (Svd(rank=8, energy=None, power=1.0, boost=None), 8, 18)
    """
    if effort is not None:
        asked = {"threads": effort.threads, "memory": effort.memory, **asked}
    return planned(Recipe.of("plan", sources, method, asked))
