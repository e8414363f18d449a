"""Files of several components, each with settings of its own: everybody is held to those of the component."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.consumers.check import facts_of
from tests.consumers.hostile import settings
from tests.helpers.files import bare
from tests.helpers.tiny_models import QUIET, LoraLayer

pytestmark = QUIET
FLUX, TEXT = (
    "transformer.single_transformer_blocks.0.attn",
    "text_encoder.text_model.encoder.layers.0.self_attn",
)
OWN = {  # what the two components say -> the scale of each of their modules, by hand; all have rank 4
    "alphas": ({"lora_alpha": 8}, {"lora_alpha": 1}, {"to_q": 2, "to_k": 2, "q_proj": 0.25, "k_proj": 0.25}),
    "rsLoRA in one": (
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 4},
        {"to_q": 4, "to_k": 4, "q_proj": 1, "k_proj": 1},
    ),
    "a pattern in one": (
        {"lora_alpha": 8, "alpha_pattern": {"to_q": 2}},
        {"lora_alpha": 4},
        {"to_q": 0.5, "to_k": 2, "q_proj": 1, "k_proj": 1},
    ),
    "the pattern of another": (
        {"lora_alpha": 8},
        {"lora_alpha": 4, "alpha_pattern": {"to_q": 400, "q_proj": 2}},
        {"to_q": 2, "to_k": 2, "q_proj": 0.5, "k_proj": 1},
    ),
}


def write(place, name):
    transformer, text_encoder, _ = OWN[name]
    modules = [f"{FLUX}.to_q", f"{FLUX}.to_k", f"{TEXT}.q_proj", f"{TEXT}.k_proj"]
    values = {f"{m}.lora_A.weight": np.ones((4, 32), np.float32) for m in modules}
    values |= {f"{m}.lora_B.weight": np.ones((32, 4), np.float32) for m in modules}
    whole = {
        "transformer": {"r": 4, "target_modules": [m.partition(".")[2] for m in modules[:2]], **transformer},
        "text_encoder": {
            "r": 4,
            "target_modules": [m.partition(".")[2] for m in modules[2:]],
            **text_encoder,
        },
    }
    told = settings(**whole) | {"modelspec.architecture": "flux-1-dev/lora"}  # AuraFlow has such names too
    return bare(place / "pytorch_lora_weights.safetensors", values, told)


@pytest.mark.parametrize("name", OWN)
def test_a_module_has_the_scale_of_its_own_component(name, tmp_path):
    facts = facts_of(write(tmp_path, name))
    assert {m.place.rpartition(".")[2]: m.scale for m in facts.modules} == pytest.approx(OWN[name][2])
    for module in facts.modules:
        assert CONSUMERS["diffusers"].strength(facts, module) == pytest.approx(module.scale)
        assert CONSUMERS["comfyui"].strength(facts, module) == 1
    assert not CONSUMERS["diffusers"].findings(facts)


@pytest.mark.parametrize("name", OWN)
def test_who_reads_no_settings_is_told_by_component(name, tmp_path):
    *_, finding = lm.check(write(tmp_path, name), "comfyui")
    scales = OWN[name][2]
    wrong = sum(scale != 1 for scale in scales.values())
    assert finding.effect == "scales"
    assert finding.sentence.startswith("ComfyUI reads no lora_adapter_metadata: the adapter would act ")
    assert ("in " in finding.sentence) == (wrong < 4)
    assert wrong == 4 or f"in {wrong} of 4 modules" in finding.sentence


def test_the_furthest_off_are_named_with_their_component(tmp_path):
    *_, finding = lm.check(write(tmp_path, "alphas"), "comfyui")
    assert f"from 2 times too weak ({FLUX}.to_k) to 4 times too strong ({TEXT}.q_proj)" in finding.sentence


@pytest.mark.parametrize("name", OWN)
def test_the_command_that_is_offered_keeps_every_scale(name, cli, tmp_path):
    file = write(tmp_path, name).name
    *_, finding = lm.check(file, "comfyui")
    out = "pytorch_lora_weights-comfyui.safetensors"
    assert finding.command == f"loramerge combine {file} --for comfyui -o {out}"
    assert cli(*finding.command.split()[1:]).code == 0
    assert not lm.check(out, "comfyui")
    before, after = lm.load(file), lm.load(out)
    wanted = {target.path.rpartition(".")[2]: update.norm() for target, update in before.items()}
    assert wanted == pytest.approx({name: 32 * 4 * scale for name, scale in OWN[name][2].items()})
    assert sum(u.norm() ** 2 for _, u in after.items()) == pytest.approx(sum(n**2 for n in wanted.values()))


@pytest.mark.parametrize("name", OWN)
def test_diffusers_itself_scales_the_transformer_so(name, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers comes with the extra `test`")
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    file = write(tmp_path, name)
    model.load_lora_adapter(str(tmp_path), weight_name=file.name, prefix="transformer", adapter_name="other")
    found = {p: m.scaling["other"] for p, m in model.named_modules() if isinstance(m, LoraLayer)}
    wanted = {f"single_transformer_blocks.0.attn.{x}": OWN[name][2][x] for x in ("to_q", "to_k")}
    assert found == pytest.approx(wanted)
