"""What would make a merge weaker that is much stronger than its sources: only what helps this very merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loramerge.adapters.limits import STRONG
from loramerge.algorithms import METHODS, name_of
from loramerge.errors import IncompatibleError, say
from loramerge.merge.plan import Plan
from loramerge.merge.report import Module, Report
from loramerge.merge.strength import FADE
from loramerge.request.default import DEFAULT

NEARLY = 1.05  # times: two strengths that nobody tells apart


def remedy(plan: Plan, report: Report) -> str:
    """How the sentence about a merge that is too strong ends; empty for a merge that is not.

    A policy is named if it makes this merge as strong as its sources. It does not where they change different
    modules: in each the merge is then as strong as its own sources already.
    """
    found, mean = report.strength, report.mean
    if found is None or mean is None or found <= STRONG:
        return ""
    even = as_sources(report.modules) / mean
    if found <= NEARLY * even:
        return f"as they change different modules, and in each it is as strong as its own: {_less(plan)}"
    ways = [f"with {way}" for way in _policies(plan, report.modules, even, mean)]
    if abs(_factor(plan)) > 1 and found <= max(STRONG, NEARLY * even) * abs(_factor(plan)):
        ways.insert(0, f"without {say('scale', _factor(plan))}")
    if plan.method.traits.common == "times":
        ways.append("with smaller weights")
    said = " or ".join(filter(None, [", ".join(ways[:-1]), *ways[-1:]]))
    return f"which often does more harm than good: {f'combine {said}' if ways else _less(plan)}"


def _policies(plan: Plan, modules: Sequence[Module], even: float, mean: float) -> Iterator[str]:
    """Settings that make the merge about as strong as its sources, and that this merge can have."""
    if plan.request.keep_form or plan.method.masks:  # a sum of whole sources; masks for a merge as it is
        return
    if name_of(plan.method) != DEFAULT and not plan.schedule.rules and _takes(plan):  # rules cost steps
        if abs(_factor(plan)) * levelled(plan, modules) <= STRONG * mean:
            yield say("method", DEFAULT)
    if even <= STRONG:
        yield say("scale", "norm")


def _factor(plan: Plan) -> float:
    return plan.scale if isinstance(plan.scale, int | float) else 1.0


def _takes(plan: Plan) -> bool:
    """Whether `DEFAULT` can merge so many units."""
    try:
        plan.sources.check_units()
    except IncompatibleError:
        return False
    return True


def _less(plan: Plan) -> str:
    by_weights = plan.method.masks or plan.method.traits.common == "times"
    return f"{'smaller weights' if by_weights else 'a smaller ' + say('scale')} would make it weaker"


def as_sources(modules: Sequence[Module]) -> float:
    """‖merge‖ if every module were as strong as its sources are on average, as by ``norm``."""
    return float(np.sqrt(sum(each.mean() ** 2 for each in map(_norms, modules) if len(each))))


def levelled(plan: Plan, modules: Sequence[Module]) -> float:
    """‖merge‖ by `DEFAULT`, with the weights of this merge."""
    method = METHODS[DEFAULT]()
    weights = {str(target): plan.schedule.way(method, target)[1] for target in plan.sources.signatures}
    total = 0.0
    for module in modules:
        heard = np.abs(weights[module.name]) * np.sqrt(np.maximum(module.squares, 0.0))
        heard = heard[heard > 0]
        total += (heard.mean() / len(heard) ** FADE) ** 2 if len(heard) else 0.0
    return float(np.sqrt(total))


def _norms(module: Module) -> np.ndarray:
    """‖ΔW_t‖ of the sources that are not zero there."""
    norms = np.sqrt(np.maximum(module.squares, 0.0))
    return np.asarray(norms[norms > 0])
