"""One adapter comes back as itself, and without a rank the sum."""

import numpy as np

from tests.helpers.adapters import dense, distance, merged, weighted
from tests.laws.rows import claim, doubled, each, every_method, merges_for, with_room


@every_method
def test_one_adapter_comes_back_as_itself(method, chosen):
    """Also if it holds a unit twice, but for methods bound to the raw factors, which take the two for one."""
    declared = method.traits.identity
    alone = [sources[0] for sources, _ in merges_for(method, declared, chosen)]
    if method.traits.gauge == "invariant":
        alone += each(alone, doubled)
    claim(declared, (distance(merged([a], with_room(method, a.rank), [1.0]), dense(a)) for a in alone))


@every_method
def test_without_a_rank_the_merge_is_the_sum_if_the_method_says_so(method, chosen):
    free, declared = with_room(method, None), method.traits.exact
    merges = merges_for(method, declared, chosen)
    claim(declared, (distance(merged(s, free, w), weighted(s, free.weights(np.array(w)))) for s, w in merges))
