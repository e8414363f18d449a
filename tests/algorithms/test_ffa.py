import numpy as np
import pytest

from loramerge import Adapter, LowRank, Target, combine
from loramerge.errors import IncompatibleError
from tests.helpers.adapters import changed, dense, distance, merged, random_adapters, weighted

P = np.array([0.2, 0.3, 0.5])


def sharing(seed, count, rank=3, dtype=np.float64):
    """Adapters of one frozen A."""
    sources = random_adapters(seed, (rank,) * count)
    frozen = {target: sources[0][target].down.astype(dtype) for target in sources[0]}
    return [
        Adapter.of({t.path: LowRank(s[t].up.astype(dtype), frozen[t]) for t in s}, f"client{k}")
        for k, s in enumerate(sources)
    ]


def test_by_hand():
    """A = (1, 2), B = (4, 0)ᵀ and (0, 8)ᵀ with shares ¼ and ¾: B = (1, 6)ᵀ."""
    pair = [
        Adapter.of({"q": LowRank(np.array(b), np.array([[1.0, 2.0]]))}) for b in ([[4.0], [0]], [[0], [8.0]])
    ]
    merge = combine(pair, "ffa", weights=[1, 3], dtype="float64")
    assert merge.adapter[Target("q")].up.tolist() == [[1], [6]]
    assert merge.adapter[Target("q")].down.tolist() == [[1, 2]]
    assert merge.report.energy_lost == pytest.approx(0, abs=1e-15)


def test_it_is_the_mean_of_the_updates_at_the_rank_of_one():
    for seed in range(6):
        sources = sharing(seed, 3)
        merge = combine(sources, "ffa", weights=P, dtype="float64")
        assert distance(dense(merge.adapter), weighted(sources, P)) < 1e-12
        assert merge.adapter.rank == 3


def test_so_are_adapters_that_differ_in_a_small_matrix_only():
    """As LoRA-XS: ΔW_k = B R_k A with B and A frozen, read as (B R_k) A."""
    rng = np.random.default_rng(5)
    b, a = rng.standard_normal((7, 3)), rng.standard_normal((3, 9))
    inner = rng.standard_normal((3, 3, 3))
    sources = [Adapter.of({"q": LowRank(b @ r, a)}) for r in inner]
    assert distance(merged(sources, "ffa", P), {"q": b @ np.tensordot(P, inner, 1) @ a}) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_shared_a_comes_back_bit_for_bit(dtype):
    sources = sharing(3, 3, dtype=dtype)
    merge = combine(sources, "ffa")
    for target in merge.adapter:
        assert merge.adapter[target].down.dtype == dtype
        assert (merge.adapter[target].down == sources[0][target].down).all()


@pytest.mark.parametrize(("off", "refused"), [(1e-7, False), (1e-5, True), (1.0, True)])
def test_a_is_shared_to_a_millionth_of_its_norm(off, refused):
    a, b = sharing(4, 2)
    rng = np.random.default_rng(0)

    def moved(u):
        noise = rng.standard_normal(u.down.shape)
        return LowRank(u.up, u.down + off * noise * np.linalg.norm(u.down) / np.linalg.norm(noise))

    pair = [a, changed(b, moved)]
    if refused:
        with pytest.raises(
            IncompatibleError, match=r"in layers\.0\.q that of client1 differs from that of clie"
        ):
            merged(pair, "ffa")
    else:
        assert distance(merged(pair, "ffa"), weighted(pair, [0.5, 0.5])) < 1e-7


@pytest.mark.parametrize("turn", [[2, 1, 0], [0, 2, 1]], ids=str)
def test_an_a_in_another_order_is_another_a(turn):
    a, b = sharing(4, 2)
    with pytest.raises(IncompatibleError, match="one lora_A in all sources"):
        merged([a, changed(b, lambda u: LowRank(u.up[:, turn], u.down[turn]))], "ffa")


def test_an_untrained_source_may_have_any_a():
    a, b = sharing(4, 2)
    other = changed(random_adapters(9, (3,))[0], lambda u: LowRank(0 * u.up, u.down))
    assert distance(merged([a, other, b], "ffa", P), weighted([a, b], [0.2, 0.5])) < 1e-12


def test_a_module_that_one_source_lacks_is_merged_from_the_others():
    a, b = sharing(4, 2)
    less = Adapter.of({t.path: b[t] for t in list(b)[:1]})
    assert distance(merged([a, less], "ffa"), weighted([a, less], [0.5, 0.5])) < 1e-12
