"""How far the experts of a mixture are apart, entry by entry: the law of total variance.

    σ*² = Σ_k α_k σ_k² + Σ_k α_k (ΔW_k − ΔW*)²        ΔW* = Σ_k α_k ΔW_k

One adapter is one sample of its training, so its own σ_k is 0; what is left is the spread between experts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.workers import go_on, workers
from loramerge.errors import UsageError, printable, say
from loramerge.formats.files.atomic import new_file
from loramerge.formats.files.safetensors import Writer
from loramerge.merge.plan import Plan
from loramerge.request.progress import Stage
from loramerge.sources.surplus import weighted_sum


def check_mixture(plan: Plan) -> None:
    """Raises UsageError: the weights of some module are no shares, so that they have no variance."""
    if plan.request.renormalise:
        raise UsageError(
            f"A spread counts a module that a source lacks as zero: leave {say('renormalise', True)} away."
        )
    for target in plan.sources.signatures:
        shares = plan.schedule.way(plan.method, target)[1]
        if shares.min() < 0 or abs(shares.sum() - 1) > 1e-9:
            raise UsageError(
                f"A spread needs a mixture, but the weights of {printable(target)} are not all 0 or more "
                f"and of sum 1: use {say('method', 'sg')} or average."
            )


def write_spread(plan: Plan, out: Path, overwrite: bool = False) -> None:
    """σ*² of every entry of ΔW, by module name, as a .safetensors of float32.

    It is dense: 4 bytes for every weight of every merged module. It is the spread of the mixture itself,
    before a rank cuts it or a scale stretches it. A source that lacks a module counts as zero there.

    Raises:
        UsageError: the merge is no mixture.   OutputError: `out` exists or cannot be written.
    """
    check_mixture(plan)
    plan.check_apart(out)
    layout = {str(target): ("F32", plan.sources.shape(target)) for target in plan.sources.signatures}
    whole = new_file(out, overwrite, plan.sources.confirm)
    with whole as where, Writer(where, layout, _metadata(plan), name=str(out)) as writer:

        def put(target: Target) -> None:
            shares = plan.schedule.way(plan.method, target)[1]
            found = spread(plan.sources.adapters, shares, target).astype(np.float32)
            go_on()
            writer.write(str(target), found)

        entries = max(outs * ins for outs, ins in map(plan.sources.shape, plan.sources.signatures))
        count = plan.request.effort.holding(4 * 8 * entries).workers  # four matrices of float64
        with (
            Stage(plan.request.tell, "spread", len(layout)) as stage,
            workers(count, stage.tick) as run,
        ):
            for _ in stage.over(run(put, list(plan.sources.signatures))):
                pass


def spread(adapters: Sequence[Adapter], shares: Array, target: Target) -> Array:
    """Σ_k α_k (ΔW_k − ΔW*)² (out, in) of one module, float64; one source at a time is dense.

    >>> from loramerge import Adapter, LowRank, Target
    >>> unit = LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> experts = [Adapter.of({"q": unit}), Adapter.of({"q": 5.0 * unit})]
    >>> spread(experts, np.array([0.75, 0.25]), Target("q"))  # 0.75 · 1² + 0.25 · 3² around the mean of 2
    array([[3., 0.],
           [0., 0.]])
    """
    mean = weighted_sum(adapters, shares, target)
    total = np.zeros_like(mean)
    for adapter, share in zip(adapters, shares.tolist(), strict=True):
        if share:
            apart = adapter[target].dense() - mean if target in adapter.slots else mean.copy()
            np.multiply(apart, apart, out=apart)
            total += np.multiply(apart, share, out=apart)
    return total


def _metadata(plan: Plan) -> dict[str, str]:
    """Whose spread it is, in the one key that a file may have."""
    shares = zip(plan.sources.whole, plan.weights.tolist(), strict=True)
    return {"loramerge_spread": json.dumps({a.name: share for a, share in shares}, sort_keys=True)}
