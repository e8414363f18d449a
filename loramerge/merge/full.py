"""Sources of full rank have no small exact merge: someone must say how much of it is kept."""

from __future__ import annotations

from loramerge.algorithms import Method, name_of
from loramerge.errors import IncompatibleError, printable, say
from loramerge.merge.plan import Plan
from loramerge.request.budgets import Budget
from loramerge.request.schedule import Schedule


def check_low(plan: Plan) -> None:
    """Nothing gets full rank only because nobody spoke of its size.

    Raises:
        IncompatibleError: a source has full rank, and so would the merge.
    """
    if plan.sized or plan.request.keep_form:
        return
    for adapter in plan.sources.adapters:
        if adapter.full_rank:
            forms = " and ".join(adapter.full)
            raise IncompatibleError(
                f"{printable(adapter.name)} holds {forms}: updates of full rank, so that "
                f"no small adapter is exactly their merge. {_remedy(plan)}; the report says how much is "
                "lost. The command `loramerge combine --dense-delta` writes full matrices, and "
                "`loramerge combine --fuse` a model."
            )


def _remedy(plan: Plan) -> str:
    if "rank" in plan.method.options():
        share = f"the share of energy to keep by {say('energy', 0.99)}, where 1 loses nothing"
        return f"Give {say('rank', 16)}, or {share}"
    return f"{name_of(plan.method)} takes no rank: take one that does, such as svd, with {say('rank', 16)}"


def sized_by(method: Method, schedule: Schedule, budget: Budget | None) -> str:
    """What the user said of the size, in words; empty if nothing."""
    options = {name: method.options().get(name) for name in ("rank", "energy")}
    said = [say(name, value) for name, value in options.items() if value is not None]
    said += [f"the rule for {rule.match}" for rule in schedule.rules if rule.rank is not None]
    said += ["the record"] if schedule.ranks else []
    return ", ".join([*said, *([] if budget is None else [str(budget)])])
