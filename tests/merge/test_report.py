"""Every number of the report is what dense matrices say."""

import json

import numpy as np
import pytest

from loramerge import Adapter, LowRank, combine
from loramerge.merge.report import Module, Report
from tests.helpers.adapters import dense, random_adapters, weighted, zero

SOURCES = [*random_adapters(1, (3, 2)), *random_adapters(2, (4,), {"layers.0.q": (7, 9)}, scale=0.3)]
WEIGHTS = [1.0, -0.5, 2.0]
METHODS = {
    "linear": ("linear", {}),
    "linear, rank 2": ("linear", {"rank": 2}),
    "average, rank 1": ("average", {"rank": 1}),
    "svd": ("svd", {}),
    "lego": ("lego", {"rank": 3}),
    "ctm": ("lego", {"variant": "ctm", "rank": 2}),
    "nsc": ("lego", {"variant": "nsc", "rank": 2, "rescale": "l2"}),
}
every_method = pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=METHODS)


def case(method, options, dtype="float64", sources=SOURCES, weights=WEIGHTS):
    """(report, dense merge, dense weighted sum)."""
    merge = combine(sources, method, weights=weights, dtype=dtype, **options)
    return merge.report, dense(merge.adapter), weighted(sources, merge.report.weights)


def flat(matrices, paths=("layers.0.q", "layers.0.v")):
    """All modules as one vector; an absent one is zero."""
    shapes = {"layers.0.q": (7, 9), "layers.0.v": (8, 6)}
    return np.concatenate([np.ravel(matrices.get(path, np.zeros(shapes[path]))) for path in paths])


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@every_method
def test_energy_lost_is_the_share_of_the_sum_that_is_missing(method, options):
    report, merge, total = case(method, options)
    lost = np.sum((flat(total) - flat(merge)) ** 2) / np.sum(flat(total) ** 2)
    assert report.energy_lost == pytest.approx(lost, rel=1e-9, abs=1e-14)
    for module in report.modules:
        apart, whole = total[module.name] - merge[module.name], total[module.name]
        share = np.sum(apart**2) / np.sum(whole**2)
        assert module.energy_lost == pytest.approx(share, rel=1e-9, abs=1e-14)
        assert module.merged == pytest.approx(np.sum(merge[module.name] ** 2))
        assert module.wanted == pytest.approx(np.sum(whole**2))


@every_method
def test_cosines_and_norm_ratios_compare_the_merge_with_each_source(method, options):
    report, merge, _ = case(method, options)
    for source, found, ratio in zip(SOURCES, report.cosines, report.norm_ratios, strict=True):
        assert found == pytest.approx(cosine(flat(merge), flat(dense(source))))
        assert ratio == pytest.approx(np.linalg.norm(flat(merge)) / np.linalg.norm(flat(dense(source))))


@every_method
def test_pairwise_cosines_are_those_of_the_sources(method, options):
    report, _, _ = case(method, options)
    table = [[cosine(flat(dense(a)), flat(dense(b))) for b in SOURCES] for a in SOURCES]
    assert np.array(report.pairwise) == pytest.approx(np.array(table))


@every_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_rounding_error_is_measured_on_what_was_stored(method, options, dtype):
    report, stored, _ = case(method, options, dtype)
    _, exact, _ = case(method, options, "float64")
    apart = np.linalg.norm(flat(stored) - flat(exact)) / np.linalg.norm(flat(exact))
    assert report.rounding_error == pytest.approx(apart, rel=1e-5)
    for module in report.modules:
        apart = np.linalg.norm(stored[module.name] - exact[module.name])
        assert module.rounding_error * module.merged**0.5 == pytest.approx(apart, rel=1e-5)


def test_float64_is_stored_as_it_is():
    report, _, _ = case("svd", {"rank": 2})
    assert report.rounding_error == 0


def test_each_module_says_its_ranks_and_modules_are_sorted():
    report, _, _ = case("linear", {})
    assert [(m.name, m.ranks) for m in report.modules] == [
        ("layers.0.q", (3, 2, 4)),
        ("layers.0.v", (3, 2, 0)),
    ]


def test_weights_are_those_the_method_used():
    assert case("linear", {})[0].weights == (1.0, -0.5, 2.0)
    assert case("average", {})[0].weights == (0.4, -0.2, 0.8)


# --- zero -------------------------------------------------------------------------------------------


def test_a_zero_source_has_no_cosine_and_no_norm_ratio():
    sources = [SOURCES[0], zero(SOURCES[1])]
    report = combine(sources, "svd").report
    assert report.cosines == [pytest.approx(1), None]
    assert report.norm_ratios == [pytest.approx(1), None]
    assert report.pairwise == [[pytest.approx(1), None], [None, None]]
    assert "–" in str(report)


@pytest.mark.parametrize("method", ["linear", "svd", "lego"])
def test_where_all_is_zero_every_share_is_none(method):
    report = combine([zero(SOURCES[0]), zero(SOURCES[1])], method).report
    assert report.energy_lost is None
    assert report.rounding_error is None
    assert report.cosines == report.norm_ratios == [None, None]
    assert [m.energy_lost for m in report.modules] == [None, None]
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["energy_lost"] is None
    assert [each["norm"] for each in plain["modules"]] == [0, 0]
    assert "energy lost –, rounding error –" in str(report)


def test_a_sum_that_cancels_has_no_share_but_rounding():
    """1 − 1 of the same adapter: what is left is noise, and nothing divides by zero."""
    report = combine([SOURCES[0], SOURCES[0]], "linear", weights=[1, -1]).report
    assert report.energy_lost is None or report.energy_lost < 1
    json.dumps(report.to_dict(), allow_nan=False)


# --- showing ----------------------------------------------------------------------------------------


def module(name="q", wanted=4.0, lost=1.0, merged=3.0):
    overlaps, inners = np.array([2.0, 1.0]), np.array([[4.0, 1.0], [1.0, 1.0]])
    return Module(name, (1, 1), wanted, merged, lost, 0.03, overlaps, inners)


def test_by_hand():
    """‖merge‖² = 3, ‖ΔW‖² = 4 and 1, ⟨merge, ΔW⟩ = 2 and 1, ⟨ΔW₁, ΔW₂⟩ = 1; a quarter of 4 is lost."""
    report = Report(("a", "b"), (1.0, 0.5), (module(),))
    assert report.energy_lost == 0.25
    assert report.rounding_error == pytest.approx(0.1)
    assert report.cosines == pytest.approx([2 / 12**0.5, 1 / 3**0.5])
    assert report.norm_ratios == pytest.approx([(3 / 4) ** 0.5, 3**0.5])
    assert np.array(report.pairwise) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
    assert str(report).splitlines() == [
        "source  weight  cos(merge)  ‖merge‖/‖·‖  cos(1)  cos(2)",
        "1 a          1       0.577        0.866   1.000   0.500",
        "2 b        0.5       0.577        1.732   0.500   1.000",
        "energy lost 25 %, rounding error 1.0e-01",
        "most lost in: q 25 %",
    ]


def test_modules_add_up_before_they_are_compared():
    """A module with a hundredth of the energy counts a hundredth, though it lost all."""
    report = Report(("a", "b"), (1, 1), (module("q", 99.0, 0.0), module("v", 1.0, 1.0)))
    assert report.energy_lost == pytest.approx(0.01)
    assert [m.name for m in report.worst()] == ["v", "q"]
    assert [m.name for m in report.worst(1)] == ["v"]


def test_many_sources_are_shown_without_the_table_of_pairs():
    sources = random_adapters(3, (1,) * 9)
    report = combine(sources, "linear").report
    assert all(len(row) == 4 for row in report.table())
    assert len(report.to_dict()["pairwise_cosines"]) == 9


def test_names_cannot_become_markup_or_terminal_codes():
    names = ["<b>&\"'", "red\x1b[31m"]
    sources = [
        Adapter.of({"<i>q": next(iter(source.values()))}, name)
        for source, name in zip(SOURCES, names, strict=False)
    ]
    report = combine(sources, "svd", rank=1).report
    shown = report._repr_html_()
    assert "&lt;b&gt;&amp;&quot;&#x27;" in shown
    assert "most lost in: &lt;i&gt;q" in shown
    assert not any(bad in shown for bad in ("<b>", "<i>", "\x1b"))
    assert "\x1b" not in str(report)


def test_notes_are_shown_in_notebooks_escaped():
    report = Report(("a",), (1.0,), (module(),), ("rank 20 is <above> 16",))
    shown = Report(("a", "b"), (1.0, 1.0), report.modules, report.notes)._repr_html_()
    assert "rank 20 is &lt;above&gt; 16" in shown


def test_plain_values_hold_everything():
    report, _, _ = case("linear", {"rank": 2}, "float32")
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["energy_lost"] == report.energy_lost
    assert plain["rounding_error"] == report.rounding_error
    assert [s["cosine"] for s in plain["sources"]] == report.cosines
    assert [s["weight"] for s in plain["sources"]] == list(report.weights)
    assert plain["pairwise_cosines"] == report.pairwise
    assert [m["name"] for m in plain["modules"]] == [m.name for m in report.modules]
    assert [m["norm"] for m in plain["modules"]] == [m.merged**0.5 for m in report.modules]


def test_the_measure_holds_for_unbalanced_factors():
    turned = [
        Adapter.of({t.path: LowRank(u.up * 1e7, u.down / 1e7, u.scale) for t, u in s.items()})
        for s in SOURCES
    ]
    for method, options in METHODS.values():
        if "variant" not in options:
            report = case(method, options, sources=turned)[0]
            plain = case(method, options)[0]
            assert report.energy_lost == pytest.approx(plain.energy_lost, rel=1e-9, abs=1e-14)
            assert report.cosines == pytest.approx(plain.cosines)


def test_what_else_a_method_says_is_in_the_report():
    """Two modules of fedavg: a range in the summary, both numbers in the JSON."""
    report = combine(random_adapters(1, (3, 3)), "fedavg").report
    errors = [module.facts["error"] for module in report.modules]
    low, high = report.facts["error"]
    assert [low, high] == sorted(errors)
    assert f"error {low:.3g} to {high:.3g} by module" in str(report)
    assert [m["facts"]["error"] for m in report.to_dict()["modules"]] == errors
    assert "facts" not in json.dumps(combine(random_adapters(1, (3, 3)), "linear").report.to_dict())
