"""Who is compared: every method of the table, options of which something is claimed, gates, PEFT's types."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import loramerge as lm
from benchmarks.quality.store import merging, routing
from benchmarks.quality.train import RANK


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to merge, or to route.

    Args:
        method: of PEFT its combination_type, of a bundle its gate.
        options: of the method, and of `combine`.
        peft: it is one of PEFT's.   gate: nothing is merged; a gate weighs the adapters, token by token.
        shared: modules share their units by energy; together they have as many as with one rank for all.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peft: bool = False
    gate: bool = False
    shared: bool = False

    def takes(self, rank: int) -> bool:
        """Whether it can make a merge of that rank (0: no limit), and is asked to: options are at rank 8."""
        if self.gate:
            return rank == 0
        if self.shared:
            return rank > 0
        if self.peft and not self.sized:
            return rank == (0 if self.method == "cat" else RANK)
        if self.options:
            return rank == RANK
        return self.peft or rank == 0 or "rank" in lm.METHODS[self.method].names()

    def code(self) -> str:
        """What its result depends on, beside this benchmark."""
        if self.gate:
            return routing()
        return importlib.metadata.version("peft") if self.peft else merging()

    @property
    def sized(self) -> bool:
        """Whether PEFT takes a rank for it."""
        return self.method.endswith("svd")


VARIANTS = {
    "lego, ctm": ("lego", {"variant": "ctm"}),
    "lego, nsc": ("lego", {"variant": "nsc"}),
    "wudi, ridge .1": ("wudi", {"ridge": 0.1}),
    "wudi, flow from the sum": ("wudi", {"filter": "flow", "start": "sum"}),
    "wudi, top": ("wudi", {"filter": "top"}),
    "wudi, top from the sum": ("wudi", {"filter": "top", "start": "sum"}),
    "svd, σ^½": ("svd", {"power": 0.5}),
    "svd, σ^¾": ("svd", {"power": 0.75}),
    "svd, boost .9": ("svd", {"boost": 0.9}),
    "pico, both sides": ("pico", {"sides": "both"}),
    "shrunk_tsv, σ^½": ("shrunk_tsv", {"power": 0.5}),
    "shrunk_tsv, σ": ("shrunk_tsv", {"power": 1.0}),
    "shrunk_tsv, s .1": ("shrunk_tsv", {"shrink": 0.1}),
    "shrunk_tsv, s .6": ("shrunk_tsv", {"shrink": 0.6}),
    "level, by module": ("level", {"scope": "module"}),
    "level, σ^½": ("level", {"power": 0.5}),
    "level, σ": ("level", {"power": 1.0}),
    "level, s .1": ("level", {"shrink": 0.1}),
    "level, s .6": ("level", {"shrink": 0.6}),
    "level, s .6, σ": ("level", {"shrink": 0.6, "power": 1.0}),
    "level, s 1": ("level", {"shrink": 1.0}),
    "dc_merge, mean": ("dc_merge", {"smooth": "mean"}),
    "ties, dense": ("ties", {"density": 1.0}),
    "ties, core": ("ties", {"space": "core"}),
    "dare_ties, core": ("dare_ties", {"space": "core"}),
    "ctm, sum": ("ctm", {"rule": "sum"}),
    "knots, by shares": ("knots", {"ranking": "shares", "rank_tol": 0.01}),
    "svd, fade": ("svd", {"scale": "fade"}),
    "shrunk_tsv, fade": ("shrunk_tsv", {"scale": "fade"}),
    "pico, both sides, fade": ("pico", {"sides": "both", "scale": "fade"}),
    "svd, cosine": ("svd", {"scale": "cosine"}),
    "level, cosine": ("level", {"scale": "cosine"}),
}
SHARED = ("svd", "shrunk_tsv", "level")
GATES = {
    "arrow": {"top_k": 1},
    "spectr": {"top_k": 1},
    "seqr": {"top_k": 1},
    "lag": {"top_k": 1},
    "smile": {"top_k": 1},
    "rank-self": {},
    "rank-absproj": {},
    "static": {},
}
PEFT_TYPES = (
    *("svd", "cat", "linear", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties"),
    *("dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"),
)
OURS = {name: Contender(name, name) for name in lm.METHODS}
OTHERS = {name: Contender(name, method, options) for name, (method, options) in VARIANTS.items()}
PEFTS = {f"PEFT {kind}": Contender(f"PEFT {kind}", kind, peft=True) for kind in PEFT_TYPES}
ROUTED = {f"routed, {gate}": Contender(f"routed, {gate}", gate, o, gate=True) for gate, o in GATES.items()}
SPREAD = {f"{name}, shared ranks": Contender(f"{name}, shared ranks", name, shared=True) for name in SHARED}
CONTENDERS = OURS | OTHERS | SPREAD | ROUTED | PEFTS
FEW = (
    "svd",
    "iso_c",
    "pico",
    "tsv",
    "wudi",
    "lego",
    "shrunk_tsv",
    "shrunk_tsv, σ^½",
    "level",
    "dc_merge",
    "linear",
)
FEW = (*FEW, "PEFT svd", "PEFT linear", "PEFT magnitude_prune_svd")
REFERENCE = "PEFT svd"
