"""Whole models: `extract` of one module beside a dense SVD, and `fuse` beside a copy of its base."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

import loramerge as lm
from benchmarks.speed.measure import Cost, loramerge, process
from benchmarks.speed.measure import call as measured
from benchmarks.speed.sections import Row
from loramerge.arrays.workers import workers
from loramerge.checkpoints.difference import Pair
from loramerge.checkpoints.open import open_checkpoint
from loramerge.formats.files.safetensors import Writer

BF16 = np.dtype(ml_dtypes.bfloat16)
RANK = 32
WIDTH, LAYERS = 2048, 16  # of a model of 1.1 GB
SHAPES = {
    "self_attn.q_proj": (1, 1),
    "self_attn.k_proj": (0.25, 1),
    "self_attn.v_proj": (0.25, 1),
    "self_attn.o_proj": (1, 1),
    "mlp.gate_proj": (2, 1),
    "mlp.up_proj": (2, 1),
    "mlp.down_proj": (1, 2),
}

# What mergekit-extract-lora does with a weight: the difference, a whole SVD in float32, its leading part.
# On one thread, as ours: those of torch wait for each other, which counts as CPU time.
DENSE = """
import sys, time, torch
torch.set_num_threads(1)
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as one, safe_open(sys.argv[2], "pt") as other:
    name = next(iter(one.keys()))
    delta = one.get_tensor(name).float() - other.get_tensor(name).float()
start = time.process_time()
u, s, vt = torch.linalg.svd(delta, full_matrices=False)
open(sys.argv[5], "w").write(str(time.process_time() - start))
torch.save((u[:, :int(sys.argv[3])] * s[:int(sys.argv[3])], vt[:int(sys.argv[3])], s), sys.argv[4])
"""
COPY = """
import os, shutil, sys
shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)
for name in os.listdir(sys.argv[2]):
    fd = os.open(os.path.join(sys.argv[2], name), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


def rows(where: Path, size: int = 4096) -> Iterator[Row]:
    """Both, each asserted to be right first."""
    yield from _extract(where, size)
    yield from _fuse(where)


def _extract(where: Path, size: int) -> Iterator[Row]:
    tuned, base = (where / f"{name}-{size}.safetensors" for name in ("tuned", "base"))
    if not tuned.exists():
        _one_module(tuned, base, size)
    out, dense, seconds = where / "extracted", where / "dense.pt", where / "dense.seconds"
    before = _module(tuned, base)
    theirs = process(sys.executable, "-c", DENSE, tuned, base, str(RANK), dense, seconds, repeats=1)
    call = min((before, _module(tuned, base)), key=lambda cost: cost.cpu)
    alone = Cost(0.0, float(seconds.read_text()))
    ours = loramerge(
        "extract", tuned, base, "--rank", str(RANK), "-o", out, "--overwrite", "-q", "--threads", "1"
    )
    excess = _excess(tuned, base, out, dense)
    assert excess < 1e-3, f"{excess} more is lost than by the best of this rank"
    yield Row(f"a dense SVD of one {size}² difference in bfloat16, torch on one thread: the call", alone)
    name = f"ours extract, rank {RANK}, from the files, on one thread; loses {excess:.1e} more than the best"
    yield Row(name, call, "the dense SVD, CPU", alone.cpu / call.cpu, "≥ 100")
    yield Row("the dense SVD, whole process", theirs)
    yield Row("ours, whole process", ours, "the dense SVD, CPU", theirs.cpu / ours.cpu)


def _module(tuned: Path, base: Path) -> Cost:
    """The fastest of some calls for one module: whoever else computes makes every one slower."""
    pair = Pair(open_checkpoint(tuned), open_checkpoint(base))
    with workers(1):
        costs = [measured(lambda: pair.module(pair.weights[0], RANK, None), repeats=1) for _ in range(8)]
    return min(costs, key=lambda cost: cost.cpu)


def _one_module(tuned: Path, base: Path, size: int) -> None:
    """A difference whose spectrum falls slowly, on weights as they are in a model."""
    rng = np.random.default_rng(0)
    weight = 0.02 * rng.standard_normal((size, size), dtype=np.float32)
    up, down = (rng.standard_normal(shape, dtype=np.float32) for shape in ((size, 256), (256, size)))
    change = (up * (np.arange(1, 257) ** -0.7).astype(np.float32)) @ down * 2e-4
    for path, matrix in ((base, weight.astype(BF16)), (tuned, (weight + change).astype(BF16))):
        _write(path, {"model.layers.0.self_attn.q_proj.weight": matrix})


def _excess(tuned: Path, base: Path, out: Path, dense: Path) -> float:
    """(lost − least) / least, of ‖ΔW‖²; before factors are rounded to bfloat16."""
    import torch

    sigma = torch.load(dense)[2].double().numpy()
    least = float((sigma[RANK:] ** 2).sum())
    lost = lm.extract(tuned, base, rank=RANK).modules[0].lost
    assert len(lm.load(out)) == 1
    return lost / least - 1


def _fuse(where: Path) -> Iterator[Row]:
    base, adapter = where / "model", where / "model-adapter"
    if not base.exists():
        _model(base, adapter)
    size = sum(path.stat().st_size for path in base.iterdir())
    copied, fused = where / "copied", where / "fused"
    copy = process(sys.executable, "-c", COPY, base, copied)
    shutil.rmtree(copied)
    ours = loramerge("fuse", adapter, base, "-o", fused, "--overwrite", "-q")
    _check(base, adapter, fused)
    module = 2 * WIDTH * WIDTH * 2
    assert ours.anonymous < 2 * module + 64e6 + _bare(), "memory above two modules and 64 MB"
    yield Row(f"a copy of a model of {size / 1e9:.2g} GB, flushed to the disk", copy)
    name = f"ours fuse of an adapter of rank 16 into it, read back; {os.cpu_count()} cores"
    yield Row(name, ours, "the copy", copy.wall / ours.wall, "≥ 0.33")


def _bare() -> int:
    """What a process of ours takes that does nothing."""
    return loramerge("methods", "svd", repeats=1).anonymous


def _check(base: Path, adapter: Path, fused: Path) -> None:
    before, after, added = open_checkpoint(base), open_checkpoint(fused), lm.load(adapter)
    target = next(iter(added))
    key = "model", f"{target.path}.weight"
    wanted = before.tensors[key].read().astype(np.float64) + added[target].dense()
    found = after.tensors[key].read().astype(np.float64)
    assert np.linalg.norm(found - wanted) < 2**-8 * np.linalg.norm(wanted)
    assert before.tensors.keys() == after.tensors.keys()


def _model(base: Path, adapter: Path) -> None:
    rng, table, updates = np.random.default_rng(0), {}, {}
    base.mkdir(parents=True)
    for number in range(2):
        file, tensors = f"model-{number + 1:05}-of-00002.safetensors", {}
        for layer in range(number * LAYERS // 2, (number + 1) * LAYERS // 2):
            for name, (outs, ins) in SHAPES.items():
                path, shape = f"model.layers.{layer}.{name}", (int(outs * WIDTH), int(ins * WIDTH))
                tensors[f"{path}.weight"] = (0.02 * rng.standard_normal(shape, dtype=np.float32)).astype(BF16)
                pair = [rng.standard_normal(s, dtype=np.float32) for s in ((shape[0], 16), (16, shape[1]))]
                updates[path] = lm.LowRank(*((0.03 * each).astype(BF16) for each in pair))
        _write(base / file, tensors)
        table |= dict.fromkeys(tensors, file)
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    lm.save(lm.Adapter.of(updates), adapter, format="peft")


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with Writer(path, {key: ("BF16", array.shape) for key, array in tensors.items()}, {}) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
