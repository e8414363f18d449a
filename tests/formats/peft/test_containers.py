"""What a folder or a file holds in place of an adapter is named, and what helps; empty and odd shapes too."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.forms.table import TYPES
from loramerge.formats.peft.config import CONVERTIBLE
from tests.helpers.files import Cli, folder, key, tensors
from tests.helpers.tiny_models import peft

HOLDS = {
    "adapter_model-00001-of-00002.bin": "pickled shard of several",
    "pytorch_model_fsdp_0": "checkpoint of FSDP",
    "__0_0.distcp": "checkpoint of FSDP",
    "global_step100": "checkpoint of DeepSpeed",
    "zero_to_fp32.py": "checkpoint of DeepSpeed",
    "adapter.gguf": "file of llama.cpp",
    "adapter_0.pt": "checkpoint of torchtune",
    "pytorch_model_fsdp.bin": "checkpoint of FSDP",
    "README.md": "the download is incomplete",
    "consolidated.00.pth": "another pickle",
}


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("name", HOLDS)
def test_the_sentence_says_what_is_there_instead(name, config, tmp_path, capsys):
    source = folder(tmp_path / "a")
    (source / "adapter_model.safetensors").unlink()
    (source / name).write_bytes(b"x")
    words = HOLDS[name]
    if not config:
        (source / "adapter_config.json").unlink()
        words = "it is not a PEFT adapter" if name == "README.md" else words
    Cli(capsys)("combine", source, "-o", tmp_path / "m").refused(1, words)
    words = "no file of weights" if name == "README.md" else words
    Cli(capsys)("check", source).refused(1, words)


NAMED = {
    "model.safetensors": "the name of a model",
    "model-00001-of-00002.safetensors": "the name of a model",
    "other.safetensors": "name that file",
}


@pytest.mark.parametrize("name", NAMED)
def test_weights_under_another_name_are_not_called_missing(name, tmp_path, capsys):
    source = folder(tmp_path / "a")
    (source / "adapter_model.safetensors").rename(source / name)
    Cli(capsys)("combine", source, "-o", tmp_path / "m").refused(1, NAMED[name])


@pytest.mark.parametrize("end", ["lora_B.weight_scale", "lora_A.scales", "lora_A.weight_scale_inv"])
def test_scales_of_quantised_factors_are_refused_by_name(end, tmp_path, capsys):
    name = f"base_model.model.layers.0.q.{end}"
    source = folder(tmp_path / "a", tensors() | {name: np.ones(2, np.float32)})
    Cli(capsys)("combine", source, "--extras", "drop", "-o", tmp_path / "m").refused(3, name)


HEADS = {
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "a pointer of Xet": (b"# xet version 0\nfilesize = 10\nhash = 'abc'\n", "begins with # xet version 0"),
    "a message": (b'{"error": "Repository not found", "code": 404}', "is a text"),
    "an archive": (b"\x1f\x8b\x08" + bytes(60), "is an archive: unpack it"),
    "weights of Keras": (b"\x89HDF\r\n\x1a\n" + bytes(60), "a file of Keras"),
    "torch.save under another name": (b"PK\x03\x04" + bytes(60), "torch.save"),
}  # fmt: skip


# A kind from the wild: E, sentences about containers.
@pytest.mark.parametrize("place", ["adapter_model.safetensors", "alone.safetensors"])
@pytest.mark.parametrize("name", HEADS)
def test_the_first_bytes_give_away_what_a_file_is(name, place, tmp_path, capsys):
    text, words = HEADS[name]
    source = folder(tmp_path / "a")
    (source / place).write_bytes(text)
    given = source if place.startswith("adapter") else source / place
    Cli(capsys)("combine", given, "-o", tmp_path / "m").refused(1, words)
    Cli(capsys)("check", given).refused(1, words)
    Cli(capsys)("inspect", given).refused(1, words)


# A kind from the wild: E, ZeRO-3.
def test_empty_factors_are_those_that_zero_3_did_not_gather(tmp_path, capsys):
    values = tensors() | {key("layers.0.q", side): np.zeros(0, np.float32) for side in "AB"}
    Cli(capsys)("combine", folder(tmp_path / "a", values), "-o", tmp_path / "m").refused(
        1, "ZeRO-3", "stage3_gather_16bit_weights_on_model_save"
    )


# A kind from the wild: E, save_as_lora.
@pytest.mark.parametrize("kind", sorted({str(kind.value) for kind in peft.PeftType} - set(TYPES)))
def test_of_other_types_only_those_are_said_to_be_converted_that_peft_converts(kind, tmp_path):
    with pytest.raises(lm.IncompatibleError) as caught:
        lm.load(folder(tmp_path / "a", tensors(), peft_type=kind))
    assert ("save_as_lora" in str(caught.value)) == (kind in CONVERTIBLE)


def test_what_peft_converts_is_what_its_layers_say():
    """Whatever type has a layer that says True, and no other."""
    import importlib
    import inspect

    found = set()
    for kind in peft.PeftType:
        try:
            module = importlib.import_module(f"peft.tuners.{kind.value.lower()}.layer")
        except ImportError:
            continue
        for _, layer in inspect.getmembers(module, inspect.isclass):
            said = layer.__dict__.get("supports_lora_conversion")
            if said is not None and "return False" not in inspect.getsource(said):
                found.add(str(kind.value))
    assert found - {"LORA", "LOHA", "LOKR"} == CONVERTIBLE


CONFIG = {
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 2, "scale": 4.0, "dropout": 0.0},
}


def npz(path, dtype=np.float32, **more):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 2)), rng.standard_normal((2, 6))
    stem = "model.layers.0.self_attn.q_proj"
    np.savez(path, **{f"{stem}.lora_a": a.astype(dtype), f"{stem}.lora_b": b.astype(dtype)}, **more)
    return (a @ b).T


# A kind from the wild: B2 and E, .npz.
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_npz_of_an_early_mlx_lm_is_read(dtype, tmp_path):
    (tmp_path / "a").mkdir()
    product = npz(tmp_path / "a" / "adapters.npz", dtype)
    with pytest.raises(lm.IncompatibleError, match="does not say its scale"):
        lm.load(tmp_path / "a")
    for place in (tmp_path / "a", tmp_path / "a" / "adapters.npz"):
        (update,) = lm.load(place, alpha=6).values()
        np.testing.assert_allclose(update.dense(), 3 * product, rtol=3e-3, atol=3e-3)
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(CONFIG))
    for place in (tmp_path / "a", tmp_path / "a" / "adapters.npz"):
        (update,) = lm.load(place).values()
        np.testing.assert_allclose(update.dense(), 4 * product, rtol=3e-3, atol=3e-3)
    merge = lm.combine([tmp_path / "a"], format="peft", out=tmp_path / "m")
    np.testing.assert_allclose(next(iter(merge.adapter.values())).dense(), 4 * product, rtol=3e-3, atol=3e-3)
    found = lm.check(tmp_path / "a", "mlx")
    assert [each.effect for each in found] == ["rejects"], "mlx-lm reads adapters.safetensors"


def test_an_npz_of_objects_or_of_whole_numbers_is_no_adapter(tmp_path):
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "adapters.npz", x=np.array([{}], object))
    with pytest.raises(lm.SourceError, match="objects"):
        lm.load(tmp_path / "a", alpha=1)
    npz(tmp_path / "a" / "adapters.npz", np.int32)
    with pytest.raises(lm.LoramergeError, match=r"lora_a .* is stored as"):
        lm.load(tmp_path / "a", alpha=1)


ELSEWHERE = {
    "model_world_size_2_rank_0.pt": "verl", "latest_checkpointed_iteration.txt": "Megatron",
    "lora.nemo": "NeMo",    "weights.h5": "another framework", "adapter.tar.gz": "unpack it",
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_folder_that_holds_something_else_is_told_what_it_is(name, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"PK\x03\x04")
    Cli(capsys)("combine", tmp_path / "a", "-o", tmp_path / "m").refused(1, ELSEWHERE[name])


def test_a_config_that_is_a_pointer_is_called_so_and_not_invalid(tmp_path, capsys):
    source = folder(tmp_path / "a", config="version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    Cli(capsys)("combine", source, "-o", tmp_path / "m").refused(1, "adapter_config.json", "git lfs pull")
