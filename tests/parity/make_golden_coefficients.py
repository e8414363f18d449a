"""Write coefficients.safetensors: what mergekit 0.1.5 makes of small updates, in float64.

    pip install mergekit==0.1.5 && python tests/parity/make_golden_coefficients.py

Run it again only for another version of mergekit; the tests read the file and need no mergekit.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.karcher import karcher_merge_method
from mergekit.merge_methods.model_stock import model_stock_merge_method
from mergekit.merge_methods.nuslerp import nuslerp_merge_method
from mergekit.merge_methods.slerp import slerp
from safetensors.numpy import save_file

OUT = Path(__file__).with_name("coefficients.safetensors")
RANKS, SHAPE = (2, 3, 2), (6, 5)


def factors(rng, common):
    """Three adapters of one module that share part of what they do."""
    pairs = [(rng.standard_normal((SHAPE[0], r)), rng.standard_normal((r, SHAPE[1]))) for r in RANKS]
    return [
        (np.hstack([up, common * pairs[0][0]]), np.vstack([down, common * pairs[0][1]])) for up, down in pairs
    ]


def main():
    """All cases, by name: factors first, then what mergekit returns."""
    rng, golden = np.random.default_rng(2024), {}
    for name, common in (("apart", 0.0), ("related", 1.0), ("parallel", 30.0)):
        pairs = factors(rng, common)
        for t, (up, down) in enumerate(pairs):
            golden |= {f"{name}.{t}.up": up, f"{name}.{t}.down": down}
        updates = [torch.from_numpy(up @ down) for up, down in pairs]
        base = torch.zeros(SHAPE, dtype=torch.float64)
        two = TensorGroup.from_tensors([base, *updates[:2]], base_index=0)
        all_ = TensorGroup.from_tensors([base, *updates], base_index=0)
        alone = TensorGroup.from_tensors(updates)
        for t in (0.25, 0.5, 0.9):
            first, second = (update[None] for update in updates[:2])
            golden[f"{name}.slerp.{t}"] = slerp(torch.tensor([t]), first, second)[0].numpy()
        weighted = nuslerp_merge_method.implementation
        golden[f"{name}.nuslerp"] = weighted(two, weight=_Weights([1.0, 3.0])).numpy()
        golden[f"{name}.model_stock"] = model_stock_merge_method.implementation(all_).numpy()
        golden[f"{name}.karcher"] = karcher_merge_method.implementation(alone).numpy()
    golden = {key: np.ascontiguousarray(value) for key, value in golden.items()}
    save_file(golden, OUT, metadata={"mergekit": version("mergekit"), "torch": version("torch")})


class _Weights:
    """One weight per input, as mergekit hands them to a method."""

    def __init__(self, values):
        self.values = values

    def values_for(self, entries):
        return self.values[: len(entries)]


if __name__ == "__main__":
    main()
