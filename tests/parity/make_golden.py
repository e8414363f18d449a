"""Makes the golden files: merges of small matrices by mergekit 0.1.5, that tests hold ours against.

    pip install "loramerge[parity]" && python tests/parity/make_golden.py

mergekit is called, never imported by the tests: it pins older libraries than ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE, RANKS = (24, 20), (3, 4, 2)
WEIGHTS = [1.0, 0.5, 2.0]
CASES = {  # name -> (mergekit's method, shared parameters, parameters of each input)
    "ties": ("ties", {"normalize": True}, {"weight": WEIGHTS, "density": [0.3] * 3}),
    "ties_all": ("ties", {"normalize": True}, {"weight": WEIGHTS, "density": [1.0] * 3}),
    "ties_summed": ("ties", {"normalize": False}, {"weight": WEIGHTS, "density": [0.5] * 3}),
    "ties_equal": ("ties", {"normalize": True}, {"weight": [1.0] * 3, "density": [0.2] * 3}),
    "sce": ("sce", {"select_topk": 1.0}, {}),
    "sce_half": ("sce", {"select_topk": 0.5}, {}),
    "sce_tenth": ("sce", {"select_topk": 0.1}, {}),
    "breadcrumbs": (
        "breadcrumbs",
        {"normalize": False},
        {"weight": WEIGHTS, "density": [0.4] * 3, "gamma": [0.05] * 3},
    ),
    "breadcrumbs_crowded": (
        "breadcrumbs",
        {"normalize": False},
        {"weight": WEIGHTS, "density": [0.9] * 3, "gamma": [0.3] * 3},
    ),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        {"normalize": False},
        {"weight": WEIGHTS, "density": [0.4] * 3, "gamma": [0.05] * 3},
    ),
}


def main() -> None:
    import torch  # here, so that pytest can look for doctests in this file
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    rng = np.random.default_rng(2026)
    ups = [rng.standard_normal((SHAPE[0], rank)).astype(np.float32) for rank in RANKS]
    downs = [rng.standard_normal((rank, SHAPE[1])).astype(np.float32) for rank in RANKS]
    deltas = [torch.from_numpy(u.astype(float) @ d.astype(float)) for u, d in zip(ups, downs, strict=True)]
    base = torch.zeros_like(deltas[0])
    group = TensorGroup.from_tensors([base, *deltas], base_index=0)
    merged = {}
    for name, (method, shared, each) in CASES.items():
        own = {key: dict(zip((1, 2, 3), values, strict=True)) for key, values in each.items()}
        common = {"int8_mask": False, **shared}
        if method != "sce":
            common |= {"rescale": False, "lambda": 1.0}
        merged[name] = registry.get(method).merge_group(group, **common, **own).numpy()
    factors = {f"up{t}": up for t, up in enumerate(ups)} | {f"down{t}": down for t, down in enumerate(downs)}
    np.savez_compressed(Path(__file__).with_name("mergekit-0.1.5.npz"), **factors, **merged)


if __name__ == "__main__":
    main()
