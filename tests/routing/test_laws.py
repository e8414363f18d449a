"""What holds for every gate of the table."""

from __future__ import annotations

import filecmp
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.routing.gates.gate import DataFree
from tests.helpers.adapters import changed, random_adapters
from tests.routing.samples import NAMES, RANKS, bundle_of, made, random, sample, tokens, told, with_tensors

every_gate = pytest.mark.parametrize("name", NAMES)
FREE = tuple(name for name in NAMES if issubclass(lm.GATES[name], DataFree))
CHOOSING = ("arrow", "spectr", "seqr", "lag", "smile", "rank-self", "rank-absproj")
data_free = pytest.mark.parametrize("name", FREE)
Q = "layers.0.q"
ALL = {  # options under which the gate lets one expert through as it is
    "rank-absproj": {"top_k": 99},
    "rank-sigmoid": {"top_k": 99},
    "static": {"weights": (1.0,)},
    "table": {"rows": {"bob": (1.0,)}},
}


def forward(bundle, x, target=Q, **more):
    return bundle.forward(target, x, **{**told(bundle.gate), **more})


def dense(bundle, x, target=Q):
    return x @ sum(bundle[target].expert(e).dense() for e in range(len(bundle.experts))).T


@every_gate
def test_a_gate_says_what_it_is_in_three_lines_of_formula_its_source_and_where_it_fails(name):
    text = inspect.cleandoc(lm.GATES[name].description())
    formula = [line for line in text.splitlines() if line.startswith("    ")]

    assert 1 <= len(formula) <= 4, formula
    assert all(word in text for word in ("Source:", "Fails:"))
    assert text.index("Source:") < text.index("Fails:")


@pytest.mark.parametrize("name", [n for n in NAMES if lm.GATES[n].by != "output"])
def test_one_expert_alone_is_its_own_update(name):
    bundle = sample(name, (4,), **ALL.get(name, {}))
    if name == "task":
        assert np.allclose(bundle.forward(Q, tokens(), row="source0"), dense(bundle, tokens()), atol=1e-12)
        return
    if name == "rank-self":  # its weights share one among the units, so the update is never there in full
        assert bundle.explain(Q, tokens()).units.sum(axis=1) == pytest.approx(1.0)
        return
    if name == "rank-sigmoid":
        bundle = with_tensors(bundle, made(name, 1, top_k=99), lambda *a: np.zeros(a[2]))
        bundle = replace(bundle, gate=made(name, 1, top_k=bundle.rank))
    assert np.allclose(forward(bundle, tokens()), dense(bundle, tokens()), atol=1e-12)


def test_all_at_one_is_the_merge_that_puts_units_side_by_side():
    adapters = random_adapters(0, RANKS)
    wanted = lm.combine(adapters, "cat", dtype="float64").adapter
    for bundle in (
        lm.route(adapters, "static"),
        lm.route(adapters, "table", rows={"bob": (1, 1, 1)}),
        lm.route(adapters, "rank-absproj", top_k=99),
    ):
        for target in wanted:
            x = tokens(ins=wanted.slots[target].shape[1])
            assert np.allclose(forward(bundle, x, target), x @ wanted[target].dense().T, atol=1e-12)


@pytest.mark.parametrize("ranks", [(4,), RANKS])
@every_gate
def test_a_gate_that_says_its_weights_are_the_same_for_every_token_weighs_so(name, ranks):
    options = {**ALL, "static": {"weights": (0.7,)}}.get(name, {})
    bundle = sample(name, ranks, **options if len(ranks) == 1 else {})
    found = bundle.gate.constant(bundle[Q].layout, bundle[Q].tensors)
    assert len(ranks) > 1 or bundle.gate.by != "expert" or bundle.gate.asks or found is not None
    if found is None:
        return
    units = found[bundle[Q].layout.owner] if bundle.gate.by == "expert" else found
    assert np.allclose(bundle.explain(Q, tokens()).units, units, atol=1e-12)
    assert np.allclose(tokens() @ bundle.flat()[Q].dense().T, forward(bundle, tokens()), atol=1e-12)


@every_gate
def test_the_order_of_adapters_does_not_matter(name):
    order = [2, 0, 1]
    adapters = random_adapters(0, RANKS)
    first, gate = bundle_of(adapters, made(name)), made(name)
    swapped = [adapters[i] for i in order]
    if name in ("table", "static", "task"):
        moved = {
            "table": {"rows": {u: [r[i] for i in order] for u, r in getattr(gate, "rows", {}).items()}},
            "static": {"weights": (1.0, 1.0, 1.0)},
            "task": {"tasks": [f"source{i}" for i in order]},
        }[name]
        gate = lm.GATES[name](**moved).settled(3)
    other = bundle_of(swapped, gate)
    if name not in FREE:
        owner = first[Q].layout.owner
        units = np.concatenate([np.flatnonzero(owner == i) for i in order])

        def tensor(target, key, shape):
            values = random(0, str(target) + key, shape)
            same = shape[0] == first[Q].layout.units, shape[0] == 3
            return values[units] if same[0] else values[order] if same[1] and name == "linear" else values

        other = with_tensors(other, gate, tensor)
    assert np.allclose(forward(first, tokens()), forward(other, tokens()), atol=1e-6)


@every_gate
def test_unequal_ranks_are_a_loop_over_experts_and_units(name):
    bundle = sample(name)
    x, bank = tokens(), bundle[Q]
    found = bundle.explain(Q, x, **told(bundle.gate))
    wanted = np.zeros((len(x), bank.layout.shape[0]))
    for n in range(len(x)):
        for e in range(3):
            for i in range(bank.layout.starts[e], bank.layout.starts[e + 1]):
                wanted[n] += found.units[n, i] * (bank.down[i] @ x[n]) * bank.up[:, i]
    if name == "outchan":
        wanted = wanted * (forward(bundle, x) / np.where(wanted == 0, 1, wanted))[0]
    assert np.allclose(forward(bundle, x), wanted, atol=1e-6)
    assert found.units.shape == (12, 10)
    assert "token 0" in str(found)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "top_k" in lm.GATES[n].names() and lm.GATES[n].by == "expert"]
)
def test_to_choose_all_is_to_choose_none(name):
    more = {"candidates": 3} if name == "lag" else {}
    weights = sample(name, top_k=3, **more).explain(Q, tokens()).weights
    few = sample(name, top_k=1, **more).explain(Q, tokens()).weights
    assert (weights > 0).all()
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert ((few == 1).sum(axis=1) == 1).all()
    assert (few.argmax(axis=1) == weights.argmax(axis=1)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if lm.GATES[n].by == "unit"])
def test_a_budget_of_units_is_kept_exactly(name):
    firing = sample(name, top_k=4).explain(Q, tokens()).firing
    assert (firing.sum(axis=1) == 4).all()


@data_free
def test_the_same_update_in_other_factors_is_routed_the_same(name):
    adapters = random_adapters(0, RANKS)
    rng = np.random.default_rng(1)

    def mixed(update):
        matrix = rng.standard_normal((update.rank, update.rank)) + 3 * np.eye(update.rank)
        return lm.LowRank(update.up @ matrix, np.linalg.solve(matrix, update.down), update.scale)

    first = bundle_of(adapters, made(name))
    second = bundle_of([changed(a, mixed) for a in adapters], made(name))
    assert np.allclose(forward(first, tokens()), forward(second, tokens()), rtol=1e-5, atol=1e-5)


@data_free
def test_zero_units_change_nothing(name):
    adapters = random_adapters(0, RANKS)

    def padded(update):
        up = np.pad(update.up, ((0, 0), (0, 2)))
        return lm.LowRank(up, np.pad(update.down, ((0, 2), (0, 0))), update.scale)

    first = bundle_of(adapters, made(name))
    second = bundle_of([changed(a, padded) for a in adapters], made(name))
    assert np.allclose(forward(first, tokens()), forward(second, tokens()), atol=1e-6)


@pytest.mark.parametrize("name", CHOOSING)
def test_planted_subspaces_are_routed_right_every_time(name):
    """Each expert reads three directions of its own; every token lies in the space of one expert."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    experts = []
    for e in range(4):
        strong = np.diag([3.0, 2.9, 2.8])
        down = strong @ basis[3 * e : 3 * e + 3]
        up = np.linalg.qr(rng.standard_normal((8, 3)))[0]
        experts.append(lm.Adapter.of({"q": lm.LowRank(up, down)}, f"source{e}"))
    bundle = bundle_of(
        experts, made(name, 4, **({"top_k": 1} if lm.GATES[name].by == "expert" else {"top_k": 2}))
    )
    truth = rng.integers(0, 4, 200)
    along = np.ones(3) if name in ("arrow", "lag") else None  # they know one direction of each
    mix = np.stack([along if along is not None else rng.standard_normal(3) for _ in truth])
    x = np.stack([m @ basis[3 * e : 3 * e + 3] for m, e in zip(mix, truth, strict=True)])
    found = bundle.explain("q", x)
    assert [f"source{e}" for e in truth] == found.first


@every_gate
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_saved_and_loaded_is_the_same_to_the_last_bit(name, dtype, tmp_path):
    adapters = random_adapters(0, RANKS)
    lacking = lm.Adapter.of({"layers.0.v": adapters[1]["layers.0.v"]}, "source1")
    bundle = bundle_of([adapters[0], lacking, adapters[2]], made(name), dtype=dtype)
    lm.save_bundle(bundle, tmp_path / "one")
    again = lm.load_bundle(tmp_path / "one")
    lm.save_bundle(again, tmp_path / "two")

    files = sorted(str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 9
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)[0] == files
    assert again.experts == bundle.experts
    assert again.gate == bundle.gate
    for target in bundle:
        x = tokens(ins=bundle.layouts[target].shape[1])
        assert np.array_equal(forward(bundle, x, target), forward(again, x, target))


@every_gate
def test_what_is_flat_does_the_same_for_every_token_and_the_rest_is_refused(name):
    bundle = sample(
        name, **({"top_k": 10} if name == "rank-sigmoid" else {"top_k": 3} if name == "linear" else {})
    )
    if name in ("linear", "rank-sigmoid"):
        with pytest.raises(lm.IncompatibleError, match="route"):
            bundle.flat()
        bundle = with_tensors(bundle, bundle.gate, lambda target, key, shape: np.zeros(shape))
    if name in CHOOSING:
        with pytest.raises(lm.IncompatibleError, match=f"gate {name} of {Q} goes by the input.*route"):
            bundle.flat()
        return
    flat = bundle.flat(**told(bundle.gate))
    for target in flat:
        x = tokens(ins=flat.slots[target].shape[1])
        assert np.allclose(forward(bundle, x, target), x @ flat[target].dense().T, atol=1e-12)
        assert np.abs(flat[target].dense()).max() > 0


@every_gate
def test_a_gate_that_must_be_told_says_so(name):
    bundle = sample(name)
    if not bundle.gate.asks:
        with pytest.raises(lm.UsageError, match="no row"):
            bundle.forward(Q, tokens(), row="nobody")
        return
    with pytest.raises(lm.UsageError, match=r"row=|prompt="):
        bundle.forward(Q, tokens())


def test_files_in_between_are_not_taken_away(tmp_path):
    bundle = sample("static")
    lm.save_bundle(bundle, tmp_path / "b")
    lm.save_bundle(sample("arrow", (1,)), tmp_path / "b", overwrite=True)
    assert sorted(p.name for p in Path(tmp_path / "b").iterdir() if p.is_dir()) == ["task_0"]
    (tmp_path / "b" / "task_0" / "notes.txt").write_text("mine")
    with pytest.raises(lm.OutputError, match=r"task_0/notes\.txt"):
        lm.save_bundle(bundle, tmp_path / "b", overwrite=True)


@pytest.mark.parametrize("name", FREE)
def test_small_adapters_in_half_precision_are_routed_the_same(name, tmp_path):
    """float16 balances small units between their halves: a gate that goes by their length must not see it."""
    small = [
        changed(a, lambda u: lm.LowRank(u.up * 1e-4, u.down, u.scale)) for a in random_adapters(0, RANKS)
    ]
    wanted = forward(bundle_of(small, made(name)), tokens())
    near = 5e-3 * np.abs(wanted).max()
    lm.save_bundle(bundle_of(small, made(name), dtype="F16"), tmp_path / "b")
    assert np.abs(forward(lm.load_bundle(tmp_path / "b"), tokens()) - wanted).max() < near
    under = bundle_of(small, made("static"), dtype="F16").gated(made(name))
    assert np.abs(forward(under, tokens()) - wanted).max() < near


def test_half_precision_is_refused_where_it_is_asked_for_by_name():
    with pytest.raises(lm.UsageError, match="lengths of units"):
        lm.route(random_adapters(0, RANKS), "rank-self", dtype="float16")
