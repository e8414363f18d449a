"""The same merge by others on the same GPU: a torch loop written well, and the dense SVD that PEFT takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.speed.bench import Bench, Row

LOOP, DENSE = 50, 10_000  # times faster than these is the goal


def peers(bench: Bench, count: int, rank: int) -> Iterator[Row]:
    """One module of each shape is timed, times how many there are."""
    import torch

    where = torch.device("cuda" if bench.gpu else "cpu")
    shapes = list(bench.shapes.values())
    per_shape = {shape: shapes.count(shape) for shape in set(shapes)}
    factors = {
        (outs, ins): (
            torch.randn(outs, rank * count, device=where),
            torch.randn(rank * count, ins, device=where),
        )
        for outs, ins in per_shape
    }

    def factored(up: Any, down: Any) -> None:
        (q, r), (p, s) = torch.linalg.qr(up), torch.linalg.qr(down.T)
        x, sigma, yt = torch.linalg.svd(r @ s.T)
        _ = q @ (x[:, :rank] * sigma[:rank]), yt[:rank] @ p.T

    loop = sum(n * bench.ms(lambda pair=factors[s]: factored(*pair), 3) for s, n in per_shape.items())
    yield _against(bench, f"7B {count}×r{rank}, torch: QR and SVD of each module in a loop", loop, LOOP)
    torch.linalg.svd(torch.randn(64, 64, device=where))  # what is loaded at the first call
    dense = 0.0
    for shape, modules in per_shape.items():
        up, down = factors[shape]
        delta = up @ down
        each = [_once(bench, torch, delta, full) for full in (False, True)]
        yield Row(f"torch.linalg.svd of {shape[0]}×{shape[1]}, thin", each[0])
        yield Row(f"torch.linalg.svd of {shape[0]}×{shape[1]}, full_matrices as PEFT's default", each[1])
        dense += modules * each[1]
    yield _against(bench, f"7B {count}×r{rank}, PEFT's dense SVD, times the modules", dense, DENSE)


def _once(bench: Bench, torch: Any, delta: Any, full: bool) -> float:
    bench.wait()
    start = time.perf_counter()
    torch.linalg.svd(delta, full_matrices=full)
    if bench.gpu:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _against(bench: Bench, name: str, ms: float, goal: int) -> Row:
    """How many times longer than our `svd` from factors to P and Q."""
    times = ms / bench.computed.get("svd", float("nan"))
    said = f"svd compute ≥ {goal:,} × faster"
    return Row(name, ms, goal=said, found=f"{times:,.0f} ×", met=bench.judged(times >= goal))
