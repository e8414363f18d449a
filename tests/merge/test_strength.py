"""How strong the merge is: a number, as strong as the sources, or the fairest to all of them."""

import json

import numpy as np
import pytest

from loramerge import Adapter, Lego, Linear, LowRank, Rule, Svd, combine, load, open, replay
from loramerge.errors import SourceError, UsageError
from loramerge.merge.strength import best_smallest_cosine
from loramerge.request.request import Request
from tests.helpers.adapters import dense, distance, merged, random_adapters, zero
from tests.helpers.files import bare, tensors

SOURCES = random_adapters(3, (3, 2, 4))
WEIGHTS = [1.0, -0.4, 0.7]
METHODS = {"linear": Linear(), "svd": Svd(rank=3), "lego": Lego(rank=3), "ctm": Lego(variant="ctm", rank=3)}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("factor", [2.0, -0.5, 0.0])
def test_a_number_multiplies_every_update(method, factor):
    plain, scaled = (merged(SOURCES, method, WEIGHTS, scale=scale) for scale in (None, factor))
    assert distance(scaled, {path: factor * matrix for path, matrix in plain.items()}) < 1e-14


@every_method
def test_norm_makes_every_module_as_strong_as_its_sources_are_on_average(method):
    sources = [*SOURCES, zero(SOURCES[0])]  # one that is not trained has no strength to count
    found = merged(sources, method, [*WEIGHTS, 1.0], scale="norm")
    for path, matrix in found.items():
        wanted = np.mean([np.linalg.norm(dense(source)[path]) for source in SOURCES])
        assert np.linalg.norm(matrix) == pytest.approx(wanted, rel=1e-12)


def test_norm_of_two_updates_at_a_right_angle_by_hand():
    """‖a‖ = 3 and ‖b‖ = 4: their sum has 5, their mean norm is 3.5."""
    a, b = (
        Adapter.of({"q": LowRank(up, down)})
        for up, down in [(np.array([[3.0], [0]]), np.eye(1, 2)), (np.array([[0.0], [4]]), np.eye(1, 2))]
    )
    merge = combine([a, b], "linear", scale="norm")
    np.testing.assert_allclose(dense(merge.adapter)["q"], [[3 * 0.7, 0], [4 * 0.7, 0]], rtol=1e-12)
    assert merge.report.modules[0].scale == pytest.approx(0.7)


@every_method
def test_fade_is_norm_times_a_power_of_the_number_of_sources_that_have_the_module(method):
    sources = [*SOURCES, zero(SOURCES[0])]  # one that is not trained disturbs nobody
    faded, norm = (merged(sources, method, [*WEIGHTS, 1.0], scale=scale) for scale in ("fade", "norm"))
    assert distance(faded, {path: 3**-0.3 * matrix for path, matrix in norm.items()}) < 1e-14
    alone, own = merged(SOURCES[:1], method, scale="fade"), merged(SOURCES[:1], method, scale="norm")
    assert distance(alone, own) == 0


def smallest(facts, factors):
    """The smallest cosine with a source of the merge with these factors."""
    overlaps = sum(factors[f.name] * f.overlaps for f in facts)
    norm = np.sqrt(sum(factors[f.name] ** 2 * f.merged for f in facts))
    return (overlaps / norm / np.sqrt(sum(f.inners.diagonal() for f in facts))).min()


@every_method
def test_cosine_cannot_be_bettered(method):
    sources = random_adapters(8, (3, 2, 4), {f"layers.{i}.q": (7, 9) for i in range(6)})
    plain = combine(sources, method)
    found = combine(sources, method, scale="cosine").report
    best = min(found.cosines)
    assert best > min(plain.report.cosines) + 1e-4
    facts = plain.report.modules
    factors = best_smallest_cosine(facts)
    assert smallest(facts, factors) == pytest.approx(best, abs=1e-9)
    rng = np.random.default_rng(0)
    for size in (0.3, 0.03, 0.003):
        for _ in range(50):
            other = {name: abs(f + size * rng.standard_normal()) for name, f in factors.items()}
            assert smallest(facts, other) <= best + 1e-12


def test_cosine_keeps_the_strength_of_the_whole_up_to_that_of_its_sources():
    """‖a‖ = 3 and ‖b‖ = 4 at a right angle: their sum has 5 and gets 3.5, half of it has 2.5 and keeps it."""
    a, b = (
        Adapter.of({"q": LowRank(up, np.eye(1, 2))})
        for up in (np.array([[3.0], [0]]), np.array([[0.0], [4]]))
    )
    for weight, wanted in ((1.0, 3.5), (0.5, 2.5)):
        found = merged([a, b], "linear", [weight, weight], scale="cosine")["q"]
        assert np.linalg.norm(found) == pytest.approx(wanted)


@every_method
def test_one_source_comes_back_by_cosine(method):
    alone = random_adapters(8, (3,))
    assert distance(merged(alone, method, scale="cosine"), merged(alone, method)) < 1e-12


def test_cosine_is_refused_where_no_strength_brings_the_merge_nearer():
    a = random_adapters(1, (2,))[0]
    with pytest.raises(UsageError, match="scale='cosine'"):
        combine([a, a], weights=[1, -2], scale="cosine")


@pytest.mark.parametrize("scale", ["norm", "fade", "cosine", 0.25])
def test_the_report_is_that_of_the_scaled_merge(scale):
    merge = combine(SOURCES, "svd", rank=3, scale=scale, dtype="float64")
    written = dense(merge.adapter)
    for t, source in enumerate(SOURCES):
        inner = sum((written[path] * matrix).sum() for path, matrix in dense(source).items())
        norms = [np.sqrt(sum((m**2).sum() for m in d.values())) for d in (written, dense(source))]
        assert merge.report.cosines[t] == pytest.approx(inner / norms[0] / norms[1], rel=1e-9)
    wanted = {path: sum(dense(source)[path] for source in SOURCES) for path in written}
    lost = sum(((wanted[path] - written[path]) ** 2).sum() for path in wanted)
    assert merge.report.energy_lost == pytest.approx(lost / sum((m**2).sum() for m in wanted.values()))


def test_the_report_says_the_factors():
    report = combine(SOURCES, "linear", scale="norm").report
    assert "scaled by " in str(report)
    assert " to " in report.summary()[1]
    assert report.to_dict()["modules"][0]["scale"] == report.modules[0].scale != 1.0
    assert "scaled" not in str(combine(SOURCES, "linear").report)
    assert "scale" not in combine(SOURCES, "linear").report.to_dict()["modules"][0]


@pytest.mark.parametrize("scale", ["norm", "fade", "cosine", 0.25])
def test_opened_adapters_scale_alike(scale):
    opened = open(SOURCES).combine("svd", rank=3, scale=scale)
    fresh = combine(SOURCES, "svd", rank=3, scale=scale, dtype="float64")
    assert distance(dense(opened.adapter), dense(fresh.adapter)) < 1e-12
    assert opened.report.cosines == pytest.approx(fresh.report.cosines)


def test_rules_by_module_are_scaled_too():
    rules = [Rule("q$", weights=(1.0, 0.0, 0.0))]
    found = merged(SOURCES, "linear", rules=rules, scale="norm")["layers.0.q"]
    own = dense(SOURCES[0])["layers.0.q"]
    cosine = (found * own).sum() / np.linalg.norm(found) / np.linalg.norm(own)
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize("scale", ["norm", "fade", "cosine", 0.25])
def test_a_record_replays_the_strength(tmp_path, monkeypatch, scale):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab", 1):
        bare(
            tmp_path / f"{name}.safetensors",
            tensors(seed),
            {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'},
        )
    combine(["a.safetensors", "b.safetensors"], scale=scale, out="m.safetensors")
    replay("m.safetensors", out="again.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert load("m.safetensors").rank == 4


def test_a_record_with_no_strength_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare(tmp_path / "a.safetensors", tensors(1), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    combine(["a.safetensors"], scale=0.5, out="m")
    record = tmp_path / "m" / "loramerge.json"
    values = json.loads(record.read_text())
    for bad in ("strong", True, [1]):
        values["settings"]["scale"] = bad
        record.write_text(json.dumps(values))
        with pytest.raises(SourceError, match="scale"):
            replay("m", out="again")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, 1.0), (2, 2.0), ("-0.5", -0.5), ("norm", "norm"), ("fade", "fade"), ("cosine", "cosine")],
)
def test_what_a_scale_may_be(given, wanted):
    assert Request(scale=given).scale == wanted


@pytest.mark.parametrize("given", ["nan", "strong", float("inf"), True, [1]])
def test_what_a_scale_may_not_be(given):
    with pytest.raises(UsageError, match="neither a finite number nor one of norm, fade, cosine"):
        Request(scale=given)


@pytest.mark.parametrize("method", ["svd", "tsv", "iso_c", "wudi", "linear"])
def test_what_cancels_is_not_scaled_up(method):
    a = SOURCES[0]
    found = combine([a, a], method, weights=[1, -1], scale="norm", dtype="float64")
    assert max(np.abs(matrix).max() for matrix in dense(found.adapter).values()) < 1e-6
    assert found.report.scales == (1.0, 1.0)


def test_where_sources_cancel_to_the_last_digit_there_is_nothing_to_weigh():
    there = Adapter.of({"q": LowRank(np.array([[2.0], [0.0]]), np.array([[1.0, 0.0]]))}, "there")
    back = Adapter.of({"q": LowRank(np.array([[-2.0], [0.0]]), np.array([[1.0, 0.0]]))}, "back")
    report = combine([there, back], "average", scale="cosine").report
    assert report.strength == 0
    assert "cancel each other in every module" in str(report)
