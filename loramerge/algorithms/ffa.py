"""FFA-LoRA: one frozen A for all, so that averaging B is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from loramerge.algorithms.families.federation import Federated, mean_units, places, present
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array, host, namespace
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix
from loramerge.errors import IncompatibleError, printable, say

SAME = 1e-6  # ‖A_t − A_u‖ / ‖A_t‖ of factors that are one and the same but for rounding


@dataclass(frozen=True, kw_only=True)
class Ffa(Federated):
    """The exact mean of adapters that share A, at the rank that they have.

        ΔW = (Σ_t p_t B_t) A = Σ_t p_t ΔW_t        p = w / Σ w,  A the same in all sources

    It is for adapters trained with a frozen lora_A (FFA-LoRA), or with everything frozen but a small matrix
    in between (LoRA-XS, Fed-SB). A comes back as it was, so the next round of training can start from the
    merge. The stored A must be the same in all sources, unit by unit, to 1e-6 of its norm; the merge has
    the mean of them. There is no other freedom: an A that is turned or rescaled is another A, even if it
    spans the same rows. A source without the module, or with a B of zero, may have any A there.

    Source: FFA-LoRA, Sun et al. 2024, arXiv:2403.12313; LoRA-XS, Bałazy et al. 2024, arXiv:2405.17604.

    Limits: it refuses sources whose A differ, and names the module. `average` is exact for any A, at the
    sum of the ranks; `svd` and `fair` are nearly exact at the same rank. Weights below zero are refused.

    >>> import loramerge as lm
    >>> frozen = np.array([[1.0, 2.0]])
    >>> def one(b): return lm.Adapter.of({"q": lm.LowRank(np.array([[b]]), frozen)})
    >>> merge = lm.combine([one(1.0), one(5.0)], lm.Ffa())
    >>> merge.adapter[lm.Target("q")].up, merge.adapter[lm.Target("q")].down
    (array([[3.]]), array([[1., 2.]]))
    """

    called: ClassVar[str] = "ffa"

    @property
    def traits(self) -> Traits:
        return Traits(
            "federated",
            weights="consensus",
            common="same",
            gauge="raw",
            exact=True,
            shares=True,
            negative=False,
            units="shared",
        )

    def factors(self, grams: Grams, rank: int) -> Remix:
        xp, (up, _, _) = namespace(grams.up), mean_units(grams, rank)
        counted = trained(grams)
        check_shared(grams, host(counted), rank)
        counted[~counted.any(axis=1), grams.owner[0]] = 1.0  # where nothing is trained any A will do
        share = (counted / counted.sum(axis=1, keepdims=True))[:, grams.owner]  # (M, R)
        mean = places(grams, rank).T * share[:, None, :]
        return Remix(xp.broadcast_to(up, (len(mean), *up.shape)), mean).after(grams.lift)


def trained(grams: Grams) -> Array:
    """(M, T) 1 where a source with a weight has a B that is not zero."""
    assert grams.weights is not None
    found = namespace(grams.up).zeros((len(grams.up), len(grams.weights)))
    for source in present(grams):
        found[:, source] = grams.live[:, grams.of(source)].any(axis=1)
    return found


def check_shared(grams: Grams, counted: Array, rank: int) -> None:
    """Raises IncompatibleError: the sources that are `counted` (M, T) in a module do not have one lora_A."""
    sources = present(grams)
    if len(sources) < 2:
        return
    mine = np.concatenate([grams.of(source) for source in sources])
    parts = (len(sources), rank)
    blocks = grams.down[:, mine[:, None], mine].reshape(-1, *parts, *parts)
    products = host(namespace(blocks).einsum("mtiui->mtu", blocks))  # ⟨A_t, A_u⟩: few, and only to be told of
    for module, inners in enumerate(products):
        _check_module(grams, module, inners, np.flatnonzero(counted[module, sources]), sources)


def _check_module(grams: Grams, module: int, inners: Array, trained: Array, sources: list[int]) -> None:
    squares, products = inners.diagonal()[trained], inners[trained][:, trained]
    if len(trained) < 2:
        return
    apart = np.sqrt(np.maximum(squares[0] + squares - 2 * products[0], 0.0) / squares[0])
    if (apart > SAME).any():
        worst = int(np.argmax(apart))
        first, other = (printable(grams.sources[sources[trained[t]]]) for t in (0, worst))
        raise IncompatibleError(
            f"ffa needs one lora_A in all sources: in {printable(grams.labels[module])} that of {other} "
            f"differs from that of {first} by {apart[worst]:.2g} of its norm. Use "
            f"{say('method', 'fair')}, or average, "
            "which is exact for any A."
        )
