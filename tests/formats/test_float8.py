"""Factors of 8-bit floats with scales beside them are exact; what nunchaku packs is named."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError

NAMES = {"float32": "F32", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
STEM = "diffusion_model.blocks.0.self_attn.q"


def written(path, tensors):
    """A safetensors file, whose library knows no 8-bit floats of NumPy."""
    header, data = {}, b""
    for key, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": NAMES[value.dtype.name], "shape": list(value.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def factors(kind, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, 8)).astype(kind), rng.standard_normal((8, 4)).astype(kind)


# A kind from the wild: B1, scaled fp8.
@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("end", ["scale_weight", "weight_scale", "weight_scale_inv"])
def test_a_scale_is_a_factor_of_the_update_exactly(kind, end, tmp_path):
    down, up = factors(kind)
    one, two = np.float32(0.0123), np.array([3.7], "f4")
    path = written(tmp_path / "a.safetensors", {
        f"{STEM}.lora_A.weight": down, f"{STEM}.lora_A.{end}": np.array(one),
        f"{STEM}.lora_B.weight": up, f"{STEM}.lora_B.{end}": two,
        f"{STEM}.lora_A.scale_input": np.ones(1, "f4"), "scaled_fp8": np.zeros(2, kind),
    })  # fmt: skip
    (update,) = lm.load(path).values()
    wanted = (float(two[0]) * float(one)) * (up.astype(float) @ down.astype(float))
    np.testing.assert_allclose(update.dense(), wanted, rtol=1e-14, atol=1e-16)
    assert not lm.load(path).extras
    for consumer in ("comfyui", "diffusers"):
        assert [finding.effect for finding in lm.check(path, consumer)] == ["unknown"]


def test_a_scale_for_each_row_is_rounded_to_float32(tmp_path):
    down, up = factors(ml_dtypes.float8_e4m3fn)
    rows = np.linspace(0.1, 3, 8, dtype="f4")[:, None]
    tensors = {
        f"{STEM}.lora_A.weight": down,
        f"{STEM}.lora_B.weight": up,
        f"{STEM}.lora_B.scale_weight": rows,
    }
    (update,) = lm.load(written(tmp_path / "a.safetensors", tensors)).values()
    np.testing.assert_allclose(update.dense(), (up.astype(float) * rows) @ down.astype(float), atol=1e-6)


def test_what_is_not_read_is_a_sentence(tmp_path):
    down, up = factors(ml_dtypes.float8_e4m3fn)
    tensors = {f"{STEM}.lora_A.weight": down, f"{STEM}.lora_B.weight": up}
    odd = written(tmp_path / "a.safetensors", tensors | {f"{STEM}.lora_B.scale_weight": np.ones(3, "f4")})
    with pytest.raises(IncompatibleError, match=r"has the shape \(3,\).*only one scale"):
        lm.load(odd)
    plain = {key: value.astype("f4") for key, value in tensors.items()}
    loose = written(tmp_path / "b.safetensors", plain | {f"{STEM}.lora_B.scale_weight": np.ones(1, "f4")})
    with pytest.raises(IncompatibleError, match="scale_weight"):
        lm.load(loose)


@pytest.mark.parametrize(
    "key",
    [
        "transformer_blocks.0.qkv_proj.lora_down",
        "single_transformer_blocks.3.mlp_fc1.lora_up",
        "transformer_blocks.0.mlp_context_fc2.smooth_factor",
        "transformer_blocks.0.attn.to_qkv.wscales",
    ],
)
def test_what_nunchaku_packs_is_named_with_what_to_do(key, tmp_path):
    path = written(tmp_path / "a.safetensors", {key: np.ones((4, 8), "f4")})
    with pytest.raises(IncompatibleError, match=r"packed for nunchaku.*Merge the adapters that it was made"):
        lm.load(path)
