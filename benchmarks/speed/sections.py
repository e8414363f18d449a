"""What is measured. Every section asserts that its results are right before it times anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import loramerge as lm
from benchmarks.speed.measure import Cost, call, loramerge, process
from benchmarks.speed.shapes import LAYER_70B, LLAMA_7B, write
from loramerge.algorithms.families.kmeans import cluster
from loramerge.arrays.workers import workers

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@dataclass(frozen=True)
class Row:
    """One line of the table: what, its cost, and how many times cheaper than what it is held against."""

    name: str
    cost: Cost
    against: str = ""
    ratio: float | None = None
    goal: str = ""


def sources(where: Path, count: int, shapes: dict[str, tuple[int, int]] = LLAMA_7B) -> list[Path]:
    """That many adapters of these shapes, made once."""
    folders = [where / f"{len(shapes)}-{seed}" for seed in range(count)]
    return [f if f.exists() else write(f, shapes, seed) for seed, f in enumerate(folders)]


def one_module(size: int) -> Iterator[Row]:
    """Four adapters of rank 16 in one square module, to rank 16, against the dense SVD that PEFT runs.

    Ours is the cost of a module in a merge of many, from factors in memory to stored factors and report.
    """
    import torch

    torch.set_num_threads(1)
    adapters = [_random(size, seed) for seed in range(4)]
    target = next(iter(adapters[0]))
    total = sum((a[target].dense() for a in adapters), np.zeros((size, size)))
    sigma = np.sqrt(np.linalg.eigvalsh(_core(adapters, target))[::-1].clip(0))
    best = float(np.linalg.norm(sigma[16:]))
    found = lm.combine(adapters, "svd", rank=16, dtype="float64").adapter[target].dense()
    excess = float(np.linalg.norm(total - found)) / best - 1
    assert excess < 1e-6, f"svd is {excess:.1e} above the optimum"
    dense = call(lambda: torch.linalg.svd(torch.from_numpy(total).float(), full_matrices=False), 1)
    yield Row(f"dense float32 SVD, {size}×{size}", dense)
    whole = call(lambda: lm.combine(adapters, "svd", rank=16, threads=1), 15)
    ours = Cost(whole.wall / MODULES, whole.cpu / MODULES)
    yield Row(f"svd of R = 64 to rank 16, {size}×{size}", ours, "dense, CPU", dense.cpu / ours.cpu, "≥ 5000")


MODULES = 32


def _random(size: int, seed: int) -> lm.Adapter:
    rng = np.random.default_rng(seed)
    updates = {
        f"m{n}": lm.LowRank(
            *(rng.standard_normal(s, dtype=np.float32) for s in ((size, 16), (16, size))), 0.5
        )
        for n in range(MODULES)
    }
    return lm.Adapter.of(updates, f"adapter{seed}")


def _core(adapters: list[lm.Adapter], target: lm.Target) -> np.ndarray:
    """A small matrix with the squared singular values of the sum, by QR: not the way that is measured."""
    updates = [a[target] for a in adapters]
    up = np.concatenate([u.up * u.scale for u in updates], axis=1, dtype=np.float64)
    down = np.concatenate([u.down for u in updates], dtype=np.float64)
    core = np.linalg.qr(up, mode="r") @ np.linalg.qr(down.T, mode="r").T
    return np.asarray(core @ core.T)


def files_to_files(where: Path, dense: Cost, count: int = 8) -> Iterator[Row]:
    """7B, adapters of rank 16 in bfloat16, files to files, against one dense SVD per module."""
    folders = sources(where, count)
    for method in ("svd", "lego"):
        cost = loramerge(
            "combine", *folders, "--method", method, "--rank", "16", "-o", where / "out", "--overwrite", "-q"
        )
        against = f"{len(LLAMA_7B)} dense SVDs, CPU"
        yield Row(f"7B, {count}×r16, {method}", cost, against, len(LLAMA_7B) * dense.cpu / cost.cpu, "≥ 500")


def curve(where: Path, counts: tuple[int, ...]) -> Iterator[Row]:
    """The same with more and more adapters."""
    first: Cost | None = None
    for count in counts:
        folders = sources(where, count)
        out = ("-o", where / "out", "--overwrite", "-q")
        cost = loramerge("combine", *folders, "--method", "svd", "--rank", "16", *out, repeats=1)
        first = first or cost
        yield Row(f"7B, {count}×r16 (R = {16 * count}), svd", cost, "2 adapters, CPU", first.cpu / cost.cpu)


def floor(where: Path) -> Iterator[Row]:
    """Two adapters end to end, against copying the bytes that are read and written."""
    folders = sources(where, 2)
    for method, output in (("svd", folders[:1]), ("cat", folders)):  # bytes written: one or two adapters
        script = "; ".join(
            [*(f"cat {f}/*.safetensors > /dev/null" for f in folders), *_copies(output, where)]
        )
        copy = process("sh", "-c", script, repeats=5)
        out = ("-o", where / "out", "--overwrite", "-q")
        cost = loramerge("combine", *folders, "--method", method, *out, repeats=5)
        yield Row(f"read 2 adapters, write {len(output)}, sync", copy)
        yield Row(f"7B, 2×r16, {method}", cost, "the copy, wall", copy.wall / cost.wall, "≥ 0.1, aim 0.33")


def _copies(folders: list[Path], where: Path) -> list[str]:
    target = where / "copy"
    names = [f"{target}/{n}.safetensors" for n in range(len(folders))]
    commands = [f"cp {f}/adapter_model.safetensors {name}" for f, name in zip(folders, names, strict=True)]
    return [f"mkdir -p {target}", *commands, *(f"sync {name}" for name in names)]


def reweighting(where: Path, counts: tuple[int, ...] = (2, 8)) -> Iterator[Row]:
    """Only the weights change: against the first merge, files to files, in the same process."""
    for count in counts:
        for method, options in (("linear", {}), ("svd", {"rank": 16}), ("lego", {"rank": 16})):
            yield _reweighted(sources(where, count), where / "out", method, options)


def _reweighted(folders: list[Path], out: Path, method: str, options: dict[str, int]) -> Row:
    count, opened = len(folders), lm.open(folders)
    first = call(lambda: lm.combine(folders, method, out=out, overwrite=True, **options), 3)
    fresh = lm.combine(folders, method, weights=[0.5] * count, **options).report
    merge = opened.combine(method, weights=[0.5] * count, **options).report
    assert abs((merge.energy_lost or 0) - (fresh.energy_lost or 0)) < 1e-9
    weights = iter(np.random.default_rng(0).uniform(0.1, 0.9, (9, count)).tolist())
    again = call(lambda: opened.combine(method, weights=next(weights), **options), 9)
    name = f"7B, {count}×r16, {method}, other weights"
    return Row(name, again, "the first merge, wall", first.wall / again.wall, "≥ 20")


def clusters() -> Iterator[Row]:
    """k-means of 512 units of 8192 numbers into 64, against scikit-learn."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    points = rng.standard_normal((64, 8192))[rng.integers(0, 64, 512)] + rng.standard_normal((512, 8192))
    live = np.ones((1, 512), bool)

    def ours(gram: np.ndarray) -> np.ndarray:
        return cluster(gram[None], live, 64, ("module",), seed=0, restarts=1)

    found, theirs = ours(points @ points.T)[0], KMeans(64, n_init=1, random_state=0).fit(points)
    means = np.stack([points[found == c].mean(axis=0) for c in range(64)])
    inertia = float(((points - means[found]) ** 2).sum())
    assert inertia < 1.05 * theirs.inertia_, "worse clusters than scikit-learn"
    with workers(1):
        sklearn = call(lambda: KMeans(64, n_init=1, random_state=0).fit(points), 5)
        gram = points @ points.T
        yield Row("scikit-learn KMeans, 512×8192, k = 64", sklearn)
        whole = call(lambda: ours(points @ points.T), 9)
        yield Row("ours with the Gram", whole, "scikit-learn, CPU", sklearn.cpu / whole.cpu, "≥ 6")
        shared = call(lambda: ours(gram), 9)
        yield Row("ours, Gram at hand", shared, "scikit-learn, CPU", sklearn.cpu / shared.cpu, "≥ 50")


def start_up(where: Path) -> Iterator[Row]:
    """Whole processes that do little."""
    yield Row("loramerge --help", loramerge("--help", repeats=9), goal="≤ 0.2 s")
    pair = [FIXTURES / "a.safetensors", FIXTURES / "b.safetensors"]
    out = ("-o", where / "fixtures.safetensors", "--overwrite", "-q")
    yield Row(
        "combine two fixtures, lego", loramerge("combine", *pair, "--method", "lego", *out), goal="≤ 1 s"
    )


def one_layer_70b(where: Path) -> Iterator[Row]:
    """One layer of a 70B model, eight adapters."""
    folders = sources(where / "70b", 8, LAYER_70B)
    for method in ("svd", "lego"):
        out = ("-o", where / "out", "--overwrite", "-q")
        yield Row(f"70B layer, 8×r16, {method}", loramerge("combine", *folders, "--method", method, *out))
    shutil.rmtree(where / "70b")


def cores() -> int:
    return os.cpu_count() or 1
