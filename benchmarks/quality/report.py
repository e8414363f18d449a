"""Tables of what was measured: normalised accuracy, the worst task, and intervals paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 2000
SETS = {"": "compatible", "conflict": "conflicting", "heads": "separate heads"}  # end of a domain -> its set
Row = Mapping[str, Any]
Place = tuple[str, str, int]  # domain, regime, seed


def normalised(row: Row, kind: str) -> tuple[float, float]:
    """The mean over tasks of merged / own accuracy, and the smallest; what was never learned is left out.

    >>> normalised({"own": [1.0, 0.5], "tuned": [0.5, 0.5]}, "tuned")
    (0.75, 0.5)
    """
    shares = [merged / own for merged, own in zip(row[kind], row["own"], strict=True) if own > 0]
    return (sum(shares) / len(shares), min(shares)) if shares else (0.0, 0.0)


def scores(
    rows: Iterable[Row], count: int, rank: int, kind: str
) -> dict[str, dict[Place, tuple[float, float]]]:
    """Contender and policy -> (domain, regime, seed) -> accuracy, worst task."""
    found: dict[str, dict[Place, tuple[float, float]]] = defaultdict(dict)
    for row in rows:
        if row["count"] == count and row["rank"] == rank and kind in row:
            name = row["contender"] + (" · norm" if row["policy"] == "norm" else "")
            found[name][row["domain"], row["regime"], row["seed"]] = normalised(row, kind)
    return found


def interval(pairs: Mapping[Place, float]) -> tuple[float, float, float]:
    """The mean difference and its 95 % bootstrap over seeds, drawn within each domain.

    Regimes of a seed stay together, so that they are not counted as if they were independent.

    >>> interval({("digits", "shared A", 0): 0.1, ("digits", "shared A", 1): 0.1})
    (0.1, 0.1, 0.1)
    """
    by_domain: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (domain, _, seed), value in pairs.items():
        by_domain[domain][seed].append(value)
    rng = np.random.default_rng(0)
    seeds = [np.array([np.mean(values) for values in each.values()]) for each in by_domain.values()]
    if len({len(values) for values in seeds}) == 1:  # the same draws at once
        some = rng.integers(0, len(seeds[0]), (DRAWS, len(seeds), len(seeds[0])))  # (draws, domains, seeds)
        picks = list(some.swapaxes(0, 1))
    else:
        apart = [[rng.integers(0, len(values), len(values)) for values in seeds] for _ in range(DRAWS)]
        picks = [np.array(each) for each in zip(*apart, strict=True)]
    drawn = np.mean([v[each].mean(axis=1) for v, each in zip(seeds, picks, strict=True)], axis=0)
    mean = float(np.mean([values.mean() for values in seeds]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return round(mean, 6), round(float(low), 6), round(float(high), 6)


def compared(rows: list[Row], count: int, rank: int, kind: str, reference: str) -> list[dict[str, Any]]:
    """All contenders of one setting, the best first. None are left out: what refused has its own list."""
    found = scores(rows, count, rank, kind)
    whole = max((len(each) for each in found.values()), default=0)
    lines = []
    for name, each in found.items():
        if len(each) < whole:
            continue
        mean, worst = np.mean(list(each.values()), axis=0)
        line: dict[str, Any] = {"contender": name, "accuracy": float(mean), "worst": float(worst)}
        if reference in found and len(found[reference]) == whole:
            pairs = {place: value[0] - found[reference][place][0] for place, value in each.items()}
            line["against"] = interval(pairs)
        lines.append(line)
    return sorted(lines, key=lambda line: -line["accuracy"])


def best(rows: list[Row], most: int) -> list[str]:
    """The contenders that are best when tuned, at 8 adapters and rank 8, whatever their policy."""
    seen: list[str] = []
    for line in compared(sets(rows).get("compatible", []), 8, 8, "tuned", ""):
        name = line["contender"].removesuffix(" · norm")
        if name not in seen:
            seen.append(name)
    return seen[:most]


def sets(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of tasks that get along, that conflict, and that have heads of their own."""
    found: dict[str, list[Row]] = {name: [] for name in SETS.values()}
    for row in rows:
        found[SETS[row["domain"].partition("-")[2]]].append(row)
    return {name: each for name, each in found.items() if each}


def page(rows: list[Row], label: str, reference: str) -> str:
    """Markdown: one table for each set of tasks, number of adapters and rank."""
    parts, several = [f"# {label}\n"], len({row["seed"] for row in rows}) > 1
    parts += [] if several else ["One seed: there are no intervals.\n"]
    for name, some in sets(rows).items():
        for count, rank in sorted({(row["count"], row["rank"]) for row in some}):
            for kind in ("tuned", "untuned"):
                limit = f"rank {rank}" if rank else "no limit"
                parts.append(f"## {count} adapters, {name}, {limit}, {kind}\n")
                lines = compared(some, count, rank, kind, reference)
                parts += [*table(lines, reference, told if several else plainly), ""]
    refused = sorted({(row["contender"], row["refused"]) for row in rows if "refused" in row})
    if refused:
        parts += ["## Not in the tables\n", *(f"* {name}: {why}" for name, why in refused), ""]
    return "\n".join(parts)


def table(
    lines: Iterable[Mapping[str, Any]], reference: str, tell: Callable[[Sequence[float]], str]
) -> Iterable[str]:
    """Markdown of what `compared` gives."""
    yield f"| contender | accuracy | worst task | against {reference} |\n|---|---|---|---|"
    for line in lines:
        apart = tell(line["against"]) if "against" in line else ""
        yield f"| {line['contender']} | {line['accuracy']:.3f} | {line['worst']:.3f} | {apart} |"


def plainly(interval: Sequence[float]) -> str:
    """Without bounds, which one seed cannot give.

    >>> plainly((0.1, 0.1, 0.1))
    '+0.100'
    """
    return f"{interval[0]:+.3f}"


def told(interval: Sequence[float]) -> str:
    """
    >>> told((0.1, -0.02, 0.3))
    '+0.100 [-0.020, +0.300]'
    """
    mean, low, high = interval
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
