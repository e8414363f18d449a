"""LoHa and LoKr in PEFT's names: read as PEFT computes them, and written back as plain LoRA."""

import json

import numpy as np
import pytest

import loramerge
from tests.helpers import zoo
from tests.helpers.files import Cli, bare, read
from tests.helpers.tiny_models import QUIET, load_file, peft, torch

nn = torch.nn
pytestmark = [*QUIET]


class Net(nn.Module):
    """Layers whose sizes PEFT factorises into both large and small sides."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 10, 3)
        self.point = nn.Conv2d(10, 8, 1)
        self.square = nn.Conv2d(8, 12, (3, 2), padding=1)
        self.lin = nn.Linear(12, 36)
        self.last = nn.Linear(36, 7)

    def forward(self, x):  # (batch, 4, 10)
        y = self.point(self.line(x).reshape(-1, 10, 4, 2))
        return self.last(torch.tanh(self.lin(torch.tanh(self.square(y)).mean((2, 3)))))


LAYERS = ["line", "point", "square", "lin", "last"]
LOHA = {"r": 2, "alpha": 3, "target_modules": LAYERS}
LOKR = {"r": 2, "alpha": 5, "target_modules": LAYERS}
PATTERNS = {"rank_pattern": {"lin": 1, "square": 3}, "alpha_pattern": {"last": 9, "^lin": 0.5}}
BOTH = {"decompose_both": True, "target_modules": ["lin"], "r": 1}
CASES = {
    "LoHa": (peft.LoHaConfig, LOHA),
    "LoHa, effective convolutions": (peft.LoHaConfig, LOHA | {"use_effective_conv2d": True}),
    "LoHa with patterns": (peft.LoHaConfig, LOHA | PATTERNS),
    "LoHa of a rank above the matrices": (peft.LoHaConfig, LOHA | {"r": 5}),
    "LoKr": (peft.LoKrConfig, LOKR),
    "LoKr, effective convolutions": (
        peft.LoKrConfig,
        LOKR | {"use_effective_conv2d": True, "decompose_factor": 2},
    ),
    "LoKr with patterns": (peft.LoKrConfig, LOKR | PATTERNS),
    "LoKr of whole matrices": (peft.LoKrConfig, LOKR | {"r": 30}),
    "LoKr, both sides factored": (peft.LoKrConfig, LOKR | BOTH),
    "LoKr with a factor": (peft.LoKrConfig, LOKR | {"decompose_factor": 4}),
    "LoKr with a factor, of both sides": (peft.LoKrConfig, LOKR | {"decompose_factor": 2} | BOTH),
}


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


@pytest.fixture(params=CASES.values(), ids=CASES)
def source(request, tmp_path):
    of, config = request.param
    return zoo.save(tmp_path / "a", Net, 1, config, of)


def as_peft_computes(model, name="0"):
    """Module path -> ΔW of an adapter in the layout of the layer."""
    found = {}
    for path, layer in model.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            found[path] = layer.get_delta_weight(name).detach().double().numpy()
    return found


def merged(model):
    """Module path -> what merge_and_unload adds to its weight."""
    plain = dict(zoo.base(Net).named_parameters())
    whole = model.merge_and_unload()
    return {
        path.removesuffix(".weight"): (weight - plain[path]).detach().numpy()
        for path, weight in whole.named_parameters()
        if path.endswith(".weight")
    }


# A kind from the wild: B4, LoKr and LoHa under PEFT's names.
def test_every_module_is_read_as_peft_computes_it(source):
    model = zoo.load(Net, [source])
    expected, added = as_peft_computes(model), merged(zoo.load(Net, [source]))
    adapter = loramerge.load(source)
    assert {target.path for target in adapter} == set(expected)
    for target, update in adapter.items():
        delta = expected[target.path]
        assert np.abs(delta).max() > 1e-3
        np.testing.assert_allclose(
            update.dense(), delta.reshape(len(delta), -1), rtol=0, atol=1e-7 * np.abs(delta).max()
        )  # PEFT keeps the scale of LoHa in float32
        np.testing.assert_allclose(update.dense(), added[target.path].reshape(len(delta), -1), atol=1e-6)
        assert target.layout.kernel in ((), delta.shape[2:])


def test_a_merge_is_a_plain_lora_that_peft_runs(tmp_path, source):
    """Where the shapes tell every kernel; a convolution that PEFT keeps flat comes out as a matrix."""
    model = zoo.load(Net, [source])
    flat = {path for path, delta in as_peft_computes(model).items() if delta.ndim > 2} - {
        target.path for target in loramerge.load(source) if target.kind == "conv"
    }
    left_out = {"exclude": f"^({'|'.join(flat)})$"} if flat else {}
    adapter = loramerge.load(source)
    size = {"method": "svd", "rank": adapter.rank} if adapter.full else {"method": "cat"}
    merge = loramerge.combine([source], out=tmp_path / "m", dtype="float32", **size, **left_out)
    config = json.loads((tmp_path / "m/adapter_config.json").read_text())
    assert (config["peft_type"], config["lora_alpha"]) == ("LORA", config["r"])
    assert all(".lora_" in name for name in read(tmp_path / "m/adapter_model.safetensors"))
    found = as_peft_computes(zoo.load(Net, [tmp_path / "m"]))
    expected = {path: delta for path, delta in as_peft_computes(model).items() if path not in flat}
    assert found.keys() == expected.keys() == {target.path for target in merge.adapter}
    for path, delta in expected.items():
        np.testing.assert_allclose(found[path], delta, atol=1e-6 * np.abs(delta).max())


def test_adapters_of_three_types_merge_with_each_other(tmp_path):
    layers = {"target_modules": ["lin", "last"]}
    sources = [
        zoo.save(tmp_path / "a", Net, 1, LOHA | layers, peft.LoHaConfig),
        zoo.save(tmp_path / "b", Net, 2, LOKR | layers, peft.LoKrConfig),
        zoo.save(tmp_path / "c", Net, 3, {"r": 3, "lora_alpha": 4, **layers}),
    ]
    total = {}
    for weight, place in zip((1, -2, 0.5), sources, strict=True):
        for path, delta in as_peft_computes(zoo.load(Net, [place])).items():
            total[path] = total.get(path, 0) + weight * delta
    loramerge.combine(sources, "cat", weights=[1, -2, 0.5], out=tmp_path / "m", dtype="float32")
    found = as_peft_computes(zoo.load(Net, [tmp_path / "m"]))
    for path, delta in total.items():
        np.testing.assert_allclose(found[path], delta, rtol=0, atol=1e-5 * np.abs(delta).max())


def test_low_rank_stays_low_rank(tmp_path):
    loha = loramerge.load(zoo.save(tmp_path / "a", Net, 1, LOHA, peft.LoHaConfig))
    assert {t.path: slot.rank for t, slot in loha.slots.items()}["lin"] == 4
    lokr = loramerge.load(zoo.save(tmp_path / "b", Net, 1, LOKR | BOTH | {"r": 1}, peft.LoKrConfig))
    assert {t.path: slot.rank for t, slot in lokr.slots.items()} == {"lin": 1}
    assert "its 5 LoHa modules are read as low-rank updates, exactly" in loha.oddities


def test_a_state_dict_is_read_too(tmp_path):
    place = zoo.save(tmp_path / "a", Net, 1, LOKR, peft.LoKrConfig)
    state = load_file(place / "adapter_model.safetensors")
    config = json.loads((place / "adapter_config.json").read_text())
    live = peft.LoKrConfig(**LOKR).to_dict()  # its type is no text
    for each in (config, live):
        found = loramerge.from_state_dict(state, each)
        for target, update in loramerge.load(place).items():
            np.testing.assert_array_equal(found[target].dense(), update.dense())


def test_a_bare_file_says_its_alpha_as_any_other(cli, tmp_path):
    place = zoo.save(tmp_path / "a", Net, 1, LOHA | {"target_modules": ["lin"]}, peft.LoHaConfig)
    file = tmp_path / "b.safetensors"
    (place / "adapter_model.safetensors").rename(file)
    cli("combine", file).refused(3, "--alpha")
    (config := place / "adapter_config.json").rename(tmp_path / "b.json")
    by_json = loramerge.load(file)
    (tmp_path / "b.json").rename(config)
    (alike,) = by_json.values()
    for alpha, factor in ((3, 1.0), (6, 2.0), ("rank", 2 / 3)):
        (update,) = loramerge.load(file, alpha=alpha).values()
        np.testing.assert_allclose(update.dense(), factor * alike.dense(), rtol=1e-12)


def test_the_rank_of_whole_matrices_is_not_guessed(cli, tmp_path):
    values = {f"base_model.model.q.lokr_w{i}": np.ones((2, 3), np.float32) for i in (1, 2)}
    file = bare(tmp_path / "b.safetensors", values)
    cli("combine", file, "--alpha", 4).refused(3, "LoKr of two whole matrices", "adapter_config.json")
    assert loramerge.load(file, alpha="rank").rank == 4


def test_what_does_not_fit_its_config_is_refused(cli, tmp_path):
    place = zoo.save(tmp_path / "a", Net, 1, LOHA | {"target_modules": ["lin"]}, peft.LoHaConfig)
    path = place / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, code, words in (
        ({"r": 3}, 1, ("lin rank 3", "rank 2")),
        ({"alpha": None}, 1, ("does not give alpha",)),
        ({"peft_type": "LOKR"}, 3, ("stored as LoHa", "type LOKR")),
        ({"peft_type": "LORA", "lora_alpha": 2}, 3, ("stored as LoHa", "type LORA")),
        ({"peft_type": "OFT"}, 3, ("stored as LoHa", "type OFT")),
    ):
        path.write_text(json.dumps(config | change))
        cli("combine", place).refused(code, *words)


# A kind from the wild: B1, an unknown tensor in a module.
def test_an_unknown_tensor_in_a_module_is_refused_by_name(cli, tmp_path):
    values = {
        f"base_model.model.q.hada_w{i}_{side}": np.ones((2, 2), np.float32) for i in (1, 2) for side in "ab"
    }
    values["base_model.model.q.hada_w3_a"] = np.ones((2, 2), np.float32)
    cli("combine", bare(tmp_path / "b.safetensors", values), "--alpha", 1).refused(3, "q.hada_w3_a")
    kohya = {f"lora_unet_x.{name.rpartition('.')[2]}": value for name, value in values.items()}
    cli("combine", bare(tmp_path / "c.safetensors", kohya)).refused(3, "lora_unet_x.hada_w3_a")


def test_doubts_about_a_kernel_are_told_and_a_unet_is_known_by_its_names(tmp_path):
    place = zoo.save(tmp_path / "a", Net, 1, LOHA | {"use_effective_conv2d": True}, peft.LoHaConfig)
    assert "line may be a 1-d convolution or one of k×1: it is taken as 1-d" in loramerge.load(place).oddities

    def made(name):
        values = {f"base_model.model.{name}.hada_w{i}_a": np.ones((4, 2), np.float32) for i in (1, 2)}
        values |= {f"base_model.model.{name}.hada_w{i}_b": np.ones((2, 27), np.float32) for i in (1, 2)}
        return loramerge.load(bare(tmp_path / "c.safetensors", values), alpha=1)

    known, other = made("down_blocks.0.resnets.0.conv1"), made("features.conv1")
    assert [target.layout.kernel for target in (*known, *other)] == [(3, 3), ()]
    assert not any("kernel" in each for each in known.oddities)
    assert any("features.conv1 looks like a convolution" in each for each in other.oddities)


def test_the_keys_may_hold_the_name_of_an_adapter(tmp_path):
    place = zoo.save(tmp_path / "a", Net, 1, LOHA, peft.LoHaConfig)
    values = read(place / "adapter_model.safetensors")
    expected = {target: update.dense() for target, update in loramerge.load(place).items()}
    bare(place / "adapter_model.safetensors", {f"{name}.default": value for name, value in values.items()})
    for target, update in loramerge.load(place).items():
        np.testing.assert_array_equal(update.dense(), expected[target])
