"""Who is compared: every method of the table, options that a claim was made about, and PEFT's own types."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import loramerge as lm
from benchmarks.quality.model import Transformer
from benchmarks.quality.plan import Cell
from benchmarks.quality.store import merging
from benchmarks.quality.train import ALPHA, RANK, wrapped
from loramerge import Target
from loramerge.errors import LoramergeError

Deltas = dict[str, np.ndarray]  # module -> ΔW (out, in)


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to merge. Of PEFT, `method` is its combination_type."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peft: bool = False

    def takes(self, rank: int) -> bool:
        """Whether it can make a merge of that rank (0: no limit)."""
        if self.peft and not self.sized:
            return rank == (0 if self.method == "cat" else RANK)
        return self.peft or rank == 0 or "rank" in lm.METHODS[self.method].names()

    def code(self) -> str:
        """What its result depends on, beside this benchmark."""
        return importlib.metadata.version("peft") if self.peft else merging()

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


class Sources:
    """The adapters of a cell, for ours and for PEFT; tasks may repeat, names may not."""

    def __init__(self, cell: Cell, tensors: list[dict[str, torch.Tensor]]) -> None:
        self.cell, self.tensors = cell, tensors
        self.ours = [
            lm.from_state_dict(each, alpha=ALPHA, name=f"{n}-{one.task}-{one.copy}")
            for n, (one, each) in enumerate(zip(cell.trainings, tensors, strict=True))
        ]
        self._peft: list[Any] = []

    def merged(self, one: Contender, rank: int, model: Transformer) -> Deltas | str:
        """The merge of a cell; or why there is none."""
        return self._by_peft(one, rank, model) if one.peft else self._by_us(one, rank)

    def as_loud(self, deltas: Deltas) -> Deltas:
        """The same with scale=norm: every module as strong as its sources are on average."""
        norms = {
            path: np.mean([one[Target(path)].norm() for one in self.ours]) / max(np.linalg.norm(delta), 1e-12)
            for path, delta in deltas.items()
        }
        return {path: delta * norms[path] for path, delta in deltas.items()}

    def _by_us(self, one: Contender, rank: int) -> Deltas | str:
        count = len(self.ours)
        traits = lm.METHODS[one.method]().traits
        if traits.units == "shared":
            return "it is for adapters with one frozen lora_A, and these have trained theirs"
        if traits.most is not None and count > traits.most:
            return f"it takes {traits.most} adapters at most"
        limit = count * RANK if rank == 0 and not getattr(lm.METHODS[one.method](), "whole", True) else rank
        options = dict(one.options) | ({"rank": limit} if limit else {})
        try:
            merge = lm.combine(self.ours, one.method, threads=1, dtype="float32", **options)
        except LoramergeError as error:
            return str(error)
        return {target.path: update.dense() for target, update in merge.adapter.items()}

    def _by_peft(self, one: Contender, rank: int, model: Transformer) -> Deltas:
        """The same by `add_weighted_adapter`."""
        from peft.tuners.lora import LoraLayer

        if not self._peft:
            self._peft.append(self._in_peft(model))
        names, whole = [str(n) for n in range(len(self.tensors))], self._peft[0]
        torch.manual_seed(self.cell.seed)  # dare drops by chance
        given: dict[str, Any] = {"combination_type": one.method}
        if one.sized:
            given["svd_rank"] = rank or min(len(names) * RANK, model.norm.normalized_shape[0])
        if one.method not in ("svd", "linear", "cat"):
            given["density"] = 0.5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole.add_weighted_adapter(names, [1.0] * len(names), "merged", **given)
        deltas = {
            path.removeprefix("base_model.model."): layer.get_delta_weight("merged").detach().numpy()
            for path, layer in whole.named_modules()
            if isinstance(layer, LoraLayer)
        }
        whole.delete_adapter("merged")
        return deltas

    def _in_peft(self, model: Transformer) -> Any:
        from peft import set_peft_model_state_dict

        whole = wrapped(model, 0)
        for n, tensors in enumerate(self.tensors):
            whole.add_adapter(str(n), whole.peft_config["default"])
            set_peft_model_state_dict(whole, tensors, adapter_name=str(n))
        return whole
