"""The published formulas as plain loops over dense matrices of full size, in float64."""

import numpy as np


def rank_of(matrix, tol):
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return int((sigma > tol * sigma[0]).sum()) if sigma.size and sigma[0] > 0 else 0


def polar(columns, tol=1e-5):
    p, sigma, qt = np.linalg.svd(columns, full_matrices=False)
    kept = sigma > tol * sigma[0]
    return p[:, kept] @ qt[kept]


def svd(matrix, k):
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k], sigma[:k], vt[:k].T


def parts(sources, weights, path):
    """w ΔW of every source that is not silent in the module, and its rank."""
    for source, weight in zip(sources, weights, strict=True):
        for target in source:
            if target.path == path and weight and source[target].norm() > 0:
                dense = source[target].dense()
                yield weight * dense, rank_of(dense, 1e-7)


def over_modules(formula):
    """The formula for all modules: {path: ΔW}."""

    def whole(sources, weights, **options):
        paths = sorted({target.path for source in sources for target in source})
        return {path: formula(list(parts(sources, weights, path)), **options) for path in paths}

    return whole


@over_modules
def iso_c(updates, tol=1e-5):
    total = sum(update for update, _ in updates)
    u, sigma, v = svd(total, rank_of(total, tol))
    return sigma.mean() * u @ v.T


@over_modules
def iso_cts(updates, common=0.8, tol=1e-5, near=2**-8):
    total = sum(update for update, _ in updates)
    wide = rank_of(np.hstack([update for update, _ in updates]), 1e-9)
    high = rank_of(np.vstack([update for update, _ in updates]), 1e-9)
    n, count = min(wide, high), len(updates)
    own = min(round((n - int(common * n)) / count), n // count)
    us, sigmas, vs = ([side] for side in svd(total, n - own * count))
    shared = us[0]
    for update, _ in updates:
        left = update - shared @ (shared.T @ update)
        has = int((np.linalg.svd(left, compute_uv=False) > near * np.linalg.norm(update)).sum())
        u, sigma, v = svd(left, min(own, has))
        us, sigmas, vs = [*us, u], [*sigmas, sigma], [*vs, v]
    mean = np.concatenate(sigmas).mean()
    return mean * polar(np.hstack(us), near) @ polar(np.hstack(vs), near).T


@over_modules
def tsv(updates, k=None, tol=1e-5):
    us, sigmas, vs = zip(*(svd(update, min(k or rank, rank)) for update, rank in updates), strict=True)
    return (polar(np.hstack(us), tol) * np.concatenate(sigmas)) @ polar(np.hstack(vs), tol).T


@over_modules
def shrunk_tsv(updates, shrink=0.3, power=0.75):
    """By G^-½ of the units themselves, which needs all of them to be independent or shrink > 0."""
    us, sigmas, vs = zip(*(svd(update, rank) for update, rank in updates), strict=True)
    whitened = []
    for units in (np.hstack(us), np.hstack(vs)):
        values, vectors = np.linalg.eigh((1 - shrink) * units.T @ units + shrink * np.eye(units.shape[1]))
        whitened.append(units @ (vectors / np.sqrt(values)) @ vectors.T)
    merged = (whitened[0] * np.concatenate(sigmas) ** power) @ whitened[1].T
    return merged * np.mean([np.linalg.norm(update) for update, _ in updates]) / np.linalg.norm(merged)


@over_modules
def dc_merge(updates, smooth="line", density=None, tol=1e-5):
    us, sigmas, vs = zip(*(svd(update, rank) for update, rank in updates), strict=True)
    left, right = polar(np.hstack(us), tol), polar(np.hstack(vs), tol)
    kept = []
    for u, sigma, v in zip(us, sigmas, vs, strict=True):
        steep = min(sigma[0] / sigma[-1], 5.0)
        line = np.ones(len(sigma)) if smooth == "mean" else np.linspace(steep, 1, len(sigma))
        core = left.T @ (u * line * sigma.sum() / line.sum()) @ v.T @ right
        size = rank_of(np.hstack(us), 1e-9) * rank_of(np.hstack(vs), 1e-9)
        count = len(sigma) if density is None else int(density * size)
        kept.append(np.where(np.abs(core) >= np.sort(np.abs(core), axis=None)[-count] * (1 - 1e-9), core, 0))
    kept = np.array(kept)
    agree = (np.sign(kept) == np.sign(kept.sum(axis=0))) & (kept != 0)
    merged = (kept * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    owner = np.repeat(np.arange(len(us)), [len(sigma) for sigma in sigmas])
    return left @ (merged * (owner[:, None] == owner)) @ right.T


@over_modules
def pico(updates, sides="outputs"):
    halves = [svd(update, rank) for update, rank in updates]
    stacked = np.hstack([u * np.sqrt(sigma) for u, sigma, _ in halves])
    if sides == "outputs":
        return calibrated([update for update, _ in updates], stacked)
    inputs = np.hstack([v * np.sqrt(sigma) for _, sigma, v in halves])
    total = turned_down(
        turned_down(sum(update for update, _ in updates), stacked, len(updates)).T, inputs, len(updates)
    ).T
    return total * (np.mean([np.linalg.norm(update) for update, _ in updates]) / np.linalg.norm(total))


def calibrated(updates, stacked):
    """Pico of these updates with [B₁ … B_T] as given."""
    total = turned_down(sum(updates), stacked, len(updates))
    return total * (np.mean([np.linalg.norm(update) for update in updates]) / np.linalg.norm(total))


def turned_down(matrix, stacked, sources):
    """(I + U diag(a−1) Uᵀ) matrix."""
    u, sigma, _ = np.linalg.svd(stacked, full_matrices=False)
    a = 1 / (1 + (sources - 1) * sigma**2 / (sigma**2).sum())
    return matrix + (u * (a - 1)) @ (u.T @ matrix)


@over_modules
def wudi(updates, ridge=1.0, filter="ridge", start="mean"):
    taus = [update for update, _ in updates]
    grams = [tau.T @ tau / np.linalg.norm(tau) ** 2 for tau in taus]
    total, wanted = sum(grams), sum(tau @ gram for tau, gram in zip(taus, grams, strict=True))
    mu = ridge * np.trace(total) / rank_of(np.vstack(taus), 1e-9)
    begin = sum(taus) / (len(taus) if start == "mean" else 1)
    if filter == "ridge":
        return begin + (wanted - begin @ total) @ np.linalg.inv(total + mu * np.eye(len(total)))
    values, vectors = np.linalg.eigh(total)
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    strongest = np.arange(len(values))[::-1] < np.ceil(np.sqrt(values).sum() ** 2 / values.sum() - 1e-9)
    passed = strongest if filter == "top" else 1 - np.exp(-values / mu)
    return begin + (wanted - begin @ total) @ (vectors * passed / values) @ vectors.T


def ties(cores, weights, density):
    """TIES of matrices as a plain loop over entries: the largest of each, the winning sign, their mean."""
    trimmed = []
    for core in cores:
        kept = max(int(density * core.size), 1)
        least = np.sort(np.abs(core).ravel())[-kept]
        trimmed.append(np.where(np.abs(core) >= least, core, 0.0))
    merged = np.zeros_like(cores[0])
    for at in np.ndindex(merged.shape):
        votes = [w * core[at] for w, core in zip(weights, trimmed, strict=True)]
        sign = np.sign(sum(votes))
        agree = [n for n, vote in enumerate(votes) if sign and np.sign(vote) == sign]
        if agree:
            merged[at] = sum(votes[n] for n in agree) / sum(abs(weights[n]) for n in agree)
    return merged


def ties_of(density):
    """TIES as a rule on matrices and weights."""
    return lambda cores, weights: ties(cores, weights, density)


def in_core(halves, weights, rule, tol=1e-7):
    """The rule on U_Bᵀ B_t A_t V_A, in bases of the stacked B_t and A_t as they are given."""
    stacked = np.hstack([b for b, _ in halves]), np.vstack([a for _, a in halves]).T
    left, right = (np.linalg.svd(side, full_matrices=False)[0][:, : rank_of(side, tol)] for side in stacked)
    cores = [(left.T @ b) @ (a @ right) for b, a in halves]
    return left @ rule(cores, weights) @ right.T


def balanced(matrix, k):
    u, sigma, v = svd(matrix, k)
    return u * np.sqrt(sigma), (v * np.sqrt(sigma)).T


def with_weights(formula):
    """The formula for all modules, of unweighted updates and weights."""

    def whole(sources, weights, **options):
        paths = sorted({target.path for source in sources for target in source})
        found = {}
        for path in paths:
            present = [n for n, source in enumerate(sources) if list(parts([source], [weights[n]], path))]
            updates = [next(parts([sources[n]], [1.0], path)) for n in present]
            found[path] = formula(updates, [weights[n] for n in present], **options)
        return found

    return whole


@with_weights
def core(updates, weights, rule):
    return in_core([balanced(update, rank) for update, rank in updates], weights, rule)


@with_weights
def knots(updates, weights, rule, tol=1e-5):
    """The rule on the rows Σ V_t of one SVD of all updates side by side."""
    dense = [update for update, _ in updates]
    stacked = np.hstack(dense)
    u = np.linalg.svd(stacked, full_matrices=False)[0][:, : rank_of(stacked, tol)]
    return u @ rule([u.T @ update for update in dense], weights)


@with_weights
def drm(updates, weights, density, tol=1e-5):
    """Rows of V_t at unit length, their largest entries, their lengths again; then TIES votes."""
    dense = [update for update, _ in updates]
    stacked = np.hstack(dense)
    u = np.linalg.svd(stacked, full_matrices=False)[0][:, : rank_of(stacked, tol)]
    kept = []
    for update in dense:
        rows = u.T @ update
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / lengths
        least = np.sort(np.abs(unit), axis=None)[-max(int(density * unit.size), 1)]
        kept.append(np.where(np.abs(unit) >= least, unit, 0) * lengths)
    kept = np.array(weights)[:, None, None] * np.array(kept)
    agree = (np.sign(kept) == np.sign(kept.sum(axis=0))) & (kept != 0)
    divisor = (agree * np.abs(weights)[:, None, None]).sum(axis=0)
    return u @ ((kept * agree).sum(axis=0) / np.where(divisor > 0, divisor, 1))


@with_weights
def pico_by(updates, weights, rule):
    """Calibrated updates, the rule on their cores, and the mean norm of the updates."""
    dense = [w * update for w, (update, _) in zip(weights, updates, strict=True)]
    halves = [balanced(update, rank) for update, (_, rank) in zip(dense, updates, strict=True)]
    stacked = np.hstack([b for b, _ in halves]), np.vstack([a for _, a in halves]).T
    (u, sigma, _), (down, _, _) = (svd(side, rank_of(side, 1e-7)) for side in stacked)
    a = 1 / (1 + (len(dense) - 1) * sigma**2 / (sigma**2).sum())
    merged = u @ rule([a[:, None] * (u.T @ update @ down) for update in dense], np.ones(len(dense))) @ down.T
    return merged * np.mean([np.linalg.norm(update) for update in dense]) / np.linalg.norm(merged)


@with_weights
def ctm(updates, weights, rule, k, beta=0.25):
    """HOOI on the full matrices, started by both unfoldings, until the error moves by less than 1e-6."""
    norms = [np.linalg.norm(w * update) for w, (update, _) in zip(weights, updates, strict=True)]
    even = [
        w * update / n * (beta * n + (1 - beta) * np.mean(norms))
        for w, n, (update, _) in zip(weights, norms, updates, strict=True)
    ]
    whole = np.sqrt(sum(np.linalg.norm(x) ** 2 for x in even))
    left, right = svd(np.hstack(even), k)[0], svd(np.vstack(even).T, k)[0]
    errors = [2.0]
    while len(errors) < 3 or abs(errors[-1] - errors[-2]) > 1e-6:
        left = svd(np.hstack([x @ right for x in even]), k)[0]
        right = svd(np.hstack([x.T @ left for x in even]), k)[0]
        kept = sum(np.linalg.norm(left.T @ x @ right) ** 2 for x in even)
        errors.append(np.sqrt(max(whole**2 - kept, 0)) / whole)
    return left @ rule([left.T @ update @ right for update, _ in updates], weights) @ right.T
