"""Image models: pipelines of diffusers, and single files, whose names diffusers' own converters translate."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.checkpoints import single
from loramerge.formats import models
from tests.helpers.models import random_model, read_model, save_model
from tests.helpers.tiny_models import QUIET, distance, peft, torch, transformers

diffusers = pytest.importorskip("diffusers")
from diffusers.loaders import single_file_utils as oracle  # noqa: E402

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "sample_size": 8,
}
TARGETS = ["to_q", "to_v", "conv1", "conv_in", "proj_in", "ff.net.0.proj"]


def unet(state=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.UNet2DConditionModel(**UNET).eval()
    if state is not None:
        model.load_state_dict(state)
    return model


@torch.no_grad()
def pixels(model):
    rng = torch.Generator().manual_seed(3)
    image, text = torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 7, 32, generator=rng)
    return model(image, torch.tensor(5), text).sample.double()


def merged(folder):
    """An adapter of the U-Net on the disk; the U-Net with it, by PEFT."""
    model = peft.get_peft_model(unet(), peft.LoraConfig(r=4, target_modules=TARGETS))
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    model.save_pretrained(folder / "peft")
    for format, name in (("kohya", "kohya.safetensors"), ("diffusers", "diffusers.safetensors")):
        lm.convert(folder / "peft", folder / name, format)
    return model.merge_and_unload()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pipeline, the same in one file, and an adapter in three formats."""
    folder = tmp_path_factory.mktemp("images")
    unet().save_pretrained(folder / "pipeline" / "unet")
    (folder / "pipeline" / "scheduler").mkdir()
    (folder / "pipeline" / "scheduler" / "scheduler_config.json").write_text("{}")
    listed = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "pipeline" / "model_index.json").write_text(
        json.dumps({**listed, "scheduler": ["diffusers", "X"]})
    )
    first = models.first_names("unet") | {"up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv"}
    tensors = {"first_stage_model.conv.weight": np.ones((2, 2, 3, 3), np.float32)}
    for key, tensor in unet().state_dict().items():
        path, _, parameter = key.rpartition(".")
        tensors[f"model.diffusion_model.{first[path]}.{parameter}"] = tensor.numpy()
    save_model(folder / "one.safetensors", tensors)
    return folder, pixels(merged(folder))


ADAPTERS = ("peft", "kohya.safetensors", "diffusers.safetensors")


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_pipeline_with_an_adapter_of_any_format_paints_what_peft_does(place, tmp_path, name):
    folder, wanted = place
    lm.fuse(folder / name, folder / "pipeline", tmp_path / "f")
    found = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "f" / "unet").eval()
    assert distance(pixels(found), wanted) < 1e-5
    assert distance(pixels(unet()), wanted) > 1e-2
    assert (tmp_path / "f" / "scheduler" / "scheduler_config.json").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_one_file_with_an_adapter_of_any_format_is_what_diffusers_reads_from_it(place, tmp_path, name):
    folder, wanted = place
    lm.fuse(folder / name, folder / "one.safetensors", tmp_path / "f.safetensors")
    state = {key: torch.from_numpy(array) for key, array in read_model(tmp_path / "f.safetensors").items()}
    found = unet(oracle.convert_ldm_unet_checkpoint(state, dict(unet().config)))
    assert distance(pixels(found), wanted) < 1e-5


def test_what_was_fused_is_extracted_in_the_format_of_the_model(place, tmp_path):
    folder, _ = place
    lm.fuse(folder / "peft", folder / "pipeline", tmp_path / "f")
    lm.fuse(folder / "peft", folder / "one.safetensors", tmp_path / "f.safetensors")
    lm.extract(tmp_path / "f", folder / "pipeline", tmp_path / "e", rank=4)
    lm.extract(tmp_path / "f.safetensors", folder / "one.safetensors", tmp_path / "e.safetensors", rank=4)
    assert lm.load(tmp_path / "e").dialect == "diffusers"
    assert lm.load(tmp_path / "e.safetensors").dialect == "kohya"
    assert lm.diff(tmp_path / "e", folder / "diffusers.safetensors").largest < 1e-5
    assert lm.diff(tmp_path / "e.safetensors", folder / "kohya.safetensors").largest < 1e-5


@pytest.mark.parametrize("whole", ["pipeline", "pipeline/unet"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_file_is_compared_with_a_folder_of_diffusers(place, tmp_path, whole, turned):
    folder, _ = place
    lm.fuse(folder / "peft", folder / whole, tmp_path / "f")
    lm.fuse(folder / "peft", folder / "one.safetensors", tmp_path / "f.safetensors")
    pair = (tmp_path / "f", folder / "one.safetensors")
    pair = (tmp_path / "f.safetensors", folder / whole) if turned else pair
    done = lm.extract(*pair, tmp_path / "e.safetensors", rank=4)
    assert lm.diff(tmp_path / "e.safetensors", folder / "kohya.safetensors").largest < 1e-5
    assert not list(done.notes)


def test_a_file_that_lacks_a_module_of_a_folder_is_refused(place, tmp_path):
    folder, _ = place
    state = read_model(folder / "one.safetensors")
    del state["model.diffusion_model.out.2.weight"]
    save_model(tmp_path / "f.safetensors", state)
    with pytest.raises(lm.errors.IncompatibleError, match="one is a file and one a folder"):
        lm.extract(tmp_path / "f.safetensors", folder / "pipeline")


WIDE = 16  # of a tiny Flux, whose fused tensors have the proportions of the true one


def flux():
    """The tensors of a Flux in one file, as far as its blocks go."""
    double = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.0": (4, 1), "mlp.2": (1, 4), "mod.lin": (6, 1)}
    shapes = {
        f"double_blocks.{b}.{side}_{n}.weight": s
        for b in range(19)
        for side in ("img", "txt")
        for n, s in double.items()
    }
    single_ = {"linear1": (7, 1), "linear2": (1, 5), "modulation.lin": (3, 1)}
    shapes |= {f"single_blocks.{b}.{n}.weight": s for b in range(38) for n, s in single_.items()}
    shapes["final_layer.adaLN_modulation.1.weight"] = (2, 1)
    return random_model(0, {key: (a * WIDE, b * WIDE) for key, (a, b) in shapes.items()})


PARTS = {  # a module of diffusers -> the tensor that holds its rows
    "transformer_blocks.3.attn.to_k": "double_blocks.3.img_attn.qkv.weight",
    "transformer_blocks.3.attn.add_v_proj": "double_blocks.3.txt_attn.qkv.weight",
    "single_transformer_blocks.30.proj_mlp": "single_blocks.30.linear1.weight",
    "single_transformer_blocks.30.attn.to_v": "single_blocks.30.linear1.weight",
    "norm_out.linear": "final_layer.adaLN_modulation.1.weight",
}
ROWS = {  # which of its rows, in widths
    "transformer_blocks.3.attn.to_k": [1],
    "transformer_blocks.3.attn.add_v_proj": [2],
    "single_transformer_blocks.30.proj_mlp": [3, 4, 5, 6],
    "single_transformer_blocks.30.attn.to_v": [2],
    "norm_out.linear": [1, 0],
}


def test_parts_of_a_fused_tensor_of_flux_are_changed_in_their_rows_alone(tmp_path):
    before = flux()
    file = save_model(tmp_path / "flux.safetensors", before)
    rng = np.random.default_rng(1)
    updates = {
        f"transformer.{path}": lm.LowRank(
            rng.standard_normal((len(rows) * WIDE, 2)), rng.standard_normal((2, WIDE))
        )
        for path, rows in ROWS.items()
    }
    from loramerge.adapters.adapter import Held, Slot
    from loramerge.adapters.target import Target

    slots = {
        Target(path.removeprefix("transformer."), component="transformer"): Slot(
            Held(u.up), Held(u.down), 1.0
        )
        for path, u in updates.items()
    }
    lm.fuse(lm.Adapter("a", slots, dialect="diffusers"), file, tmp_path / "f.safetensors")
    after = read_model(tmp_path / "f.safetensors")
    wanted = {key: array.astype(np.float64) for key, array in before.items()}
    for path, key in PARTS.items():
        dense = updates[f"transformer.{path}"].dense().reshape(len(ROWS[path]), WIDE, WIDE)
        for row, part in zip(ROWS[path], dense, strict=True):
            wanted[key][row * WIDE : (row + 1) * WIDE] += part
    assert all(np.allclose(after[key], wanted[key], atol=1e-5) for key in wanted)
    assert sum(not np.array_equal(after[key], before[key]) for key in before) == len(set(PARTS.values()))


def test_the_second_text_encoder_of_sdxl_keeps_queries_keys_and_values_together(tmp_path):
    here = "conditioner.embedders.1.model.transformer.resblocks.0"
    shapes = {
        f"{here}.attn.in_proj_weight": (24, 8),
        f"{here}.attn.out_proj.weight": (8, 8),
        f"{here}.mlp.c_fc.weight": (32, 8),
    }
    shapes["conditioner.embedders.1.model.text_projection"] = (8, 4)
    before = random_model(0, shapes)
    file = save_model(tmp_path / "xl.safetensors", before)
    layer = "text_model.encoder.layers.0"
    adapted = {f"{layer}.self_attn.k_proj": (8, 8), f"{layer}.mlp.fc1": (32, 8), "text_projection": (4, 8)}
    after = {key: array.copy() for key, array in before.items()}
    after[f"{here}.attn.in_proj_weight"][8:16] += 1
    after[f"{here}.mlp.c_fc.weight"] += 1
    after["conditioner.embedders.1.model.text_projection"] += np.arange(4, dtype=np.float32)
    save_model(tmp_path / "t.safetensors", after)
    done = lm.extract(tmp_path / "t.safetensors", file, tmp_path / "e.safetensors", rank=1)
    assert {(t.component, t.path): slot.shape for t, slot in done.adapter.slots.items()} == {
        ("text_encoder_2", path): shape for path, shape in adapted.items()
    }
    lm.fuse(tmp_path / "e.safetensors", file, tmp_path / "f.safetensors")
    assert all(
        np.allclose(read_model(tmp_path / "f.safetensors")[key], after[key], atol=1e-5) for key in after
    )


def test_a_file_of_openclip_is_compared_with_what_transformers_makes_of_it(tmp_path):
    here, layer = "conditioner.embedders.1.model", "text_model.encoder.layers.0.self_attn"
    qkv = f"{here}.transformer.resblocks.0.attn.in_proj_weight"
    before = random_model(0, {qkv: (24, 8), f"{here}.text_projection": (8, 4), f"{here}.logit_scale": (1,)})
    file = save_model(tmp_path / "xl.safetensors", before)
    parts = np.split(before[qkv], 3)
    parts[1] = parts[1] + np.float32(1)
    after = {f"{layer}.{side}_proj.weight": part for side, part in zip("qkv", parts, strict=True)}
    after["text_projection.weight"] = before[f"{here}.text_projection"].T + np.arange(8, dtype=np.float32)
    after["text_model.embeddings.position_ids"] = np.arange(4)[None]
    save_model(tmp_path / "t" / "text_encoder_2", {k: np.ascontiguousarray(a) for k, a in after.items()})
    (tmp_path / "t" / "model_index.json").write_text(json.dumps({"text_encoder_2": ["a", "b"]}))
    done = lm.extract(tmp_path / "t", file, rank=1)
    found = {t.path: done.adapter[t].dense() for t in done.adapter}
    assert found.keys() == {f"{layer}.k_proj", "text_projection"}
    np.testing.assert_allclose(found[f"{layer}.k_proj"], np.ones((8, 8)), atol=1e-5)
    np.testing.assert_allclose(found["text_projection"], np.tile(np.arange(8), (4, 1)), atol=1e-5)


def test_the_tables_translate_openclip_as_transformers_names_it():
    size = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(vocab_size=9, max_position_embeddings=7, projection_dim=8, **size)
    theirs = transformers.CLIPTextModelWithProjection(config).state_dict()
    known = {key.removeprefix("text_model."): tuple(tensor.shape) for key, tensor in theirs.items()}
    layer = {
        "attn.in_proj_weight": (24, 8),
        "attn.in_proj_bias": (24,),
        "attn.out_proj.weight": (8, 8),
        "mlp.c_fc.weight": (32, 8),
        "mlp.c_proj.bias": (8,),
        "ln_1.weight": (8,),
    }
    shapes = {f"transformer.resblocks.0.{name}": shape for name, shape in layer.items()}
    shapes |= {"text_projection": (8, 8), "token_embedding.weight": (9, 8), "positional_embedding": (7, 8)}
    for key, shape in shapes.items():
        found = single.parts(f"conditioner.embedders.1.model.{key}", shape)
        assert len(found) == (3 if "in_proj" in key else 1)
        for part in found:
            rows = sum(span.stop - span.start for span in part.rows) or shape[0]
            there = known[f"{part.path}.{part.parameter}".removeprefix("text_model.")]
            assert there == ((rows, *shape[1:])[::-1] if part.turned else (rows, *shape[1:]))


@pytest.mark.parametrize("model", ["pipeline", "one.safetensors"])
def test_norms_and_biases_of_a_tuned_unet_are_extracted_as_differences(place, tmp_path, model):
    folder, _ = place
    lm.fuse(folder / "peft", folder / model, tmp_path / model)
    weights = tmp_path / model
    if model == "pipeline":
        weights = tmp_path / model / "unet" / "diffusion_pytorch_model.safetensors"
    state, metadata = read_model(weights), {"format": "pt"}
    ends = ("norm.weight", "out.2.bias", "conv_out.bias", "time_embed.0.bias", "linear_1.bias")
    changed = [key for key in state if key.endswith(ends)]
    assert len(changed) > 2
    for key in changed:
        state[key] = state[key] + np.float32(0.25)
    weights.unlink()
    save_model(weights, state, metadata=metadata)
    with pytest.raises(lm.errors.IncompatibleError, match="Decide with extras"):
        lm.extract(tmp_path / model, folder / model, rank=4)
    out = tmp_path / "e.safetensors"
    done = lm.extract(tmp_path / model, folder / model, out, rank=4, extras="first")
    assert sorted(key.rpartition(".")[2] for key in done.adapter.extras) == sorted(
        "diff_b" if key.endswith("bias") else "diff" for key in changed
    )
    (tmp_path / "again").mkdir()
    lm.fuse(out, folder / model, tmp_path / "again" / model)
    again = read_model(tmp_path / "again" / weights.relative_to(tmp_path))
    assert again.keys() == state.keys()
    assert all(np.allclose(again[key], state[key], atol=1e-5) for key in state)


CLIP, BIG = "cond_stage_model.transformer.text_model", "conditioner.embedders.1.model"
DOUBLE, SINGLE = "double_blocks.0", "single_blocks.0"
BESIDE = {  # a matrix that is tuned -> shapes of tensors beside it that are tuned too
    f"{CLIP}.encoder.layers.0.self_attn.q_proj": {
        f"{CLIP}.encoder.layers.0.self_attn.q_proj.bias": (8,),
        f"{CLIP}.encoder.layers.0.layer_norm1.weight": (8,),
        f"{CLIP}.final_layer_norm.bias": (8,),
    },
    f"{BIG}.transformer.resblocks.0.mlp.c_fc": {
        f"{BIG}.transformer.resblocks.0.mlp.c_fc.bias": (8,),
        f"{BIG}.transformer.resblocks.0.ln_1.weight": (8,),
        f"{BIG}.ln_final.bias": (8,),
    },
    f"{DOUBLE}.img_mlp.0": {
        f"{DOUBLE}.img_mlp.0.bias": (4 * WIDE,),
        f"{SINGLE}.modulation.lin.bias": (3 * WIDE,),
        "img_in.bias": (8,),
        "final_layer.linear.bias": (8,),
    },
}
NO_PLACE = {  # parts of a fused bias, and a scale that is neither weight nor bias
    f"{BIG}.transformer.resblocks.0.mlp.c_fc": f"{BIG}.transformer.resblocks.0.attn.in_proj_bias",
    f"{DOUBLE}.img_mlp.0": f"{DOUBLE}.img_attn.norm.query_norm.scale",
}


def tuned(tmp_path, matrix, beside):
    """(a base, what training made of it) as single files; a Flux has all that tells it from other models."""
    before = flux() if matrix.startswith(DOUBLE) else random_model(0, {f"{matrix}.weight": (8, 8)})
    before |= random_model(1, beside)
    after = {
        key: each + np.float32(0.25) if key in (f"{matrix}.weight", *beside) else each
        for key, each in before.items()
    }
    return (
        save_model(tmp_path / "b.safetensors", before),
        save_model(tmp_path / "t.safetensors", after),
        after,
    )


@pytest.mark.parametrize("matrix", BESIDE)
def test_norms_and_biases_of_text_encoders_and_flux_come_back(tmp_path, matrix):
    before, after, wanted = tuned(tmp_path, matrix, BESIDE[matrix])
    done = lm.extract(after, before, tmp_path / "e.safetensors", rank=1, extras="first")
    assert len(done.adapter) == 1
    assert len(done.adapter.extras) == len(BESIDE[matrix])
    lm.fuse(tmp_path / "e.safetensors", before, tmp_path / "again.safetensors")
    again = read_model(tmp_path / "again.safetensors")
    assert all(np.allclose(again[key], wanted[key], atol=1e-5) for key in wanted)


@pytest.mark.parametrize("matrix", NO_PLACE)
def test_what_no_adapter_of_image_models_can_hold_is_named(tmp_path, matrix):
    before, after, _ = tuned(tmp_path, matrix, {NO_PLACE[matrix]: (24,)})
    with pytest.raises(lm.errors.IncompatibleError, match=NO_PLACE[matrix].rpartition(".")[2]):
        lm.extract(after, before, tmp_path / "e.safetensors", rank=1, extras="first")
    lm.extract(after, before, tmp_path / "e.safetensors", rank=1, extras="drop")
