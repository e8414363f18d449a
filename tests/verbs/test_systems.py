"""What is done with the adapters of published systems, one test each; the numbers are rows of their table."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError
from tests.helpers.files import Cli, folder
from tests.helpers.models import save_model
from tests.helpers.systems import n, pickled, same


def test_row_34_the_mean_of_lora_xs_is_the_mean_of_its_cores(tmp_path):
    rng = np.random.default_rng(4)
    a, b, cores = n(rng, 3, 8), n(rng, 6, 3), [n(rng, 3, 3) for _ in range(3)]
    stem = "base_model.model.layers.0.q_proj"
    for i, (core, end) in enumerate(zip(cores, ("_", ".default_", "_"), strict=True)):
        values = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        folder(
            tmp_path / f"c{i}", {**values, f"{stem}{end}lora_latent_mapping.weight": core}, r=3, lora_alpha=6
        )
    merge = lm.combine([tmp_path / f"c{i}" for i in range(3)], "linear", weights=[1 / 3] * 3)
    mean = 2 * b.astype("f8") @ np.mean([c.astype("f8") for c in cores], axis=0) @ a
    same(merge.adapter, {"layers.0.q_proj": mean})
    same(lm.combine([tmp_path / f"c{i}" for i in range(3)], "svd", rank=3, weights=[1 / 3] * 3).adapter,
        {"layers.0.q_proj": mean})  # fmt: skip


def test_row_40_randlora_is_truncated_with_the_lost_energy_in_the_report(tmp_path):
    rng = np.random.default_rng(7)
    stem, r, outs, ins = "base_model.model.layers.0.q_proj", 4, 16, 12
    values = {f"{stem}.randlora_lambda": n(rng, r, 3), f"{stem}.randlora_gamma": n(rng, 3, ins)}
    values |= {"base_model.randlora_A": n(rng, r, 1, ins), "base_model.randlora_B": n(rng, outs, 3, r)}
    folder(tmp_path / "a", values, peft_type="RANDLORA", r=r, randlora_alpha=8, lora_alpha=None)
    save_model(tmp_path / "base", {"layers.0.q_proj.weight": n(rng, outs, ins)})
    whole = next(iter(lm.load(tmp_path / "a", base=tmp_path / "base").values())).dense()
    merge = lm.combine([tmp_path / "a"], "svd", rank=3, base=tmp_path / "base")
    sigma = np.linalg.svd(whole, compute_uv=False)
    lost = (sigma[3:] ** 2).sum() / (sigma**2).sum()
    np.testing.assert_allclose(merge.report.energy_lost, lost, rtol=1e-6)


def loram(rng, tmp_path):
    """An adapter of a pruned model: 2 of 4 heads of keys are left, of 8 of queries 4; 5 of 9 of the MLP."""
    sizes = {"q_proj": (16, 6), "k_proj": (8, 6), "v_proj": (8, 6), "o_proj": (6, 16)}
    mlp = {"gate_proj": (9, 6), "up_proj": (9, 6), "down_proj": (6, 9)}
    paths = {f"model.layers.0.self_attn.{name}": size for name, size in sizes.items()}
    paths |= {f"model.layers.0.mlp.{name}": size for name, size in mlp.items()}
    save_model(tmp_path / "base", {f"{path}.weight": n(rng, *size) for path, size in paths.items()})
    keys_gone, mlp_gone = np.array([2, 3, 6, 7]), np.array([0, 4, 5, 8])
    (tmp_path / "pruned").mkdir()
    pickled(tmp_path / "pruned" / "model.layers.0.self_attn.k_proj.pt", {"pruned_idx": keys_gone})
    pickled(tmp_path / "pruned" / "model.layers.0.mlp.gate_proj.pt", {"pruned_idx": mlp_gone})
    queries_gone = [
        q for head in (1, 3) for q in range(4 * head, 4 * head + 4)
    ]  # two query heads of size 2 each
    gone = {"q_proj": queries_gone, "o_proj": queries_gone, "k_proj": keys_gone, "v_proj": keys_gone}
    values, wanted = {}, {}
    for path, (outs, ins) in paths.items():
        name = path.rpartition(".")[2]
        lost = list(gone.get(name, mlp_gone))
        kept = [i for i in range(ins if name in ("o_proj", "down_proj") else outs) if i not in lost]
        a, b = n(rng, 2, ins), n(rng, outs, 2)
        if name in ("o_proj", "down_proj"):
            a[:, lost] = 0
            small = np.ascontiguousarray(a[:, kept]), b
        else:
            b[lost] = 0
            small = a, b[kept]
        values |= {f"base_model.model.{path}.lora_{s}.weight": v for s, v in zip("AB", small, strict=True)}
        wanted[path] = 2 * b @ a
    folder(tmp_path / "small", values, r=2, lora_alpha=4)
    return wanted


def test_row_36_loram_is_scattered_back_to_its_full_size(tmp_path):
    wanted = loram(np.random.default_rng(12), tmp_path)
    here = {"pruned": tmp_path / "pruned", "base": tmp_path / "base", "allow_pickle": True}
    done = lm.convert(tmp_path / "small", tmp_path / "whole", **here)  # in the format that it has
    same(done.adapter, wanted)
    with pytest.raises(lm.UsageError, match=r"pruned.* needs the sizes of the whole model"):
        lm.convert(tmp_path / "small", tmp_path / "x", "peft", pruned=tmp_path / "pruned")
    (tmp_path / "pruned" / "model.layers.0.mlp.gate_proj.pt").unlink()
    with pytest.raises(SourceError, match=r"model\.layers\.0\.mlp\.gate_proj\.pt is missing"):
        lm.convert(tmp_path / "small", tmp_path / "x", "peft", **here)


def gs(rng, tmp_path):
    values, norms = {}, {}
    for layer, strength in ((0, 1.0), (1, 0.01), (2, 0.0)):
        squares = 0.0
        for name in ("up", "down"):
            stem = f"base_model.model.layers.{layer}.mlp.{name}"
            a, b = strength * n(rng, 2, 6), strength * n(rng, 5, 2)
            values |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            squares += float((a.astype("f8") ** 2).sum() + (b.astype("f8") ** 2).sum())
        norms[f"layers.{layer}"] = np.sqrt(squares)
    return folder(tmp_path / "gs", values, r=2, lora_alpha=4), norms


def test_row_20_gs_lora_shows_the_norms_of_its_blocks_and_drops_the_weak_ones(tmp_path, capsys):

    path, norms = gs(np.random.default_rng(13), tmp_path)
    assert lm.inspect(path).groups == pytest.approx(norms)
    run = Cli(capsys)
    assert run("inspect", path, "--groups", "--json").json()["adapters"][0]["groups"] == pytest.approx(norms)
    assert "layers.1" in run("inspect", path, "--groups").out
    for least, left in ((0, 2), (0.5, 1)):
        merge = lm.combine([path], drop_below=least)
        assert {str(target).split(".")[1] for target in merge.adapter} == {str(i) for i in range(left)}
        for target, update in merge.adapter.items():
            np.testing.assert_allclose(update.dense(), lm.load(path)[target].dense(), rtol=1e-5, atol=1e-6)
    with pytest.raises(lm.UsageError, match="leaves no block of"):
        lm.combine([path], drop_below=1e9)


def test_what_was_left_out_of_a_source_is_no_sign_of_another_model(tmp_path):
    """Both list the same modules; without its last layer one looks like the adapter of a shallower model."""
    rng, paths = np.random.default_rng(20), []
    for name, last in (("a", 1.0), ("b", 1e-6)):
        keys = {
            f"base_model.model.layers.{i}.q.lora_{side}.weight": n(rng, *shape) * (last if i == 2 else 1.0)
            for i in range(3)
            for side, shape in (("A", (2, 8)), ("B", (6, 2)))
        }
        paths.append(folder(tmp_path / name, keys, r=2, lora_alpha=2, target_modules=["q"]))
    assert len(lm.combine(paths, drop_below=1e-3).adapter) == 3
    assert len(lm.combine(paths, blocks={"b": "layers 0-1"}).adapter) == 3


def test_alignguard_takes_the_span_of_a_safety_adapter_out_of_every_source(tmp_path):
    rng, sources = np.random.default_rng(14), []
    for name in ("a", "b", "safety"):
        values = {}
        for module in ("q", "v"):
            stem = f"base_model.model.layers.0.{module}"
            values |= {f"{stem}.lora_A.weight": n(rng, 2, 6), f"{stem}.lora_B.weight": n(rng, 5, 2)}
        sources.append(folder(tmp_path / name, values, r=2, lora_alpha=4))
    *pair, safety = sources
    plain = lm.combine(pair, "linear").adapter
    merge = lm.combine(pair, "linear", project_out=safety, dtype="float64", out=tmp_path / "m")
    level = lm.combine(pair, project_out=safety, dtype="float64").adapter
    for target, update in lm.load(tmp_path / "m").items():
        basis = np.linalg.qr(lm.load(safety)[target].dense() @ rng.standard_normal((6, 2)))[0]
        dense = plain[target].dense()
        np.testing.assert_allclose(update.dense(), dense - basis @ basis.T @ dense, atol=1e-5)
        for made in (update, level[target]):
            assert np.linalg.norm(basis.T @ made.dense()) ** 2 <= 1e-12 * np.linalg.norm(made.dense()) ** 2
    assert any("projected out of" in note for note in merge.report.notes)
    assert lm.combine(pair, project_out=safety).adapter.dtype == "F32", "no wider than the sources"
    again = lm.replay(tmp_path / "m", project_out=safety)
    assert lm.diff(merge.adapter, again.adapter).error == 0


def test_row_9_alignguards_overlaps_are_columns_of_diff(tmp_path, capsys):

    rng = np.random.default_rng(15)
    stem, paths = "base_model.model.layers.0.q", []
    for i in range(2):
        values = {f"{stem}.lora_A.weight": n(rng, 2, 6), f"{stem}.lora_B.weight": n(rng, 5, 2)}
        paths.append(folder(tmp_path / f"{i}", values, r=2, lora_alpha=4))
    a, b = (next(iter(lm.load(path).values())).dense() for path in paths)
    (module,) = lm.diff(*paths, overlap=True).modules
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose([module.geodesic, module.overlap], [cosine**2, np.abs(a * b).sum()], rtol=1e-9)
    assert lm.diff(paths[0], paths[0], overlap=True).modules[0].geodesic == pytest.approx(1)
    apart = [lm.Adapter.of({"q": lm.LowRank(np.eye(2)[:, [i]], np.eye(2)[[i]])}) for i in range(2)]
    (none,) = lm.diff(*apart, overlap=True).modules
    assert (none.geodesic, none.overlap) == (0, 0)
    shown = Cli(capsys)("diff", *paths, "--overlap").out
    assert "C_geo" in shown
    assert "C_RM" in shown


def test_row_30_reclora_is_a_weighted_concatenation(tmp_path):
    rng, paths, wanted = np.random.default_rng(16), [], 0
    alphas = [0.2, 0.5, 0.3]
    for i, alpha in enumerate(alphas):
        a, b = n(rng, 2, 6), n(rng, 5, 2)
        stem = "base_model.model.layers.0.q"
        values = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        paths.append(folder(tmp_path / f"{i}", values, r=2, lora_alpha=2))
        wanted = wanted + alpha * b.astype("f8") @ a
    merge = lm.combine(paths, "cat", weights=alphas)
    same(merge.adapter, {"layers.0.q": wanted})
    assert merge.adapter.rank == 6


def xs(path, rng, shared, core, **config):
    a, b = shared
    stem = "base_model.model.layers.0.q_proj"
    values = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    return folder(path, {**values, f"{stem}_lora_latent_mapping.weight": core}, r=3, lora_alpha=6, **config)


def test_one_frozen_frame_is_merged_in_its_coefficients_and_kept(tmp_path, capsys):

    rng = np.random.default_rng(20)
    shared, cores = (n(rng, 3, 8), n(rng, 6, 3)), [n(rng, 3, 3) for _ in range(2)]
    paths = [xs(tmp_path / f"x{i}", rng, shared, core) for i, core in enumerate(cores)]
    merge = lm.combine(paths, weights=[0.25, 0.75], keep_form=True, out=tmp_path / "m")
    saved = load_file(tmp_path / "m" / "adapter_model.safetensors")
    (core,) = [value for key, value in saved.items() if "latent" in key]
    np.testing.assert_allclose(core, 0.25 * cores[0] + 0.75 * cores[1], rtol=1e-6)
    assert len(saved) == 3
    assert merge.adapter.rank == 3
    assert lm.diff(merge.adapter, lm.combine(paths, weights=[0.25, 0.75]).adapter).error < 1e-6
    again = lm.replay(tmp_path / "m", tmp_path / "again", folders=[tmp_path])
    copied = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.adapter.rank == 3
    assert all(np.array_equal(copied[key], saved[key]) for key in saved)
    other = xs(tmp_path / "other", rng, (n(rng, 3, 8), shared[1]), cores[1])
    with pytest.raises(IncompatibleError, match=r"cannot be merged in their own form: .*down, latent"):
        lm.combine([paths[0], other], keep_form=True, out=tmp_path / "m2")
    scaled = xs(tmp_path / "scaled", rng, shared, cores[1], use_rslora=True)
    with pytest.raises(IncompatibleError, match="set use_rslora differently"):
        lm.combine([paths[0], scaled], keep_form=True, out=tmp_path / "m2")
    with pytest.raises(lm.UsageError, match="methods linear and average"):
        lm.combine(paths, "ties", keep_form=True, out=tmp_path / "m2")
    with pytest.raises(lm.UsageError, match="writes a PEFT folder"):
        lm.combine(paths, keep_form=True)
    with pytest.raises(lm.UsageError, match=r"dtype=? is not for keep_form"):
        lm.combine(paths, keep_form=True, dtype="float16", out=tmp_path / "m2")
    assert not (tmp_path / "m2").exists()

    run = Cli(capsys)("combine", *paths, "--weights", "0.25,0.75", "--keep-form", "-o", tmp_path / "cli")
    assert run.code == 0, run.err
    again = load_file(tmp_path / "cli" / "adapter_model.safetensors")
    assert all(np.array_equal(again[key], saved[key]) for key in saved)


def fly(path, rng, frame, **config):
    stem = "base_model.model.layers.0.q_proj"
    values = {f"{stem}.lora_A.weight": frame, f"{stem}.lora_B.weight": n(rng, 6, 3)}
    values[f"{stem}.lora_topk_bias"] = n(rng, 3)
    said = {"top_k": 2, "bias_u": 1e-3, "init_lora_weights": "sparse", **config}
    return folder(path, values, r=3, lora_alpha=6, **said), values


def test_flylora_is_averaged_by_default_and_its_recipe_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli, rng = Cli(capsys), np.random.default_rng(28)
    frame = n(rng, 3, 8)
    for name in "ab":
        fly(tmp_path / name, rng, frame)
    for weights in ([], ["--weights", "0.25,0.75"]):
        assert cli("combine", "a", "b", *weights, "--print-recipe").code == 0
        (tmp_path / "r.yaml").write_text(cli.out)
        assert "\nmethod: average\n" in cli.out
        assert cli("combine", "a", "b", *weights, "-o", "m", "--overwrite").code == 0, cli.err
        assert cli("combine", "--recipe", "r.yaml", "-o", "again", "--overwrite").code == 0, cli.err
        read = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("m", "again")]
        assert read[0] == read[1]


def test_row_27_flylora_of_one_seed_is_averaged_and_stays_flylora(tmp_path, capsys):
    rng = np.random.default_rng(27)
    frame = n(rng, 3, 8)
    (a, of_a), (b, of_b) = (fly(tmp_path / name, rng, frame) for name in "ab")
    merge = lm.combine([a, b], "average", keep_form=True, out=tmp_path / "m")
    saved = load_file(tmp_path / "m" / "adapter_model.safetensors")
    assert saved.keys() == of_a.keys()
    for key, value in saved.items():  # the authors' merge: the mean of every tensor
        np.testing.assert_allclose(value, (of_a[key].astype("f8") + of_b[key]) / 2, rtol=1e-6)
    assert (merge.out / "loramerge.json").exists()
    for refused in (lambda: lm.load(tmp_path / "m"), lambda: lm.combine([a, b], "average")):
        with pytest.raises(IncompatibleError, match=r"FlyLoRA.*loramerge route"):
            refused()
    lm.replay(tmp_path / "m", tmp_path / "again", folders=[tmp_path])
    copied = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(np.array_equal(copied[key], saved[key]) for key in saved)
    other, _ = fly(tmp_path / "other", rng, n(rng, 3, 8))
    with pytest.raises(IncompatibleError, match=r"FlyLoRA of different seeds: lora_A .*loramerge route"):
        lm.combine([a, other], "average", keep_form=True, out=tmp_path / "m2")
    with pytest.raises(IncompatibleError, match="take the method average, or weights that add up to 1"):
        lm.combine([a, b], "linear", keep_form=True, out=tmp_path / "m2")
    with pytest.raises(lm.UsageError, match="for the methods linear and average"):
        lm.combine([a, b], "ties", keep_form=True, out=tmp_path / "m2")
    run = Cli(capsys)("combine", a, b, "--method", "average", "--keep-form", "-o", tmp_path / "cli")
    assert run.code == 0, run.err
    again = load_file(tmp_path / "cli" / "adapter_model.safetensors")
    assert all(np.array_equal(again[key], saved[key]) for key in saved)


def test_vera_keeps_its_form_where_one_of_its_scalings_differs(tmp_path):
    rng = np.random.default_rng(21)
    stem, frame = (
        "base_model.model.layers.0.q_proj",
        {"base_model.vera_A": n(rng, 2, 8), "base_model.vera_B": n(rng, 6, 2)},
    )
    save_model(tmp_path / "base", {"layers.0.q_proj.weight": n(rng, 6, 8)})
    under, paths = n(rng, 2), []
    for i in range(2):
        values = {**frame, f"{stem}.vera_lambda_b": n(rng, 6), f"{stem}.vera_lambda_d": under}
        paths.append(folder(tmp_path / f"v{i}", values, peft_type="VERA", r=2, lora_alpha=None))
    merge = lm.combine(paths, "average", base=tmp_path / "base", keep_form=True, out=tmp_path / "m")
    assert lm.load(tmp_path / "m", base=tmp_path / "base").config["peft_type"] == "VERA"
    wanted = lm.combine(paths, "average", base=tmp_path / "base").adapter
    assert lm.diff(merge.adapter, wanted).error < 1e-6
    values[f"{stem}.vera_lambda_d"] = n(rng, 2)
    other = folder(tmp_path / "w", values, peft_type="VERA", r=2, lora_alpha=None)
    with pytest.raises(IncompatibleError, match=r"not linear in vera_lambda_b, vera_lambda_d"):
        lm.combine([paths[0], other], base=tmp_path / "base", keep_form=True, out=tmp_path / "m2")
