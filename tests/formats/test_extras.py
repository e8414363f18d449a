"""What is no low-rank pair is named, and kept, averaged or dropped as told; biases of lora_B add up."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge
from tests.helpers import zoo
from tests.helpers.files import Cli, content, folder, tensors
from tests.helpers.headed import Headed, P, save
from tests.helpers.tiny_models import QUIET

pytestmark = [
    *QUIET,
    # PEFT takes every lora_B of one dimension for a damaged one, its own biases too.
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor"),
]


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def beside(path):
    """The tensors of a folder that are no pair."""
    return {k: v for k, v in load_file(path / "adapter_model.safetensors").items() if ".lora_" not in k}


TRAINED = {
    "a head": {"modules_to_save": ["head"]},
    "all biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "token rows": {"trainable_token_indices": {"emb": [1, 3]}},
    "a head and token rows": {"modules_to_save": ["head"], "trainable_token_indices": {"emb": [0, 7]}},
}


@pytest.mark.parametrize("config", TRAINED.values(), ids=TRAINED)
def test_what_one_adapter_holds_is_written_so_that_peft_loads_it(config, tmp_path):
    source = save(tmp_path / "a", 1, **config)
    expected = zoo.output(zoo.load(Headed, [source]))
    loramerge.combine([source], extras="first", out=tmp_path / "m")
    model = zoo.load(Headed, [tmp_path / "m"])
    if "bias" not in config:  # of which PEFT takes one such adapter at a time
        result = model.load_adapter(tmp_path / "m", adapter_name="again")
        assert not result.unexpected_keys
        assert not result.missing_keys
    np.testing.assert_allclose(zoo.output(model), expected, rtol=1e-12, atol=1e-12)
    assert beside(tmp_path / "m").keys() == beside(source).keys()
    loramerge.save(loramerge.load(tmp_path / "m"), tmp_path / "again")
    np.testing.assert_allclose(zoo.output(zoo.load(Headed, [tmp_path / "again"])), expected, rtol=1e-12)


@pytest.mark.parametrize("config", TRAINED.values(), ids=TRAINED)
def test_the_first_keeps_its_own_and_the_average_is_the_weighted_mean(config, tmp_path):
    sources = [save(tmp_path / name, seed, **config) for seed, name in enumerate("ab", 1)]
    mine, theirs = map(beside, sources)
    for policy, weights, share in (
        ("first", [1, 3], 1.0),
        ("average", [1, 3], 0.25),
        ("average", [1, -1], 0.5),
    ):
        merge = loramerge.combine(
            sources, weights=weights, extras=policy, out=tmp_path / f"{policy}{weights}"
        )
        found = beside(tmp_path / f"{policy}{weights}")
        assert found.keys() == mine.keys()
        for key, value in found.items():
            np.testing.assert_allclose(value, share * mine[key] + (1 - share) * theirs[key], atol=1e-12)
        assert any("mean" in n or "that of a" in n for n in merge.report.notes)


@pytest.mark.parametrize("weights", [(1, 1), (0.7, -0.3)], ids=str)
def test_biases_of_lora_b_add_up_with_the_weights(weights, tmp_path):
    bias = {"lora_bias": True}
    a, b = save(tmp_path / "a", 1, **bias), save(tmp_path / "b", 2, **bias | {"lora_alpha": 2})
    plain = save(tmp_path / "c", 3, target_modules=["hidden", "head.0"])
    sources, weights = [a, b, plain], [*weights, 0.5]
    merge = loramerge.combine(sources, "svd", weights=weights, rank=9, out=tmp_path / "m")
    model = zoo.load(Headed, [tmp_path / "m"])
    total = sum(
        w * s * load_file(p / "adapter_model.safetensors")[f"{P}hidden.lora_B.bias"]
        for w, s, p in ((weights[0], 5 / 3, a), (weights[1], 2 / 3, b))
    )
    for module, expected in (("hidden", total), ("head.0", np.zeros(4))):
        layer = model.base_model.model.get_submodule(module)
        assert layer.scaling["0"] == 1
        np.testing.assert_allclose(layer.lora_B["0"].bias.detach().numpy(), expected, atol=1e-12)
    again = loramerge.combine([tmp_path / "m"], out=tmp_path / "n").adapter
    for adapter in (merge.adapter, again):
        assert {str(t) for t in adapter.biases} == {"hidden.bias", "head.0.bias"}
    if weights[:2] == [1, 1]:
        summed = loramerge.combine([a, b], "linear", out=tmp_path / "two")
        by_level = loramerge.plan([a, b])
        told = [any("biases of lora_B" in n for n in each) for each in (summed.report.notes, by_level.notes)]
        assert told == [False, True]
        expected = zoo.output(zoo.load(Headed, [a, b]))
        np.testing.assert_allclose(zoo.output(zoo.load(Headed, [tmp_path / "two"])), expected, atol=1e-12)


def test_biases_are_renormalised_with_their_modules(tmp_path):
    bias = {"lora_bias": True}
    a, b = save(tmp_path / "a", 1, **bias), save(tmp_path / "b", 2, target_modules=["head.0"])
    found = loramerge.combine([a, b], "average", renormalise=True, allow_disjoint=True).adapter
    one = loramerge.combine([a], "average", out=tmp_path / "n").adapter
    (target,) = one.biases
    np.testing.assert_allclose(found.biases[target].tensor.read(), one.biases[target].tensor.read())


def headed(path, seed, shape=(3, 4), labels=None, **more):
    rng = np.random.default_rng(seed)
    extras = {P + "score.weight": rng.standard_normal(shape), **more.pop("extras", {})}
    config = {"modules_to_save": ["score"], **({"id2label": labels} if labels else {}), **more}
    return folder(path, {**tensors(seed), **extras}, **config)


APART = {
    "other shapes": ({}, {"shape": (2, 4)}, "their shapes differ"),
    "other labels": ({"labels": {"0": "no"}}, {"labels": {"0": "yes"}}, "their labels differ"),
    "more tensors": ({}, {"extras": {P + "score.bias": np.ones(3)}}, "other tensors"),
}


@pytest.mark.parametrize(("first", "second", "why"), APART.values(), ids=APART)
def test_heads_that_do_not_match_are_kept_apart(cli, first, second, why, tmp_path):
    a, b = headed(tmp_path / "a", 1, **first), headed(tmp_path / "b", 2, **second)
    assert cli("combine", a, b, "--extras", "average", "-o", "m").code == 0
    assert why in cli.err
    assert beside(tmp_path / "m") == {}
    assert json.loads((tmp_path / "m/adapter_config.json").read_text())["modules_to_save"] is None
    kept = load_file(tmp_path / "m/loramerge.extras")
    wanted = {f"{p.name}/{key}": value for p in (a, b) for key, value in beside(p).items()}
    assert kept.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(kept[key], value)
    cli("combine", a, b, "--extras", "average", "-o", "m.safetensors").refused(3, "write a folder")
    assert not (tmp_path / "m.safetensors").exists()
    assert cli("combine", a, b, "--extras", "first", "-o", "m", "--overwrite").code == 0
    assert "loramerge.extras" not in content(tmp_path / "m")


def test_token_rows_of_other_tokens_are_kept_apart(cli, tmp_path):
    a, b = (save(tmp_path / n, i, trainable_token_indices={"emb": [i, 3]}) for i, n in enumerate("ab"))
    assert cli("combine", a, b, "--extras", "average", "-o", "m").code == 0
    assert "their tokens differ" in cli.err
    assert set(load_file(tmp_path / "m/loramerge.extras")) == {
        f"{n}/{key}" for n in "ab" for key in beside(a)
    }


def test_without_a_decision_the_merge_is_refused_and_names_them(cli, tmp_path):
    a, b = headed(tmp_path / "a", 1), folder(tmp_path / "b", tensors(2))
    cli("combine", b, a, "-o", "m").refused(3, "a holds", "score.weight", "--extras")
    assert cli("combine", b, a, "-o", "m", "--extras", "drop").code == 0
    assert "score.weight" in cli.err
    assert beside(tmp_path / "m") == {}
    assert cli("combine", b, a, "-o", "m", "--extras", "average", "--overwrite").code == 0
    assert beside(tmp_path / "m").keys() == {P + "score.weight"}, "one source has it"
    assert cli("combine", a, "--extras", "all").code == 2
    with pytest.raises(loramerge.UsageError, match="refuse, first, average, drop"):
        loramerge.combine([a], extras="all")


def test_a_head_that_the_config_does_not_list_is_written_by_its_full_name(tmp_path):
    source = headed(tmp_path / "a", 1, modules_to_save=None)
    merge = loramerge.combine([source], extras="first", out=tmp_path / "m")
    assert merge.adapter.config["modules_to_save"] == ["score"]
    state = loramerge.to_state_dict(merge.adapter)
    np.testing.assert_array_equal(state[P + "score.weight"], beside(source)[P + "score.weight"])


def test_an_old_head_is_read_under_its_new_name(tmp_path):
    values = {**tensors(), P + "score.modules_to_save.weight": np.ones((2, 2))}
    adapter = loramerge.load(folder(tmp_path / "a", values, modules_to_save=["score"]))
    assert set(adapter.extras) == {P + "score.weight"}


def test_a_merge_in_memory_holds_them_too(tmp_path):
    source = headed(tmp_path / "a", 1)
    kept = loramerge.combine([source], extras="first").adapter.extras
    np.testing.assert_array_equal(kept[P + "score.weight"].read(), beside(source)[P + "score.weight"])
