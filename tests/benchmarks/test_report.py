"""Tables and findings of the benchmark of quality, by hand."""

import pytest

pytest.importorskip("torch", reason="the benchmark trains")
pytest.importorskip("peft", reason="the benchmark compares with it")

from benchmarks.quality import findings, report
from tests.benchmarks.rows import row


def test_tables_by_hand():
    """Of (1, .5, 0) the last was never learned: (.8, .2) is (.8, .4), mean .6; the reference has .45."""
    rows = [row("a", 0, [0.8, 0.2, 0]), row("a", 1, [0.8, 0.2, 0])]
    rows += [row("ref", 0, [0.5, 0.25, 0]), row("ref", 1, [0.5, 0.15, 0])]
    first, second = report.compared(rows, 8, 8, "tuned", "ref")
    assert first["contender"] == "a"
    assert (first["accuracy"], first["worst"]) == pytest.approx((0.6, 0.4))
    assert second["accuracy"] == pytest.approx(0.45)
    mean, low, high = first["against"]
    assert (mean, low, high) == pytest.approx((0.15, 0.1, 0.2))
    assert report.best(rows, 1) == ["a"]


def test_one_seed_gives_no_interval():
    rows = [row(name, seed, [0.5, 0.25, 0]) for name in ("a", "PEFT svd") for seed in (0, 1)]
    assert "| a | 0.500 | 0.500 | +0.000 [+0.000, +0.000] |" in report.page(rows, "x", "PEFT svd")
    alone = report.page([each for each in rows if each["seed"] == 0], "x", "PEFT svd")
    assert "| a | 0.500 | 0.500 | +0.000 |" in alone
    assert "One seed" in alone


def test_a_contender_that_lacks_some_cell_is_not_ranked():
    rows = [row("ref", 0, [1, 0.5, 0]), row("ref", 1, [1, 0.5, 0]), row("a", 0, [1, 0.5, 0])]
    assert [line["contender"] for line in report.compared(rows, 8, 8, "tuned", "ref")] == ["ref"]


def two_places(contender, **kinds):
    made = [row(contender, seed, [0.0, 0.0, 0.0]) for seed in (0, 1)]
    return [one | {kind: [share, share / 2, 0] for kind, share in kinds.items()} for one in made]


def test_findings_by_hand():
    """The best of PEFT is that which is best when tuned; ours stands against it untuned."""
    rows = [*two_places("ours", untuned=0.7, tuned=0.8), *two_places("PEFT svd", untuned=0.1, tuned=0.6)]
    rows += two_places("PEFT linear", untuned=0.9, tuned=0.5)
    line = findings.against_peft(rows, "ours", 8, 8)
    assert line["best"] == "PEFT svd"
    assert line["untuned against tuned"] == pytest.approx((0.1, 0.1, 0.1))
    assert line["by place"] == {"digits, shared A": pytest.approx((0.1, 0.1, 0.1))}
    assert findings.overall(rows, "ours", [8], 8) == pytest.approx((0.1, 0.1, 0.1))
    assert findings.factors_apart(rows, 8, 8)["PEFT linear"]["gain"] == pytest.approx((0.1, 0.1, 0.1))
    assert findings.against_peft(rows, "ours", 4, 8) is None
