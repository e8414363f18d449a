"""Keys that are spelled otherwise are read; what does not fit together is refused by name."""

import numpy as np
import pytest

import loramerge
from tests.helpers.files import Cli, folder, key, tensors

BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


def renamed(values, change):
    return {change(name): value for name, value in values.items()}


SPELLINGS = {
    "an adapter name left in": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "neither": lambda name: name.removeprefix("base_model.model.").replace(".weight", ".mine.weight"),
}


@pytest.mark.parametrize("change", SPELLINGS.values(), ids=SPELLINGS)
def test_keys_that_are_spelled_otherwise(change, tmp_path):
    values = tensors()
    plain = loramerge.load(folder(tmp_path / "a", values))
    other = loramerge.load(folder(tmp_path / "b", renamed(values, change)))
    assert set(plain) == set(other)
    assert any("keys" in oddity for oddity in other.oddities)
    for target, update in plain.items():
        np.testing.assert_array_equal(update.dense(), other[target].dense())


DAMAGED = {
    "two adapters in one file": (
        {
            **renamed(tensors(), SPELLINGS["an adapter name left in"]),
            **renamed(tensors(), SPELLINGS["neither"]),
        },
        {},
        (3, "several adapters"),
    ),
    "one pair under two spellings": (
        {**tensors(), **renamed(tensors(), SPELLINGS["no prefix"])},
        {},
        (1, "twice"),
    ),
    "experts without their config": (
        renamed(tensors(), lambda name: name.replace("layers.0.q", "layers.0.experts")),
        {},
        (3, "target_parameters"),
    ),
    "experts of another rank": (
        renamed(tensors(rank=3), lambda name: name.replace("layers.0.q", "layers.0.experts")),
        {"target_parameters": ["experts.down_proj"]},
        (1, "not experts of rank 2"),
    ),
    "fewer parameters than are named": (
        renamed(tensors(), lambda name: name.replace("layers.0.q", "layers.0.experts")),
        {"target_parameters": BOTH},
        (1, "1 pairs", "2 of its parameters"),
    ),
    "parameters of unknown order": (
        renamed(tensors(), lambda name: name.replace("layers.0.q", "layers.0.experts")),
        {"target_parameters": ["experts.a", "experts.b"]},
        (3, "in which order"),
    ),
    "a fused layout without its config": (
        {key("q", "A"): np.ones((4, 5)), key("q", "B"): np.ones((6, 2, 1))},
        {},
        (3, "enable_lora"),
    ),
    "a fused layout of another shape": (
        {key("q", "A"): np.ones((4, 5)), key("q", "B"): np.ones((6, 2, 1))},
        {"enable_lora": [True, False]},
        (1, "do not fit enable_lora"),
    ),
    "target_parameters that are no list": (
        tensors(),
        {"target_parameters": "q.weight"},
        (1, "target_parameters", "list"),
    ),
    "a million experts": (
        {key("experts", "A"): np.ones((10**6, 1), "f2"), key("experts", "B"): np.ones((1, 10**6), "f2")},
        {"r": 1, "target_parameters": ["experts.down_proj"]},
        (3, "1000000 experts"),
    ),
    "a fused layout of nothing": (
        {key("q", "A"): np.ones((0, 5)), key("q", "B"): np.ones((6, 0, 1))},
        {},
        (1, "empty"),
    ),
    "a router": (tensors(), {"peft_type": "XLORA"}, (3, "XLORA", "router")),
    "an enable_lora of numbers": (tensors(), {"enable_lora": [1, 0]}, (1, "enable_lora")),
    "AdaLoRA without its config": ({"base_model.model.q.lora_E": np.ones((2, 1))}, {}, (3, "AdaLoRA")),
    "AdaLoRA cut short": (
        {"base_model.model.q.lora_E": np.ones((2, 1))},
        {"peft_type": "ADALORA", "init_r": 2},
        (1, "lora_A of q"),
    ),
    "a convolution of two ranks": (
        {key("q", "A"): np.ones((4, 5, 3, 3)), key("q", "B"): np.ones((6, 3, 1, 1))},
        {},
        (1, "do not share a rank"),
    ),
}


@pytest.mark.parametrize(("values", "config", "refusal"), DAMAGED.values(), ids=DAMAGED)
def test_what_does_not_fit_together_is_refused_by_name(values, config, refusal, cli, tmp_path):
    cli("combine", folder(tmp_path / "a", values, **config)).refused(*refusal)


def test_one_name_for_two_kinds_of_layer_is_refused(cli, tmp_path):
    flat = folder(tmp_path / "a", {key("q", "A"): np.ones((2, 45)), key("q", "B"): np.ones((6, 2))})
    conv = folder(
        tmp_path / "b", {key("q", "A"): np.ones((2, 5, 3, 3)), key("q", "B"): np.ones((6, 2, 1, 1))}
    )
    cli("combine", flat, conv, "-o", tmp_path / "m").refused(3, "linear in a", "conv of kernel 3×3 in b")
