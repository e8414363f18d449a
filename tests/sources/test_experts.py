"""Experts as modules of their own, as parameters of one module, and stacked: one layout, exactly."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge as lm
from loramerge.errors import IncompatibleError

E, H, MID, R = 3, 10, 6, 2
HOME = "model.layers.0.mlp.experts"
SHAPES = {"gate_up_proj": (2 * MID, H), "down_proj": (H, MID)}


def factors(seed=0):
    """parameter -> A (E, r, in), B (E, out, r)."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal((E, R, ins)), rng.standard_normal((E, outs, R)))
        for name, (outs, ins) in SHAPES.items()
    }


def dense(seed=0):
    return {name: 2 * b @ a for name, (a, b) in factors(seed).items()}


def written(place, tensors, **config):
    place.mkdir()
    keys = {f"base_model.model.{key}.weight": np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(keys, place / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": ["q_proj"], **config}
    (place / "adapter_config.json").write_text(json.dumps(said))
    return place


def nested(name):
    """As PEFT nests two parameters of one module."""
    return HOME if name == "down_proj" else f"{HOME}.base_layer"


def fused(place, seed=0):
    """As PEFT stores them: A expert-major, B expert-minor."""
    tensors = {}
    for name, (a, b) in factors(seed).items():
        tensors[f"{nested(name)}.lora_A"] = a.reshape(E * R, -1)
        tensors[f"{nested(name)}.lora_B"] = b.transpose(1, 2, 0).reshape(-1, R * E)
    return written(place, tensors, target_parameters=["gate_up_proj", "down_proj", "gate.weight"])


def stacked(place, seed=0):
    """A (E, r, in), B (E, out, r)."""
    return written(
        place,
        {f"{HOME}.{n}.lora_{x}": t for n, ab in factors(seed).items() for x, t in zip("AB", ab, strict=True)},
    )


def megatron(place, seed=0):
    """The same under PEFT's nested names, with B (out, r, E)."""
    tensors = {}
    for name, (a, b) in factors(seed).items():
        tensors |= {f"{nested(name)}.lora_A": a, f"{nested(name)}.lora_B": b.transpose(1, 2, 0)}
    return written(place, tensors)


def apart(place, seed=0, names=("gate_proj", "up_proj", "down_proj"), home=HOME):
    tensors = {}
    (a, b), (c, d) = factors(seed).values()
    for e in range(E):
        for name, down, up in zip(names, (a[e], a[e], c[e]), (b[e, :MID], b[e, MID:], d[e]), strict=True):
            tensors |= {f"{home}.{e}.{name}.lora_A": down, f"{home}.{e}.{name}.lora_B": up}
    return written(place, tensors, target_modules=list(names))


def mixtral(place, seed=0):
    return apart(place, seed, ("w1", "w3", "w2"), HOME.replace("mlp", "block_sparse_moe"))


def listed(place, seed=0):
    tensors = {}
    for name, (a, b) in factors(seed).items():
        for e in range(E):
            tensors |= {f"{HOME}.{name}s.{e}.lora_A": a[e], f"{HOME}.{name}s.{e}.lora_B": b[e]}
    return written(place, tensors)


def crossed(place, seed=0):
    """Rows and columns exchanged."""
    tensors = {}
    for name, (a, b) in factors(seed).items():
        tensors[f"{HOME}.{name}.lora_A"] = b.transpose(0, 2, 1)
        tensors[f"{HOME}.{name}.lora_B"] = a.transpose(0, 2, 1)
    return written(place, tensors)


LAYOUTS = [fused, stacked, megatron, apart, mixtral, listed, crossed]
FUSED = [fused, stacked, megatron]


def switched(place, seed=0):
    """As mlx-lm has them, with A and B of every expert turned."""
    (a, b), (c, d) = factors(seed).values()
    tensors = {}
    for name, down, up in (("gate_proj", a, b[:, :MID]), ("up_proj", a, b[:, MID:]), ("down_proj", c, d)):
        path = f"{HOME.replace('experts', 'switch_mlp')}.{name}"
        tensors |= {f"{path}.lora_a": down.astype("f4"), f"{path}.lora_b": up.astype("f4")}
    place.mkdir()
    save_file({key: np.ascontiguousarray(a) for key, a in tensors.items()}, place / "adapters.safetensors")
    said = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": R, "scale": 2.0, "dropout": 0},
    }
    (place / "adapter_config.json").write_text(json.dumps(said))
    return place


@pytest.mark.parametrize("write", [fused, apart, mixtral])
def test_the_experts_of_mlx_join_those_of_peft(tmp_path, write):
    sources = [switched(tmp_path / "a", 1), write(tmp_path / "b", 2)]
    found = updates(lm.combine(sources, "linear", dtype="float64", format="peft").adapter)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], dense(1)[name] + dense(2)[name], atol=1e-5)


def updates(adapter):
    """parameter -> (E, out, in) of an adapter of fused experts."""
    found = {name: np.zeros((E, *shape)) for name, shape in SHAPES.items()}
    for target, update in adapter.items():
        assert (target.path, target.kind) == (HOME, "expert")
        found[target.parameter][target.index] = update.dense()
    return found


@pytest.mark.parametrize("write", FUSED)
def test_fused_layouts_are_read_alike(tmp_path, write):
    found = updates(lm.load(write(tmp_path / "a")))
    for name, wanted in dense().items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-12)


# A kind from the wild: A2 and D, layouts of experts.
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", FUSED)
def test_any_layout_joins_the_fused_one(tmp_path, first, second):
    sources = [first(tmp_path / "a", 1), second(tmp_path / "b", 2)]
    for pair in (sources, sources[::-1]):
        found = updates(lm.combine(pair, "linear", dtype="float64").adapter)
        for name in SHAPES:
            np.testing.assert_allclose(found[name], dense(1)[name] + dense(2)[name], atol=1e-10)


# A kind from the wild: E, diff sees what combine unites.
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_diff_sees_one_adapter_in_two_layouts(tmp_path, first, second):
    found = lm.diff(first(tmp_path / "a"), second(tmp_path / "b"))
    assert found.missing == []
    assert found.largest < 1e-10


@pytest.mark.parametrize("write", [apart, mixtral, listed, fused])
@pytest.mark.parametrize("grain", ["fused-experts", "split-experts"])
def test_convert_brings_one_adapter_to_either_layout(tmp_path, write, grain):
    lm.convert(write(tmp_path / "a"), tmp_path / "b", "peft", grain=grain)
    made = lm.load(tmp_path / "b")
    assert {target.kind for target in made} == {"expert" if grain == "fused-experts" else "linear"}
    assert lm.diff(tmp_path / "a", made).largest < 1e-6


def test_experts_that_another_source_cannot_have_are_refused(tmp_path):
    more = apart(tmp_path / "a")
    (a, b), _ = factors().values()
    tensors = {f"{HOME}.7.up_proj.lora_A": a[0], f"{HOME}.7.up_proj.lora_B": b[0, :MID]}
    more = written(tmp_path / "c", tensors, target_modules=["up_proj"])
    with pytest.raises(IncompatibleError, match="only 3 experts"):
        lm.combine([fused(tmp_path / "b"), more])


# A kind from the wild: D, all-linear.
def test_a_router_beside_experts_is_a_module_of_its_own(tmp_path):
    """PEFT's all-linear on transformers 5 names gate.weight, gate_up_proj and down_proj."""
    place = fused(tmp_path / "a")
    tensors = {key.removeprefix("base_model.model.").removesuffix(".weight"): array
               for key, array in _state(place).items()}  # fmt: skip
    gate = {
        "model.layers.0.mlp.gate.lora_A": np.ones((R, H)),
        "model.layers.0.mlp.gate.lora_B": np.ones((E, R)),
    }
    both = written(
        tmp_path / "b", tensors | gate, target_parameters=["gate.weight", "down_proj", "gate_up_proj"]
    )
    found = lm.load(both)
    assert lm.Target("model.layers.0.mlp.gate") in found
    assert len(found) == 2 * E + 1


def _state(place):
    from safetensors.numpy import load_file

    return load_file(place / "adapter_model.safetensors")


# A kind from the wild: D, the rank of experts.
def test_vllm_compares_the_rank_of_one_expert_and_wants_both_parameters(tmp_path):
    config = json.loads((fused(tmp_path / "a") / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "Qwen/Qwen3-30B-A3B"}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    assert lm.check(tmp_path / "a", "vllm", max_rank=R) == []
    assert any("rank 2 is above 1" in f.sentence for f in lm.check(tmp_path / "a", "vllm", max_rank=1))
    (a, b), _ = factors().values()
    tensors = {
        f"{HOME}.lora_A": a.reshape(E * R, -1),
        f"{HOME}.lora_B": b.transpose(1, 2, 0).reshape(-1, R * E),
    }
    one = written(tmp_path / "b", tensors, target_parameters=["gate_up_proj"])
    assert any("down_proj is not there" in finding.sentence for finding in lm.check(one, "vllm"))
