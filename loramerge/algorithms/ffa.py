"""FFA-LoRA: one frozen A for all, so that averaging B is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from loramerge.algorithms.families.federation import Federated, mean_units, places, present
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix
from loramerge.errors import IncompatibleError, printable

SAME = 1e-6  # ‖A_t − A_u‖ / ‖A_t‖ of factors that are one and the same but for rounding


@dataclass(frozen=True, kw_only=True)
class Ffa(Federated):
    """The exact mean of adapters that share A, at the rank that they have.

        ΔW = (Σ_t p_t B_t) A = Σ_t p_t ΔW_t        p = w / Σ w,  A the same in all sources

    For adapters trained with a frozen lora_A (FFA-LoRA), or with everything but a small matrix in between
    frozen (LoRA-XS, Fed-SB). A comes back as it was, so the next round of training can start from the
    merge. Factors must be the same as stored, unit by unit, to 1e-6 of their norm; where A differs by no
    more than that, the merge has the mean of them. No other freedom is granted: an A that is turned or
    rescaled is another A, though it may span the same rows. A source without the module, or with a B of
    zero, may have any A there.

    Source: FFA-LoRA, Sun et al. 2024, arXiv:2403.12313; LoRA-XS, Bałazy et al. 2024, arXiv:2405.17604.

    Limits: refuses sources whose A differ and names the module; `average` is exact for any at the sum of
    their ranks, `svd` and `fair` nearly so at the same rank. No weight below zero.

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
            gauge="raw",
            exact=True,
            shares=True,
            negative=False,
            units="shared",
        )

    def factors(self, grams: Grams, rank: int) -> Remix:
        up, _, _ = mean_units(grams, rank)
        counted = trained(grams)
        for module in range(len(grams.up)):
            check_shared(grams, module, np.flatnonzero(counted[module]), rank)
        counted[~counted.any(axis=1), grams.owner[0]] = 1.0  # where nothing is trained any A will do
        share = (counted / counted.sum(axis=1, keepdims=True))[:, grams.owner]  # (M, R)
        mean = places(grams, rank).T * share[:, None, :]
        return Remix(np.broadcast_to(up, (len(mean), *up.shape)), mean).after(grams.lift)


def trained(grams: Grams) -> Array:
    """(M, T) 1 where a source with a weight has a B that is not zero."""
    assert grams.weights is not None
    found = np.zeros((len(grams.up), len(grams.weights)))
    for source in present(grams):
        found[:, source] = grams.live[:, grams.of(source)].any(axis=1)
    return found


def check_shared(grams: Grams, module: int, sources: Array, rank: int) -> None:
    """Raises IncompatibleError: these sources do not have one lora_A."""
    if len(sources) < 2:
        return
    mine = np.concatenate([grams.of(source) for source in sources])
    blocks = grams.down[module][np.ix_(mine, mine)].reshape(len(sources), rank, len(sources), rank)
    products = np.einsum("tiui->tu", blocks)  # ⟨A_t, A_u⟩
    squares = products.diagonal()
    apart = np.sqrt(np.maximum(squares[0] + squares - 2 * products[0], 0.0) / squares[0])
    if (apart > SAME).any():
        worst = int(np.argmax(apart))
        raise IncompatibleError(
            f"ffa needs one lora_A in all sources: in {printable(grams.labels[module])} that of "
            f"{printable(grams.sources[sources[worst]])} differs from that of "
            f"{printable(grams.sources[sources[0]])} by {apart[worst]:.2g} of its norm. Use --method fair, "
            "or average, which is exact for any A."
        )
