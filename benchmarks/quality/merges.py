"""How the adapters of a cell are merged, by us and by PEFT's own functions."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

import loramerge as lm
from benchmarks.quality.contenders import Contender
from benchmarks.quality.model import Transformer
from benchmarks.quality.plan import Cell
from benchmarks.quality.train import ALPHA, HEAD, RANK, wrapped
from loramerge import Target
from loramerge.errors import LoramergeError

Deltas = dict[str, np.ndarray]  # module -> ΔW (out, in)


class Sources:
    """The adapters of a cell, for ours and for PEFT; tasks may repeat, names may not."""

    def __init__(self, cell: Cell, tensors: list[dict[str, torch.Tensor]]) -> None:
        self.cell = cell
        self.heads = [each[HEAD] for each in tensors if HEAD in each]
        self.tensors = tensors = [{n: t for n, t in each.items() if n != HEAD} for each in tensors]
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
        size: dict[str, Any] = {"rank": limit} if limit else {}
        if one.shared:
            size = {
                "total_rank": limit * len({target for each in self.ours for target in each}),
                "profile": "compact",
            }
        try:
            merge = lm.combine(self.ours, one.method, threads=1, dtype="float32", **one.options, **size)
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
