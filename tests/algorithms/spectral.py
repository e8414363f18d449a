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
def iso_cts(updates, common=0.8, tol=1e-5):
    total = sum(update for update, _ in updates)
    wide = rank_of(np.hstack([update for update, _ in updates]), 1e-9)
    high = rank_of(np.vstack([update for update, _ in updates]), 1e-9)
    n, count = min(wide, high), len(updates)
    own = min(round((n - int(common * n)) / count), n // count)
    us, sigmas, vs = ([side] for side in svd(total, n - own * count))
    shared = us[0]
    for update, _ in updates:
        left = update - shared @ (shared.T @ update)
        has = int((np.linalg.svd(left, compute_uv=False) > tol * np.linalg.norm(update)).sum())
        u, sigma, v = svd(left, min(own, has))
        us, sigmas, vs = [*us, u], [*sigmas, sigma], [*vs, v]
    mean = np.concatenate(sigmas).mean()
    return mean * polar(np.hstack(us), tol) @ polar(np.hstack(vs), tol).T


@over_modules
def tsv(updates, k=None, tol=1e-5):
    us, sigmas, vs = zip(*(svd(update, min(k or rank, rank)) for update, rank in updates), strict=True)
    return (polar(np.hstack(us), tol) * np.concatenate(sigmas)) @ polar(np.hstack(vs), tol).T


@over_modules
def pico(updates):
    halves = [svd(update, rank) for update, rank in updates]
    stacked = np.hstack([u * np.sqrt(sigma) for u, sigma, _ in halves])
    return calibrated([update for update, _ in updates], stacked)


def calibrated(updates, stacked):
    """Pico of these updates with [B₁ … B_T] as given."""
    u, sigma, _ = np.linalg.svd(stacked, full_matrices=False)
    share = sigma**2 / (sigma**2).sum()
    a = 1 / (1 + (len(updates) - 1) * share)
    total = sum(updates)
    total = total + (u * (a - 1)) @ (u.T @ total)
    return total * (np.mean([np.linalg.norm(update) for update in updates]) / np.linalg.norm(total))


@over_modules
def wudi(updates, ridge=0.1):
    taus = [update for update, _ in updates]
    grams = [tau.T @ tau / np.linalg.norm(tau) ** 2 for tau in taus]
    total, wanted = sum(grams), sum(tau @ gram for tau, gram in zip(taus, grams, strict=True))
    mu = ridge * np.trace(total) / rank_of(np.vstack(taus), 1e-9)
    mean = sum(taus) / len(taus)
    return (wanted + mu * mean) @ np.linalg.inv(total + mu * np.eye(len(total)))
