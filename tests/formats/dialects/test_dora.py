"""DoRA in image files: with its base it is what LyCORIS and PEFT make of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError
from tests.helpers.dialects import matrix, product
from tests.helpers.models import save_model
from tests.helpers.systems import n

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
SIZES = {LINEAR: (8, 6), CONV: (5, 5, 3, 3)}


def base(root, rng):
    weights = {path: n(rng, *size) for path, size in SIZES.items()}
    save_model(root / "unet", {f"{path}.weight": weight for path, weight in weights.items()})
    return weights


def factors(rng, path):
    outs, ins, *kernel = SIZES[path]
    return n(rng, 2, ins, *kernel), n(rng, outs, 2, *(1 for _ in kernel))


def turned(weight, delta, lengths, inputs=False):
    """W + ΔW with these norms, less W, entry by entry."""
    whole = weight + delta.reshape(weight.shape)
    made = np.zeros(whole.shape)
    for i in range(whole.shape[1 if inputs else 0]):
        here = (slice(None), i) if inputs else i
        made[here] = whole[here] / np.sqrt((whole[here].astype("f8") ** 2).sum()) * lengths.ravel()[i]
    return matrix(made - weight)


def kohya(rng, weights, inputs=False):
    """A file with one scale of 1/2, and what it comes to."""
    keys, wanted = {}, {}
    for path, weight in weights.items():
        down, up = factors(rng, path)
        stem = f"lora_unet_{path.replace('.', '_')}"
        shape = (1, weight.shape[1]) if inputs else (weight.shape[0], 1)
        lengths = 1 + rng.random((*shape, *(1 for _ in weight.shape[2:]))).astype("f4")
        keys |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        keys |= {f"{stem}.alpha": np.array(1, "f4"), f"{stem}.dora_scale": lengths}
        delta = 0.5 * product(matrix(up), matrix(down))
        wanted[f"unet.{path}"] = turned(weight.astype("f8"), delta, lengths, inputs)
    return keys, wanted


def same(adapter, wanted):
    assert {str(target) for target in adapter} == set(wanted)
    for target, update in adapter.items():
        theirs = wanted[str(target)]
        np.testing.assert_allclose(update.dense(), theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("inputs", [False, True], ids=["outputs", "inputs"])
def test_kohyas_dora_scale_sets_the_lengths_of_outputs_or_of_inputs(inputs, tmp_path):
    rng = np.random.default_rng(1)
    weights = base(tmp_path, rng)
    keys, wanted = kohya(rng, weights, inputs)
    save_file(keys, tmp_path / "a.safetensors")
    adapter = lm.load(tmp_path / "a.safetensors", base=tmp_path / "unet")
    same(adapter, wanted)
    assert adapter.full == ("DoRA",)
    assert any("2 DoRA modules are read exactly, but at full rank" in oddity for oddity in adapter.oddities)
    with pytest.raises(IncompatibleError, match=r"DoRA, which needs the weights of the base model .* base="):
        lm.load(tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError, match=r"of full rank.*rank=16"):
        lm.combine([tmp_path / "a.safetensors"], base=tmp_path / "unet")
    merge = lm.combine(
        [tmp_path / "a.safetensors"], rank=2, base=tmp_path / "unet", out=tmp_path / "m.safetensors"
    )
    assert 0 < merge.report.energy_lost < 1
    name = next(key for key in keys if key.endswith("dora_scale"))
    save_file(keys | {name: n(rng, 7, 1)}, tmp_path / "odd.safetensors")
    with pytest.raises(SourceError, match=r"dora_scale \[7, 1\] of .* fits neither"):
        lm.load(tmp_path / "odd.safetensors", base=tmp_path / "unet")


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr"])
@pytest.mark.parametrize("inputs", [False, True], ids=["outputs", "inputs"])
def test_it_is_what_lycoris_merges(algorithm, inputs, tmp_path):
    torch, lycoris = pytest.importorskip("torch"), pytest.importorskip("lycoris")
    rng, keys, wanted = np.random.default_rng(2), {}, {}
    torch.manual_seed(3)
    weights = base(tmp_path, rng)
    kind = {"locon": "LoConModule", "loha": "LohaModule", "lokr": "LokrModule"}[algorithm]
    for path, weight in weights.items():
        outs, ins, *kernel = weight.shape
        layer = (
            torch.nn.Conv2d(ins, outs, 3, bias=False) if kernel else torch.nn.Linear(ins, outs, bias=False)
        )
        layer.weight.data = torch.from_numpy(weight)
        stem = f"lora_unet_{path.replace('.', '_')}"
        module = getattr(lycoris.modules, algorithm)
        made = getattr(module, kind)(
            stem, layer, lora_dim=2, alpha=2, weight_decompose=True, wd_on_out=not inputs
        )
        for parameter in made.parameters():
            parameter.data = 0.3 * torch.randn_like(parameter)
        made.dora_scale.data = 1 + torch.rand_like(made.dora_scale)
        keys |= {f"{stem}.{key}": value.detach().numpy() for key, value in made.state_dict().items()}
        after = made.get_merged_weight(shape=torch.Size(weight.shape))[0].detach().numpy().astype("f8")
        wanted[f"unet.{path}"] = matrix(after - weight)
    save_file({key: np.ascontiguousarray(value) for key, value in keys.items()}, tmp_path / "a.safetensors")
    same(lm.load(tmp_path / "a.safetensors", base=tmp_path / "unet"), wanted)


def test_diffusers_writes_magnitudes_of_outputs_and_its_settings_the_scale(tmp_path):
    rng = np.random.default_rng(4)
    weights, keys, wanted = base(tmp_path, rng), {}, {}
    for path, weight in weights.items():
        down, up = factors(rng, path)
        lengths = 1 + rng.random(weight.shape[0]).astype("f4")
        shape = (1, -1, 1, 1) if weight.ndim > 2 else (-1,)
        keys |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
        keys[f"unet.{path}.lora_magnitude_vector"] = lengths.reshape(shape)
        wanted[f"unet.{path}"] = turned(weight.astype("f8"), 3 * product(matrix(up), matrix(down)), lengths)
    settings = {"unet.r": 2, "unet.lora_alpha": 6, "unet.use_dora": True}
    said = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(keys, tmp_path / "a.safetensors", said)
    same(lm.load(tmp_path / "a.safetensors", base=tmp_path / "unet"), wanted)
    cut = {key: value for key, value in keys.items() if key != f"unet.{CONV}.lora_magnitude_vector"}
    save_file(cut, tmp_path / "cut.safetensors", said)
    with pytest.raises(SourceError, match=r"lora_magnitude_vector of .*conv1.* is missing"):
        lm.load(tmp_path / "cut.safetensors", base=tmp_path / "unet")
