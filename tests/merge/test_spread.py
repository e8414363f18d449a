"""How far the experts of a mixture are apart: the law of total variance, entry by entry and in sum."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import loramerge as lm
from loramerge.errors import OutputError, UsageError
from tests.helpers.adapters import dense, random_adapters

NEAR = [0.5, 0.45, 0.4]


def written(merge, path):
    merge.save_spread(path)
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def by_loop(sources, shares):
    """Σ_k α_k (ΔW_k − ΔW*)², densely; a source without a module counts as zero."""
    paths = {path for source in sources for path in dense(source)}
    found = {}
    for path in paths:
        shape = next(dense(s)[path].shape for s in sources if path in dense(s))
        updates = [dense(s).get(path, np.zeros(shape)) for s in sources]
        mean = sum(a * w for a, w in zip(shares, updates, strict=True))
        found[path] = sum(a * (w - mean) ** 2 for a, w in zip(shares, updates, strict=True))
    return found


SOURCES = {
    "of one shape": random_adapters(1, (2, 3, 1)),
    "one lacks a module": [*random_adapters(1, (2, 3)), *random_adapters(2, (2,), {"layers.0.q": (7, 9)})],
    "more units than columns": random_adapters(3, (4, 5, 3), {"q": (5, 6)}),
}


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("rank", [None, 2])
def test_the_spread_is_that_of_the_published_formula_and_its_sum_is_reported(sources, rank, tmp_path):
    merge = lm.combine(sources, lm.Sg(rank=rank), weights=NEAR)
    found, metadata = written(merge, tmp_path / "s.safetensors")
    wanted = by_loop(sources, merge.report.weights)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
        assert (found[name] >= 0).all(), "never less than the variance within experts, which is 0"
    reported = {module.name: module.spread for module in merge.report.modules}
    assert reported == pytest.approx({name: values.sum() for name, values in wanted.items()})
    energy = sum(
        share * np.sum(matrix**2)
        for source, share in zip(sources, merge.report.weights, strict=True)
        for matrix in dense(source).values()
    )
    assert merge.report.spread == pytest.approx(sum(reported.values()) / energy)
    assert json.loads(metadata["loramerge_spread"]) == dict(
        zip([a.name for a in merge.plan.sources.whole], merge.report.weights, strict=True)
    )


def test_the_spread_is_the_variance_of_experts_drawn_by_their_shares(tmp_path):
    """The law of total variance, by drawing: 20 000 experts, a standard error of about 1 %."""
    sources = random_adapters(1, (2, 3, 1), {"q": (3, 4)})
    merge = lm.combine(sources, lm.Sg(), weights=NEAR)
    found, _ = written(merge, tmp_path / "s.safetensors")
    drawn = np.random.default_rng(0).choice(3, 20_000, p=merge.report.weights)
    samples = np.stack([dense(source)["q"] for source in sources])[drawn]
    np.testing.assert_allclose(samples.var(axis=0), found["q"], rtol=0.06)


@pytest.mark.parametrize("temperature", [0, 0.05])
def test_one_expert_has_no_spread(temperature, tmp_path):
    sources = random_adapters(1, (2, 3))
    merge = lm.combine([sources[0]] * 2, lm.Sg(temperature=temperature), weights=[0.5, 0.4])
    found, _ = written(merge, tmp_path / "s.safetensors")
    assert max(values.max() for values in found.values()) < 1e-28
    assert merge.report.spread < 1e-14
    assert ("the sources differ in" in str(merge.report)) == (len(merge.report.sources) > 1)


def test_shares_by_module_are_those_of_the_module(tmp_path):
    sources = random_adapters(1, (2, 3))
    merge = lm.combine(sources, lm.Sg(), weights=[0.5, 0.5], rules=[lm.Rule("v", weights=(0.5, 0.01))])
    found, _ = written(merge, tmp_path / "s.safetensors")
    assert found["layers.0.v"].max() < 1e-2 < found["layers.0.q"].max()
    assert merge.report.modules[1].spread == pytest.approx(found["layers.0.v"].sum(), rel=1e-5)


def test_a_mean_has_a_spread_too_and_a_sum_has_none(tmp_path):
    sources = random_adapters(1, (2, 3))
    found, _ = written(lm.combine(sources, "average"), tmp_path / "s.safetensors")
    half = (dense(sources[0])["layers.0.q"] - dense(sources[1])["layers.0.q"]) / 2
    np.testing.assert_allclose(found["layers.0.q"], half**2, rtol=1e-6)
    for method, weights in (("linear", [1, 1]), ("average", [2, -1])):
        merge = lm.combine(sources, method, weights=weights)
        with pytest.raises(UsageError, match=r"the weights of layers.0.q are not all 0 or more and of sum 1"):
            merge.save_spread(tmp_path / "t.safetensors")
        assert not (tmp_path / "t.safetensors").exists()
        assert merge.report.spread is None
        assert "spread" not in merge.report.to_dict()


def test_renormalised_sources_have_no_spread(tmp_path):
    merge = lm.combine(SOURCES["one lacks a module"], lm.Sg(), weights=NEAR, renormalise=True)
    assert merge.report.spread is None
    with pytest.raises(UsageError, match="leave renormalise=True away"):
        merge.save_spread(tmp_path / "t.safetensors")


def test_a_spread_replaces_nothing_unasked(tmp_path):
    merge = lm.combine(random_adapters(1, (2, 3)), "average")
    (tmp_path / "s.safetensors").write_text("mine")
    with pytest.raises(OutputError):
        merge.save_spread(tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").read_text() == "mine"
    merge.save_spread(tmp_path / "s.safetensors", overwrite=True)
