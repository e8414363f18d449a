"""8-bit floats are read and written with their scales; a quantisation of another kind is refused by name."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.quantisation import check_readable
from loramerge.errors import IncompatibleError
from tests.helpers.models import CONFIG, random_model, read_model, save_model

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
SHAPE = (130, 260)
SCALES = {"one": (1,), "a scalar": (), "each row": (130, 1), "each row, flat": (130,), "blocks": (2, 3)}
NAMES = {"blocks": "weight_scale_inv"}


def spread(scales):
    if scales.size == 1:
        return scales.reshape(())
    if scales.size == SHAPE[0]:
        return scales.reshape(-1, 1)
    return scales.repeat(128, 0)[: SHAPE[0]].repeat(128, 1)[:, : SHAPE[1]]


def model(folder, kind):
    rng = np.random.default_rng(0)
    scales = (0.01 * (1 + rng.random(SCALES[kind]))).astype(np.float32)
    weight = (100 * rng.standard_normal(SHAPE)).astype(FP8)
    name = NAMES.get(kind, "weight_scale")
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8"}}
    return save_model(folder, {"q.weight": weight, f"q.{name}": scales, **random_model()}, config), name


@pytest.mark.parametrize("kind", SCALES)
def test_a_sum_is_exact_up_to_one_rounding_at_the_scales_of_the_model(tmp_path, kind):
    folder, name = model(tmp_path / "m", kind)
    rng = np.random.default_rng(1)
    update = lm.LowRank(rng.standard_normal((130, 2)), 0.02 * rng.standard_normal((2, 260)))
    before = read_model(folder)
    lm.fuse(lm.Adapter.of({"q": update}), folder, tmp_path / "f")
    after = read_model(tmp_path / "f")
    old, new = (spread(each[f"q.{name}"].astype(np.float64)) for each in (before, after))
    wanted = before["q.weight"].astype(np.float64) * old + update.dense()
    assert np.array_equal(after["q.weight"], (wanted / new).astype(FP8))
    assert (new >= old).all(), "a scale only grows"
    assert np.array_equal(before["model.norm.weight"], after["model.norm.weight"])


def test_a_scale_grows_only_where_the_sum_does_not_fit(tmp_path):
    folder, name = model(tmp_path / "m", "each row")
    up = np.zeros((130, 1))
    up[7] = 1000.0
    lm.fuse(lm.Adapter.of({"q": lm.LowRank(up, np.ones((1, 260)))}), folder, tmp_path / "f")
    before, after = (read_model(each)[f"q.{name}"] for each in (folder, tmp_path / "f"))
    assert np.flatnonzero((after > before).ravel()).tolist() == [7]
    stored = read_model(tmp_path / "f")["q.weight"].astype(np.float64)
    assert np.isfinite(stored).all()
    assert np.allclose(stored[7] * after[7], 1000, rtol=0.1)


def test_scales_of_a_shape_that_is_not_known_are_refused(tmp_path):
    weight, scales = np.ones(SHAPE, FP8), np.ones((3, 5), np.float32)
    save_model(tmp_path / "m", {"q.weight": weight, "q.weight_scale": scales})
    adapter = lm.Adapter.of({"q": lm.LowRank(np.ones((130, 1)), np.ones((1, 260)))})
    with pytest.raises(IncompatibleError, match="neither one, one a row, nor one a block"):
        lm.fuse(adapter, tmp_path / "m", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_as_many_blocks_as_rows_are_blocks_still(tmp_path):
    """So it is in the attention of DeepSeek-V3: 7168 rows, and 56 × 128 blocks."""
    rng = np.random.default_rng(0)
    weight, scales = rng.standard_normal((3, 384)).astype(FP8), np.float32([[1.0, 2.0, 4.0]])
    save_model(tmp_path / "m", {"q.weight": weight, "q.weight_scale_inv": scales})
    wide = weight.astype(np.float64) * scales.astype(np.float64).repeat(128, axis=1)
    save_model(tmp_path / "t", {"q.weight": (wide + 1).astype(np.float32)})
    (module,) = lm.extract(tmp_path / "t", tmp_path / "m", rank=1).modules
    assert module.energy == pytest.approx(3 * 384, rel=1e-5)
    update = lm.LowRank(np.ones((3, 1)), 100 * np.ones((1, 384)))
    lm.fuse(lm.Adapter.of({"q": update}), tmp_path / "m", tmp_path / "f")
    after = read_model(tmp_path / "f")
    found = after["q.weight"].astype(np.float64) * after["q.weight_scale_inv"].repeat(128, axis=1)
    assert np.allclose(found, wide + 100, rtol=0.1)


def test_a_row_of_zeros_stays_one(tmp_path):
    weight, scales = np.ones((4, 8), FP8), np.float32([[1], [0], [0], [2]])
    save_model(tmp_path / "m", {"q.weight": weight, "q.weight_scale": scales})
    update = lm.LowRank(np.float32([[0], [0], [1], [0]]), np.ones((1, 8), np.float32))
    done = lm.fuse(lm.Adapter.of({"q": update}), tmp_path / "m", tmp_path / "f")
    after = read_model(tmp_path / "f")
    found = after["q.weight"].astype(np.float64) * after["q.weight_scale"]
    assert np.allclose(found, np.float32([[1], [0], [1], [2]]), rtol=0.1)
    assert done.rounding < 0.1


WITH_SCALES = {  # a weight, its scales, and why nothing is known of them
    "of columns": ("q.weight", (8, 8), "q.weight_scale", (1, 8)),
    "of experts": ("mlp.experts.down_proj", (2, 8, 8), "mlp.experts.down_proj_scale", (2, 1, 8)),
}


@pytest.mark.parametrize("name", WITH_SCALES)
def test_scales_that_could_be_of_something_else_are_refused(tmp_path, name):
    key, shape, scale, count = WITH_SCALES[name]
    before = {key: np.ones(shape, FP8), scale: np.full(count, 0.5, np.float32)}
    save_model(tmp_path / "b", before)
    save_model(tmp_path / "t", {**before, scale: np.full(count, 0.25, np.float32)})
    with pytest.raises(IncompatibleError, match="neither one, one a row"):
        lm.extract(tmp_path / "t", tmp_path / "b", rank=1)


BY_CONFIG = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "hqq": "hqq", "mxfp4": "MXFP4"}
BY_NAME = {
    "q.qweight": "GPTQ or AWQ",
    "q.weight.absmax": "bitsandbytes",
    "q.SCB": "bitsandbytes",
    "q.weight_packed": "compressed-tensors",
}


@pytest.mark.parametrize("method", BY_CONFIG)
def test_a_config_that_says_a_quantisation_is_refused_by_its_name(tmp_path, method):
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    folder = save_model(tmp_path / "m", random_model(), config)
    with pytest.raises(IncompatibleError, match=f"quantised with {BY_CONFIG[method]}"):
        lm.fuse(lm.Adapter.of({}), folder, tmp_path / "f")


@pytest.mark.parametrize("key", BY_NAME)
def test_tensors_of_a_quantisation_are_refused_by_its_name(tmp_path, key):
    folder = save_model(tmp_path / "m", {**random_model(), key: np.zeros(4, np.uint8)})
    with pytest.raises(IncompatibleError, match=BY_NAME[key]):
        check_readable(open_checkpoint(folder))


I32, F16, U8, I8 = np.int32, np.float16, np.uint8, np.int8
MADE = {  # as the tools write them, without a config that says so: name -> (tensors, what it is called)
    "gptq": ({"q.qweight": I32, "q.qzeros": I32, "q.scales": F16, "q.g_idx": I32}, "GPTQ or AWQ"),
    "awq": ({"q.qweight": I32, "q.qzeros": I32, "q.scales": F16}, "GPTQ or AWQ"),
    "nunchaku": ({"q.qweight": I8, "q.wscales": F16, "q.proj_down": F16, "q.smooth_factor": F16}, "nunchaku"),
    "NVFP4": ({"q.weight": U8, "q.weight_scale": F16, "q.weight_scale_2": F16}, "NVFP4"),
    "HQQ": ({"q.W_q": U8, "q.scale": F16, "q.zero": F16}, "HQQ"),
    "quanto": ({"q.weight._data": I8, "q.weight._scale": F16}, "quanto"),
    "bnb, 4 bits": (
        {
            "q.weight": U8,
            "q.weight.absmax": U8,
            "q.weight.quant_map": np.float32,
            "q.weight.nested_absmax": np.float32,
            "q.weight.nested_quant_map": np.float32,
            "q.weight.quant_state.bitsandbytes__nf4": U8,
        },
        "bitsandbytes",
    ),
    "bnb, 8 bits": ({"q.weight": I8, "q.SCB": np.float32, "q.weight_format": U8}, "bitsandbytes"),
}


@pytest.mark.parametrize("name", MADE)
def test_quantised_files_are_refused_by_name_as_base_and_as_tuned_model(tmp_path, name):
    tensors, words = MADE[name]
    plain = save_model(tmp_path / "b", random_model())
    values = {key: np.ones((4, 4), kind) for key, kind in tensors.items()}
    folder = save_model(tmp_path / "m", random_model())
    save_file({**random_model(), **values}, folder / "model.safetensors", {"format": "pt"})
    adapter = lm.Adapter.of({"q": lm.LowRank(np.ones((4, 1)), np.ones((1, 4)))})
    for act in (
        lambda: lm.fuse(adapter, folder, tmp_path / "f"),
        lambda: lm.extract(folder, plain, tmp_path / "f"),
        lambda: lm.extract(plain, folder, tmp_path / "f"),
    ):
        with pytest.raises(IncompatibleError, match=f"quantised with {words}"):
            act()
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m/model.safetensors"])
def test_gguf_is_refused_by_its_name(tmp_path, name):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    base = place if place.parent == tmp_path else place.parent
    with pytest.raises(lm.errors.LoramergeError, match="is a GGUF model: name the model"):
        lm.fuse(lm.Adapter.of({}), base, tmp_path / "f.safetensors")


def test_the_difference_of_8_bit_floats_is_that_of_their_numbers(tmp_path):
    folder, name = model(tmp_path / "b", "blocks")
    base = read_model(folder)
    tuned = {**base, f"q.{name}": base[f"q.{name}"] * np.float32(1.5)}
    save_model(tmp_path / "t", tuned, {**CONFIG, "quantization_config": {"quant_method": "fp8"}})
    wide = base["q.weight"].astype(np.float64)
    wanted = wide * (spread(tuned[f"q.{name}"].astype(float)) - spread(base[f"q.{name}"].astype(float)))
    done = lm.extract(tmp_path / "t", folder, rank=130)
    (module,) = [each for each in done.modules if each.energy]
    assert module.energy == pytest.approx(np.square(wanted).sum(), rel=1e-12)
    assert np.allclose(done.adapter[module.target].dense(), wanted, atol=1e-5 * np.abs(wanted).max())
