"""How strong the merge is: one policy for all methods, from the adapters alone, without data.

λ          the merge times a number
norm       every module as strong as its sources are on average:  λ_m = mean_t ‖ΔW_t‖ / ‖ΔW‖
fade       that times T^−0.3 for the T sources that have the module: more of them disturb each other more
cosine     modules weighed against each other so that the smallest cosine of the whole merge with a
           source is as large as can be; the strength of the whole stays, but where it is more than the
           mean strength of the sources, it becomes that. Records from before it had this bound go without it

The policy belongs to the merge, not to a method, because it multiplies the result of any method. One factor
for the whole merge changes no cosine, so ``cosine`` looks at all modules before it weighs them. It uses only
the numbers of a report, which are on the host already, as SciPy's solver needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from loramerge.errors import UsageError, say
from loramerge.merge.report import Module
from loramerge.request.rules import UNBOUNDED, Scale

FADE = 0.3  # as in `level`; for `svd` and others the best of five on the seeds for choosing: docs/quality.md
COSINES = ("cosine", UNBOUNDED)
NOTHING = 1e-7  # of the strength of the sources: a merge so faint is rounding of what cancels, in its Grams


def strength(scale: Scale, fact: Module, found: Mapping[str, float]) -> float:
    """The factor of one module. `found` are those of ``cosine``, by module."""
    if scale in ("norm", "fade"):
        return _as_sources(fact, FADE if scale == "fade" else 0.0)
    return found.get(fact.name, 1.0) if isinstance(scale, str) else scale


def _as_sources(fact: Module, fade: float) -> float:
    norms = np.sqrt(np.maximum(fact.squares, 0.0))
    present = norms[norms > 0]
    if not len(present) or fact.merged <= (NOTHING * present.mean()) ** 2:
        return 1.0
    return float(present.mean()) / fact.merged**0.5 / len(present) ** fade


def best_smallest_cosine(facts: Sequence[Module], scale: Scale = "cosine") -> dict[str, float]:
    """The factors (≥ 0) of modules that make the smallest cosine with a source largest.

    With y_m = λ_m‖ΔW_m‖ and d_tm = ⟨ΔW, ΔW_t⟩_m / (‖ΔW_m‖‖ΔW_t‖) this is max min_t d_t·y over ‖y‖ = 1,
    or min ‖y‖ with d_t·y ≥ 1, which non-negative least squares solves (Lawson and Hanson, 1974, ch. 23).

    Args:
        scale: which of COSINES.

    Raises:
        UsageError: no strengths bring the merge nearer to every source than a right angle.
    """
    alive = [fact for fact in facts if fact.merged > 0]
    lengths = np.sqrt([fact.merged for fact in alive])  # (M,)
    sources = np.sqrt(np.sum([fact.squares for fact in facts], axis=0))  # (T,)
    trained = sources > 0
    whole = float(np.linalg.norm(lengths))
    if not alive or not trained.any():
        return {}
    overlaps = np.array([fact.overlaps for fact in alive]).T  # (T, M)
    directions = overlaps[trained] / lengths / sources[trained, None]
    strength = whole if scale == UNBOUNDED else min(whole, sources[trained].mean())
    factors = _shortest(directions) * strength / lengths
    return {fact.name: float(factor) for fact, factor in zip(alive, factors, strict=True)}


def _shortest(directions: np.ndarray) -> np.ndarray:
    """The unit vector y ≥ 0 with the largest min_t d_t·y."""
    from scipy.optimize import nnls

    bounds = np.vstack([directions, np.eye(directions.shape[1])])  # d_t·y ≥ 1 and y ≥ 0
    limits = np.repeat([1.0, 0.0], [len(directions), directions.shape[1]])
    shares, rest = nnls(np.vstack([bounds.T, limits]), np.append(np.zeros(directions.shape[1]), 1.0))
    residual = np.append(bounds.T @ shares, limits @ shares - 1.0)
    if rest < 1e-9:
        raise UsageError(
            f"{say('scale', 'cosine')}: whatever the strengths of its modules, the merge is at a right angle "
            f"or more to some source. Take {say('scale', 'norm')}, or other weights."
        )
    y = np.maximum(-residual[:-1] / residual[-1], 0.0)
    return np.asarray(y / np.linalg.norm(y))


def rescaled(fact: Module, factor: float) -> Module:
    """The facts of a module whose merge is multiplied by `factor`."""
    if factor == 1.0:
        return fact
    square = factor**2
    cross = (fact.wanted + fact.merged - fact.lost) / 2  # ⟨wanted, merged⟩
    lost = max(fact.wanted - 2 * factor * cross + square * fact.merged, 0.0)
    whole, cut = (None if part is None else part * square for part in (fact.whole, fact.cut))
    return replace(
        fact,
        merged=fact.merged * square,
        lost=lost,
        overlaps=fact.overlaps * factor,
        whole=whole,
        cut=cut,
        scale=factor,
    )
