"""MergeVLA: masks over a merge, as a plain loop over all entries makes them."""

import numpy as np
import pytest

from loramerge import Adapter, Emr, Linear, LowRank, MergeVla, Rule, Target, Ties, Tsv, Wudi, combine
from loramerge.algorithms.entries.masks import blocks, masked, wanted_by
from loramerge.errors import SourceError, UsageError
from tests.helpers.adapters import dense, distance, merged, random_adapters, weighted, zero

SOURCES = random_adapters(11, (3, 2, 4))
WEIGHTS = [1.0, -0.5, 0.7]
RULES = {
    "linear": Linear(),
    "ties": Ties(density=1, divisor="none"),
    "emr": Emr(),
    "tsv": Tsv(),
    "wudi": Wudi(),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def two(a, b):
    return [Adapter.of({"q": LowRank(np.array(m, float), np.eye(2))}, n) for m, n in ((a, "a"), (b, "b"))]


def unpacked(merge, task, path):
    """The mask of a task as booleans."""
    target = Target(path)
    columns = merge.adapter.slots[target].shape[1]
    return np.unpackbits(merge.masks[task][target], axis=1, count=columns).astype(bool)


def test_by_hand():
    """τ = [[6 2] [5 -4]] for a = [[4 1] [0 2]], b = [[2 1] [5 -6]], and λ = 1:

    |a| > |b| only in 4 > 2;   |b| > |a| in 5 > 0 and 6 > 2;   1 against 1 is in neither.
    """
    merge = combine(two([[4, 1], [0, 2]], [[2, 1], [5, -6]]), MergeVla(mask_lambda=1))
    assert unpacked(merge, "a", "q").tolist() == [[True, False], [False, False]]
    assert unpacked(merge, "b", "q").tolist() == [[False, False], [True, True]]
    facts = merge.report.modules[0].facts
    assert facts["selfish"] == 0.75
    assert facts["catastrophic"] == 0.25
    assert facts["consensus"] == 0.0
    # b comes back as [[0 0] [5 -4]], off by [[2 1] [0 2]]: 9 of 66; a as [[6 0] [0 0]], 9 of 21
    assert facts["restore error"] == pytest.approx(9 / 21)


def test_consensus_keeps_what_enough_tasks_want():
    """λ = 0.4: both keep 4|2, 1|1; a's 0 and b's 5 are b's; 2 against -6: 2 > 2.4 is false, 6 > 0.8 true."""
    pair = two([[4, 1], [0, 2]], [[2, 1], [5, -6]])
    kept = combine(pair, MergeVla(mask_lambda=0.4, consensus=2), dtype="float64").adapter[Target("q")].dense()
    np.testing.assert_allclose(kept, [[6, 2], [0, 0]], atol=1e-12)
    one = combine(pair, MergeVla(mask_lambda=0.4, consensus=1), dtype="float64").adapter[Target("q")].dense()
    np.testing.assert_allclose(one, [[6, 2], [5, -4]], atol=1e-12)


def test_consensus_takes_entries_out_of_masks_and_facts_too():
    merge = combine(SOURCES, MergeVla(consensus=2, rank=9), weights=WEIGHTS, dtype="float64", threads=1)
    for module in merge.report.modules:
        assert module.facts["selfish"] == 0.0
        assert module.facts["consensus"] + module.facts["catastrophic"] == pytest.approx(1.0)
    for path in dense(merge.adapter):
        count = sum(unpacked(merge, source.name, path).astype(int) for source in SOURCES)
        assert 1 not in count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"consensus": 4}, "consensus=4 is more than the 3 sources"),
        ({"consensus": 2, "energy": 0.9}, "give a rank, no other size"),
        ({"consensus": 2, "total_rank": 9}, "give a rank, no other size"),
    ],
)
def test_what_consensus_cannot_be_is_a_sentence(options, words):
    with pytest.raises(UsageError, match=words):
        combine(SOURCES, "mergevla", **options)


@every_rule
@pytest.mark.parametrize("strictness", [0.0, 0.3, 0.6, 1.5])
@pytest.mark.parametrize("weights", [[1, 1, 1], WEIGHTS], ids=str)
def test_masks_are_those_of_a_plain_loop(rule, strictness, weights):
    """Bit for bit, but where |τ_t| is within rounding of λ|τ - τ_t|."""
    merge = combine(
        SOURCES, MergeVla(rule=rule, mask_lambda=strictness), weights=weights, dtype="float64", threads=1
    )
    for path, tau in dense(merge.adapter).items():
        for source, weight in zip(SOURCES, weights, strict=True):
            own, mask = weight * dense(source)[path], unpacked(merge, source.name, path)
            for i, j in np.ndindex(tau.shape):
                margin = abs(own[i, j]) - strictness * abs(tau[i, j] - own[i, j])
                assert mask[i, j] == (margin > 0) or abs(margin) < 1e-12 * abs(tau).max()


@every_rule
def test_shares_add_up_to_one(rule):
    for module in combine(SOURCES, MergeVla(rule=rule), weights=WEIGHTS).report.modules:
        facts = module.facts
        assert facts["selfish"] + facts["consensus"] + facts["catastrophic"] == pytest.approx(1.0)


def test_shares_are_those_that_are_expected_of_noise():
    """Four iid sources at λ = 0.6: selfish about 0.34, consensus 0.63, catastrophic 0.03."""
    rng = np.random.default_rng(0)
    each = [LowRank(rng.standard_normal((60, 80)), np.eye(80)) for _ in range(4)]
    sources = [Adapter.of({"q": update}, f"s{i}") for i, update in enumerate(each)]
    facts = combine(sources, MergeVla()).report.modules[0].facts
    assert facts["selfish"] == pytest.approx(0.34, abs=0.03)
    assert facts["consensus"] == pytest.approx(0.63, abs=0.03)
    assert facts["catastrophic"] == pytest.approx(0.03, abs=0.02)


@every_rule
def test_the_merge_is_that_of_its_rule(rule):
    plain = merged(SOURCES, RULES[rule], WEIGHTS)
    assert distance(merged(SOURCES, MergeVla(rule=rule), WEIGHTS), plain) < 1e-9


def test_with_a_rank_the_masks_are_for_what_is_left():
    merge = combine(SOURCES, MergeVla(rank=2, mask_lambda=0.6), dtype="float64", threads=1)
    for path, tau in dense(merge.adapter).items():
        assert np.linalg.matrix_rank(tau) == 2
        own, mask = dense(SOURCES[0])[path], unpacked(merge, "source0", path)
        assert (mask == (abs(own) > 0.6 * abs(tau - own))).all()
    assert merge.report.cut > 0.01


def test_one_task_wants_all_that_is_not_zero():
    (alone,) = two([[4, 0], [0, 2]], [[0, 0], [0, 0]])[:1]
    merge = combine([alone], MergeVla())
    assert unpacked(merge, "a", "q").tolist() == [[True, False], [False, True]]
    assert merge.report.modules[0].facts["restore error"] == 0.0


def test_a_source_without_weight_or_training_has_no_mask():
    merge = combine([*SOURCES, zero(SOURCES[0])], MergeVla(), weights=[1, 0, 1, 1])
    assert set(merge.masks) == {"source0#1", "source2"}


def test_rules_may_take_a_task_out_of_some_modules():
    merge = combine(SOURCES, MergeVla(), rules=[Rule("q$", weights=(1.0, 0.0, 1.0))])
    assert {target.path for target in merge.masks["source1"]} == {"layers.0.v"}
    assert {target.path for target in merge.masks["source0"]} == {"layers.0.q", "layers.0.v"}


def test_a_scale_would_leave_the_masks_behind():
    with pytest.raises(UsageError, match=r"scale=0\.5 would give a merge by mergevla another strength"):
        combine(SOURCES, MergeVla(), scale=0.5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 9), (2, 17)])
def test_masks_are_packed_row_by_row(shape):
    rng = np.random.default_rng(1)
    pair = rng.standard_normal((shape[0], 2)), rng.standard_normal((2, shape[1]))
    mask = rng.random(shape) < 0.5
    packed = np.packbits(mask, axis=1)
    np.testing.assert_array_equal(masked(pair, packed), np.where(mask, pair[0] @ pair[1], 0.0))
    assert (wanted_by(packed[None], 1, shape[1]) == mask).all()


def test_blocks_cover_every_row_once():
    for rows, columns in ((1, 1), (7, 1 << 20), (5000, 1000), (3, 1 << 22)):
        seen = np.concatenate([np.arange(rows)[part] for part in blocks(rows, columns)])
        assert (seen == np.arange(rows)).all()


def test_the_sum_is_the_merge_of_linear():
    assert distance(merged(SOURCES, "mergevla", WEIGHTS), weighted(SOURCES, WEIGHTS)) < 1e-12


def test_the_former_name_of_rule_is_understood(tmp_path):
    wanted = combine(SOURCES, "mergevla", rule="ties", rank=3)
    assert MergeVla(base="ties") == MergeVla(rule="ties")
    merge = combine(SOURCES, "mergevla", base="ties", rank=3, out=tmp_path / "m")
    assert merge.method == wanted.method
    with pytest.raises(UsageError, match="base is the former name of rule"):
        MergeVla(base="ties", rule="emr")


def test_a_base_model_is_no_former_rule(tmp_path):
    """`base` names the base model of forms that need it, whatever the method."""
    with pytest.raises(SourceError, match="nowhere"):
        combine(SOURCES, "mergevla", base=tmp_path / "nowhere")
