"""The tables of docs/quality.md, from the results beside it.

python -m benchmarks.quality.page     write them anew; a test fails if they are stale

A name that was measured more than once means the run that its table is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import findings
from benchmarks.quality.plan import EASY, HARD, HEADS
from benchmarks.quality.report import Place, Row, interval, scores, told

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PLACE = DOCS / "quality.md", DOCS / "quality"
COUNTS = (2, 4, 8)
BY_NUMBER = "T={}"


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """What was measured together."""

    rows: list[Row]

    def easy(self) -> list[Row]:
        """The rows of tasks that get along."""
        return [row for row in self.rows if row["domain"] in EASY]


@cache
def _scores(
    run: Run, domains: tuple[str, ...], *of: Any
) -> Mapping[str, Mapping[Place, tuple[float, float]]]:
    return scores([row for row in run.rows if row["domain"] in domains], *of)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: of which merges, and what of them.

    Args:
        head: above it.   kind: tuned or untuned.   rank: 0 is no limit.
        count: of adapters; of several the mean over them.
        worst: of the worst task.   domains: whose mean it is.
        to: differences to this contender; told with their interval if `sure`.
    """

    head: str
    kind: str
    count: int | tuple[int, ...]
    rank: int = 8
    worst: bool = False
    domains: tuple[str, ...] = EASY
    to: str = ""
    sure: bool = False

    def values(self, run: Run, name: str) -> dict[Place, float]:
        """What a contender has in every place; nothing if a number of adapters is missing."""
        counts = self.count if isinstance(self.count, tuple) else (self.count,)
        each = [_scores(run, self.domains, count, self.rank, self.kind).get(name, {}) for count in counts]
        whole = [place for place in each[0] if all(place in one for one in each)]
        return {place: float(np.mean([one[place][self.worst] for one in each])) for place in whole}

    def cell(self, run: Run, name: str, to: str = "") -> str:
        """As the page has it; empty where nothing was measured."""
        found, reference = self.values(run, name), to or self.to
        if not found or name == reference:
            return ""
        if not reference:
            return f"{np.mean(list(found.values())):.3f}"
        other = self.values(run, reference)
        apart = {place: value - other[place] for place, value in found.items() if place in other}
        return told(interval(apart)) if self.sure else f"{np.mean(list(apart.values())):+.3f}"


@cache
def run(label: str) -> Run:
    """A run: of a file, or of that in later.json whose label ends so, or says so before its seeds.

    The file has two numbers a row, the mean and the worst task. Two tasks that have these stand for all.
    """
    if (path := PLACE / f"{label}.json").exists():
        return Run(_rows(json.loads(path.read_text())))
    later = json.loads((PLACE / "later.json").read_text())
    (found,) = [one for one in later if f": {label}, " in one["label"] or one["label"].endswith(label)]
    return Run(_rows(found))


def _rows(kept: Mapping[str, Any]) -> list[Row]:
    return [
        _row(name, dict(zip(kept["columns"], line, strict=True)), kept["places"])
        for name, lines in kept["lines"].items()
        for line in lines
    ]


def _row(name: str, line: Mapping[str, Any], places: Sequence[Sequence[str]]) -> Row:
    domain, regime = places[line["place"]]
    about = {"domain": domain, "regime": regime, "contender": name, "own": [1.0, 1.0]}
    pairs = {"untuned": line["its worst"], "tuned": line["its worst task"]}
    told = {kind: _two(line[kind], worst) for kind, worst in pairs.items() if line[kind] is not None}
    return {**about, **{key: line[key] for key in ("policy", "rank", "count", "seed")}, **told}


def _two(mean: float, worst: float) -> list[float]:
    return [2 * mean - worst, worst]


def written(name: str) -> str:
    """
    >>> written("level, s 1"), written("PEFT svd"), written("routed, lag")
    ('`level`, s 1', 'PEFT svd', 'gate `lag`')
    """
    if name.startswith("PEFT"):
        return name
    first, _, rest = name.partition(", ")
    return f"gate `{rest}`" if first == "routed" else f"`{first}`" + (f", {rest}" if rest else "")


def grid(run: Run, names: Iterable[str] | Mapping[str, str], columns: Sequence[Column]) -> str:
    """A table with a line for each name, under these words if they are a mapping."""
    shown = names if isinstance(names, Mapping) else {name: written(name) for name in names}
    lines = [[words, *(each.cell(run, name) for each in columns)] for name, words in shown.items()]
    return _table(["method", *(each.head for each in columns)], lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    first, *rest = (f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (head, *lines))
    return "\n".join([first, "|" + "---|" * len(head), *rest])


def by(kind: str, counts: Sequence[int], head: str = BY_NUMBER, **more: Any) -> list[Column]:
    """One column for each number of adapters."""
    return [Column(head.format(count), kind, count, **more) for count in counts]


def ordered(run: Run, column: Column) -> list[str]:
    """Names with results there, the best first."""
    means = {name: column.values(run, name) for name in sorted({row["contender"] for row in run.rows})}
    some = {name: float(np.mean(list(each.values()))) for name, each in means.items() if each}
    return sorted(some, key=lambda name: -some[name])


def _peft() -> str:
    rows, lines = run("reporting").easy(), []
    for count in COUNTS:
        found = findings.against_peft(rows, "level", count, 8)
        assert found is not None
        best, apart = found["best"].removeprefix("PEFT "), found["untuned against tuned"]
        theirs, both = f"{found['theirs']:.3f} (`{best}`)", told(found["tuned against tuned"])
        lines.append([str(count), f"{found['untuned']:.3f}", theirs, told(apart), both])
    head = ["adapters", "`level`, untuned", "the best of PEFT, tuned", "difference", "both tuned"]
    return _table(head, lines)


def _methods() -> str:
    names = ("PEFT linear", "PEFT svd", "PEFT ties_svd", "linear", "lego", "wudi", "tsv", "ties", "core")
    better = ("average", "iso_c", "pico", "shrunk_tsv", "level")
    columns = [*by("untuned", COUNTS), Column("worst task, T=8", "untuned", 8, worst=True)]
    tuned = by("tuned", COUNTS[:1], "tuned T={}") + by("tuned", COUNTS[1:])
    return grid(run("reporting"), (*names, *better), columns + tuned)


def _apart() -> str:
    rows = run("reporting").easy()
    found = {count: findings.factors_apart(rows, count, 8) for count in COUNTS}
    lines = []
    for rule in findings.APART:
        settings = {
            (value, count, place) for count in COUNTS for place, value in found[count][rule]["places"].items()
        }
        value, count, place = min(settings)
        gains = [told(found[count][rule]["gain"]) for count in COUNTS]
        least = f"{value:+.3f} ({count} adapters, {place})"
        lines.append([f"`{rule.removeprefix('PEFT ')}`", *gains, least])
    return _table(["rule", *by_heads(COUNTS), "least of the twelve settings"], lines)


def by_heads(counts: Sequence[int]) -> list[str]:
    return [BY_NUMBER.format(count) for count in counts]


REPAIRS = {
    "lego": "`lego`, as it is",
    "k=8, from energy, strength rms": "8, strong units, energy of the members",
    "k=8, from energy, strength sum": "8, strong units, that of the sum",
    "k=8, from sum, strength sum": "8, directions of the sum, that of the sum",
    "k=16, from energy, strength sum": "16, strong units, that of the sum",
    "k=N/2, from energy, strength rms": "half of all, strong units, energy of the members",
    "k=N/2, from energy, strength sum": "half of all, strong units, that of the sum",
}


def _lego() -> str:
    tuned = by("tuned", (2,), "tuned T={}", to="svd", sure=True) + by("tuned", (8,), to="svd", sure=True)
    untuned = by("untuned", (2,), "untuned T={}", to="svd") + by("untuned", (8,), to="svd")
    made = grid(run("repairs of LEGO, first two seeds"), REPAIRS, tuned + untuned)
    return made.replace("| method |", "| clusters, start, strength |", 1)


WHOLE = "whole"  # the later run of everything
MANY = "16 and 32 adapters of 8 tasks by the ten best with 8, rank 8"
GATES = ("smile", "seqr", "arrow", "spectr", "lag", "rank-self", "rank-absproj", "static")
OWN_HEADS = (
    "level", "shrunk_tsv", "pico", "iso_c", "PEFT magnitude_prune_svd", "PEFT svd", "svd", "PEFT linear"
)  # fmt: skip


def sized(kind: str) -> list[Column]:
    """One for each rank, in the mean over 2, 4 and 8 adapters."""
    return [Column(f"{kind} 4", kind, COUNTS, 4)] + [
        Column(head, kind, COUNTS, rank) for head, rank in (("8", 8), ("16", 16), ("∞", 0))
    ]


def _ranks() -> str:
    whole = run(WHOLE)
    names = [name for name in ordered(whole, Column("", "tuned", COUNTS)) if " · " not in name]
    sizes = {name for name in names if all(column.values(whole, name) for column in sized("tuned"))}
    return grid(whole, [name for name in names if name in sizes], [*sized("untuned"), *sized("tuned")])


def _many() -> str:
    whole, columns = run(MANY), []
    for kind in ("untuned", "tuned"):
        for count in (16, 32):
            columns.append(Column(f"{kind} T={count}", kind, count))
            columns.append(Column("worst", kind, count, worst=True))
    columns += [Column(f"tuned to PEFT svd, T={n}", "tuned", n, to="PEFT svd", sure=True) for n in (16, 32)]
    return grid(whole, ordered(whole, Column("", "untuned", 16)), columns)


def _routed() -> str:
    whole, pairs = run(WHOLE), run("routed bundles, seeds 8 to 11")
    names = {f"routed, {gate}": f"gate `{gate}`" for gate in GATES}
    names |= {name: f"`{name}`, untuned" for name in ("level", "linear")}
    several = by("untuned", COUNTS, rank=0)
    conflict = Column("conflicting, T=2", "untuned", 2, 0, domains=HARD)
    apart = Column("to `level`, T=8", "untuned", 8, 0, to="level", sure=True)
    lines = [
        [words, *(each.cell(whole, n) for each in several), conflict.cell(pairs, n), apart.cell(whole, n)]
        for n, words in names.items()
    ]
    return _table(["method", *(each.head for each in (*several, conflict, apart))], lines)


def _heads() -> str:
    columns = []
    for own, one in zip(HEADS, EASY, strict=True):
        first = f"{one}, "
        for kind in ("untuned", "tuned"):
            columns.append(Column(f"{first}{kind} T=2", kind, 2, domains=(own,)))
            columns += [Column("T=8", kind, 8, domains=(own,)), Column("one head", kind, 8, domains=(one,))]
            first = ""
    return grid(run(WHOLE), OWN_HEADS, columns)


OPTIONS = {  # what, and to what -> words
    ("wudi, ridge 1", "wudi"): "`wudi`, ridge 1 to 0.1",
    ("wudi, top", "wudi"): "`wudi --filter top` to ridge 0.1",
    ("wudi, top from the sum", "wudi"): "`wudi --filter top --start sum` to ridge 0.1",
    ("wudi, flow from the sum", "wudi"): "`wudi --filter flow --start sum` to ridge 0.1",
    ("svd, σ^½", "svd"): "`svd --power 0.5`",
    ("svd, boost .9", "svd"): "`svd --boost 0.9`",
    ("ctm, sum", "ctm"): "`ctm --rule sum` to ties",
    ("dc_merge, mean", "svd"): "`dc_merge --smooth mean` to `svd`",
    ("knots, by shares", "knots"): "`knots --ranking shares --rank-tol 0.01`",
    ("svd, shared ranks", "svd"): "`svd --total-rank`",
    ("level, shared ranks", "level"): "`level --total-rank`",
    ("svd, cosine", "svd"): "`svd --scale cosine`, as it was",
    ("level, cosine", "level"): "`level --scale cosine`",
    ("svd, loss", "svd"): "`svd`, smallest loss",
    ("level, loss", "level"): "`level`, smallest loss",
}


def _options() -> str:
    both = run("options, first two seeds"), run("and DRM, first two seeds")
    whole = Run([row for each in both for row in each.rows])
    columns = by("tuned", (2,), "tuned T={}") + by("tuned", (8,))
    columns += by("untuned", (2,), "untuned T={}") + by("untuned", (8,))
    lines = [
        [words, *(each.cell(whole, name, to) for each in columns)] for (name, to), words in OPTIONS.items()
    ]
    return _table(["what", *(each.head for each in columns)], lines)


FADING = ("svd", "shrunk_tsv", "pico, both sides")


def _fade() -> str:
    whole = run(WHOLE)
    head = ["method", *(f"norm T={n}" if n == 2 else f"T={n}" for n in COUNTS)]
    head += [f"fade T={n}" if n == 2 else f"T={n}" for n in COUNTS]
    head += [f"tuned T={n}" if n == 2 else f"T={n}" for n in COUNTS]
    lines = []
    for name in FADING:
        untuned, tuned = by("untuned", COUNTS), by("tuned", COUNTS)
        cells = [each.cell(whole, f"{name} · norm") for each in untuned]
        cells += [each.cell(whole, f"{name}, fade") for each in untuned]
        lines.append([written(name), *cells, *(each.cell(whole, name) for each in tuned)])
    return _table(head, lines)


POWERS = (0.0, 0.2, 0.3, 0.4, 0.5)


def powers() -> dict[str, list[float]]:
    """Method -> accuracy on the samples for tuning, at T^-p of the strength of one adapter, for POWERS."""
    later = json.loads((PLACE / "later.json").read_text())
    (kept,) = [one for one in later if "curves" in one]
    found: dict[str, list[list[float]]] = {}
    for each in kept["curves"]:
        rho = [each["count"] ** -power for power in POWERS]
        means = np.interp(np.log(rho), np.log(kept["rho"]), each["accuracy"])
        found.setdefault(each["contender"], []).append(means.tolist())
    whole = {name: each for name, each in found.items() if len(each) == len(COUNTS)}
    return {name: np.mean(each, axis=0).tolist() for name, each in whole.items()}


def _powers() -> str:
    lines = [[written(name), *(f"{one:.3f}" for one in each)] for name, each in powers().items()]
    head = ["method", "as `norm`", "T^−0.2", "T^−0.3, `fade`", *(f"T^−{power}" for power in POWERS[3:])]
    return _table(head, lines)


TABLES: dict[str, Callable[[], str]] = {
    "peft": _peft,
    "methods": _methods,
    "apart": _apart,
    "lego": _lego,
    "ranks": _ranks,
    "many": _many,
    "routed": _routed,
    "heads": _heads,
    "options": _options,
    "powers": _powers,
    "fade": _fade,
}


def filled(text: str) -> str:
    """The page with its tables between their marks."""
    for name, made in TABLES.items():
        before, start, rest = text.partition(f"<!-- results: {name} -->\n")
        assert start, f"the page has no place for the table {name}"
        text = f"{before}{start}{made()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
