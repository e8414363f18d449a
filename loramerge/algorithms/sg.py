"""SG-LoRA without training: experts mixed by how well their descriptions fit what is wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from loramerge.algorithms.families.size import Sized, truncate
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sg(Sized):
    """A mixture of the experts whose descriptions are nearest to what you describe.

        ΔW = Σ_k α_k ΔW_k        α = softmax(s_K / τ),  K = the top_k of  s_e = cos(d*, d_e)

    d* and d_e embed the query and the description of expert e. With `describe` the similarities come from
    descriptions. Without it they are what the weights say (`--weights 0.9,0.2`). τ = 0 takes only the
    nearest expert, τ = inf the plain mean of the chosen ones. The mixture is of ΔW, so it is exact without
    a rank. Experts outside K are left out, as if they had not been named. If several are as similar as the
    last one chosen, all of them are chosen; so the order of the sources decides nothing.

    Source: SG-LoRA, Li et al. 2025, arXiv:2509.10535, the part without training. It mixes the parameters A
    and B themselves, which adds cross terms between experts; here the updates are mixed. Its top_k is 4; its
    τ could not be verified. The default 0.05 is the temperature at which sentence embeddings are usually
    trained (a scale of 20): a cosine lower by 0.1 weighs e² times less.

    Limits: it is as good as the descriptions, and knows nothing of what experts really do. An expert with a
    similarity of 0 or less is never mixed in. Weights beside `describe` are refused: they would decide
    twice.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> sql, haiku = lm.Adapter.of({"q": unit}, "sql"), lm.Adapter.of({"q": 3.0 * other}, "haiku")
    >>> said = {"sql": "Writes SQL queries for tables.", "haiku": "Writes short poems."}
    >>> merge = lm.combine([sql, haiku], lm.Sg(describe="SQL queries", temperature=0), descriptions=said)
    >>> merge.adapter[lm.Target("q")].dense().round(6)
    array([[1., 0.],
           [0., 0.]])
    """

    describe: str | None = option(
        None, "What the merge should be good at, in words; compared with a description of each source."
    )
    top_k: int = option(4, "How many of the nearest sources are mixed.", Interval(low=1))
    temperature: float = option(
        0.05,
        "How even the mixture is: 0 takes the nearest alone, inf all top k alike.",
        Interval(low=0, endless=True),
    )

    def __post_init__(self) -> None:
        if isinstance(self.temperature, str) and self.temperature == "inf":  # as JSON says it
            object.__setattr__(self, "temperature", math.inf)
        super().__post_init__()
        if self.describe is not None and not self.describe.strip():
            raise UsageError("describe is empty: say in words what the merge should be good at.")

    @property
    def traits(self) -> Traits:
        return Traits(
            "semantic", weights="consensus", common="neither", exact=True, sums=True, given="similarity"
        )

    @property
    def query(self) -> str | None:
        return self.describe

    def weights(self, weights: Array) -> Array:
        return mixture(weights, self.top_k, self.temperature)

    def remix(self, grams: Grams) -> Remix:
        return truncate(grams, self.rank)

    def options(self) -> dict[str, Any]:
        said = super().options()
        return {**said, "temperature": "inf"} if math.isinf(self.temperature) else said


def mixture(similarities: Array, top_k: int, temperature: float) -> Array:
    """α (T,): the softmax of the `top_k` largest similarities (T,), 0 for the others; it sums to 1.

    Those as similar as the last one chosen are chosen too; none of 0 or less is.

    Raises:
        UsageError: none is above 0.

    >>> mixture(np.array([0.1, 0.3, 0.2, -0.5]), 2, 0.1).round(3)
    array([0.   , 0.731, 0.269, 0.   ])
    """
    positive = np.sort(similarities[similarities > 0])[::-1]
    if len(positive) == 0:
        raise UsageError("No source has a similarity above 0, so there is nothing to mix.")
    chosen = similarities >= positive[:top_k][-1]
    behind = similarities - positive[0]
    if temperature == 0:
        heat = (behind == 0).astype(float)
    else:
        with np.errstate(over="ignore", under="ignore"):  # e^-∞ is 0, as it should be
            heat = chosen * np.exp(np.minimum(behind, 0.0) / temperature)
    return np.asarray(heat / math.fsum(heat))  # fsum: the same in any order
