import numpy as np
import pytest

from loramerge import Adapter, LowRank, combine
from loramerge.errors import IncompatibleError
from tests.helpers.adapters import dense, distance, merged, random_adapters, weighted


def one(up, down):
    return Adapter.of({"q": LowRank(np.array(up, float), np.array(down, float))})


def test_by_hand():
    """Shares ¼ and ¾ of B = e₁, e₂ and of A = e₁, e₂ give (¼, ¾)ᵀ(¼, ¾)."""
    pair = [one([[1], [0]], [[1, 0]]), one([[0], [1]], [[0, 1]])]
    assert merged(pair, "fedavg", [1, 3])["q"].tolist() == [[1 / 16, 3 / 16], [3 / 16, 9 / 16]]


def test_it_is_off_by_the_cross_terms():
    """Σ p_t p_u B_t A_u instead of Σ p_t B_t A_t."""
    sources, p = random_adapters(4, (3, 3, 3)), np.array([0.2, 0.3, 0.5])
    found, mean = merged(sources, "fedavg", p), weighted(sources, p)
    for path in found:
        (target,) = [t for t in sources[0] if t.path == path]
        cross = sum(
            p[t] * p[u] * (a[target].up @ b[target].down)
            for t, a in enumerate(sources)
            for u, b in enumerate(sources)
        )
        assert found[path] == pytest.approx(cross, abs=1e-13)
    assert distance(found, mean) > 0.5


def test_the_report_says_how_far_it_is_from_the_mean():
    """Shares ½: ¼·ones against diag(½, ½): off by ½ of ‖·‖ = 1/√2, cosine 1/√2; (½, ½) reaches half."""
    pair = [one([[1], [0]], [[1, 0]]), one([[0], [1]], [[0, 1]])]
    report = combine(pair, "fedavg").report
    facts = report.modules[0].facts
    assert facts == pytest.approx({"error": 0.5**0.5, "cosine": 0.5**0.5, "floor": 0.5**0.5})
    assert report.energy_lost == pytest.approx(0.5)
    assert any("is not the mean of the updates" in note for note in report.notes)


def test_a_source_without_the_module_weakens_it_and_lends_its_a_to_nobody():
    """There B is ½·B and A is A."""
    found = merged([one([[1], [3]], [[1, 2]]), Adapter.of({"v": LowRank(np.eye(2), np.eye(2))})], "fedavg")
    assert found["q"].tolist() == [[0.5, 1], [1.5, 3]]
    assert found["v"].tolist() == [[0.5, 0], [0, 0.5]]


def test_the_scale_stays_on_b():
    """Scales 1 and 3 of the same factors: the mean scale."""
    pair = [Adapter.of({"q": LowRank(np.eye(2), np.eye(2), scale)}) for scale in (1.0, 3.0)]
    assert merged(pair, "fedavg")["q"].tolist() == [[2, 0], [0, 2]]


def test_other_ranks_are_refused_unless_they_have_no_weight():
    sources = random_adapters(0, (2, 3))
    with pytest.raises(IncompatibleError, match=r"in layers\.0\.q they are source0 2, source1 3"):
        merged(sources, "fedavg")
    assert distance(merged(sources, "fedavg", [1, 0]), dense(sources[0])) == 0
