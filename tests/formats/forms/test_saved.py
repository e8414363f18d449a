"""Adapters as PEFT itself saved them, with the base that it had, against what its own merge made of them.

They are committed; `python -m tests.formats.forms.make` makes them.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError
from tests.formats.forms.make import HERE, LAYERS, TYPES, folder_of
from tests.helpers.files import Cli
from tests.helpers.models import save_model

ALONE = {  # need no base
    "VBLORA", "VBLORA, best", "TINYLORA", "UNILORA", "C3A", "DELORA", "GRALORA", "LOHA", "LOKR",
}  # fmt: skip


@pytest.fixture
def saved():
    """(folder of the adapter, folder of the base, ΔW of every module by PEFT's merge) of a type."""

    def committed(name):
        if name == "PSOFT":
            pytest.importorskip("torch")
        folder = HERE / "saved" / folder_of(name)
        wanted = load_file(folder / "wanted.safetensors")
        return folder, HERE / "base", {path: delta.astype("f8") for path, delta in wanted.items()}

    return committed


@pytest.mark.parametrize("name", TYPES)
def test_what_peft_saves_is_what_it_merges(saved, name):
    folder, base, wanted = saved(name)
    adapter = lm.load(folder, base=None if name in ALONE else base)
    assert {target.path for target in adapter} == set(wanted)
    for target, update in adapter.items():
        theirs = wanted[target.path]
        within = 1e-5 if name == "PSOFT" else 2e-6  # a float32 SVD is another one on another processor
        atol = within * max(1, np.abs(theirs).max())
        np.testing.assert_allclose(update.dense(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", sorted(TYPES.keys() - ALONE))
def test_without_its_base_the_refusal_says_what_is_needed(saved, name):
    folder, _, _ = saved(name)
    with pytest.raises(IncompatibleError, match=r"needs the (layer sizes|weights) of the base model.*base="):
        lm.load(folder)


@pytest.mark.parametrize("name", TYPES)
def test_a_file_with_one_tensor_removed_is_refused_by_its_name(saved, name, tmp_path):
    folder, base, _ = saved(name)
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in tensors:
        left = {other: value for other, value in tensors.items() if other != key}
        save_file(left, tmp_path / "adapter_model.safetensors")
        stem = key.removesuffix(".weight").split(".")
        last = next(part for part in reversed(stem) if not part.isdigit())
        if "randlora_A" in key or "randlora_B" in key:  # each module has a copy of its own
            continue
        try:
            found = lm.load(tmp_path, base=base)
        except (SourceError, IncompatibleError) as error:
            assert last in str(error) or "tensor" in str(error), (key, error)  # noqa: PT017
        else:  # all of a module is gone
            assert len(found) == len(LAYERS) - 1
            assert any(f"adapts {stem[-2]}, and" in oddity for oddity in found.oddities)


def test_the_base_reaches_every_command(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, base, wanted = saved("VERA")
    run = Cli(capsys)
    assert not run(
        "combine", str(folder), str(folder), "--base", str(base), "-w", "0.5", "-w", "0.5", "-o", "m"
    ).code
    merged = lm.load("m")
    for target, update in merged.items():
        np.testing.assert_allclose(update.dense(), wanted[target.path], rtol=0, atol=1e-5)
    assert run("diff", "m", folder, "--base", base, "--json").json()["largest_error"] < 1e-5
    assert run("check", folder, "--for", "peft").code == 5
    assert run("check", folder, "--for", "peft", "--base", base).code == 0
    assert lm.check(folder, "peft", base=base) == []
    assert not run("convert", str(folder), "plain", "--to", "peft", "--base", str(base)).code
    assert lm.diff("plain", "m").error < 1e-5
    assert "VeRA" in run("inspect", folder, "--base", base).out
    assert not run("fuse", str(folder), str(base), "-o", "fused").code
    assert not run("combine", folder, "--fuse", base, "-o", "model").code
    assert run("combine", folder, "--fuse", base, "--keep-form").code
    assert not run("replay", "m", "--source", str(folder.parent), "--base", str(base), "-o", "again").code
    assert lm.diff("m", "again").error == 0
    with lm_raises("needs the layer sizes"):
        lm.replay("m", "third", folders=[folder.parent])


def lm_raises(words):
    return pytest.raises(lm.LoramergeError, match=words)


def test_a_base_of_other_sizes_is_refused(saved, tmp_path):
    folder, _, _ = saved("VERA")
    other = {f"{path}.weight": np.ones((outs + 2, ins), "f4") for path, (ins, outs) in LAYERS.items()}
    save_model(tmp_path / "base", other)
    with pytest.raises(lm.LoramergeError, match="q_proj"):
        lm.load(folder, base=tmp_path / "base")
    save_model(tmp_path / "strange", {"a.weight": np.ones((2, 2), "f4")})
    with pytest.raises(IncompatibleError, match=r"no linear layer for model\.layers\.0\.q_proj"):
        lm.load(folder, base=tmp_path / "strange")


def test_a_form_of_full_rank_says_so_and_is_cut_with_its_lost_energy_in_the_report(saved, tmp_path):
    folder, base, wanted = saved("DoRA")
    adapter = lm.load(folder, base=base)
    assert any("at full rank" in oddity for oddity in adapter.oddities)
    assert {slot.rank for slot in adapter.slots.values()} == {16}
    merge = lm.resize(folder, rank=4, base=base)
    sigma = [np.linalg.svd(each, compute_uv=False) ** 2 for each in wanted.values()]
    lost = sum(each[4:].sum() for each in sigma) / sum(each.sum() for each in sigma)
    assert merge.report.energy_lost == pytest.approx(lost, rel=1e-3)
    assert lm.resize(folder, energy=0.5, base=base).report.energy_lost <= 0.5


def test_a_merge_of_full_rank_is_refused_until_someone_says_its_size(saved, tmp_path, capsys):
    folder, base, wanted = saved("DoRA")
    for method in ("linear", "ties", "svd"):
        with pytest.raises(IncompatibleError, match=r"holds DoRA: .* full rank.*rank=16.*energy=0\.99"):
            lm.combine([folder], method, base=base)
    with pytest.raises(IncompatibleError, match="cat takes no rank: take one that does"):
        lm.combine([folder, folder], "cat", base=base)
    with pytest.raises(IncompatibleError, match="full rank"):
        lm.open([folder], base=base).combine()
    run = Cli(capsys)
    for more in ((), ("--dry-run",)):
        done = run("combine", folder, "--base", base, "-o", tmp_path / "m", *more)
        assert (done.code, "--rank 16" in done.err, "--energy 0.99" in done.err) == (3, True, True)
    assert run("combine", folder, "--base", base, "-o", tmp_path / "m", "--rank", "4").code == 0
    assert lm.combine([folder], base=base, total_rank=12).adapter.rank < 16
    assert lm.combine([folder], base=base, rules=[lm.Rule("proj", rank=3)]).adapter.rank == 3
    dense = run("combine", folder, "--base", base, "-o", tmp_path / "d.safetensors", "--dense-delta")
    assert dense.code == 0, dense.err
    for key, delta in load_file(tmp_path / "d.safetensors").items():
        np.testing.assert_allclose(delta, wanted[key.removesuffix(".weight")], atol=1e-5)
    assert run("combine", folder, "--fuse", base, "-o", tmp_path / "model").code == 0


@pytest.mark.parametrize(("name", "part", "kept"), [
    ("VERA", "vera_lambda_b", True), ("RANDLORA", "randlora_gamma", True), ("TINYLORA", "tinylora_v", True),
    ("UNILORA", "unilora_theta_d", False), ("VBLORA", "vblora_vector_bank", False), ("DoRA", "lora_B", False),
    ("KASA", "lora_B", False),
])  # fmt: skip
def test_a_form_is_kept_where_its_update_is_linear_in_what_differs(saved, name, part, kept, tmp_path):
    folder, base, _ = saved(name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {key: value * (2 if part in key else 1) for key, value in tensors.items()}
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors")
    pair, out = [folder, tmp_path / "b"], tmp_path / "m"
    if not kept:
        with pytest.raises(IncompatibleError, match="their ΔW is not linear in"):
            lm.combine(pair, "average", base=base, keep_form=True, out=out)
        assert not out.exists()
        return
    merge = lm.combine(pair, "average", base=base, keep_form=True, out=out)
    for target, update in merge.adapter.items():
        one, two = (lm.load(each, base=base)[target].dense() for each in pair)
        np.testing.assert_allclose(update.dense(), (one + two) / 2, atol=1e-6 * np.abs(one).max())


def test_a_quantised_base_is_refused_by_name_only_where_it_is_needed(saved, tmp_path):
    folder, base, _ = saved("VERA")
    other = tmp_path / "base"
    other.mkdir()
    for path in base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(IncompatibleError, match="quantised with bitsandbytes"):
        lm.load(folder, base=other)
    alone, _, wanted = saved("C3A")
    assert len(lm.load(alone, base=other)) == len(wanted)


def test_a_small_file_cannot_ask_for_a_large_draw(saved, tmp_path):
    """A file of a few bytes says a rank of millions: nothing is drawn or allocated."""
    folder, base, _ = saved("VERA, drawn")
    config = (folder / "adapter_config.json").read_text().replace('"r": 4', '"r": 4000000')
    (tmp_path / "adapter_config.json").write_text(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    wide = {key: np.ones(4_000_000, "f4") if "lambda_d" in key else value for key, value in tensors.items()}
    save_file(wide, tmp_path / "adapter_model.safetensors")
    with pytest.raises(IncompatibleError, match="units"):
        lm.combine([tmp_path], base=base)


@pytest.mark.parametrize("name", ["DoRA", "VERA", "IA3"])
def test_a_state_dict_in_memory_is_read_with_that_of_its_base(saved, name):
    folder, base, wanted = saved(name)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, weights = load_file(folder / "adapter_model.safetensors"), load_file(base / "model.safetensors")
    adapter = lm.from_state_dict(tensors, config, base=weights)
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), wanted[target.path], rtol=0, atol=1e-5)
    with pytest.raises(IncompatibleError, match=r"name that model by base="):
        lm.from_state_dict(tensors, config)
