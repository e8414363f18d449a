"""State dicts in and out: NumPy or torch, as PEFT hands them over and takes them back."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import loramerge
from loramerge import IncompatibleError, SourceError, Target, UsageError, from_state_dict, to_state_dict
from tests.helpers.tiny_models import (
    QUIET,
    TOKENS,
    deltas,
    distance,
    gpt2,
    llama,
    load_adapters,
    logits,
    new_adapter,
    peft,
    save_adapter,
    torch,
    with_state,
)

pytestmark = QUIET

DOWN, UP = (f"base_model.model.layer.lora_{side}.weight" for side in "AB")
TARGET = Target("layer")
VALUES = {DOWN: np.arange(6.0).reshape(2, 3) / 4, UP: np.arange(8.0).reshape(4, 2) - 3}
DENSE = VALUES[UP] @ VALUES[DOWN]

KINDS = {  # what a tensor may be, each holding VALUES exactly
    "NumPy float64": lambda v: v,
    "NumPy float32": lambda v: v.astype("f4"),
    "NumPy float16": lambda v: v.astype("f2"),
    "NumPy bfloat16": lambda v: v.astype(ml_dtypes.bfloat16),
    "NumPy, not contiguous": lambda v: np.repeat(v, 2, axis=1)[:, ::2],
    "NumPy, columns first": np.asfortranarray,
    "NumPy, read-only": lambda v: np.frombuffer(v.tobytes()).reshape(v.shape),
    "torch float64": torch.tensor,
    "torch float32": lambda v: torch.tensor(v, dtype=torch.float32),
    "torch float16": lambda v: torch.tensor(v, dtype=torch.float16),
    "torch bfloat16": lambda v: torch.tensor(v, dtype=torch.bfloat16),
    "torch, transposed": lambda v: torch.tensor(v.T.copy()).T,
    "torch, a view": lambda v: torch.tensor(np.pad(v, 1))[1:-1, 1:-1],
    "torch bfloat16, transposed": lambda v: torch.tensor(v.T.copy(), dtype=torch.bfloat16).T,
    "torch, with gradient": lambda v: torch.tensor(v, requires_grad=True),
    "torch parameter, bfloat16": lambda v: torch.nn.Parameter(torch.tensor(v, dtype=torch.bfloat16)),
}
TORCH_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    ml_dtypes.bfloat16: torch.bfloat16,
}


@pytest.mark.parametrize("convert", KINDS.values(), ids=KINDS)
def test_any_array_or_tensor_is_read_without_loss(convert):
    adapter = from_state_dict({key: convert(value) for key, value in VALUES.items()}, alpha=3)
    np.testing.assert_array_equal(adapter[TARGET].dense(), DENSE * 3 / 2)


@pytest.mark.parametrize("dtype", TORCH_TYPES)
def test_types_survive_both_ways(dtype):
    state = {key: value.astype(dtype) for key, value in VALUES.items()}
    tensors = to_state_dict(from_state_dict(state, alpha="rank"), "torch")
    again = to_state_dict(from_state_dict(tensors, alpha="rank"))
    for key, value in state.items():
        assert tensors[key].dtype == TORCH_TYPES[dtype]
        assert again[key].dtype == value.dtype
        np.testing.assert_array_equal(again[key], value)


def test_torch_tensors_that_go_out_are_copies():
    adapter = from_state_dict(VALUES, alpha="rank")
    to_state_dict(adapter, "torch")[UP].zero_()
    np.testing.assert_array_equal(adapter[TARGET].dense(), DENSE)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_the_scale_goes_out_in_the_up_factor(framework):
    state = to_state_dict(from_state_dict(VALUES, alpha=3), framework)
    np.testing.assert_array_equal(np.asarray(state[DOWN]), VALUES[DOWN])
    np.testing.assert_array_equal(np.asarray(state[UP]), VALUES[UP] * 1.5)


def test_a_scaled_value_that_does_not_fit_is_refused():
    state = {DOWN: np.ones((1, 2), "f2"), UP: np.full((2, 1), 60000, "f2")}
    with pytest.raises(IncompatibleError, match="layer times its scale 4 does not fit float16"):
        to_state_dict(from_state_dict(state, alpha=4))


def test_tensors_beside_the_pairs_are_not_dropped_in_silence():
    adapter = from_state_dict(VALUES | {"base_model.model.score.weight": np.ones((2, 2))}, alpha=4)
    np.testing.assert_array_equal(to_state_dict(adapter)["base_model.model.score.weight"], np.ones((2, 2)))


CONFIG = {"r": 2, "lora_alpha": 4}
MISTAKES = {
    "neither config nor alpha": ({}, UsageError, "config= or alpha="),
    "both": ({"config": CONFIG, "alpha": 4}, UsageError, "config= or alpha="),
    "both, alpha by word": ({"config": CONFIG, "alpha": "rank"}, UsageError, "config= or alpha="),
    "an alpha that is no number": ({"alpha": float("nan")}, UsageError, "nan"),
    "an empty config": ({"config": {}}, SourceError, "does not give r"),
    "no alpha in the config": ({"config": {"r": 2}}, SourceError, "does not give lora_alpha"),
    "another rank": ({"config": {"r": 3, "lora_alpha": 4}}, SourceError, "do not belong together"),
    "another PEFT type": ({"config": CONFIG | {"peft_type": "IA3"}}, IncompatibleError, "IA3"),
    "DoRA": ({"config": CONFIG | {"use_dora": True}}, IncompatibleError, "DoRA"),
}


@pytest.mark.parametrize(("how", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(how, error, words):
    with pytest.raises(error, match=words):
        from_state_dict(VALUES, **how, name="mine")


def test_a_live_config_of_another_peft_type_is_refused():
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=[]).to_dict()
    with pytest.raises(IncompatibleError, match="IA3, not LORA"):
        from_state_dict(VALUES, config)


def test_an_unknown_framework_is_refused():
    with pytest.raises(UsageError, match="'jax' is not one of 'numpy', 'torch'"):
        to_state_dict(from_state_dict(VALUES, alpha=1), "jax")


LLAMA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
LIVE = {
    "plain": (llama, LLAMA),
    "rsLoRA": (llama, LLAMA | {"use_rslora": True}),
    "patterns": (llama, LLAMA | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*": 3}}),
    "modules by a regex": (llama, LLAMA | {"target_modules": r".*\.0\..*_proj"}),
    "Conv1D": (gpt2, {"r": 3, "lora_alpha": 5, "target_modules": {"c_attn"}, "fan_in_fan_out": True}),
}


def live(make, seed, config):
    """A live PEFT model, and our adapter of its state dict and its config as they are (a set, enums)."""
    model = new_adapter(make, seed, config)
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return model, from_state_dict(state, model.peft_config["default"].to_dict())


@pytest.mark.parametrize(("make", "config"), LIVE.values(), ids=LIVE)
def test_a_live_peft_model_is_read_as_peft_computes_it(make, config):
    model, adapter = live(make, 1, config)
    expected = deltas(model, "default")
    assert {target.path for target in adapter} == set(expected)
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), expected[target.path], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "config"), LIVE.values(), ids=LIVE)
def test_a_state_dict_is_its_saved_folder(make, config, tmp_path):
    _, adapter = live(make, 1, config)
    folder = loramerge.load(save_adapter(tmp_path / "a", make, 1, config))
    assert set(adapter) == set(folder)
    for target, update in folder.items():
        assert adapter[target].scale == update.scale
        np.testing.assert_array_equal(adapter[target].dense(), update.dense())


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize(("make", "config"), LIVE.values(), ids=LIVE)
def test_a_merge_of_live_adapters_goes_back_into_peft(make, config, framework, tmp_path):
    both = [save_adapter(tmp_path / str(seed), make, seed, config) for seed in (1, 2)]
    merge = loramerge.combine([live(make, seed, config)[1] for seed in (1, 2)], "linear").adapter
    state = {key: torch.as_tensor(value) for key, value in to_state_dict(merge, framework).items()}
    paths = [target.path for target in merge]
    alone = {"r": merge.rank, "lora_alpha": merge.rank, "target_modules": paths}
    model = with_state(make, alone | {"fan_in_fan_out": make is gpt2}, state)
    assert distance(logits(model), logits(load_adapters(make, both))) < 1e-5


@pytest.mark.parametrize(("make", "config"), LIVE.values(), ids=LIVE)
def test_a_merge_of_live_adapters_is_written_as_a_folder(make, config, tmp_path):
    both = [save_adapter(tmp_path / str(seed), make, seed, config) for seed in (1, 2)]
    loramerge.combine([live(make, seed, config)[1] for seed in (1, 2)], "cat", out=tmp_path / "merged")
    found = load_adapters(make, [tmp_path / "merged"])
    assert distance(logits(found), logits(load_adapters(make, both))) < 1e-5


def test_reading_a_live_model_leaves_it_as_it_was():
    model, adapter = live(llama, 1, LLAMA)
    before = logits(model)
    loramerge.combine([adapter, adapter], "lego", weights=(2, -1))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    factors = [p for name, p in model.named_parameters() if ".lora_" in name]
    assert all(p.requires_grad for p in factors)
    model(input_ids=TOKENS).logits.sum().backward()
    assert all(p.grad is not None for p in factors)


WITHOUT_TORCH = """
import sys
import numpy as np
import loramerge
state = {f"base_model.model.q.lora_{s}.weight": np.ones((2, 2), np.float32) for s in "AB"}
sources = [loramerge.from_state_dict(state, alpha=a) for a in (1, 2)]
for method in loramerge.METHODS:
    merge = loramerge.combine(sources, method, weights=[1, 1], out=sys.argv[1] + method)
    loramerge.to_state_dict(merge.adapter)
print([name for name in ("torch", "sklearn", "peft", "transformers", "cupy") if name in sys.modules])
"""


def test_a_merge_of_numpy_state_dicts_imports_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, f"{tmp_path}/"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
