"""Bundles with every gate of the table: a new gate enters the laws by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import loramerge as lm
from loramerge.adapters.adapter import BaseModel
from loramerge.routing.experts import Experts
from loramerge.routing.gates.gate import DataFree, Gate
from tests.helpers.adapters import random_adapters

RANKS = (2, 5, 3)
NAMES = tuple(lm.GATES)
OPTIONS = {  # what a gate cannot do without
    "table": {"rows": {"ann": (1.0, -0.5, 2.0), "bob": (0.0, 3.0, 0.25)}},
    "outchan": {"hidden": 4, "inner": 6},
    "rank-self": {"top_k": 4},
    "rank-absproj": {"top_k": 4},
    "rank-sigmoid": {"top_k": 4},
    "linear": {"top_k": 2},
    "arrow": {"top_k": 2},
    "spectr": {"top_k": 2},
    "seqr": {"top_k": 2},
}
ROW = {"row": "bob", "prompt": np.random.default_rng(9).standard_normal((3, 4))}


def told(gate: Gate) -> dict:
    """What a gate must be told with each request."""
    named = "source1" if isinstance(gate, lm.GATES["task"]) else ROW["row"]
    return {"row": {"row": named}, "prompt": {"prompt": ROW["prompt"]}, "": {}}[gate.asks]


def made(name: str, experts: int = 3, **options) -> Gate:
    """A gate of that name for so many experts."""
    said = {**OPTIONS.get(name, {}), **options}
    if name == "table" and "rows" not in options:
        said["rows"] = {user: row[:experts] for user, row in said["rows"].items()}
    if name == "task":
        said["tasks"] = [f"source{e}" for e in range(experts)]
    if said.get("top_k") and lm.GATES[name].by == "expert":
        said["top_k"] = min(said["top_k"], experts)
    return lm.GATES[name](**said).settled(experts)


def bundle_of(adapters, gate: Gate, seed: int = 0, dtype: str = "F64"):
    """A bundle; a gate that comes with a file gets random tensors."""
    experts = Experts(adapters, dtype=dtype)
    if isinstance(gate, DataFree):
        return experts.bundle(gate, BaseModel(), {})
    plain = experts.bundle(lm.GATES["static"](), BaseModel(), {})
    return with_tensors(plain, gate, lambda target, name, shape: random(seed, str(target) + name, shape))


def with_tensors(plain, gate, tensor):
    def read(target):
        bank = plain.read(target)
        shapes = gate.shapes(bank.layout)
        return replace(bank, tensors={n: np.float32(tensor(target, n, shape)) for n, shape in shapes.items()})

    return replace(plain, gate=gate, read=read)


def random(seed, key, shape):
    return np.random.default_rng([seed, *key.encode()]).standard_normal(shape)


def sample(name: str, ranks=RANKS, seed: int = 0, dtype: str = "F64", **options):
    """Random adapters of these ranks under a gate of that name."""
    return bundle_of(random_adapters(seed, ranks), made(name, len(ranks), **options), seed, dtype)


def tokens(count: int = 12, ins: int = 9, seed: int = 5):
    return np.random.default_rng(seed).standard_normal((count, ins))
