"""docs/quality.md says what the results beside it say: its tables, and the numbers of its sentences."""

import json
import re
from functools import cache

import numpy as np
import pytest

from benchmarks.quality import findings, page, plan
from benchmarks.quality.page import COUNTS, Column, run
from benchmarks.quality.report import interval, told

TEXT = page.PAGE.read_text(encoding="utf-8")
SAID = re.sub(r"\s+", " ", TEXT)
EASY = run("reporting").easy()


def test_the_tables_are_those_of_the_results():
    made = page.filled(TEXT)
    stale = [line for line in made.splitlines() if line not in TEXT.splitlines()]
    assert stale == [], "run python -m benchmarks.quality.page"
    assert made == TEXT


def mean(name, kind, domains=plan.EASY, counts=COUNTS):
    """In the mean over numbers of adapters, or of the one that is asked for."""
    each = [Column("", kind, count, domains=domains).values(run("reporting"), name) for count in counts]
    return f"{np.mean([np.mean(list(one.values())) for one in each]):.3f}"


def several(*values):
    return ", ".join(values)


@cache
def overall(rank):
    return told(findings.overall(EASY, "level", COUNTS, rank))


def both_tuned():
    """Against the best of PEFT, both tuned, in the mean over numbers of adapters."""
    found = {}
    for count in COUNTS:
        tuned, best = findings.means(EASY, count, 8, "tuned"), findings.against_peft(EASY, "level", count, 8)
        for place, value in tuned["level"].items():
            found.setdefault(place, []).append(value - tuned[best["best"]][place])
    return told(interval({place: float(np.mean(values)) for place, values in found.items()}))


def by_place():
    """Untuned against the best of PEFT tuned, in the mean over numbers of adapters."""
    found = [findings.against_peft(EASY, "level", count, 8)["by place"] for count in COUNTS]
    names = {
        place: f"{np.mean([one[place][0] for one in found]):+.3f} ({', '.join(place.split(', '))})"
        for place in found[0]
    }
    return several(*names.values())


def lego():
    found = [findings.means(EASY, count, 8, "tuned") for count in COUNTS]
    return "; ".join(told(findings.apart(one["lego"], one["svd"])) for one in found)


def beside(key):
    kept = json.loads((page.PLACE / "reporting.json").read_text())["beside"]
    return several(*(f"{one[key]:.2f}" for one in kept))


def short(name, count):
    return f"{float(mean(name, 'untuned', counts=(count,))):.2f}"


def contenders():
    """Those with results at rank 8 everywhere, the best first."""
    each = [Column("", "untuned", count) for count in COUNTS]
    names = {row["contender"] for row in EASY}
    some = [name for name in names if all(column.values(run("reporting"), name) for column in each)]
    return sorted(some, key=lambda name: -float(mean(name, "untuned")))


def nearest():
    """Rounded up, how far these two are below."""
    first, *_ = names = contenders()
    assert first == "level"
    assert {"shrunk_tsv", "pico, both sides"} < set(names)
    own = float(mean("level", "untuned"))
    return (
        np.ceil(100 * max(own - float(mean(n, "untuned")) for n in ("shrunk_tsv", "pico, both sides"))) / 100
    )


def conflicting(name, kind):
    return f"{float(mean(name, kind, plan.HARD, (2,))):.2f}"


def many():
    """How far `level` is below, as it is, with 16 and 32 adapters, and what the sum keeps."""
    whole = run(page.MANY)
    apart = [Column("", "untuned", n, to="level", sure=True).cell(whole, "shrunk_tsv") for n in (16, 32)]
    return f"As it is, `shrunk_tsv` is better: {apart[0]} with 16 adapters, {apart[1]} with 32."


@cache
def kin():
    """At every rank: how far `level` is above the best of others, and in how many columns surely.

    Others are neither its own variants, nor methods at the strength of a policy.
    """
    whole, found = run(page.WHOLE), []
    names = {row["contender"] for row in whole.rows if not row["contender"].startswith("level")}
    names = {name for name in names if not name.endswith((" · norm", ", fade"))}
    for kind in ("tuned", "untuned"):
        for count in COUNTS:
            for rank in (4, 8, 16, 0):
                column = Column("", kind, count, rank)
                every = {name: column.values(whole, name) for name in names}
                means = {name: np.mean(list(each.values())) for name, each in every.items() if each}
                best, level = every[max(means, key=means.get)], column.values(whole, "level")
                found.append(interval({place: level[place] - value for place, value in best.items()}))
    clear = sum(low > 0 for _, low, _ in found), sum(high < 0 for _, _, high in found)
    least, most = min(found)[0], max(found)[0]
    first = f"`level` is the best in {sum(mean > 0 for mean, _, _ in found)} of {len(found)} columns"
    sure = f"{clear[0]} of these differences are clear of zero above it, and {clear[1]} below"
    return f"{first}, and apart from the best of the others by {least:+.3f} to {most:+.3f}; {sure}."


def repeated():
    """What the whole run has of the first one: how many results differ, and that no contender does."""
    first, again = ({_key(row): row for row in run(name).rows} for name in ("reporting", page.WHOLE))
    both = [key for key in first if key in again and key[0] != "wudi"]
    other, apart = 0, {}
    for key in both:
        kinds = [kind for kind in ("untuned", "tuned") if kind in first[key] and kind in again[key]]
        other += any(first[key][kind] != again[key][kind] for kind in kinds)
        for kind in kinds:
            apart.setdefault((key[0], kind), []).append(np.mean(again[key][kind]) - np.mean(first[key][kind]))
    assert max(abs(np.mean(each)) for each in apart.values()) < 0.0005
    return f"{other} of {len(both):,} results differ at all"


def _key(row):
    return tuple(row[name] for name in ("contender", "policy", "domain", "regime", "seed", "count", "rank"))


def gains():
    """What `fade` gains over `norm`, in the mean over numbers of adapters."""
    words = []
    for name in page.FADING:
        found = {}
        for count in COUNTS:
            faded, norm = (
                Column("", "untuned", count).values(run(page.WHOLE), name + end)
                for end in (", fade", " · norm")
            )
            for place, value in faded.items():
                found.setdefault(place, []).append(value - norm[place])
        gain = told(interval({place: float(np.mean(values)) for place, values in found.items()}))
        words.append(f"{gain} for {page.written(name)}")
    return f"it gains {'; '.join(words)}."


SENTENCES = {
    "the sum": lambda: f"four kept {short('linear', 4)} of what they do alone, eight {short('linear', 8)}.",
    "the lead": lambda: f"PEFT's types, tuned, is {overall(8)[:6].lstrip('+')}.",
    "how many": lambda: f"the best of {len(contenders())} contenders",
    "near": lambda: f"`shrunk_tsv` and `pico --sides both` come within {nearest():.2f} of `level`",
    "overall": lambda: (
        f"{overall(8)} at rank 8, {overall(4)} at rank 4, {overall(16)} at rank 16, and "
        f"{overall(0)} without a limit."
    ),
    "both tuned": lambda: f"With both tuned it is {both_tuned()} at rank 8.",
    "by place": lambda: f"untuned: {by_place()}.",
    "best strengths": lambda: f"the best strengths were {beside('strength')} (median",
    "the base": lambda: f"The base alone keeps {beside('base')} (digits",
    "lego": lambda: f"(both tuned): {lego()}.",
    "what each part gives": lambda: (
        f"`svd` {mean('svd', 'tuned')}; with 2 and 3, which is `shrunk_tsv`, "
        f"{mean('shrunk_tsv', 'tuned')}; with 1 and 3, which is `level` at `--shrink 1`, "
        f"{mean('level, s 1', 'tuned')}; with all of them {mean('level', 'tuned')}. Untuned, `level` has "
        f"{mean('level', 'untuned')}, and without whitening {mean('level, s 1', 'untuned')}."
    ),
    "fade": lambda: (
        f"(`--fade 0`) `level` has {mean('level · norm', 'untuned')}, and the plain sum "
        f"{mean('linear', 'untuned')}."
    ),
    "conflicting": lambda: (
        f"`level` keeps untuned {conflicting('level', 'untuned')}, tuned "
        f"{conflicting('level', 'tuned')}; the best of PEFT tuned, `ties_svd`, "
        f"{conflicting('PEFT ties_svd', 'tuned')}."
    ),
    "many": many,
    "fade of any method": gains,
    "every rank": kin,
    "the first run again": repeated,
    "ridge": lambda: several(
        *(Column("", "tuned", n, to="wudi").cell(run("reporting"), "wudi, ridge 1") for n in COUNTS)
    ),
}


def test_what_decided_the_default_is_so():
    def whole(name, rank):
        each = [Column("", "untuned", count, rank).values(run("reporting"), name) for count in COUNTS]
        return np.mean([np.mean(list(one.values())) for one in each]) if all(each) else 0.0

    names = {row["contender"] for row in EASY}
    for rank in (4, 8, 16, 0):
        assert max(names, key=lambda name, rank=rank: whole(name, rank)) == "level", rank
    assert whole("level · norm", 0) - whole("level", 0) == pytest.approx(0.003, abs=0.0005)
    for kind in ("untuned", "tuned"):
        level, sce, emr = (float(mean(name, kind, plan.HARD, (2,))) for name in ("level", "sce", "emr"))
        assert min(sce, emr) > level


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_has_the_numbers_of_the_results(name):
    assert SENTENCES[name]() in SAID
