"""Names and updates against the libraries that define them: diffusers, transformers, LyCORIS."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats import models
from loramerge.formats.models import unet
from loramerge.formats.models.flux import FLUX
from tests.helpers.dialects import FLUX_KOHYA, SD15, flat, pairs, saved

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lycoris")

ADDED = ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv")
SD = {"cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 4}


def layers(model):
    return {name: module for name, module in model.named_modules() if type(module).__name__ in ADDED}


def small_unet(**config):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**SD, **config)


UNETS = {
    "SD 1.5": {"block_out_channels": (8, 16, 16, 16)},
    "SD 2": {"block_out_channels": (8, 16, 16, 16), "use_linear_projection": True},
    "SDXL": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32,
    },
}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_the_table_has_every_layer_of_a_unet(config):
    found = layers(small_unet(**config))
    own = models.first_names("unet")

    assert set(found) <= set(own)
    assert models.is_xl(found) == ("addition_embed_type" in config)
    for name, layer in found.items():
        kernel = tuple(getattr(layer, "kernel_size", ()))
        assert unet.kernel(name) in ((), kernel), name
        assert unet.kernel(name) == kernel or name.endswith(("proj_in", "proj_out"))


def test_the_table_has_every_layer_of_flux():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6)
        )
    found = layers(model)
    here = set(models.first_names("transformer")) | set(models.owner("transformer"))

    assert set(found) == here
    assert all(FLUX.fits(name, *layer.weight.shape) for name, layer in found.items())


def test_the_tables_have_every_layer_of_the_text_encoders():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    with torch.device("meta"):
        clip = CLIPTextModelWithProjection(
            CLIPTextConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2)
        )
        t5 = T5EncoderModel(
            T5Config(num_layers=2, d_model=16, d_kv=4, num_heads=2, feed_forward_proj="gated-gelu")
        )
    assert set(layers(clip)) <= set(models.first_names("text_encoder"))
    assert set(layers(t5)) <= set(models.first_names("t5"))


def tensors_of(state):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def merged_alphas(state, alphas):
    """Module -> update, of what diffusers' converter gives: older factor names, and alphas apart."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    made = {
        key: value.double().numpy() for key, value in convert_unet_state_dict_to_peft(dict(state)).items()
    }
    found = {}
    for key, down in made.items():
        if ".lora_A." in key:
            up = made[key.replace(".lora_A.", ".lora_B.")]
            module = key.partition(".lora_A.")[0].replace(".processor", "")
            said = [a for name, a in alphas.items() if name.replace(".processor", "").startswith(module)]
            alpha = said[0] if said else len(down)
            found[module] = alpha / len(down) * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return found


ATTENTIONS = {
    name: shape
    for name, shape in SD15.items()
    if name.startswith("unet.") and ("attn" in name or "proj_in" in name)
}


def test_diffusers_reads_stable_diffusion_of_kohya_as_we_do(tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    state = pairs(flat(ATTENTIONS), alpha=1.0)
    adapter = lm.load(saved(tmp_path / "a.safetensors", state))
    theirs = merged_alphas(*_convert_non_diffusers_lora_to_diffusers(tensors_of(state)))

    assert {str(t) for t in adapter} == set(theirs)
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), theirs[str(target)], rtol=1e-5, atol=1e-6)


def test_diffusers_names_the_modules_of_sdxl_as_we_do(tmp_path):
    """Every attention layer and convolution of SDXL, from Stability's names."""
    from types import SimpleNamespace

    from diffusers.loaders import lora_conversion_utils as theirs

    names = [
        n for n in layers(small_unet(**UNETS["SDXL"])) if "attentions" in n or "conv1" in n or "conv2" in n
    ]
    flat_names = {f"lora_unet_{models.flat(models.first_names('unet')[name])}": name for name in names}
    state = tensors_of(pairs({name: (2, 2) for name in flat_names}))
    moved = theirs._maybe_map_sgm_blocks_to_diffusers(dict(state), SimpleNamespace(layers_per_block=2))
    made, _ = theirs._convert_non_diffusers_lora_to_diffusers(moved)
    found = set(merged_alphas(made, {}))

    assert found == {f"unet.{name}" for name in names}


def test_diffusers_reads_flux_of_kohya_as_we_do_but_for_the_alpha_of_the_last_layer(tmp_path):
    """diffusers 0.42 leaves the alpha of final_layer aside, and does not name its part (transformer)."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    shapes = {name: shape for name, shape in FLUX_KOHYA.items() if not name.startswith("lora_te")}
    shapes["lora_unet_single_blocks_37_linear1"] = (21504, 3072)  # diffusers knows this size only
    state = pairs(shapes, alpha=1.0)
    ours = lm.convert(
        saved(tmp_path / "a.safetensors", state), tmp_path / "d.safetensors", "diffusers", dtype="float32"
    ).adapter
    theirs = merged_alphas(_convert_kohya_flux_lora_to_diffusers(tensors_of(state)), {})

    assert theirs.keys() == {str(t).replace("transformer.norm_out", "norm_out") for t in ours}
    rng = np.random.default_rng(0)
    for target, update in ours.items():
        factor = 1.0 if target.path != "norm_out.linear" else 2.0
        x = rng.standard_normal(update.shape[1])
        other = theirs[str(target).replace("transformer.norm_out", "norm_out")]
        np.testing.assert_allclose(other @ x, factor * (update.dense() @ x), rtol=1e-4, atol=1e-3)


def lycoris(form, weights, **options):
    from lycoris import functional

    tensors = tuple(None if w is None else torch.from_numpy(w) for w in weights)
    return getattr(functional, form).diff_weight(*tensors, **options).numpy()


def test_lycoris_builds_the_same_updates(tmp_path):
    """LoCon and LoHa take alpha / rank, LoKr takes alpha and divides by the rank itself."""
    rng, r, module = np.random.default_rng(0), 2, "lora_unet_mid_block_resnets_0_conv1"

    def n(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    cases = {}
    a, b, c, d = n(8, r), n(r, 6), n(8, r), n(r, 6)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    cases["LoHa"] = parts, lycoris("loha", (b, a, d, c, None, None), gamma=0.5)
    a, b, c, d, t, u = n(r, 8), n(r, 6), n(r, 8), n(r, 6), n(r, r, 3, 3), n(r, r, 3, 3)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "hada_t1": t, "hada_t2": u}
    cases["LoHa Tucker"] = parts, lycoris("loha", (b, a, d, c, t, u), gamma=0.5)
    w, a, b = n(2, 3), n(4, r), n(r, 2)
    parts = {"lokr_w1": w, "lokr_w2_a": a, "lokr_w2_b": b}
    cases["LoKr"] = parts, lycoris("lokr", (w, None, None, None, a, b, None), gamma=1.0)
    w, a, b, t = n(2, 3), n(r, 4), n(r, 2), n(r, r, 3, 3)
    parts = {"lokr_w1": w, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": t}
    wrong = lycoris("lokr", (w, None, None, None, a, b, t), gamma=1.0)  # divides by the outputs of w2, 4
    cases["LoKr Tucker"] = parts, wrong * 4 / r  # as LyCORIS' own module trains it
    up, down, mid = n(8, r, 1, 1), n(r, 6, 1, 1), n(r, r, 3, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid}
    cases["LoCon Tucker"] = parts, lycoris("locon", (down, up, mid), gamma=0.5)

    for name, (parts, wanted) in cases.items():
        state = {f"{module}.{key}": part for key, part in parts.items()} | {f"{module}.alpha": np.float32(1)}
        adapter = lm.load(
            saved(tmp_path / f"{name}.safetensors", {k: np.asarray(v) for k, v in state.items()})
        )
        (made,) = (update.dense() for update in adapter.values())
        np.testing.assert_allclose(made, wanted.reshape(len(wanted), -1), rtol=1e-4, atol=1e-5, err_msg=name)


def test_lycoris_modules_take_the_scale_twice_where_we_take_it_once(tmp_path):
    """LyCORIS 4.1.3: `get_diff_weight` of a LoHa module multiplies by alpha / rank once more."""
    from lycoris.modules.loha import LohaModule

    layer = torch.nn.Linear(6, 8)
    module = LohaModule("x", layer, multiplier=1.0, lora_dim=2, alpha=1.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    name = "lora_unet_x"
    state = {
        f"{name}.{key}": value.detach().numpy() for key, value in module.state_dict().items() if "hada" in key
    }
    state[f"{name}.alpha"] = np.array(1.0, np.float32)
    (made,) = lm.load(saved(tmp_path / "a.safetensors", state)).values()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module.apply_to()
        forward = (layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)).numpy()
        dense = module.get_diff_weight()[0].numpy()

    np.testing.assert_allclose(x.numpy() @ made.dense().T, forward, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dense, 0.5 * made.dense(), rtol=1e-4, atol=1e-5)
