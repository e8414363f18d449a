"""What weights mean: copies, multiples, zero and below."""

import numpy as np
import pytest

from loramerge import LowRank
from tests.helpers.adapters import changed, distance, merged, zero
from tests.laws.rows import (
    LOOSE,
    MERGES,
    claim,
    each,
    every_method,
    every_pair,
    merges_for,
    plain,
    taken,
    with_room,
)


def copies(method, merges, weight_of_each):
    """How far copies of one adapter, so weighted, are from one at a weight of 1.7 and of -0.8."""
    count = method.traits.most or 3
    turned, signed = -0.8, method.traits.negative and method.traits.given == "weight"
    for sources, _ in merges:
        for weight in (1.7, turned if signed else 0.8):
            one = plain(sources[:1], method, [weight])
            yield distance(merged(sources[:1] * count, method, [weight_of_each(weight, count)] * count), one)


@every_method
def test_copies_that_share_a_weight_equal_one_that_has_it(method, chosen):
    if method.traits.weights == "consensus":  # a mean of copies is the adapter at any weights
        return
    declared = method.traits.weights == "additive"
    claim(declared, copies(method, merges_for(method, declared, chosen), lambda w, n: w / n))


@every_method
def test_copies_at_the_same_weight_equal_one(method, chosen):
    declared = method.traits.weights == "consensus"
    claim(declared, copies(method, merges_for(method, declared, chosen), lambda w, _: w))


@every_method
def test_copies_beside_other_adapters_add_up_in_the_linear_family(method):
    if method.traits.family == "linear":
        (a, b, c), _ = MERGES["three of different rank"]
        method = with_room(method, 4) if not method.traits.exact else method
        apart = distance(merged([a, b, a, c], method, [1, 2, 2, 1]), merged([a, b, c], method, [3, 2, 1]))
        claim(True, [apart])


@every_method
def test_all_sources_times_a_number_give_the_merge_times_it(method, chosen):
    declared = method.traits.homogeneous

    def apart(sources, weights, c):
        larger = merged(each(sources, lambda u: u * c), method, weights)
        return distance(
            {path: matrix / c for path, matrix in larger.items()}, plain(sources, method, weights)
        )

    merges = merges_for(method, declared, chosen)
    claim(declared, (apart(s, w, c) for s, w in merges for c in (30.0, 0.01)))


@every_method
def test_all_weights_times_a_number_do_what_the_method_declares(method, chosen):
    def apart(sources, weights, c, times):
        more = merged(sources, method, [c * weight for weight in weights])
        return distance({path: x / times for path, x in more.items()}, plain(sources, method, weights))

    for common, times in (("times", lambda c: c), ("same", lambda c: 1.0)):
        declared = method.traits.common == common
        merges = merges_for(method, declared, chosen)
        claim(declared, (apart(s, w, c, times(c)) for s, w in merges for c in (30.0, 0.01)))


@every_pair
@pytest.mark.parametrize(("weight", "length"), [(0.0, 1.0), (1.0, 1.0), (1.0, 1e8)])
def test_an_untrained_adapter_adds_nothing(method, sources, weights, weight, length):
    """Its lora_B is zero, whatever its lora_A. In a mean it still counts, unless its weight is zero."""
    sources, weights = taken(method, sources, weights)
    untrained = changed(zero(sources[0]), lambda u: LowRank(u.up, u.down * length, u.scale))
    sources, weights = (list(all_)[: (method.traits.most or 0) - 1 or None] for all_ in (sources, weights))
    more = merged([*sources, untrained], method, [*weights, weight])
    before = plain(sources, method, weights)
    something = any(matrix.any() for matrix in before.values())  # nothing cannot be diluted
    shares, alone = (method.weights(np.array(each)) for each in ([*weights, weight], weights))
    shifted = method.traits.given == "similarity" and np.abs(shares[:-1] - alone).max() > LOOSE
    claim(not (shifted or (method.traits.shares and weight != 0 and something)), [distance(more, before)])


@every_pair
def test_an_adapter_of_weight_zero_adds_nothing(method, sources, weights):
    sources, weights = taken(method, sources, weights)
    strong = changed(sources[0], lambda u: u * 1e8)
    more = merged([*sources, strong], method, [*weights, 0.0])
    claim(True, [distance(more, plain(sources, method, weights))])


@every_method
def test_a_negative_number_is_as_good_as_zero_only_if_numbers_are_similarities(method, chosen):
    if not method.traits.negative:
        return  # refused, as another law says
    count = method.traits.most

    def apart(sources, weights):
        none, negative = ([*weights[:-1], last] for last in (0.0, -0.7))
        return distance(merged(sources, method, negative), plain(sources, method, none))

    declared = method.traits.given == "similarity"
    merges = chosen(MERGES.values()) if declared else MERGES.values()
    claim(declared, (apart(sources[:count], [1.0] * len(sources[:count])) for sources, _ in merges))
