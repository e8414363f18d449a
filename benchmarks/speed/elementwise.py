"""TIES on dense tiles: against PEFT's dense way, on one 7B layer, and against TIES in the core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

import loramerge as lm
from benchmarks.speed.measure import Cost, call
from benchmarks.speed.sections import Row
from loramerge.algorithms.entries.dense import merged
from loramerge.algorithms.entries.tiles import Tiles, tiles
from loramerge.arrays.workers import workers
from loramerge.sources.units import Units

LAYER_7B = {
    **{f"layers.0.{name}": (4096, 4096) for name in ("q", "k", "v", "o")},
    **{f"layers.0.{name}": (11008, 4096) for name in ("gate", "up")},
    "layers.0.down": (4096, 11008),
}
LAYERS, DENSITY, MANY = 32, 0.2, 16
TIES = lm.Ties(density=DENSITY, rank=16)


def elementwise(_: Path) -> Iterator[Row]:
    """All rows; one BLAS thread everywhere."""
    with workers(1):
        yield from against_peft()
        yield from one_layer()


def against_peft(size: int = 2048, count: int = 4) -> Iterator[Row]:
    """Both make the merged matrix from the factors of all adapters; PEFT's is that of its `ties_svd`."""
    import torch
    from peft.utils.merge_utils import ties

    torch.set_num_threads(1)
    sources = adapters({"q": (size, size)}, count)
    factors = [
        (torch.from_numpy(s[lm.Target("q")].up), torch.from_numpy(s[lm.Target("q")].down)) for s in sources
    ]

    def theirs() -> torch.Tensor:
        return ties([up @ down for up, down in factors], torch.ones(count), DENSITY)

    def ours() -> np.ndarray:
        return merged(TIES.rule, module(sources))

    first, second = ours(), theirs().numpy()
    flipped = np.abs(first - second) > 1e-4 * np.abs(second).max()
    assert flipped.sum() <= 4 * count, f"{flipped.sum()} entries differ"  # those of equal size at a limit
    peft, mine = call(theirs, 3), call(ours, 5)
    yield Row(f"dense TIES by PEFT, {size}², {count} × r16", peft)
    yield Row("dense TIES, ours", mine, "PEFT's, CPU", peft.cpu / mine.cpu, "≥ 3")
    many = adapters({f"m{n}": (size, size) for n in range(MANY)}, count)
    core = call(lambda: lm.combine(many, lm.Ties(density=DENSITY, space="core"), threads=1), 5)
    each = Cost(core.wall / MANY, core.cpu / MANY)
    yield Row(
        "TIES in the core, a module of many, files apart", each, "PEFT's, CPU", peft.cpu / each.cpu, "≥ 100"
    )
    floor = call(lambda: [entries_made(module(sources))], 5)
    yield Row("the products alone, once", floor, "dense TIES, CPU", mine.cpu / floor.cpu)


def entries_made(entries: Tiles) -> None:
    """Every entry of every source, once."""
    for tile in entries.places():
        entries.values(tile)


def one_layer(count: int = 8) -> Iterator[Row]:
    """The seven modules of a 7B layer, to rank 16: dense, then in the core."""
    sources = adapters(LAYER_7B, count)
    whole = call(lambda: lm.combine(sources, TIES, threads=1), 1)
    minutes = Cost(whole.wall * LAYERS / 60, whole.cpu * LAYERS / 60)
    yield Row(f"dense TIES to rank 16, one 7B layer, {count} × r16", whole)
    yield Row("the same, 32 layers, in minutes", minutes, goal="≤ 15")
    core = call(lambda: lm.combine(sources, replace(TIES, space="core"), threads=1), 5)
    yield Row("TIES in the core, the same layer", core, "dense, CPU", whole.cpu / core.cpu, "≥ 100")


def adapters(shapes: dict[str, tuple[int, int]], count: int) -> list[lm.Adapter]:
    """Random float32 adapters of rank 16."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        updates = {
            name: lm.LowRank(*(rng.standard_normal(s, dtype=np.float32) for s in ((out, 16), (16, wide))))
            for name, (out, wide) in shapes.items()
        }
        made.append(lm.Adapter.of(updates, f"adapter{seed}"))
    return made


def module(sources: list[lm.Adapter]) -> Tiles:
    """The one module of these adapters, as dense tiles."""
    target = next(iter(sources[0]))
    units = Units((target,), tuple(sources), tuple(s[target].rank for s in sources))
    entries = tiles(replace(units.grams(), weights=np.ones(len(sources))), 0)
    assert entries is not None
    return entries
