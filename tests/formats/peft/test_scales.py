"""How strong an adapter is: the scale of every module, and where a bare file finds it. Never a guess."""

import json
import math

import numpy as np
import pytest

from loramerge import combine, load
from loramerge.errors import IncompatibleError, LoramergeError, SourceError, UsageError
from loramerge.formats.state_dict import from_state_dict
from tests.helpers.files import SHAPES, bare, dense, folder, key, tensors

SQRT2 = math.sqrt(2)

RULES = {  # what the config says -> rank of layers.0.q, its scale, the scale of layers.1.v (rank 2)
    "alpha over r": ({"lora_alpha": 3}, 2, 1.5, 1.5),
    "alpha may be a fraction": ({"lora_alpha": 0.5}, 2, 0.25, 0.25),
    "alpha may be negative": ({"lora_alpha": -2}, 2, -1.0, -1.0),
    "rsLoRA: alpha over the root": ({"use_rslora": True}, 2, 4 / SQRT2, 4 / SQRT2),
    "no rsLoRA if null": ({"use_rslora": None}, 2, 2.0, 2.0),
    "patterns may be null": ({"rank_pattern": None, "alpha_pattern": None}, 2, 2.0, 2.0),
    "a rank pattern keeps the global alpha": ({"rank_pattern": {"0.q": 4}}, 4, 1.0, 2.0),
    "an alpha pattern alone": ({"alpha_pattern": {"0.q": 8}}, 2, 4.0, 2.0),
    "both patterns": ({"rank_pattern": {"0.q": 4}, "alpha_pattern": {"0.q": 2}}, 4, 0.5, 2.0),
    "both, under different keys": ({"rank_pattern": {"0.q": 4}, "alpha_pattern": {"q": 2}}, 4, 0.5, 2.0),
    "rsLoRA with patterns": ({"use_rslora": True, "rank_pattern": {"0.q": 4}}, 4, 2.0, 4 / SQRT2),
    "the first match wins": ({"alpha_pattern": {"0.q": 8, "layers.0.q": 16}}, 2, 4.0, 2.0),
    "the first match wins, the other way": ({"alpha_pattern": {"layers.0.q": 16, "0.q": 8}}, 2, 8.0, 2.0),
    "a key is a regular expression": ({"alpha_pattern": {"layers\\.[0-4]\\.(q|k)": 8}}, 2, 4.0, 2.0),
    "a key is no part of a name": ({"alpha_pattern": {"ayers.0.q": 8, "layers": 8}}, 2, 2.0, 2.0),
}


@pytest.mark.parametrize(("config", "rank", "scale", "other"), RULES.values(), ids=RULES)
def test_every_module_has_the_scale_of_pefts_rule(tmp_path, config, rank, scale, other):
    values = tensors(rank={path: rank if path == "layers.0.q" else 2 for path in SHAPES})
    adapter = load(folder(tmp_path / "a", values, **config))
    found = {target.path: adapter.slots[target].scale for target in adapter}
    assert found["layers.0.q"] == pytest.approx(scale, rel=1e-15)
    assert found["layers.1.v"] == pytest.approx(other, rel=1e-15)
    expected = dense(values, found)
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), expected[target.path], rtol=1e-14)


CATASTROPHIC = ["(a+)+b", "(l|l|l)*x", "(.*)*(.*)*(.*)*x", "(([a-z.0-9])+)+$x", "(.?){60}x"]


@pytest.mark.parametrize("pattern", CATASTROPHIC)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_no_pattern_hangs(tmp_path, pattern, field):
    shapes = {"l" * 200 + f".{i}.q": (2, 3) for i in range(3)}
    source = folder(tmp_path / "a", tensors(shapes=shapes), **{field: {pattern: 2}})
    try:
        assert {slot.scale for slot in load(source).slots.values()} == {2.0}
    except IncompatibleError as refusal:
        assert field in str(refusal)  # noqa: PT017


# Where a bare file finds its alpha. Every hint below tells another alpha; the first in the order wins.

OURS = {"loramerge": json.dumps({"schema": 1, "config": {"base_model_name_or_path": "tiny"}})}
DIFFUSERS = {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 6})}
PREFIXED = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})}


def alphas(value, paths=SHAPES):
    return {f"base_model.model.{path}.alpha": np.float32(value) for path in paths}


def stem(path):
    path.with_suffix(".json").write_text(json.dumps({"r": 2, "lora_alpha": 10}))


def beside(path, **changes):
    text = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 12, **changes})
    (path.parent / "adapter_config.json").write_text(text)


NOTHING = {}
PLACES = {  # metadata, alpha tensors, files beside, what the user says -> scale
    "our header first": (OURS, {}, (stem, beside), 1.0),
    "then lora_adapter_metadata": (DIFFUSERS, {}, (stem, beside), 3.0),
    "that of a component, too": (PREFIXED, {}, (stem, beside), 3.0),
    "then alpha tensors": (NOTHING, alphas(8), (stem, beside), 4.0),
    "then a JSON file of the same name": (NOTHING, {}, (stem, beside), 5.0),
    "then adapter_config.json": (NOTHING, {}, (beside,), 6.0),
}


@pytest.mark.parametrize(("metadata", "more", "files", "scale"), PLACES.values(), ids=PLACES)
def test_a_bare_file_finds_its_alpha_in_a_fixed_order(tmp_path, metadata, more, files, scale):
    source = bare(tmp_path / "x.safetensors", {**tensors(), **more}, metadata)
    for write in files:
        write(source)
    adapter = load(source)
    assert adapter.bare
    assert {slot.scale for slot in adapter.slots.values()} == {scale}
    assert not adapter.extras
    with pytest.raises(UsageError, match=r"says its own alpha: drop alpha= for it\.$"):
        load(source, alpha=16)
    noted = load(source, alpha=16, optional=True)
    assert {slot.scale for slot in noted.slots.values()} == {scale}
    assert noted.oddities == ("it says its own alpha, so the one given is not used for it",)


def test_pefts_own_file_name_belongs_to_the_config_beside_it_whatever_else_lies_there(tmp_path):
    source = bare(tmp_path / "adapter_model.safetensors")
    beside(source)
    (tmp_path / "training_args.bin").touch()
    assert {slot.scale for slot in load(source).slots.values()} == {6.0}


def another_adapter(path):
    beside(path)
    bare(path.with_name("y.safetensors"))


UNSAID = {
    "nothing beside": lambda path: None,
    "a config of another rank": lambda path: beside(path, r=4),
    "a config with another adapter": another_adapter,
    "a JSON file without alpha": lambda path: path.with_suffix(".json").write_text('{"r": 2}'),
}


@pytest.mark.parametrize("prepare", UNSAID.values(), ids=UNSAID)
def test_an_unknown_alpha_is_asked_for_with_two_remedies_to_paste(cli, tmp_path, prepare):
    source = bare(tmp_path / "x.safetensors")
    prepare(source)
    cli("combine", source).refused(3, "does not say its alpha", "--alpha x.safetensors=16", "--alpha rank")
    assert cli("inspect", source, "--alpha", "x.safetensors=16", "--json").code == 0
    assert {module["scale"] for module in cli.json()["adapters"][0]["modules"]} == {8.0}
    assert cli("inspect", source, "--alpha", "rank", "--json").code == 0
    assert {module["scale"] for module in cli.json()["adapters"][0]["modules"]} == {1.0}


def test_remedies_can_be_pasted_whatever_the_name(cli, tmp_path):
    (tmp_path / "two words").mkdir()
    bare(tmp_path / "two words" / "a b.safetensors")
    cli("inspect", "two words").refused(1, "name it: 'two words/a b.safetensors'")
    cli("combine", "two words/a b.safetensors").refused(3, "--alpha 'a b.safetensors'=16 ")
    assert cli("inspect", "two words/a b.safetensors", "--alpha", "a b.safetensors=16").code == 0


def test_a_given_alpha_is_divided_by_the_rank_of_each_module(tmp_path):
    values = tensors(rank=dict(zip(SHAPES, (1, 2, 3, 4), strict=True)))
    adapter = load(bare(tmp_path / "x.safetensors", values), alpha=6)
    assert [adapter.slots[target].scale for target in sorted(adapter)] == [6.0, 3.0, 2.0, 1.5]


def partial():
    return {**tensors(), **alphas(8, ["layers.0.q"])}


def orphan():
    return {**tensors(), **alphas(8), **alphas(8, ["layers.9.q"])}


CONTRADICTIONS = {
    "alpha tensors for some modules": (partial(), None, "badly saved"),
    "an alpha without its pair": (orphan(), None, "no pair"),
    "an alpha of two numbers": ({**tensors(), **alphas([8, 8])}, None, "not one number"),
    "an alpha that is nan": ({**tensors(), **alphas(math.nan)}, None, "is nan"),
    "our header and another alpha": ({**tensors(), **alphas(8)}, OURS, "one of them is wrong"),
    "metadata and another alpha": ({**tensors(), **alphas(8)}, DIFFUSERS, "one of them is wrong"),
    "metadata of another rank": (tensors(rank=3), DIFFUSERS, "rank 3"),
    "metadata of two components": (
        tensors(),
        {"lora_adapter_metadata": '{"unet.r": 2, "text_encoder.r": 2}'},
        "one r",
    ),
    "metadata that is no JSON": (tensors(), {"lora_adapter_metadata": "{"}, "not valid JSON"),
    "a header of a later loramerge": (tensors(), {"loramerge": '{"schema": 2}'}, "update loramerge"),
}


@pytest.mark.parametrize(("values", "metadata", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_cannot_be_true_of_a_bare_file_is_refused(tmp_path, values, metadata, words):
    source = bare(tmp_path / "x.safetensors", values, metadata)
    for alpha in (None, 16):
        with pytest.raises(SourceError, match=words):
            load(source, alpha=alpha, optional=True)


def test_alpha_tensors_that_agree_with_what_else_is_said_are_welcome(tmp_path):
    agreeing = {**tensors(), **alphas(6)}
    assert load(bare(tmp_path / "x.safetensors", agreeing, DIFFUSERS)).slots
    assert load(folder(tmp_path / "f", agreeing, lora_alpha=6)).slots
    with pytest.raises(SourceError, match="one of them is wrong"):
        load(folder(tmp_path / "g", agreeing, lora_alpha=8))


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf, 10**400, 1e160, 5e-324, "16", "Rank", True])
def test_an_alpha_is_a_number_above_0_or_rank(tmp_path, alpha):
    with pytest.raises(UsageError, match=r"neither a number from 1e-30 to .* nor 'rank'"):
        load(bare(tmp_path / "x.safetensors"), alpha=alpha)
    with pytest.raises(UsageError, match=r"neither a number from 1e-30 to .* nor 'rank'"):
        from_state_dict(tensors(), alpha=alpha)


def test_a_state_dict_says_its_scale_by_config_or_alpha():
    config = {"r": 2, "lora_alpha": 4, "use_rslora": True}
    for made, scale in [
        (from_state_dict(tensors(), config), 4 / SQRT2),
        (from_state_dict(tensors(), alpha=3), 1.5),
        (from_state_dict(tensors(), alpha=np.float32(3)), 1.5),
        (from_state_dict(tensors(), alpha="rank"), 1.0),
    ]:
        assert {slot.scale for slot in made.slots.values()} == {scale}
    for both_or_none in ({}, {"config": config, "alpha": 4}):
        with pytest.raises(UsageError, match="one of them"):
            from_state_dict(tensors(), **both_or_none)
    with pytest.raises(LoramergeError, match="missing"):
        from_state_dict({key("layers.0.q", "A"): np.ones((2, 3))}, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fan_in_fan_out", 1),
        ("fan_in_fan_out", "true"),
        ("base_model_name_or_path", ["org/base"]),
        ("base_model_name_or_path", 5),
        ("revision", {}),
        ("lora_alpha", 5e-324),  # half of it is 0
        ("lora_alpha", -1e160),
    ],
)
def test_a_setting_of_another_type_is_not_taken_for_none(tmp_path, field, value):
    """PEFT takes 1 for true; and an adapter without a base would fit every other."""
    with pytest.raises(SourceError, match=rf"{field} of .* must be"):
        load(folder(tmp_path / "a", tensors(), **{field: value}))
    with pytest.raises(SourceError, match=rf"{field} of .* must be"):
        from_state_dict(tensors(), {"r": 2, "lora_alpha": 2, field: value})


def test_what_is_copied_to_a_merge_is_of_its_type(tmp_path):
    odd = {"task_type": {"a": 1}, "peft_version": 5, "auto_mapping": "x"}
    pair = [folder(tmp_path / name, tensors(i), **odd) for i, name in enumerate("ab")]
    combine(pair, out=tmp_path / "m")
    written = json.loads((tmp_path / "m/adapter_config.json").read_text())
    assert (written["task_type"], written["auto_mapping"], "peft_version" in written) == (None, None, False)
