"""Microsoft's loralib: bare parameters, parts of a layer in groups, an alpha that only its user knows."""

import json

import numpy as np
import pytest

import loramerge
from loramerge import Target
from tests.helpers.files import bare

PATH = "transformer.h.0.attn.c_attn"


def linear(path="h.q", outs=6, ins=5, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{path}.lora_A": rng.standard_normal((rank, ins)).astype("f4"),
        f"{path}.lora_B": rng.standard_normal((outs, rank)).astype("f4"),
    }


def merged(enable, part=4, ins=5, rank=2, path=PATH, seed=0):
    """A MergedLinear with len(enable) parts of so many outputs."""
    rng, on = np.random.default_rng(seed), sum(enable)
    return {
        f"{path}.lora_A": rng.standard_normal((rank * on, ins)).astype("f4"),
        f"{path}.lora_B": rng.standard_normal((part * on, rank)).astype("f4"),
    }


def beside(source, **config):
    """What the training script knew, in a JSON file of the same name."""
    source.with_suffix(".json").write_text(json.dumps(config))
    return source


def forward(x, a, b, enable, scale):
    """What MergedLinear adds to its output for one input, number by number: groups, zeros between them."""
    rank, on = len(b[0]), sum(enable)
    inner = [sum(row[i] * x[i] for i in range(len(x))) for row in a]
    rows = len(b) // on
    grouped = [
        [sum(b[g * rows + o][k] * inner[g * rank + k] for k in range(rank)) for o in range(rows)]
        for g in range(on)
    ]
    found = []
    for enabled in enable:
        found += grouped.pop(0) if enabled else [0.0] * rows
    return [scale * each for each in found]


def test_a_linear_layer_needs_the_alpha_of_its_user(cli, tmp_path):
    values = linear()
    source = bare(tmp_path / "x.safetensors", values)
    cli("combine", source).refused(3, "does not say its alpha", "--alpha")
    adapter = loramerge.load(source, alpha=8)
    assert adapter.dialect == "loralib"
    expected = 8 / 2 * values["h.q.lora_B"].astype("f8") @ values["h.q.lora_A"]
    np.testing.assert_allclose(adapter[Target("h.q")].dense(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "enable", [[True, False, True], [True, True], [False, True, True, False], [False, True]], ids=str
)
def test_an_update_is_what_merged_linear_adds(enable, tmp_path):
    values = merged(enable)
    source = beside(bare(tmp_path / "x.safetensors", values), r=2, lora_alpha=5, enable_lora=enable)
    x = np.random.default_rng(1).standard_normal(5)
    a, b = (values[f"{PATH}.lora_{side}"].astype("f8").tolist() for side in "AB")
    expected = forward(x.tolist(), a, b, enable, 5 / 2)
    for adapter in (
        loramerge.load(source),
        loramerge.combine([source], format="peft", out=tmp_path / "m").adapter,
    ):
        np.testing.assert_allclose(adapter[Target(PATH)].dense() @ x, expected, rtol=1e-6)


def test_merged_and_plain_layers_lie_in_one_file(tmp_path):
    values = merged([True, False, True]) | linear()
    source = beside(
        bare(tmp_path / "x.safetensors", values), r=2, lora_alpha=2, enable_lora=[True, False, True]
    )
    adapter = loramerge.load(source)
    np.testing.assert_allclose(
        adapter[Target("h.q")].dense(), values["h.q.lora_B"] @ values["h.q.lora_A"], rtol=1e-6
    )
    assert adapter[Target(PATH)].shape == (12, 5)


def test_which_parts_are_adapted_is_never_guessed(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", merged([True, False, True]))
    cli("combine", source, "--alpha", 4).refused(3, PATH, "enable_lora")


WRONG = {
    "another number of parts": dict(r=2, lora_alpha=4, enable_lora=[True, True, True]),
    "another rank": dict(r=3, lora_alpha=4, enable_lora=[True, False, True]),
    "no list": dict(r=2, lora_alpha=4, enable_lora="q"),
}


@pytest.mark.parametrize("config", WRONG.values(), ids=WRONG)
def test_a_config_that_does_not_fit_is_refused(cli, tmp_path, config):
    source = beside(bare(tmp_path / "x.safetensors", merged([True, False, True])), **config)
    cli("inspect", source).refused(1, "enable_lora")


def test_an_embedding_is_known_by_its_name(tmp_path):
    values = linear("transformer.wte", outs=3, ins=9)  # (dim, r) and (r, tokens)
    (target,) = adapter = loramerge.load(bare(tmp_path / "x.safetensors", values), alpha="rank")
    assert target.kind == "embedding"
    expected = values["transformer.wte.lora_B"] @ values["transformer.wte.lora_A"]
    np.testing.assert_allclose(adapter[target].dense(), expected, rtol=1e-6)


@pytest.mark.parametrize("side", "AB")
def test_a_missing_factor_is_named(cli, tmp_path, side):
    values = linear() | linear("h.v")
    del values[f"h.v.lora_{side}"]
    source = bare(tmp_path / "x.safetensors", values)
    cli("inspect", source, "--alpha", 4).refused(1, f"h.v.lora_{side} is missing")


def test_a_convolution_is_refused_since_its_kernel_is_not_told(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", linear("stem.conv1"))
    cli("combine", source, "--alpha", 4).refused(3, "stem.conv1", "kernel")


def test_the_prefix_of_distributed_training_is_no_part_of_a_name(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", linear("module.h.q"))
    assert list(loramerge.load(source, alpha=4)) == [Target("h.q")]
    assert "wraps around modules (module)" in cli("inspect", source, "--alpha", 4).out


def test_biases_that_were_trained_are_extras(cli, tmp_path):
    values = linear() | {"h.q.bias": np.ones(6, "f4")}
    source = bare(tmp_path / "x.safetensors", values)
    assert list(loramerge.load(source, alpha=4).extras) == ["base_model.model.h.q.bias"]
    cli("combine", source, "--alpha", 4, "--format", "peft", "-o", tmp_path / "m").refused(
        3, "h.q.bias", "--extras"
    )


def test_the_vectors_of_adalora_are_not_taken_for_it(cli, tmp_path):
    source = bare(tmp_path / "x.safetensors", linear() | {"h.q.lora_E": np.ones((2, 1), "f4")})
    cli("combine", source, "--alpha", 4).refused(3, "AdaLoRA")


@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict"])
def test_a_checkpoint_of_a_training_script(cli, tmp_path, wrapper):
    torch = pytest.importorskip("torch", reason="torch.save is the oracle: it comes with the extra `test`")
    values = {key: torch.from_numpy(value) for key, value in linear().items()}
    torch.save({wrapper: values} if wrapper else values, tmp_path / "x.pt")
    cli("combine", tmp_path / "x.pt", "--alpha", 4).refused(3, "pickle")
    adapter = loramerge.load(tmp_path / "x.pt", alpha=4, allow_pickle=True)
    assert list(adapter) == [Target("h.q")]


def test_a_dictionary_within_another_is_no_checkpoint_that_is_known(cli, tmp_path):
    torch = pytest.importorskip("torch", reason="torch.save is the oracle: it comes with the extra `test`")
    values = {key: torch.from_numpy(value) for key, value in linear().items()}
    torch.save({"exp_avg": values}, tmp_path / "x.pt")
    cli("combine", tmp_path / "x.pt", "--alpha", 4, "--allow-pickle").refused(3, "exp_avg", "not a tensor")


def test_loralib_and_peft_merge(tmp_path):
    ours = bare(tmp_path / "x.safetensors", linear())
    values = {f"base_model.model.{key}.weight": value for key, value in linear(seed=1).items()}
    theirs = bare(tmp_path / "y.safetensors", values)
    merged = loramerge.combine(
        [ours, theirs], alpha=4, method="cat", format="peft", out=tmp_path / "m"
    ).adapter
    one, two = loramerge.load(ours, alpha=4), loramerge.load(theirs, alpha=4)
    for target, update in merged.items():
        np.testing.assert_allclose(update.dense(), one[target].dense() + two[target].dense(), rtol=1e-5)
