"""Tables of adapters and merges, against numbers computed by hand."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.merge import columns
from loramerge.sources.modules import modules


def single(row, *columns):
    """An adapter whose updates have one row each: {module: entries}."""
    return lm.Adapter.of(
        {name: lm.LowRank(np.ones((1, 1)), np.array([values], float)) for name, values in row.items()},
        *columns,
    )


SOURCES = [
    single({"layers.0.q": [1, 0], "layers.1.q": [1, 1]}, "a"),
    single({"layers.0.q": [3, 4], "layers.1.q": [1, -1]}, "b"),
    single({"layers.0.q": [0, -2]}, "c"),
]


@pytest.fixture(scope="module")
def report():
    return lm.combine(SOURCES, "linear", dtype="float64").report


def test_the_worst_pair_is_that_with_the_largest_cosine_of_either_sign(report):
    """In layer 0 the cosines are 0.6 (1 and 2), 0 (1 and 3) and -0.8 (2 and 3)."""
    first, second = columns.layers(report).records()
    assert (first["module"], first["layer"], first["kind"], first["pair"]) == (
        "layers.0.q",
        0,
        "q",
        "2 and 3",
    )
    assert first["cosine"] == pytest.approx(-0.8)
    assert (second["layer"], second["pair"]) == (1, "1 and 2"), "the third has no such module"
    assert second["cosine"] == pytest.approx(0)


def test_overlaps_are_over_all_modules(report):
    """⟨a, b⟩ = 3 + 0, ‖a‖² = 1 + 2, ‖b‖² = 25 + 2."""
    rows = columns.overlaps(report).records()
    assert [row["source"] for row in rows] == ["1 a", "2 b", "3 c"]
    assert rows[0]["2"] == pytest.approx(3 / np.sqrt(3 * 27))


def test_spectra_and_depths_have_a_row_for_each_module():
    measured = {name: modules(each) for name, each in zip("ab", SOURCES, strict=False)}
    rows = columns.spectra(measured).records()
    assert [(row["source"], row["module"]) for row in rows] == [
        (name, f"layers.{i}.q") for name in "ab" for i in (0, 1)
    ]
    assert [row["σ"] for row in rows] == [[pytest.approx(value)] for value in (1, np.sqrt(2), 5, np.sqrt(2))]
    assert [row["effective rank"] for row in columns.depths(measured).records()] == [pytest.approx(1)] * 4


@pytest.mark.parametrize(
    ("names", "layers", "kinds"),
    [
        (["model.layers.7.mlp.experts.3.up_proj"], [7], ["mlp.experts.3.up_proj"]),
        (["transformer_blocks.1.attn.to_out.0", "single_transformer_blocks.0.attn.to_q"],
         [0, 1], ["attn.to_out.0", "attn.to_q"]),
        (["down_blocks.0.attentions.1.to_q", "mid_block.attentions.0.to_q", "up_blocks.3.attentions.0.to_q"],
         [0, 1, 2], ["to_q"] * 3),
        (["decoder.block.0.layer.1.wi", "encoder.block.11.layer.1.wi"], [1, 0], ["wi"] * 2),
        (["lm_head", "model.layers.2.q"], [None, 2], ["lm_head", "q"]),
    ],
)  # fmt: skip
def test_a_module_has_a_layer_and_a_kind(names, layers, kinds):
    found = columns.places(names)
    assert [found[name] for name in names] == list(zip(layers, kinds, strict=True))


def test_a_merge_of_more_sources_than_are_compared_has_no_pairs(monkeypatch):
    from loramerge.merge import measure, report

    monkeypatch.setattr(measure, "PAIRS", 2)
    monkeypatch.setattr(report, "PAIRS", 2)
    made = lm.combine(SOURCES, "linear")
    assert columns.overlaps(made.report).rows == []
    assert columns.layers(made.report).rows == []
    with pytest.raises(lm.UsageError, match="are not compared"):
        made.plot.overlaps()
