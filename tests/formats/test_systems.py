"""What published systems hand over, one test each: their forward pass on random tensors is the oracle.

The numbers are the rows of the table of systems that these tests are the acceptance of. What is done with
them is in tests/verbs/test_systems.py.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError
from tests.helpers.files import folder
from tests.helpers.models import save_model
from tests.helpers.systems import n, pickled, same


def test_row_39_sora_leaves_out_the_units_whose_gate_is_closed(tmp_path):
    rng = np.random.default_rng(0)
    a, b, gate = n(rng, 4, 6), n(rng, 5, 4), np.array([[0.5, 0, -2, 0]], "f4")
    keys = {"layer.0.query.lora.lora_A": a, "layer.0.query.lora.lora_B": b, "layer.0.query.lora.gate": gate}
    save_file(keys, tmp_path / "sora.safetensors")
    adapter = lm.load(tmp_path / "sora.safetensors", alpha=8)
    x = n(rng, 6).astype("f8")
    forward = ((x @ a.T.astype("f8")) * gate[0]) @ b.T.astype("f8") * 8 / 4
    (update,) = adapter.values()
    np.testing.assert_allclose(update.dense() @ x, forward, rtol=1e-6)
    assert adapter.rank == 2
    assert any("2 units" in oddity for oddity in adapter.oddities)
    del keys["layer.0.query.lora.lora_B"]
    save_file(keys, tmp_path / "cut.safetensors")
    with pytest.raises(SourceError, match=r"up factor of layer\.0\.query in .* is missing"):
        lm.load(tmp_path / "cut.safetensors", alpha=8)


def wavllm(rng, **more):
    layers = {f"layers.{i}.attention.w{x}": (n(rng, 6, 2), n(rng, 2, 8)) for i in (0, 1) for x in "qv"}
    keys = {f"{path}_lora_{side}": pair[i] for path, pair in layers.items() for i, side in enumerate("AB")}
    return layers, {"model": {**keys, **more}}


def test_row_28_wavllm_is_transposed_and_folds_the_gate_of_a_fixed_prompt(tmp_path):
    rng = np.random.default_rng(1)
    layers, state = wavllm(rng)
    path = pickled(tmp_path / "w.pt", state)
    same(lm.load(path, alpha=32, allow_pickle=True), {k: 16 * (a @ b).T for k, (a, b) in layers.items()})

    layers, state = wavllm(rng, **{"layers.0.attention.scale_fc_1.weight": n(rng, 3, 3)})
    path = pickled(tmp_path / "second.pt", state)
    with pytest.raises(IncompatibleError, match=r"no one update: give the gate of a fixed prompt by"):
        lm.load(path, alpha=32, allow_pickle=True)
    gates = {name: n(rng, 8) for name in layers}
    np.savez(tmp_path / "gates.npz", **gates)
    save_file({"g": gates["layers.0.attention.wq"]}, tmp_path / "one.safetensors")
    found = lm.load(path, alpha=32, allow_pickle=True, prompt_gate=tmp_path / "gates.npz")
    same(found, {k: 16 * gates[k][:, None] * (a @ b).T for k, (a, b) in layers.items()})
    one = gates["layers.0.attention.wq"]
    found = lm.load(path, alpha=32, allow_pickle=True, prompt_gate=tmp_path / "one.safetensors")
    same(found, {k: 16 * one[:, None] * (a @ b).T for k, (a, b) in layers.items()})


def test_row_16_omni_avsr_has_a_rank_of_its_divisor_and_adds_what_tasks_share(tmp_path):
    rng, hidden, divisor = np.random.default_rng(2), 64, 8
    rank, keys, wanted = round(hidden / divisor), {}, {}
    for which, outs in (("Q", hidden), ("V", hidden // 4)):
        stem = "model.layers.0.self_attn.lora_{}_" + which
        pairs = {task: (n(rng, outs, rank), n(rng, rank, hidden)) for task in ("audio", "video", "_shared")}
        for task, (up, down) in pairs.items():
            end = "_shared.weight" if task == "_shared" else f".{task}.weight"
            keys |= {stem.format("up") + end: up, stem.format("down") + end: down}
        for task in ("audio", "video"):
            both = sum(up.astype("f8") @ down for up, down in (pairs[task], pairs["_shared"]))
            wanted[task, f"model.layers.0.self_attn.{which.lower()}_proj"] = 4 / divisor * both
    path = pickled(tmp_path / "omni.ckpt", {"state_dict": keys, "epoch": 3})
    for task in ("audio", "video"):
        found = lm.load(f"{path}#{task}", alpha=4, allow_pickle=True)
        same(found, {name: value for (one, name), value in wanted.items() if one == task})
        assert found.rank == 2 * rank
    with pytest.raises(IncompatibleError, match=r"adapter for each of audio, video: name one, .*#audio"):
        lm.load(path, alpha=4, allow_pickle=True)
    with pytest.raises(SourceError, match="no adapter text; it has audio, video"):
        lm.load(f"{path}#text", alpha=4, allow_pickle=True)


def test_clip_lora_says_its_scale_and_which_layers_are_whose(tmp_path):
    rng = np.random.default_rng(3)
    pairs = {i: (n(rng, 4, 2), n(rng, 2, 6)) for i in range(5)}
    weights = {f"layer_{i}": {"q_proj": {"w_lora_A": a, "w_lora_B": b}} for i, (b, a) in pairs.items()}
    metadata = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q"], "position": "top3"}
    weights = {name: weights[name] for name in list(weights)} | {"layer_5": weights["layer_0"]}
    path = pickled(tmp_path / "clip.pt", {"weights": weights, "metadata": metadata})
    places = [f"transformer.resblocks.{i}" for i in (9, 10, 11)]
    places += [f"visual.transformer.resblocks.{i}" for i in (9, 10, 11)]
    wanted = {
        f"{place}.attn.q_proj": 0.5 * pairs[i % 5][0] @ pairs[i % 5][1] for i, place in enumerate(places)
    }
    same(lm.load(path, allow_pickle=True), wanted)


def test_row_38_lofit_needs_its_projection_and_moves_its_bias(tmp_path):
    rng = np.random.default_rng(5)
    weight, stem = n(rng, 8, 12), "model.layers.0.self_attn"
    keys = {f"{stem}.attn_A.1": n(rng, 4), f"{stem}.attn_v.1": n(rng, 4), f"{stem}.attn_v.2": n(rng, 4)}
    save_file(keys, tmp_path / "lofit.safetensors")
    save_model(tmp_path / "base", {f"{stem}.o_proj.weight": weight})
    with pytest.raises(IncompatibleError, match="LoFiT, which needs the weights of the base model"):
        lm.load(tmp_path / "lofit.safetensors")
    adapter = lm.load(tmp_path / "lofit.safetensors", base=tmp_path / "base")
    z = rng.standard_normal(12)
    changed = z.copy()
    changed[4:8] = (1 + keys[f"{stem}.attn_A.1"]) * z[4:8] + keys[f"{stem}.attn_v.1"]
    changed[8:12] += keys[f"{stem}.attn_v.2"]
    (update,), (bias,) = adapter.values(), adapter.biases.values()
    moved = update.dense() @ z + bias.scale * bias.tensor.read()
    np.testing.assert_allclose(moved, weight.astype("f8") @ (changed - z), rtol=1e-5)
    assert adapter.rank == 8


def test_row_31_kasa_without_its_base_says_so_and_with_it_has_rank_2r(tmp_path):
    rng = np.random.default_rng(6)
    weight, stem = n(rng, 10, 12), "base_model.model.layers.0.q_proj"
    a, b, d = n(rng, 2, 12), n(rng, 10, 2), n(rng, 2)
    values = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.lora_diag": d}
    folder(tmp_path / "a", values, r=2, lora_alpha=4, kasa_config={"beta": 1e-4})
    with pytest.raises(IncompatibleError, match="KaSA, which needs the weights of the base model"):
        lm.load(tmp_path / "a")
    save_model(tmp_path / "base", {"layers.0.q_proj.weight": weight})
    adapter = lm.load(tmp_path / "a", base=tmp_path / "base")
    left, sigma, right = np.linalg.svd(weight.astype("f8"), full_matrices=False)
    truncated = left[:, :8] * sigma[:8] @ right[:8]
    same(adapter, {"layers.0.q_proj": truncated + 2 * b.astype("f8") * d @ a - weight})
    assert adapter.rank == 4


def test_row_24_one_of_several_adapters_in_a_file_is_named_and_its_head_is_an_extra(tmp_path):
    rng = np.random.default_rng(8)
    stem, keys, pairs = "base_model.model.layers.0.q_proj", {}, {}
    for name in ("help", "safe"):
        a, b = pairs[name] = n(rng, 2, 6), n(rng, 5, 2)
        keys |= {f"{stem}.lora_A.{name}.weight": a, f"{stem}.lora_B.{name}.weight": b}
    keys["v_head.summary.weight"] = n(rng, 1, 5)
    path = pickled(tmp_path / "reward.pth", keys)
    with pytest.raises(IncompatibleError, match=r"several adapters .*help, safe.*#help"):
        lm.load(path, alpha=2, allow_pickle=True)
    for name, (a, b) in pairs.items():
        found = lm.load(f"{path}#{name}", alpha=2, allow_pickle=True)
        same(found, {"layers.0.q_proj": b @ a})
        assert any("v_head" in key for key in found.extras)


def test_row_20_gs_lora_is_read_as_loralib_and_not_as_diffusers(tmp_path):
    rng = np.random.default_rng(9)
    stem = "transformer.layers.{}.1.fn.fn.net.{}.lora_{}"
    keys = {stem.format(i, j, "A"): n(rng, 2, 6) for i in (0, 1) for j in (0, 3)}
    keys |= {stem.format(i, j, "B"): n(rng, 5, 2) for i in (0, 1) for j in (0, 3)}
    save_file(keys, tmp_path / "gs.safetensors")
    found = lm.load(tmp_path / "gs.safetensors", alpha=4)
    assert found.dialect == "loralib"
    wanted = {}
    for i, j in ((i, j) for i in (0, 1) for j in (0, 3)):
        b, a = (keys[stem.format(i, j, side)] for side in "BA")
        wanted[f"transformer.layers.{i}.1.fn.fn.net.{j}"] = 2 * b @ a
    same(found, wanted)


@pytest.mark.parametrize(("kind", "words"), [("LILY", "route"), ("XLORA", "route"), ("POLY", "route"),
    ("SRMOLE", "route"), ("METEORA", "route")])  # fmt: skip
def test_what_is_routed_is_named_and_refused(kind, words, tmp_path):
    folder(tmp_path / "a", {"base_model.model.q.lora_A.weight": np.ones((1, 2), "f4")}, peft_type=kind)
    with pytest.raises(IncompatibleError, match=words) as refused:
        lm.load(tmp_path / "a")
    assert "LOHA" not in str(refused.value), "no list of types comes before the reason"


def test_row_17_nola_of_language_models_is_refused_since_nothing_checks_what_its_machine_drew(tmp_path):
    keys = {
        f"h.0.attn.lora_{side}.{part}": np.ones(3, "f4") for side in "AB" for part in ("coefficients", "seed")
    }
    keys |= {f"h.0.attn.lora_{side}.weight": np.ones((2, 3), "f4") for side in "AB"}
    save_file(keys, tmp_path / "nola.safetensors")
    with pytest.raises(IncompatibleError, match=r"NOLA .*cannot be drawn again"):
        lm.load(tmp_path / "nola.safetensors", alpha=1)


def nola(torch, outs, ins, rank, alpha, beta):
    """NOLA's layer as its authors build it: both draws at once, then the mixtures; and what is kept of it."""
    torch.manual_seed(0)
    a, b = torch.zeros(len(alpha), ins, rank), torch.zeros(len(beta), rank, outs)
    for bases in (a, b):
        torch.nn.init.kaiming_uniform_(bases, a=5**0.5)
    down = np.einsum("b,bdr->dr", alpha.astype("f8"), a.numpy())
    up = np.einsum("b,bdr->dr", beta.astype("f8"), b.numpy())
    return (down @ up).T / rank, a[0, :10, 0].numpy().copy()


def test_row_17_nola_is_drawn_again_where_what_it_keeps_proves_the_draw(tmp_path):
    torch, rng = pytest.importorskip("torch"), np.random.default_rng(17)
    sizes = {"blocks.0.mlp.fc1": (20, 12), "blocks.0.mlp.fc2": (12, 20)}
    keys, wanted = {"fc_12in_3out": n(rng, 3, 12)}, {}
    for path, (outs, ins) in sizes.items():
        alpha, beta, which = n(rng, 7), n(rng, 5), path.rpartition(".")[2]
        wanted[path], kept = nola(torch, outs, ins, 3, alpha, beta)
        keys |= {f"{which}_alpha_000": alpha, f"{which}_beta_000": beta}
        keys |= {"fc1_A_000": kept} if which == "fc1" else {}
    save_file(keys, tmp_path / "nola.safetensors")
    save_model(tmp_path / "base", {f"{path}.weight": n(rng, *size) for path, size in sizes.items()})
    adapter = lm.load(tmp_path / "nola.safetensors", base=tmp_path / "base")
    same(adapter, wanted)
    assert (adapter.rank, list(adapter.extras)) == (3, ["fc_12in_3out"])
    with pytest.raises(IncompatibleError, match=r"NOLA, which needs the layer sizes .*base="):
        lm.load(tmp_path / "nola.safetensors")
    for key, words in (("fc1_A_000", "fc1_A"), ("fc2_beta_000", "The beta of .*fc2")):
        cut = {other: value for other, value in keys.items() if other != key}
        save_file(cut, tmp_path / "cut.safetensors")
        with pytest.raises(SourceError, match=f"{words}.* is missing"):
            lm.load(tmp_path / "cut.safetensors", base=tmp_path / "base")
    keys["fc1_A_000"] = keys["fc1_A_000"] + np.float32(1e-5)  # as another generator, or another seed, has it
    save_file(keys, tmp_path / "other.safetensors")
    with pytest.raises(IncompatibleError, match="cannot be drawn again"):
        lm.load(tmp_path / "other.safetensors", base=tmp_path / "base")


def test_row_19_triadapt_splits_its_core_in_rows_and_columns_and_divides_by_its_last_rank(tmp_path):
    rng, stem = np.random.default_rng(19), "base_model.model.h.0.q"
    a, b = [n(rng, 1, 6), n(rng, 1, 6)], [n(rng, 5, 1), n(rng, 5, 1)]
    rows, columns = [n(rng, 1, 1), n(rng, 1, 2)], [n(rng, 1, 1), n(rng, 2, 1)]
    lists = {"lora_A": a, "lora_B": b, "lora_C_row": rows, "lora_C_col": columns}
    keys = {f"{stem}.{name}.{i}": tensor for name, two in lists.items() for i, tensor in enumerate(two)}
    folder(tmp_path / "tri", keys, peft_type="TRIADAPTLORA", lora_alpha=4, init_rank=1)
    lower = np.array([[rows[0][0, 0], 0], rows[1][0]])
    upper = np.array([[columns[0][0, 0], columns[1][0, 0]], [0, columns[1][1, 0]]])
    wanted = 4 / (2 + 1e-5) * np.hstack(b) @ (lower + upper) @ np.vstack(a)
    adapter = lm.load(tmp_path / "tri")
    same(adapter, {"h.0.q": wanted})
    assert adapter.rank == 2
    cut = {key: tensor for key, tensor in keys.items() if not key.endswith("lora_C_row.0")}
    folder(tmp_path / "cut", cut, peft_type="TRIADAPTLORA", lora_alpha=4, init_rank=1)
    with pytest.raises(SourceError, match=r"lora_C_row\.0 of h\.0\.q in .* is missing"):
        lm.load(tmp_path / "cut")
    save_file(keys, tmp_path / "tri.safetensors")
    with pytest.raises(
        IncompatibleError, match=r"only an adapter_config\.json of type TRIADAPTLORA explains"
    ):
        lm.load(tmp_path / "tri.safetensors", alpha=1)


def test_plain_settings_beside_a_state_dict_are_kept(tmp_path):
    path = pickled(
        tmp_path / "a.pt", {"weights": {"q.lora_A.weight": np.ones((1, 2), "f4")}, "metadata": {"r": 1}}
    )
    from loramerge.formats.files.pickles import open_pickle

    file = open_pickle(path, "a")
    assert list(file.tensors) == ["q.lora_A.weight"]
    assert json.loads(file.metadata["metadata"]) == {"r": 1}


def test_row_14_abmll_is_read_by_the_names_that_its_user_gives(tmp_path):
    rng = np.random.default_rng(10)
    a, b = n(rng, 2, 6), n(rng, 5, 2)
    keys = {"q.mu_down.weight": a, "q.mu_up.weight": b, "q.sigma_down.weight": n(rng, 2, 6)}
    save_file({**keys, "q.sigma_up.weight": n(rng, 5, 2)}, tmp_path / "abmll.safetensors")
    with pytest.raises(lm.LoramergeError):
        lm.load(tmp_path / "abmll.safetensors", alpha=4)
    names = {"down": "mu_down.weight", "up": "mu_up.weight"}
    found = lm.load(tmp_path / "abmll.safetensors", alpha=4, names=names)
    same(found, {"q": 2 * b @ a})
    assert any("2 tensors with other names" in oddity for oddity in found.oddities)
    with pytest.raises(SourceError, match=r"No key of .* ends in nothing"):
        lm.load(tmp_path / "abmll.safetensors", alpha=4, names={**names, "up": "nothing"})


def test_row_4_anyrefill_is_read_without_the_model_in_front_of_its_names(tmp_path):
    rng = np.random.default_rng(11)
    ours = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    a, b = n(rng, 2, 320), n(rng, 320, 2)
    keys = {"lora_down.weight": a, "lora_up.weight": b}
    save_file({f"model.diffusion_model.{ours}.{k}": v for k, v in keys.items()}, tmp_path / "a.safetensors")
    found = lm.load(
        tmp_path / "a.safetensors",
        alpha="rank",
    )
    (update,) = found.values()
    np.testing.assert_allclose(update.dense(), b @ a, rtol=1e-4, atol=1e-5)
    assert [str(target) for target in found] == [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    ]


@pytest.mark.parametrize(("keys", "config", "word"), [
    (["lora_topk_bias"], {"top_k": 1, "bias_u": 1e-3, "init_lora_weights": "sparse"}, "FlyLoRA"),
    (["lora_topk_bias"], {}, "FlyLoRA"),
    (["lora_A0.weight", "lora_B0.weight", "lora_route.weight"], {"lora_nums": 2}, "LoRAMoE"),
    (["lora_route.weight"], {}, "LoRAMoE"),
    (["lora_router.weight", "lora_biases"], {}, "SMoRA"),
])  # fmt: skip
def test_what_chooses_units_by_the_input_is_named_and_sent_to_route(keys, config, word, tmp_path):
    stem = "base_model.model.layers.0.q"
    values = {f"{stem}.lora_A.weight": np.ones((2, 3), "f4"), f"{stem}.lora_B.weight": np.ones((3, 2), "f4")}
    folder(tmp_path / "a", values | {f"{stem}.{key}": np.ones((2, 3), "f4") for key in keys}, **config)
    with pytest.raises(IncompatibleError, match=f"{word}.*loramerge route"):
        lm.load(tmp_path / "a")
