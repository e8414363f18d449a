"""Open adapters that will be merged more than once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loramerge.merge.session import Session
from loramerge.request.recipe import Recipe, Source
from loramerge.request.signature import spelled
from loramerge.sources.expand import expanded
from loramerge.sources.sources import open_together


@spelled("open")
def open(sources: Sequence[Source], **asked: Any) -> Session:  # the verb of the library, as in lm.open
    """Open adapters that you merge more than once. Arguments and errors as for `combine`.

    Args:
        sources: as for `combine`.
        {asked}

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.ones((2, 1)), np.ones((1, 2)))
    >>> pair = lm.open([lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit})])
    >>> [pair.combine(weights=[w, 1 - w]).adapter[lm.Target("q")].norm() for w in (0.0, 0.5, 1.0)]
    [6.0, 4.0, 2.0]
    """
    recipe = expanded(Recipe.of("open", sources, None, asked))
    return Session(open_together(recipe))
