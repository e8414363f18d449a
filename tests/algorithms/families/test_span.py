"""Methods in the span are their formulas on dense matrices, also where sources are nearly alike."""

from dataclasses import replace

import numpy as np
import pytest

from loramerge import Adapter, Core, Ctm, DcMerge, IsoC, IsoCTS, LowRank, Pico, ShrunkTsv, Ties, Tsv, Wudi
from tests.algorithms import spectral
from tests.helpers.adapters import changed, distance, merged, random_adapters, truncated, zero

PLAIN = {  # method -> its loop
    "iso_c": (IsoC(), spectral.iso_c, {}),
    "iso_cts": (IsoCTS(), spectral.iso_cts, {}),
    "iso_cts, half": (IsoCTS(common=0.5), spectral.iso_cts, {"common": 0.5}),
    "iso_cts, no common": (IsoCTS(common=0.0), spectral.iso_cts, {"common": 0.0}),
    "tsv": (Tsv(), spectral.tsv, {}),
    "tsv, two of each": (Tsv(per_source=2), spectral.tsv, {"k": 2}),
    "shrunk_tsv": (ShrunkTsv(), spectral.shrunk_tsv, {}),
    "shrunk_tsv, halfway": (
        ShrunkTsv(shrink=0.5, power=0.5),
        spectral.shrunk_tsv,
        {"shrink": 0.5, "power": 0.5},
    ),
    "dc_merge": (DcMerge(), spectral.dc_merge, {}),
    "dc_merge, dense": (DcMerge(density=0.3), spectral.dc_merge, {"density": 0.3}),
    "pico": (Pico(), spectral.pico, {}),
    "pico, both sides": (Pico(sides="both"), spectral.pico, {"sides": "both"}),
    "wudi, flow": (Wudi(filter="flow"), spectral.wudi, {"filter": "flow"}),
    "wudi, top, from the sum": (
        Wudi(filter="top", start="sum"),
        spectral.wudi,
        {"filter": "top", "start": "sum"},
    ),
    "wudi": (Wudi(), spectral.wudi, {}),
    "wudi, soft": (Wudi(ridge=3.0), spectral.wudi, {"ridge": 3.0}),
    "wudi, hard": (Wudi(ridge=1e-6), spectral.wudi, {"ridge": 1e-6}),
}
every_method = pytest.mark.parametrize(("method", "loop", "options"), PLAIN.values(), ids=PLAIN)

LARGE = {"q": (48, 64), "v": (40, 36)}
first = random_adapters(41, (8, 8, 8), LARGE)
strengths = [random_adapters(49 + t, (5,), LARGE, scale=c)[0] for t, c in enumerate((1e-3, 1.0, 30.0))]
CASES = {
    "equal ranks": (first, [1.0, 1.0, 1.0]),
    "mixed ranks and signs": (random_adapters(42, (8, 3, 5, 12), LARGE, scale=0.3), [0.5, -1.0, 2.0, 1.0]),
    "as many units as columns": (random_adapters(43, (6, 6, 6), {"q": (20, 18)}), [1.0, 0.5, 1.0]),
    "more units than rows": (random_adapters(44, (8, 6, 7), {"q": (16, 40)}), [1.0, -0.5, 1.0]),
    "one source": (random_adapters(45, (7,), LARGE), [1.3]),
    "one silent": ([*first, zero(first[0])], [1.0, 2.0, 1.0, 1.0]),
    "one at weight 0": ([*first, *random_adapters(46, (4,), LARGE)], [1.0, 2.0, 1.0, 0.0]),
    "one module in one source only": (
        [*random_adapters(47, (5, 6), {"q": (30, 20)}), *random_adapters(48, (4,), {"v": (12, 9)})],
        [1.0, -1.0, 2.0],
    ),
    "very different strengths": (strengths, [1.0, 1.0, 1.0]),
}
every_case = pytest.mark.parametrize(("sources", "weights"), CASES.values(), ids=CASES)


@every_method
@every_case
def test_a_span_method_is_its_formula_on_dense_matrices(method, loop, options, sources, weights):
    assert distance(merged(sources, method, weights), loop(sources, weights, **options)) < 1e-9


FLAT = {"iso_c", "iso_cts", "iso_cts, half", "iso_cts, no common"}  # all σ equal: a cut is no SVD's
every_graded = pytest.mark.parametrize(
    ("method", "loop", "options"),
    [PLAIN[name] for name in PLAIN if name not in FLAT],
    ids=[name for name in PLAIN if name not in FLAT],
)


@every_graded
@every_case
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_rank_keeps_the_best_of_it(method, loop, options, sources, weights, rank):
    found = merged(sources, replace(method, rank=rank), weights)
    for path, dense in loop(sources, weights, **options).items():
        wanted = np.linalg.norm(dense - truncated(dense, rank))
        apart = np.linalg.norm(dense - found[path])
        assert apart == pytest.approx(wanted, rel=1e-7, abs=1e-8 * np.linalg.norm(dense))


# --- sources that are nearly alike ------------------------------------------------------------------


def near(offset, tail=1.0, count=3, rank=4, shape=(30, 36)):
    """Adapters that share A but for a random `offset`; the last unit of each is `tail` of the first."""
    rng = np.random.default_rng(51)
    common = np.linalg.qr(rng.standard_normal((shape[1], rank)))[0].T

    def one():
        up = np.linalg.qr(rng.standard_normal((shape[0], rank)))[0] * np.geomspace(1, tail, rank)
        return LowRank(up, common + offset * rng.standard_normal(common.shape))

    return [Adapter.of({"q": one()}) for _ in range(count)]


SHARP = {  # methods that whiten, with noise told from directions far below what is tested
    "iso_c": (IsoC(rank_tol=1e-7), spectral.iso_c, {"tol": 1e-7}),
    "iso_cts": (
        IsoCTS(common=0.5, rank_tol=1e-7),
        spectral.iso_cts,
        {"common": 0.5, "tol": 1e-7, "near": 1e-7},
    ),
    "tsv": (Tsv(rank_tol=1e-7), spectral.tsv, {"tol": 1e-7}),
    "pico": (Pico(rank_tol=1e-7), spectral.pico, {}),
    "wudi": (Wudi(rank_tol=1e-7), spectral.wudi, {}),
}
every_sharp = pytest.mark.parametrize(("method", "loop", "options"), SHARP.values(), ids=SHARP)


@every_sharp
@pytest.mark.parametrize("offset", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_what_is_left_between_adapters_that_nearly_share_a_keeps_its_digits(method, loop, options, offset):
    """Of Grams only 1e-16 / offset² would be left: nothing at 1e-6. The loop works at 1e-16 / offset."""
    sources, weights = near(offset), [1.0, -0.5, 2.0]
    apart = distance(merged(sources, method, weights), loop(sources, weights, **options))
    assert apart < 1e-14 / offset


@every_sharp
@pytest.mark.parametrize("tail", [1e-3, 1e-5, 1e-6])
def test_weak_units_between_the_tolerance_and_the_strongest_keep_their_digits(method, loop, options, tail):
    """σ/σ₁ of a source falls to `tail`; whitened, the weakest unit counts as much as the strongest."""
    sources, weights = near(1.0, tail), [1.0, -0.5, 2.0]
    assert distance(merged(sources, method, weights), loop(sources, weights, **options)) < 1e-13 / tail


@every_sharp
def test_differences_below_the_tolerance_are_as_if_there_were_none(method, loop, options):
    coarse = replace(method, rank_tol=1e-2)
    assert distance(merged(near(1e-4, 0.2), coarse), merged(near(0.0, 0.2), coarse)) < 2e-3


@every_sharp
def test_exact_copies_beside_another_adapter_are_finite_and_the_loops(method, loop, options):
    a, b = random_adapters(52, (4, 4), LARGE)
    sources, weights = [a, a, b], [1.0, 1.0, 0.5]
    assert distance(merged(sources, method, weights), loop(sources, weights, **options)) < 1e-8


# --- what holds for all of them ----------------------------------------------------------------------

ALL = {name: method for name, (method, _, _) in PLAIN.items()} | {
    "core": Core(density=0.4),
    "ctm": Ctm(density=0.4, rank=6),
    "pico, ties": Pico(rule="ties", density=0.4),
}
all_of_them = pytest.mark.parametrize("method", ALL.values(), ids=ALL)


@pytest.mark.parametrize("method", [ALL[name] for name in ALL if name != "wudi, hard"])  # it asks for that
def test_near_copies_come_out_as_copies_do(method):
    """A step of training that bfloat16 hardly sees is no direction."""
    rng = np.random.default_rng(56)
    (whole,) = random_adapters(56, (6,), LARGE)

    def near(matrix):
        return matrix * (1 + 1e-3 * rng.standard_normal(matrix.shape))

    copies = [changed(whole, lambda u: LowRank(near(u.up), near(u.down), u.scale)) for _ in range(5)]
    assert distance(merged(copies, method), merged([whole] * 5, method)) < 2e-2


@all_of_them
def test_turned_sources_give_the_turned_merge(method):
    """Orthogonal maps of inputs and outputs: no method in the span knows of coordinates. Dense rules do."""
    rng, (sources, weights) = np.random.default_rng(53), CASES["mixed ranks and signs"]
    q, p = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in LARGE["q"])
    alone = [Adapter.of({"q": next(u for t, u in s.items() if t.path == "q")}) for s in sources]
    turned = [changed(s, lambda u: LowRank(q @ u.up, u.down @ p, u.scale)) for s in alone]
    plain = merged(alone, method, weights)["q"]
    assert distance(merged(turned, method, weights), {"q": q @ plain @ p}) < 1e-9
    dense = Ties(density=0.4, rank=6)
    away = distance(merged(turned, dense, weights), {"q": q @ merged(alone, dense, weights)["q"] @ p})
    assert away > 0.1


@all_of_them
@every_case
def test_the_merge_is_made_of_what_the_sources_are_made_of(method, sources, weights):
    for path, matrix in merged(sources, method, weights).items():
        updates = [update for update, _ in spectral.parts(sources, weights, path)]
        for side, whole in ((matrix, np.hstack(updates)), (matrix.T, np.vstack(updates).T)):
            u = spectral.svd(whole, spectral.rank_of(whole, 1e-9))[0]
            assert np.linalg.norm(side - u @ (u.T @ side)) < 1e-10 * np.linalg.norm(matrix)


@all_of_them
def test_a_faint_source_beside_a_strong_one_blows_nothing_up(method):
    """σ from 1e-4 to 1e-8 of the other's, as early checkpoints have them."""
    (a, b), weights = (random_adapters(54, (8, 8), LARGE), [1.0, 1.0])
    faint = changed(b, lambda u: LowRank(u.up * np.geomspace(1e-4, 1e-8, u.rank), u.down, u.scale))
    found = merged([a, faint], method, weights)
    alone = merged([a], "linear")
    for path in found:
        assert 0.1 < np.linalg.norm(found[path]) / np.linalg.norm(alone[path]) < 2


COMMON = {
    name: method for name, method in ALL.items() if not isinstance(method, Tsv | ShrunkTsv | DcMerge)
}  # one tolerance for all


@pytest.mark.parametrize("method", COMMON.values(), ids=COMMON)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1e-2]], ids=str)
def test_a_source_below_the_tolerance_brings_no_directions_of_its_own(method, weights):
    """1e-13 of the other: its directions are rounding there, and neither whitened nor evened out."""
    (a, b) = random_adapters(55, (8, 6), LARGE)
    found = merged([a, changed(b, lambda u: u * 1e-13)], method, weights)
    for path, matrix in merged([a], "linear").items():
        u, _, v = spectral.svd(matrix, 8)
        assert np.linalg.norm(found[path] - u @ (u.T @ found[path] @ v) @ v.T) < 1e-4 * np.linalg.norm(
            found[path]
        )
        assert np.linalg.norm(found[path]) < 10 * np.linalg.norm(matrix)
