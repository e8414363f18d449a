"""Who is compared: every method of the table, options that a claim was made about, and PEFT's own types."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import loramerge as lm
from benchmarks.quality.plan import Cell, Size
from benchmarks.quality.train import ALPHA, RANK, adapter, base, wrapped
from loramerge.errors import LoramergeError

Deltas = dict[str, np.ndarray]  # module -> ΔW (out, in)
POLICIES = ("as shipped", "norm")  # of strength: what the method makes, and every module as its sources


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to merge. Of PEFT, `method` is its combination_type."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peft: bool = False

    def takes(self, rank: int, policy: str) -> bool:
        """Whether it can make a merge of that rank (0: no limit) and strength."""
        if self.peft:
            fits = rank in {"cat": (0,)}.get(self.method, () if not self.sized else (rank,)) or (
                not self.sized and self.method != "cat" and rank == RANK
            )
            return fits and policy == "as shipped"
        if policy == "norm" and rank != RANK:  # compared at one rank: it doubles the work
            return False
        return rank == 0 or "rank" in lm.METHODS[self.method].names()

    @property
    def sized(self) -> bool:
        """Whether PEFT takes a rank for it."""
        return self.method.endswith("svd")


VARIANTS = {
    "lego, ctm": ("lego", {"variant": "ctm"}),
    "lego, nsc": ("lego", {"variant": "nsc"}),
    "wudi, ridge 1": ("wudi", {"ridge": 1.0}),
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
    "dc_merge, mean": ("dc_merge", {"smooth": "mean"}),
    "ties, dense": ("ties", {"density": 1.0}),
    "ties, core": ("ties", {"space": "core"}),
    "dare_ties, core": ("dare_ties", {"space": "core"}),
    "ctm, sum": ("ctm", {"rule": "sum"}),
}
PEFT_TYPES = (
    *("svd", "cat", "linear", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties"),
    *("dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"),
)
OURS = {name: Contender(name, name) for name in lm.METHODS}
OTHERS = {name: Contender(name, method, options) for name, (method, options) in VARIANTS.items()}
PEFTS = {f"PEFT {kind}": Contender(f"PEFT {kind}", kind, peft=True) for kind in PEFT_TYPES}
CONTENDERS = OURS | OTHERS | PEFTS
FEW = ("svd", "iso_c", "pico", "tsv", "wudi", "lego", "shrunk_tsv", "shrunk_tsv, σ^½", "dc_merge", "linear")
FEW = (*FEW, "PEFT svd", "PEFT linear", "PEFT magnitude_prune_svd")
REFERENCE = "PEFT svd"


def sources(cell: Cell, size: Size, work: Path) -> list[lm.Adapter]:
    """The adapters of a cell; tasks may repeat, names may not."""
    return [
        lm.from_state_dict(adapter(one, size, work), alpha=ALPHA, name=f"{n}-{one.task}-{one.copy}")
        for n, one in enumerate(cell.trainings)
    ]


def merged(one: Contender, cell: Cell, rank: int, policy: str, loaded: list[lm.Adapter]) -> Deltas | str:
    """The merge of a cell; or why there is none.

    Args:
        loaded: what `sources` gives.
    """
    traits = lm.METHODS[one.method]().traits
    if traits.units == "shared":
        return "it is for adapters with one frozen lora_A, and these have trained theirs"
    if traits.most is not None and cell.count > traits.most:
        return f"it takes {traits.most} adapters at most"
    limit = cell.count * RANK if rank == 0 and not getattr(lm.METHODS[one.method](), "whole", True) else rank
    options = dict(one.options) | ({"rank": limit} if limit else {})
    scale = "norm" if policy == "norm" else 1.0
    try:
        merge = lm.combine(loaded, one.method, scale=scale, threads=1, dtype="float32", **options)
    except LoramergeError as error:
        return str(error)
    return {target.path: update.dense() for target, update in merge.adapter.items()}


def peft_merged(one: Contender, cell: Cell, rank: int, size: Size, work: Path) -> Deltas:
    """The same by `add_weighted_adapter`."""
    from peft import LoraConfig, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    model = wrapped(base(cell.domain, size, work), 0)
    config: LoraConfig = model.peft_config["default"]
    names = [str(n) for n in range(cell.count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, training in zip(names, cell.trainings, strict=True):
            model.add_adapter(name, config)
            set_peft_model_state_dict(model, adapter(training, size, work), adapter_name=name)
        torch.manual_seed(cell.seed)  # dare drops by chance
        given: dict[str, Any] = {"combination_type": one.method}
        if one.sized:
            given["svd_rank"] = rank or min(cell.count * RANK, size.width)
        if one.method not in ("svd", "linear", "cat"):
            given["density"] = 0.5
        model.add_weighted_adapter(names, [1.0] * cell.count, "merged", **given)
    return {
        path.removeprefix("base_model.model."): layer.get_delta_weight("merged").detach().numpy()
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
