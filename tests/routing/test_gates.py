"""Each gate by an example that was computed by hand, and prototypes against a dense SVD."""

from __future__ import annotations

import numpy as np
import pytest

import loramerge as lm
from loramerge.routing.bundle import moved
from loramerge.routing.gates.gate import Gate
from tests.helpers.adapters import random_adapters
from tests.routing.samples import RANKS, bundle_of, made, sample, tokens, with_tensors


def two(first=(1.0, 2.0), second=(3.0, 0.5)):
    """Two experts of rank 1: `a` reads the first input, `b` the second; (length of up, of down)."""
    eye = np.eye(2)
    return [
        lm.Adapter.of({"q": lm.LowRank(eye[:, :1] * first[0], eye[:1] * first[1])}, "a"),
        lm.Adapter.of({"q": lm.LowRank(eye[:, 1:] * second[0], eye[1:] * second[1])}, "b"),
    ]


X = np.array([[3.0, -4.0]])
SOFT = {  # gate -> the scores of a and b for the token (3, -4), by hand: ‖ΔW_a‖ = 2, ‖ΔW_b‖ = 1.5
    "arrow": (3.0, 4.0),  # |v x|, v = (1, 0) and (0, 1)
    "spectr": (6.0, 6.0),  # 2·3 and 1.5·4
    "seqr": ((36 - 4) / (np.sqrt(2) * 4), (36 - 2.25) / (np.sqrt(2) * 2.25)),
    "smile": (3.0, 4.0),  # all of the space of each
}


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("heat", [1.0, 7.0])
def test_scores_and_their_softmax(name, heat):
    gate = made(name, 2, top_k=2, temperature=heat)
    scores = np.array(SOFT[name]) / heat
    wanted = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert bundle_of(two(), gate).explain("q", X).weights[0] == pytest.approx(wanted)


def test_lag_decides_by_norm_among_those_that_arrow_lets_through():
    experts = two((10.0, 1.0), (1.0, 1.0))  # a is far stronger, b is met better
    assert bundle_of(experts, made("lag", 2, candidates=2, top_k=1)).explain("q", X).first == ["a"]
    assert bundle_of(experts, made("lag", 2, candidates=1, top_k=1)).explain("q", X).first == ["b"]


def test_rank_self_shares_one_among_the_best_units():
    seen = bundle_of(two(), made("rank-self", 2, top_k=2)).explain("q", X)
    scores = np.array([3.0, 4.0]) / 5.0
    assert seen.units[0] == pytest.approx(np.exp(scores) / np.exp(scores).sum())
    weak = bundle_of(two(), made("rank-self", 2, top_k=2, threshold=0.7)).explain("q", X)
    assert weak.firing[0].tolist() == [0, 1]
    signed = bundle_of(two(), made("rank-self", 2, top_k=1, signed=True)).explain("q", X)
    assert signed.firing[0].tolist() == [1, 0], "as published, -4 is less than 3"


def test_rank_absproj_lets_whole_units_through():
    seen = bundle_of(two(), made("rank-absproj", 2, top_k=1)).explain("q", X)
    assert seen.units[0].tolist() == [0.0, 1.0]
    assert bundle_of(two(), made("rank-absproj", 2, top_k=1, signed=True)).explain("q", X).first == ["a"]


def test_rank_sigmoid_by_hand():
    gate = made("rank-sigmoid", 1, top_k=1)
    values = {"weight": np.array([[1.0, 0.0], [0.0, 0.0]]), "bias": np.array([0.0, 0.6])}
    one = [lm.Adapter.of({"q": lm.LowRank(np.eye(2), np.eye(2))}, "one")]
    bundle = with_tensors(bundle_of(one, made("static", 1)), gate, lambda target, name, shape: values[name])
    assert bundle.explain("q", np.array([[0.0, 1.0]])).units[0].tolist() == [0.0, 1.0]  # .5 against .5 + .6
    assert bundle.explain("q", np.array([[9.0, 1.0]])).units[0].tolist() == [0.0, 1.0]  # .9999 against 1.1
    both = with_tensors(bundle, made("rank-sigmoid", 1, top_k=2), lambda target, name, shape: values[name])
    weights = both.explain("q", np.array([[0.0, 1.0]])).units[0]
    assert weights == pytest.approx(2 * np.array([0.5, 1.1]) / 1.6)


def test_prototypes_are_the_top_singular_vectors_of_dw():
    adapters = random_adapters(3, RANKS)
    for target, bank in lm.route(adapters, "arrow", dtype="float64").items():
        for e, adapter in enumerate(adapters):
            _, _, vt = np.linalg.svd(adapter[target].dense())
            assert abs(bank.tensors["prototypes"][e] @ vt[0]) == pytest.approx(1, abs=1e-6)


def test_flat_spectra_are_where_power_iteration_is_off_and_ours_is_not():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((20, 4)))[0] for _ in range(2))
    flat = lm.LowRank(u * [1.0, 0.99, 0.98, 0.97], v.T)
    exact = lm.route([lm.Adapter.of({"q": flat})], "arrow")["q"].tensors["prototypes"][0]
    x = rng.standard_normal(20)
    for _ in range(15):
        x = flat.dense().T @ (flat.dense() @ x)
        x /= np.linalg.norm(x)
    assert abs(exact @ v[:, 0]) > 1 - 1e-6
    assert abs(x @ v[:, 0]) < 0.999


class Blocks(Gate):
    """A gate of units whose weights are those of their expert."""

    by = "unit"

    def scores(self, seen):
        return self.weigh(seen)

    def weigh(self, seen):
        return made("linear", 3, top_k=2, temperature=15.0).weigh(seen)[:, seen.owner]


def test_a_gate_of_units_that_is_constant_in_each_expert_is_a_gate_of_experts():
    bundle = sample("linear", top_k=2, temperature=15.0)
    seen, bank = bundle._seen(bundle.called("layers.0.q"), tokens(), None, None)
    wanted = bundle.forward("layers.0.q", tokens())
    assert np.abs(moved(Blocks(), seen, bank.up.T) - wanted).max() < 1e-14
    weights = made("linear", 3, top_k=2, temperature=15.0).weigh(seen)
    loop = [
        sum(w[e] * bank.expert(e).dense() @ x for e in range(3))
        for w, x in zip(weights, tokens(), strict=True)
    ]
    assert np.abs(np.array(loop) - wanted).max() < 1e-13
