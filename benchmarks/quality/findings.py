"""What the report says of the chosen method: against the best of PEFT's types, and rule by rule on ΔW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.report import Place, Row, interval, normalised, scores

APART = {  # a rule on A and B apart, as PEFT has it -> the same rule on ΔW, here or in PEFT
    "PEFT linear": "PEFT svd",
    "PEFT ties": "PEFT ties_svd",
    "PEFT dare_linear": "PEFT dare_linear_svd",
    "PEFT dare_ties": "PEFT dare_ties_svd",
    "PEFT magnitude_prune": "PEFT magnitude_prune_svd",
}
Means = Mapping[Place, float]
COLUMNS = ("policy", "rank", "count", "place", "seed", "untuned", "its worst", "tuned", "its worst task")


def means(rows: Iterable[Row], count: int, rank: int, kind: str) -> dict[str, Means]:
    """Contender -> the accuracy of every place."""
    found = scores(rows, count, rank, kind)
    return {name: {place: pair[0] for place, pair in each.items()} for name, each in found.items()}


def apart(ours: Means, theirs: Means) -> tuple[float, float, float]:
    """The paired difference and its interval, over the places that both have."""
    return interval({place: ours[place] - theirs[place] for place in ours if place in theirs})


def against_peft(rows: list[Row], chosen: str, count: int, rank: int) -> dict[str, Any] | None:
    """The chosen method against that of PEFT's types that is best in the mean, when it is tuned.

    The best is looked for on the same seeds, which favours PEFT.
    """
    tuned, untuned = (means(rows, count, rank, kind) for kind in ("tuned", "untuned"))
    theirs = {name: each for name, each in tuned.items() if name.startswith("PEFT")}
    if chosen not in tuned or not theirs:
        return None
    best = max(theirs, key=lambda name: float(np.mean(list(theirs[name].values()))))
    return {
        "count": count,
        "rank": rank,
        "best": best,
        "theirs": float(np.mean(list(theirs[best].values()))),
        "untuned": float(np.mean(list(untuned[chosen].values()))),
        "tuned": float(np.mean(list(tuned[chosen].values()))),
        "untuned against tuned": apart(untuned[chosen], theirs[best]),
        "tuned against tuned": apart(tuned[chosen], theirs[best]),
        "by place": {
            f"{domain}, {regime}": apart(
                {place: v for place, v in untuned[chosen].items() if place[:2] == (domain, regime)},
                theirs[best],
            )
            for domain, regime in sorted({place[:2] for place in untuned[chosen]})
        },
    }


def overall(rows: list[Row], chosen: str, counts: Sequence[int], rank: int) -> tuple[float, float, float]:
    """Untuned against the best of PEFT's types tuned, in the mean over numbers of adapters."""
    found: dict[Place, list[float]] = {}
    for count in counts:
        line = against_peft(rows, chosen, count, rank)
        assert line is not None
        ours = means(rows, count, rank, "untuned")[chosen]
        theirs = means(rows, count, rank, "tuned")[line["best"]]
        for place, value in ours.items():
            found.setdefault(place, []).append(value - theirs[place])
    return interval({place: float(np.mean(values)) for place, values in found.items()})


def factors_apart(rows: list[Row], count: int, rank: int) -> dict[str, dict[str, Any]]:
    """For every rule that PEFT has on A and B apart: what the same rule on ΔW gains, tuned."""
    tuned = means(rows, count, rank, "tuned")
    return {
        rule: {"gain": apart(tuned[whole], tuned[rule]), "places": places(tuned[whole], tuned[rule])}
        for rule, whole in APART.items()
        if rule in tuned and whole in tuned
    }


def places(ours: Means, theirs: Means) -> dict[str, float]:
    """The mean difference in each domain and regime."""
    found: dict[str, list[float]] = {}
    for place in ours:
        found.setdefault(f"{place[0]}, {place[1]}", []).append(ours[place] - theirs[place])
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(found.items())}


def short(rows: list[Row]) -> dict[str, Any]:
    """All results as short lines of numbers, contender by contender, for the file beside the page."""
    places = sorted({(row["domain"], row["regime"]) for row in rows})
    lines: dict[str, list[list[Any]]] = {}
    for row in rows:
        if "refused" not in row:
            facts = [
                row["policy"],
                row["rank"],
                row["count"],
                places.index((row["domain"], row["regime"])),
                row["seed"],
            ]
            pairs = [normalised(row, kind) if kind in row else (None, None) for kind in ("untuned", "tuned")]
            numbers = [None if each is None else round(each, 4) for pair in pairs for each in pair]
            lines.setdefault(row["contender"], []).append(facts + numbers)
    return {"columns": COLUMNS, "places": places, "lines": lines}


def beside(rows: list[Row], name: str, rank: int) -> list[dict[str, Any]]:
    """By domain and number of adapters: the median of the best strengths, and what the base alone keeps."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        plain = row["policy"] == "as shipped" and row["rank"] == rank and "strength" in row
        if plain and row["contender"] == name and sum(row["own"]) > 0:
            found.setdefault((row["domain"], row["count"]), []).append(row)
    return [
        {
            "domain": domain,
            "count": count,
            "strength": round(float(np.median([row["strength"] * row["norm"] for row in each])), 3),
            "base": round(float(np.mean([normalised(row, "base")[0] for row in each])), 4),
        }
        for (domain, count), each in sorted(found.items())
    ]


def curves(rows: list[Row], names: Sequence[str], rank: int) -> list[dict[str, Any]]:
    """The accuracy on the samples for tuning at every strength, in the mean over places, without a policy."""
    found: dict[tuple[str, int], list[Any]] = {}
    strengths: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        plain = row["policy"] == "as shipped" and row["rank"] == rank and "curve" in row
        if plain and row["contender"] in names and sum(row["own"]) > 0:
            which = row["contender"], row["count"]
            found.setdefault(which, []).append(np.array(row["curve"]) / np.mean(row["own"]))
            strengths.setdefault(which, []).append(row["norm"])
    return [
        {
            "contender": name,
            "count": count,
            "accuracy": np.mean(each, axis=0).round(4).tolist(),
            "shipped": round(float(np.mean(strengths[name, count])), 3),
        }
        for (name, count), each in sorted(found.items())
    ]
