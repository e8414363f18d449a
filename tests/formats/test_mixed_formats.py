"""Sources of several formats in one merge, and merges in formats other than that of PEFT."""

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.dialects import FLUX, FLUX_KOHYA, SD15, flat, normal, pairs, same, saved
from tests.helpers.files import Cli, content

NEW = ("lora_A", "lora_B")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def mixed(tmp_path):
    """One model under the names of four tools, each with another update."""
    made = {"kohya": pairs(flat(SD15), alpha=1.0, seed=1), "diffusers": pairs(SD15, NEW, rank=3, seed=2)}
    return {name: saved(tmp_path / f"{name}.safetensors", t) for name, t in made.items()}


def test_sources_of_several_formats_merge_where_their_modules_have_one_name(tmp_path):
    files = mixed(tmp_path)
    with pytest.raises(lm.UsageError, match=r"a kohya LoRA.*a diffusers LoRA.*format="):
        lm.combine(list(files.values()))
    wanted = {
        str(t): u.dense() - 2 * lm.load(files["diffusers"])[t].dense()
        for t, u in lm.load(files["kohya"]).items()
    }
    for to in ("kohya", "diffusers", "comfy"):
        merge = lm.combine(
            list(files.values()), weights=[1, -2], format=to, out=tmp_path / f"{to}-m.safetensors"
        )
        same(merge.adapter, wanted, 1e-4)
        assert merge.adapter.dialect == to


def test_flux_merges_in_the_grain_of_the_output(tmp_path):
    fused = saved(tmp_path / "k.safetensors", pairs(FLUX_KOHYA, alpha=1.0, seed=1))
    split = saved(tmp_path / "d.safetensors", pairs(FLUX, NEW, seed=2))
    whole = lm.combine([fused, split], "linear", format="kohya", out=tmp_path / "m.safetensors")
    parts = lm.combine([fused, split], "linear", format="diffusers", out=tmp_path / "n.safetensors")

    assert {str(t) for t in whole.adapter} == {str(t) for t in lm.load(fused)}
    assert lm.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors", "diffusers").adapter.keys() == (
        parts.adapter.keys()
    )
    assert lm.diff(tmp_path / "o.safetensors", tmp_path / "n.safetensors").largest < 1e-6


def test_a_merge_in_any_format_is_replayed_to_the_same_bytes(cli, tmp_path):
    mixed(tmp_path)
    for to, out in (("kohya", "m.safetensors"), ("diffusers", "m"), ("comfy", "c.safetensors")):
        sources = ("kohya.safetensors", "diffusers.safetensors")
        assert cli("combine", *sources, "--method", "svd", "--format", to, "-o", out).code == 0, cli.err
        assert cli("replay", out, "-o", f"again-{out}").code == 0, cli.err
        one, other = (content(tmp_path / name) for name in (out, f"again-{out}"))
        assert one == other


def test_a_recipe_names_the_format(cli, tmp_path):
    mixed(tmp_path)
    cli("combine", "kohya.safetensors", "diffusers.safetensors", "--format", "comfy", "--print-recipe")
    assert "format: comfy" in cli.out
    (tmp_path / "r.yaml").write_text(cli.out)
    assert cli("combine", "--recipe", "r.yaml", "-o", "m.safetensors").code == 0, cli.err
    assert lm.load(tmp_path / "m.safetensors").dialect == "comfy"


@pytest.mark.parametrize("limit", [["--total-rank", "9"], ["--size", "9kB"]], ids=str)
def test_a_budget_holds_in_kohyas_format(cli, tmp_path, limit):
    saved(tmp_path / "a.safetensors", pairs(flat(SD15), rank=4, alpha=1.0))
    assert cli("combine", "a.safetensors", "--method", "svd", *limit, "-o", "m.safetensors").code == 0, (
        cli.err
    )
    found = lm.load(tmp_path / "m.safetensors")

    assert sum(slot.rank for slot in found.slots.values()) <= 9 or limit[0] == "--size"
    assert (tmp_path / "m.safetensors").stat().st_size <= 9000
    assert len({slot.scale * slot.rank for slot in found.slots.values()}) == 1  # one alpha
    assert cli("replay", "m.safetensors", "-o", "again.safetensors").code == 0, cli.err
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_ranks_by_component_do_not_meet(tmp_path):
    """Both text encoders of SDXL have modules of the same name."""
    name = "text_model_encoder_layers_0_mlp_fc1"
    tensors = pairs({f"lora_te1_{name}": (8, 8)}, rank=4, alpha=4.0) | pairs(
        {f"lora_te2_{name}": (8, 8)}, rank=2, alpha=2.0
    )
    merge = lm.combine([saved(tmp_path / "a.safetensors", tensors)], "cat", out=tmp_path / "m.safetensors")

    assert {t.component: slot.rank for t, slot in merge.adapter.slots.items()} == {
        "text_encoder": 4,
        "text_encoder_2": 2,
    }
    with pytest.raises(lm.IncompatibleError, match="several models"):
        lm.to_state_dict(merge.adapter)


def test_adapters_of_two_formats_are_compared_module_by_module(tmp_path):
    kohya = saved(tmp_path / "k.safetensors", pairs(FLUX_KOHYA, alpha=1.0))
    lm.convert(kohya, tmp_path / "d.safetensors", "diffusers")
    found = lm.diff(kohya, tmp_path / "d.safetensors")
    assert (found.missing, found.largest < 1e-6) == ([], True)

    unet = saved(
        tmp_path / "u.safetensors", pairs(flat({k: v for k, v in SD15.items() if "unet" in k}), alpha=1.0)
    )
    lm.convert(unet, tmp_path / "p", "peft")
    found = lm.diff(unet, tmp_path / "p")
    assert (found.missing, found.largest < 1e-6) == ([], True)


def test_many_weightings_of_sources_of_two_formats(tmp_path):
    opened = lm.open(list(mixed(tmp_path).values()), format="diffusers")
    one, two = (opened.combine(weights=[w, 1.0]) for w in (1.0, 2.0))

    assert one.adapter.dialect == "diffusers"
    assert lm.diff(one.adapter, two.adapter).error > 0.1


def test_a_dry_run_tells_the_format_and_writes_nothing(cli, tmp_path):
    mixed(tmp_path)
    before = content(tmp_path)
    assert cli("combine", "kohya.safetensors", "--format", "diffusers", "--dry-run", "--json").code == 0, (
        cli.err
    )
    assert cli.json()["format"] == "diffusers"
    cli("combine", "kohya.safetensors", "--dry-run", "-o", "folder").refused(2, "one file")
    assert content(tmp_path) == before


def test_one_model_of_several_becomes_a_peft_adapter(cli, tmp_path):
    saved(tmp_path / "a.safetensors", pairs(flat(SD15), alpha=1.0))
    assert cli("convert", "a.safetensors", "p", "--to", "peft", "--only", "^text_encoder").code == 0, cli.err
    assert [str(t) for t in lm.load(tmp_path / "p")] == ["text_model.encoder.layers.11.mlp.fc1"]


def test_names_without_a_dot_are_known_too(tmp_path):
    tensors = pairs({"unet.conv_in": (4, 4, 3, 3), "unet.mid_block.resnets.0.conv1": (4, 4, 3, 3)}, NEW)
    source = saved(tmp_path / "a.safetensors", tensors)
    for to, out in (("peft", "p"), ("kohya", "k.safetensors"), ("comfy", "c.safetensors")):
        lm.convert(source, tmp_path / out, to)
        lm.convert(tmp_path / out, tmp_path / f"back-{to}", "diffusers", only=".")
        assert lm.diff(source, tmp_path / f"back-{to}").largest < 1e-6


def test_chosen_parts_need_a_name_and_others_do_not(tmp_path):
    source = saved(tmp_path / "a.safetensors", pairs(flat(SD15), alpha=1.0))
    merge = lm.combine([source], only="^unet", format="peft", out=tmp_path / "m")

    assert {str(t) for t in merge.adapter} == {name.removeprefix("unet.") for name in SD15 if "unet" in name}


def test_a_pointwise_convolution_meets_the_same_weights_as_a_matrix(tmp_path):
    name, rng = "unet.down_blocks.0.attentions.1.proj_in", np.random.default_rng(3)
    conv = {
        f"{name}.lora_A.weight": normal(rng, 2, 4, 1, 1),
        f"{name}.lora_B.weight": normal(rng, 4, 2, 1, 1),
    }
    flat_ = {key: tensor[..., 0, 0] for key, tensor in conv.items()}
    paths = [saved(tmp_path / f"{n}.safetensors", t) for n, t in (("a", conv), ("b", flat_))]
    merge = lm.combine(paths, "linear", out=tmp_path / "m.safetensors")

    assert {t.kind for t in merge.adapter} == {"conv"}
    assert lm.diff(paths[0], merge.adapter).modules[0].norm_ratio == pytest.approx(2)
