"""The systems that are routed compositions, one test each, by their acceptance in the mission table."""

from __future__ import annotations

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.adapters import changed, random_adapters
from tests.routing import files
from tests.routing.files import INS, OUTS, PATHS, PROMPT, numbers
from tests.routing.samples import tokens
from tests.routing.test_imports import rel

X = tokens(16, INS)


def loops(loop, path, **more):
    return np.stack([loop(path, x, **more) for x in X])


def test_lora_mixer(tmp_path):
    """Row 2, static part: the gate of the three best is the loop."""
    folder, loop = files.lora_mixer(tmp_path / "file")
    bundle = lm.route([folder])
    assert bundle.gate.top_k == 3
    assert rel(bundle.forward(PATHS[0], X), loops(loop, PATHS[0])) < 1e-6


@pytest.mark.parametrize("heat", [1.0, 20.0])
def test_meteora(heat, tmp_path):
    """Row 3: unequal ranks give the loop's result, and T changes the weights as the formula says."""
    folder, loop = files.meteora(tmp_path / "file", temperature=heat)
    bundle = lm.route([folder])
    weights = bundle.explain(PATHS[0], X).weights
    logits = X @ numbers(20, 3, INS).astype(float).T
    for row, scores in zip(weights, logits, strict=True):
        best = np.argsort(-scores)[:2]
        assert row[best] == pytest.approx(files.softmax(scores[best] / heat), abs=1e-6)
    assert rel(bundle.forward(PATHS[0], X), loops(loop, PATHS[0])) < 1e-6


def test_mora_little_by_little():
    """Row 15: the self gate of canonical units does not see (c a, b / c); the budget is kept exactly."""
    adapters = random_adapters(0, (2, 5, 3), {"q": (OUTS, INS)})
    scaled = [changed(a, lambda u: lm.LowRank(u.up / -3.0, u.down * -3.0, u.scale)) for a in adapters]
    first, second = (lm.route(each, "rank-self", top_k=4) for each in (adapters, scaled))
    assert np.allclose(first.explain("q", X).units, second.explain("q", X).units, atol=1e-9)
    assert (first.explain("q", X).firing.sum(axis=1) == 4).all()
    signed = [lm.route(each, "rank-self", top_k=4, signed=True) for each in (adapters, scaled)]
    one, two = (each.explain("q", X).units for each in signed)
    assert np.abs(one - two).max() > 0.1, "as published it goes by signs and lengths of the stored units"


def test_loramoe(tmp_path):
    """Row 23: a softmax over all experts; keys `lora_A{i}`."""
    folder, loop = files.loramoe(tmp_path / "file")
    bundle = lm.route([folder])
    assert bundle.explain(PATHS[0], X).weights.min() > 0
    assert rel(bundle.forward(PATHS[0], X), loops(loop, PATHS[0])) < 1e-6


def test_dmoerm(tmp_path):
    """Row 24: a .pth read without running it; heads carried bit for bit; the task decides."""
    torch = pytest.importorskip("torch")
    state, tasks = {}, ("roleplay", "chat")
    for n, path in enumerate(("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")):
        whole = f"base_model.base_model.model.{path}"
        state[f"{whole}.base_layer.weight"] = torch.zeros(OUTS, INS)
        for t, task in enumerate(tasks):
            state[f"{whole}.lora_A.{task}.weight"] = torch.from_numpy(numbers(10 * n + t, 3, INS))
            state[f"{whole}.lora_B.{task}.weight"] = torch.from_numpy(numbers(50 + 10 * n + t, OUTS, 3))
    heads = {
        "base_value_head.weight": (1, OUTS),
        "final_value_head1.weight": (OUTS, 2 * OUTS),
        "prelu.weight": (1,),
    }
    state |= {key: torch.from_numpy(numbers(7, *shape)) for key, shape in heads.items()}
    torch.save(state, tmp_path / "phase3.pth")

    with pytest.raises(lm.IncompatibleError, match="pickle"):
        lm.route([tmp_path / "phase3.pth"])
    with pytest.raises(lm.IncompatibleError, match="alpha"):
        lm.route([tmp_path / "phase3.pth"], allow_pickle=True, out=tmp_path / "b")
    bundle = lm.route([tmp_path / "phase3.pth"], allow_pickle=True, alpha=6, out=tmp_path / "b")
    assert bundle.experts == ("chat", "roleplay")
    assert {key: array.shape for key, array in bundle.extras.items()} == heads
    assert all(np.array_equal(array, state[key].numpy()) for key, array in bundle.extras.items())
    wanted = 2.0 * X @ numbers(1, 3, INS).T.astype(float) @ numbers(51, OUTS, 3).T.astype(float)
    assert rel(bundle.forward("layers.0.self_attn.q_proj", X, row="chat"), wanted) < 1e-6
    assert any("of the model itself" in note for note in bundle.notes)


def test_smora(tmp_path):
    """Row 25: g / Σ g · k; a uniform gate is plain LoRA."""
    folder, loop = files.smora(tmp_path / "file")
    bundle = lm.route([folder])
    assert rel(bundle.forward(PATHS[0], X), loops(loop, PATHS[0])) < 1e-6
    even, _ = files.smora(tmp_path / "even", chosen=8, uniform=True)
    a, b = (numbers(seed, *shape).astype(float) for seed, shape in ((0, (8, INS)), (10, (OUTS, 8))))
    plain = 16 / 8 * b @ a
    assert rel(lm.route([even]).flat()[PATHS[0]].dense(), plain) < 1e-6
    assert rel(lm.route([folder], "static").flat()[PATHS[0]].dense(), plain) < 1e-6


def test_flylora(tmp_path):
    """Row 27: of one seed the mean of B is exact; another seed is refused; the bias stays as it was read."""
    one, first = files.flylora(tmp_path / "one", b_seed=50)
    two, second = files.flylora(tmp_path / "two", b_seed=60)
    bundle = lm.route([one, two], out=tmp_path / "bundle")
    wanted = (loops(first, PATHS[0]) + loops(second, PATHS[0])) / 2
    assert rel(bundle.forward(PATHS[0], X), wanted) < 1e-6
    again = bundle.forward(PATHS[0], X)
    assert np.array_equal(again, bundle.forward(PATHS[0], X))
    assert np.array_equal(bundle[PATHS[0]].tensors["bias"], 0.1 * numbers(30, 8))
    other, _ = files.flylora(tmp_path / "other", seed=9)
    with pytest.raises(lm.IncompatibleError, match=r"another frozen A in .*q_proj.*`cat`"):
        lm.route([one, other], out=tmp_path / "no")
    biased, _ = files.flylora(tmp_path / "biased", bias_seed=31)
    with pytest.raises(lm.IncompatibleError, match="other biases"):
        lm.route([one, biased], out=tmp_path / "no")


def test_wavllm(tmp_path):
    """Row 28: factors are transposed, and for one prompt the gate folds into B, exactly."""
    file, loop = files.wavllm(tmp_path / "wav.safetensors")
    bundle = lm.route([file])
    flat = bundle.flat(prompt=PROMPT)
    for target in flat:
        assert rel(X @ flat[target].dense().T, loops(loop, str(target))) < 1e-6
    with pytest.raises(lm.UsageError, match="prompt="):
        bundle.flat()


def test_reclora():
    """Row 30: α of a user from outside, and ΔW = Σ α_k ΔW_k, the weighted concatenation."""
    adapters = random_adapters(0, (2, 5, 3), {"q": (OUTS, INS)})
    alphas = {"ann": (0.7, 0.1, 0.2), "bob": (-1.0, 0.0, 3.0)}
    bundle = lm.route(adapters, "table", rows=alphas)
    for user, row in alphas.items():
        merged = lm.combine(adapters, "cat", weights=row, dtype="float64").adapter["q"].dense()
        assert np.allclose(bundle.forward("q", X, row=user), X @ merged.T, atol=1e-12)
        assert np.allclose(bundle.flat(row=user)["q"].dense(), merged, atol=1e-12)


def test_taskexpert():
    """Row 42: the task's id is looked up, and its expert alone acts."""
    adapters = random_adapters(0, (2, 5, 3), {"q": (OUTS, INS)})
    bundle = lm.route(adapters, "task")
    for name, adapter in zip(bundle.experts, adapters, strict=True):
        assert np.allclose(bundle.forward("q", X, row=name), X @ adapter["q"].dense().T, atol=1e-12)
    with pytest.raises(lm.UsageError, match=r"no row nobody: .* source0, source1, source2"):
        bundle.forward("q", X, row="nobody")


def test_mergevla(tmp_path):
    """Row 21, router: on planted subspaces it picks the right expert every time, and `restore` follows it."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    name = "model.layers.0.self_attn.v_proj"
    experts = [
        lm.Adapter.of({name: lm.LowRank(rng.standard_normal((8, 3)), basis[3 * e : 3 * e + 3])}, f"task{e}")
        for e in range(4)
    ]
    lm.combine(experts, "mergevla", out=tmp_path / "merged")
    router = lm.load_router(tmp_path / "merged")
    truth = rng.integers(0, 4, 100)
    for e in truth:
        x = rng.standard_normal((5, 3)) @ basis[3 * e : 3 * e + 3]
        assert router.choose({name: x}) == f"task{e}"
    assert router.scores({name: x}).sum() == pytest.approx(1.0)
    found = lm.restore(tmp_path / "merged", inputs={name: x}, rank=8).adapter
    wanted = lm.restore(tmp_path / "merged", f"task{e}", rank=8).adapter
    assert lm.diff(found, wanted).largest == 0
    np.savez(tmp_path / "x.npz", **{name: x})
    assert (
        lm.diff(lm.restore(tmp_path / "merged", inputs=tmp_path / "x.npz", rank=8).adapter, wanted).largest
        == 0
    )
    with pytest.raises(lm.UsageError, match=r"one of them"):
        lm.restore(tmp_path / "merged")
    with pytest.raises(lm.SourceError, match=r"loramerge route .*merged -o bundle"):
        lm.load_bundle(tmp_path / "merged")
    lm.route([tmp_path / "merged"], out=tmp_path / "bundle")
    bundle = lm.load_bundle(tmp_path / "bundle")
    assert (type(bundle.gate).__name__, bundle.gate.top_k, bundle.experts) == ("Smile", 1, router.tasks)
    assert np.array_equal(bundle[name].tensors["directions"], router.directions[name].read())
    assert set(bundle.explain(name, x).first) == {f"task{e}"}
    back = lm.restore(tmp_path / "merged", f"task{e}").adapter[name].dense()
    assert np.allclose(bundle.forward(name, x), x @ back.T, atol=1e-5)
    with pytest.raises(lm.UsageError, match=r"looks at the inputs of .*v_proj"):
        router.choose({"q_proj": x})
    assert str(router) == "<Router of 4 tasks (task0, task1, task2, task3) by 1 modules>"
    for odd, words in (
        (x[:, :5], "takes 12 inputs, and x has 5"),
        (np.ones((0, 12)), "hold no token"),
        (np.full((1, 12), np.nan), "finite real numbers"),
        (1.0, "is a single number"),
        ("x", "finite real numbers"),
    ):
        with pytest.raises(lm.UsageError, match=words):
            router.scores({name: odd})
    with pytest.raises(lm.UsageError, match="is no mapping"):
        router.choose(x)
