"""diffusers' own code on a tiny UNet and a tiny Flux: the strength of a merge, whoever says its scale."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.checking import facts_of
from loramerge.consumers import CONSUMERS, Module
from tests.files import read, save_file
from tests.tiny_models import QUIET, LoraLayer, base, peft, save_adapter

diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extra `test`")
DIFFUSERS = CONSUMERS["diffusers"]
pytestmark = QUIET


def unet():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )


MODELS = {"unet": unet, "transformer": flux}
TARGETS = {"unet": ["to_q", "to_v", "conv1"], "transformer": ["to_q", "to_v", "proj_mlp"]}
INPUTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "mixed ranks": {"rank_pattern": {"to_q": 2}},
    "patterns": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 3}, "use_rslora": True},
}


def source(place, part, seed, name):
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[part]} | INPUTS[name]
    return save_adapter(place, MODELS[part], seed, config)


def as_diffusers(place, out, part, metadata=None):
    """The factors of a PEFT folder under diffusers' names, in one file."""
    values = read(place / "adapter_model.safetensors")
    out.mkdir()
    renamed = {name.replace("base_model.model", part, 1): value for name, value in values.items()}
    save_file(renamed, out / "pytorch_lora_weights.safetensors", metadata)
    return out / "pytorch_lora_weights.safetensors"


def loaded(part, file, **options):
    model = base(MODELS[part])
    model.load_lora_adapter(
        str(file.parent), weight_name=file.name, prefix=part, adapter_name="other", **options
    )
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def delta(layer):
    found = layer.get_delta_weight("other").detach().double()
    return found.reshape(len(found), -1).numpy()


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("part", MODELS)
def test_a_merge_under_its_names_acts_as_it_is_meant(part, name, profile, tmp_path):
    places = [source(tmp_path / n, part, i, name) for i, n in enumerate("ab")]
    merge = lm.combine(places, weights=[0.7, -0.3], profile=profile, out=tmp_path / "m")
    file = as_diffusers(tmp_path / "m", tmp_path / "d", part)
    assert not lm.check(file, "diffusers")
    found = loaded(part, file)
    assert {target.path for target in merge.adapter} == set(found)
    for target in merge.adapter:
        rank = merge.adapter.slots[target].rank
        assert found[target.path].scaling["other"] == DIFFUSERS.scale({}, Module(target.path, rank)) == 1
        assert np.allclose(delta(found[target.path]), merge.adapter[target].dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("part", MODELS)
def test_with_the_config_in_the_header_it_scales_as_peft_does(part, name, tmp_path):
    place = source(tmp_path / "a", part, 1, name)
    said = peft.LoraConfig.from_pretrained(place).to_dict()
    kept = {f"{part}.{field}": sorted(v) if isinstance(v, set) else v for field, v in said.items()}
    kept = {field: value for field, value in kept.items() if field.split(".", 1)[1] not in DERIVED}
    file = as_diffusers(place, tmp_path / "d", part, {"lora_adapter_metadata": json.dumps(kept)})
    config = facts_of(file).config
    found = loaded(part, file)
    for module in facts_of(place).modules:
        own = found[module.place].scaling["other"]
        assert own == pytest.approx(DIFFUSERS.scale(config, module), rel=1e-12)
        assert own == pytest.approx(module.scale, rel=1e-12)


DERIVED = ("peft_type", "auto_mapping")  # set by PEFT itself


def test_an_alpha_of_a_module_is_divided_by_its_rank(tmp_path):
    place = source(tmp_path / "a", "unet", 1, "mixed ranks")
    file = as_diffusers(place, tmp_path / "d", "unet")
    modules = facts_of(place).modules
    alphas = {f"unet.{m.place}.alpha": 3.0 + i for i, m in enumerate(modules)}
    found = loaded("unet", file, network_alphas=alphas)
    for module in modules:
        alpha = alphas[f"unet.{module.place}.alpha"]
        wanted = DIFFUSERS.scale({}, Module(module.place, module.rank, alpha))
        assert found[module.place].scaling["other"] == pytest.approx(wanted) == alpha / module.rank


@pytest.mark.parametrize("part", MODELS)
def test_a_peft_folder_is_nothing_to_it_as_we_say(part, tmp_path):
    place = source(tmp_path / "a", part, 1, "plain")
    (finding,) = lm.check(place, "diffusers")
    assert finding.effect == "rejects"
    assert "finds nothing to load" in finding.sentence
    assert not loaded(part, place / "adapter_model.safetensors")
