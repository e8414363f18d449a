"""k-means of units seen only through their inner products, for many modules at once.

A centre is a mean of units, so it is a column of shares C (R, k). Every distance follows from the kernel:
‖xᵢ − c‖² = Kᵢᵢ − 2 (K C)ᵢc + cᵀ K c. Empty clusters are refilled as in scikit-learn. From the same initial
centres both give the same labels.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from loramerge.arrays.backend import Array, host, like, namespace, on_gpu, positions
from loramerge.arrays.workers import go_on

DUPLICATE = 1e-12  # squared distances below this share of the largest unit are rounding
KEPT = 1 << 12  # centres to be drawn in one batch, above which the draws are not kept
TIE = 1 + 1e-9  # values within this factor are alike, and the first is taken: rounding must not choose


def cluster(kernel: Array, live: Array, k: int, labels: tuple[str, ...], seed: int, restarts: int) -> Array:
    """Cluster index of every unit (M, R); -1 for units that are not live.

    Args:
        kernel: (M, R, R) inner products.   live: (M, R) units that count.
        k: clusters wanted; a module gets no more than it has distinct live units.
        labels: (M,) names of the modules: each draws its own random numbers, whatever the batch.
        restarts: the run with the least inertia wins.
    """
    xp = namespace(kernel)
    kernel = centred(kernel, live)
    if on_gpu(kernel):
        from loramerge.cuda.kmeans import clusters  # few merges have a GPU

        draws = [_uniforms(labels, k, f"{seed}/{attempt}") for attempt in range(restarts)]
        return clusters(xp.ascontiguousarray(kernel), live, like(np.stack(draws, axis=1), kernel))
    best, least = xp.zeros(live.shape, int), xp.full(len(live), np.inf)
    for attempt in range(restarts):
        uniforms = like(_uniforms(labels, k, f"{seed}/{attempt}"), kernel)
        shares = seeded(kernel, live, k, uniforms)
        found, inertia = lloyd(kernel, live, shares)
        better = (inertia * TIE < least) | (attempt == 0)  # NaN is not less, and has labels nevertheless
        best[better], least[better] = found[better], inertia[better]
    return best


def centred(kernel: Array, live: Array) -> Array:
    """The kernel of the units minus their mean: no digits are lost to a common offset.

    A module that is not finite somewhere is NaN as a whole: where it would spread to depends on the order of
    sums.
    """
    xp = namespace(kernel)
    weight = live / xp.maximum(live.sum(axis=1, keepdims=True), 1)  # (M, R)
    mean = kernel @ weight[:, :, None]  # (M, R, 1) inner products with the mean
    middle = weight[:, None, :] @ mean  # (M, 1, 1)
    kernel = kernel - mean - mean.swapaxes(1, 2) + middle
    fine = xp.isfinite(kernel).all(axis=(1, 2))
    return kernel if bool(fine.all()) else xp.where(fine[:, None, None], kernel, np.nan)


def _uniforms(labels: tuple[str, ...], k: int, seed: str) -> Array:
    """(M, k, trials) numbers in [0, 1), a stream of its own for every module name.

    They are always drawn on the host. They do not depend on the weights, so a search over weights asks for
    the same draws again and again; therefore they are kept.
    """
    return (_kept if len(labels) * k <= KEPT else _drawn)(labels, k, seed)


def _drawn(labels: tuple[str, ...], k: int, seed: str) -> Array:
    trials = 2 + int(np.log(k))
    numbers = np.stack([_generator(seed, label).random((k, trials)) for label in labels])
    numbers.flags.writeable = False
    return numbers


_kept = lru_cache(maxsize=256)(_drawn)  # 60 MB at most


def _generator(seed: str, label: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def seeded(kernel: Array, live: Array, k: int, uniforms: Array) -> Array:
    """k-means++ with greedy trials: initial centres as shares (M, R, k); unused columns are zero.

    Source: Arthur & Vassilvitskii 2007; as many trials per centre as scikit-learn takes.
    """
    xp, (modules, size) = namespace(kernel), live.shape
    rows, norms = xp.arange(modules), xp.where(live, kernel.diagonal(axis1=1, axis2=2), 0.0)
    shares = xp.zeros((modules, size, k))
    gap = live.astype(float)  # (M, R) squared distance to the nearest centre; all alike before the first
    for c in range(k):
        chosen = _draw(kernel, gap, uniforms[:, c, : 1 if c == 0 else None])  # (M,)
        wanted = xp.any(gap, axis=1)
        shares[rows[wanted], chosen[wanted], c] = 1
        far = norms + norms[rows, chosen][:, None] - 2 * kernel[rows, chosen]
        far = xp.where(live & (far > DUPLICATE * norms.max(axis=1, keepdims=True)), far, 0.0)
        gap = xp.where(wanted[:, None], far if c == 0 else xp.minimum(gap, far), gap)
    return shares


def _draw(kernel: Array, gap: Array, uniforms: Array) -> Array:
    """(M,) the trial, drawn with probability ∝ gap, that leaves the least total gap."""
    xp, total = namespace(gap), gap.cumsum(axis=1)  # (M, R)
    drawn = (total[:, None, :] <= (uniforms * total[:, -1:])[:, :, None]).sum(axis=2)
    drawn = xp.minimum(drawn, gap.shape[1] - 1)  # (M, trials)
    if drawn.shape[1] == 1:
        return drawn[:, 0]
    rows, norms = xp.arange(len(gap))[:, None], kernel.diagonal(axis1=1, axis2=2)
    far = norms[:, None, :] + norms[rows, drawn][:, :, None] - 2 * kernel[rows, drawn]
    left = xp.minimum(gap[:, None, :], far).sum(axis=2)  # (M, trials)
    return drawn[rows[:, 0], _first_least(left)]


def _first_least(values: Array) -> Array:
    """The first position along the last axis whose value (none below 0 but by rounding) ties with the least.

    Exact ties are common: the singular units of one adapter, compared by direction, are all equally far.
    """
    least = namespace(values).maximum(values.min(axis=-1, keepdims=True), 0.0)
    return (values <= least * TIE).argmax(axis=-1)


# until no label changes: a tolerance as in scikit-learn saves nothing in Gram space
def lloyd(kernel: Array, live: Array, shares: Array, rounds: int = 300) -> tuple[Array, Array]:
    """Lloyd's iterations from centres (M, R, k) until no label changes: labels (M, R), inertia (M,)."""
    xp = namespace(kernel)
    used = xp.any(shares, axis=1)  # (M, k)
    labels = xp.full(live.shape, -1)
    moving = xp.arange(len(live))
    shares = shares.copy()
    inertia = xp.zeros(len(live))
    for _ in range(rounds):
        go_on()
        gap = _distances(kernel[moving], shares[moving], used[moving])
        found = xp.where(live[moving], _first_least(gap), -1)
        nearest = xp.where(live[moving], gap.min(axis=2), 0.0)
        inertia[moving] = xp.maximum(nearest, 0.0).sum(axis=1)
        changed = xp.any(found != labels[moving], axis=1)
        labels[moving] = found
        moving, nearest = moving[changed], nearest[changed]
        if not len(moving):
            break
        shares[moving] = _means(labels[moving], nearest, used[moving])
    return labels, inertia


def _distances(kernel: Array, shares: Array, used: Array) -> Array:
    """(M, R, k) squared distances to the centres; infinite to columns that hold none."""
    product = kernel @ shares  # (M, R, k)
    square = (shares * product).sum(axis=1)  # (M, k)
    gap = kernel.diagonal(axis1=1, axis2=2)[:, :, None] - 2 * product + square[:, None, :]
    return namespace(gap).where(used[:, None, :], gap, np.inf)


def _means(labels: Array, nearest: Array, used: Array) -> Array:
    """Shares (M, R, k) of the means; an empty cluster takes the unit farthest from its own centre."""
    xp = namespace(labels)
    member = (labels[:, :, None] == xp.arange(used.shape[1])).astype(float)
    for m in positions((used & ~member.any(axis=1)).any(axis=1)):
        _refill(member[m], nearest[m], positions(used[m] & ~member[m].any(axis=0)))
    count = member.sum(axis=1)  # (M, k)
    largest = member[xp.arange(len(member)), :, count.argmax(axis=1)]  # (M, R)
    member = xp.where((used & (count == 0))[:, None, :], largest[:, :, None], member)
    return member / xp.maximum(member.sum(axis=1), 1)[:, None, :]


def _refill(member: Array, nearest: Array, empty: list[int]) -> None:
    if nearest.max() <= 0:  # fewer distinct units than clusters: moving one is pointless
        return
    farthest = host(namespace(nearest).argsort(-nearest, kind="stable")).tolist()  # for Python to go through
    for c, far in zip(empty, farthest, strict=False):
        member[far] = 0
        member[far, c] = 1
