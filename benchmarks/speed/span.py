"""Methods in the span, 7B files to files, held against `svd` of the same adapters in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import loramerge as lm
from benchmarks.speed.measure import Cost, loramerge
from benchmarks.speed.sections import Row, sources
from benchmarks.speed.shapes import LLAMA_7B, Shapes, llama

METHODS = {  # name -> the largest share of the time of svd that it may take
    "iso_c": 2,
    "iso_cts": 2,
    "tsv": 2,
    "pico": 2,
    "wudi": 2,
    "core": 2,
    "ctm": 5,
}


FEW = llama(4096, 11008, 4)


def rows(
    where: Path, shapes: Shapes = LLAMA_7B, near: Shapes = FEW, count: int = 8, repeats: int = 3
) -> Iterator[Row]:
    """Eight adapters of rank 16 to rank 16; those called near share A but for 1e-4, as if of one seed."""
    for name in METHODS:
        check(name)
    both = {"": sources(where, count, shapes), ", near": _near(where, count, near)}
    for kind, folders in both.items():
        svd = _cost(folders, where, "svd", repeats)
        modules = len(near if kind else shapes)
        yield Row(f"{modules} modules, {count}×r16, svd{kind}", svd)
        for name, times in METHODS.items():
            cost = _cost(folders, where, name, repeats)
            goal = "" if kind else f"≥ {1 / times:g}"
            yield Row(f"the same, {name}{kind}", cost, "svd, CPU", svd.cpu / cost.cpu, goal)


def _cost(folders: list[Path], where: Path, method: str, repeats: int) -> Cost:
    out = ("-o", where / "out", "--overwrite", "-q")
    return loramerge("combine", *folders, "--method", method, "--rank", "16", *out, repeats=repeats)


def check(method: str) -> None:
    """On small modules it is the plain loop of the tests, and no other in another gauge."""
    from tests.algorithms import spectral
    from tests.helpers.adapters import changed, distance, merged, random_adapters

    adapters = random_adapters(1, (8, 8, 8), {"q": (60, 48)})
    other = changed(adapters[0], lambda u: lm.LowRank(u.up * 7, u.down / 7, u.scale))
    options = {"rank": 8} if method == "ctm" else {}
    found = merged(adapters, method, **options)
    loops = {"core": spectral.core_ties, "ctm": lambda s, w: spectral.ctm_ties(s, w, k=8)}
    expected = (loops.get(method) or getattr(spectral, method))(adapters, [1.0] * 3)
    assert distance(found, expected) < 1e-6, f"{method} is not its formula"
    assert distance(merged([other, *adapters[1:]], method, **options), found) < 1e-9, f"{method} has a gauge"


def _near(where: Path, count: int, shapes: Shapes) -> list[Path]:
    """Adapters whose A differ by 1e-4, made once; float32, since bfloat16 would round that away."""
    folders = [where / f"near-{len(shapes)}-{seed}" for seed in range(count)]
    for seed, folder in enumerate(folders):
        if not folder.exists():
            lm.save(_adapter(seed, shapes), folder)
    return folders


def _adapter(seed: int, shapes: Shapes) -> lm.Adapter:
    own, common = np.random.default_rng(seed + 1), np.random.default_rng(0)

    def one(outs: int, ins: int) -> lm.LowRank:
        shared = common.standard_normal((16, ins), dtype=np.float32)
        up, down = (own.standard_normal(s, dtype=np.float32) for s in ((outs, 16), (16, ins)))
        return lm.LowRank(0.02 * up, shared + 1e-4 * down, 1.0)

    return lm.Adapter.of({name: one(*shape) for name, shape in shapes.items()}, f"adapter{seed}")
