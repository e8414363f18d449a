"""One module is trained in one way; what lies beside is named by what the merge adapts; labels must agree."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from tests.helpers import zoo
from tests.helpers.files import folder, tensors
from tests.helpers.headed import Headed, P, save
from tests.helpers.tiny_models import QUIET, peft, torch

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor"),
]
WHOLE = {"modules_to_save": ["head"]}
ROWS = {"trainable_token_indices": {"emb": [1, 3]}}
TWO_WAYS = {
    "a head whole, and pairs in it": (WHOLE, {"target_modules": ["hidden", "head.0"]}),
    "token rows, and a pair of the embedding": (ROWS, {"target_modules": ["hidden", "emb"]}),
    "token rows, and the embedding whole": (ROWS, {"modules_to_save": ["emb"]}),
}


# A kind from the wild: C1, two roles.
@pytest.mark.parametrize("policy", ["first", "average"])
@pytest.mark.parametrize("name", TWO_WAYS)
def test_a_module_that_is_trained_in_two_ways_is_refused(name, policy, tmp_path):
    sources = [save(tmp_path / str(i), i, **config) for i, config in enumerate(TWO_WAYS[name])]
    for given in (sources, sources[::-1]):
        with pytest.raises(lm.IncompatibleError, match=r"is trained .* in one source and .* in another"):
            lm.combine(given, extras=policy, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_its_refusal_names_helps(tmp_path):
    sources = [save(tmp_path / str(i), i, **c) for i, c in enumerate(next(iter(TWO_WAYS.values())))]
    lm.combine(sources, extras="first", exclude="head", out=tmp_path / "a")
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert sum(".head." in key for key in found) == 4  # two layers, each with a bias
    lm.combine(sources, extras="drop", out=tmp_path / "b")
    assert not [k for k in load_file(tmp_path / "b" / "adapter_model.safetensors") if ".lora_" not in k]


BIASES = {  # the merge adapts `hidden` in all of them
    "the second adapts what the first trains the bias of": ({"target_modules": ["head.0"]}, {}),
    "both adapt it": ({}, {}),
}


# A kind from the wild: C2, names of extras.
@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("policy", ["first", "average"])
def test_biases_are_called_as_peft_calls_them_in_the_merge(name, policy, tmp_path):
    first, second = BIASES[name]
    sources = [save(tmp_path / "a", 1, bias="all", **first), save(tmp_path / "b", 2, **second)]
    lm.combine(sources, extras=policy, allow_disjoint=True, out=tmp_path / "m")
    model = peft.PeftModel.from_pretrained(zoo.base(Headed), tmp_path / "m")
    biases = {
        k: v for k, v in load_file(tmp_path / "a" / "adapter_model.safetensors").items() if k.endswith("bias")
    }
    assert len(biases) == 3
    parts = dict(model.base_model.model.named_modules())
    for key, value in biases.items():
        layer = parts[key.removeprefix(P).removesuffix(".bias").removesuffix(".base_layer")]
        found = getattr(layer, "base_layer", layer).bias.detach().numpy()
        np.testing.assert_array_equal(found, value)


def test_a_bias_loses_the_mark_of_an_adapted_layer_that_is_left_out(tmp_path):
    source = save(tmp_path / "a", 1, bias="all", target_modules=["hidden", "head.0"])
    lm.combine([source], extras="first", exclude="head", out=tmp_path / "m")
    model = peft.PeftModel.from_pretrained(zoo.base(Headed), tmp_path / "m").base_model.model
    trained = load_file(source / "adapter_model.safetensors")[f"{P}head.0.base_layer.bias"]
    np.testing.assert_array_equal(model.head[0].bias.detach().numpy(), trained)


def headed(path, seed, labels=None, rows=3):
    """A classifier's adapter, with the config.json of its model where some trainers write it."""
    score = np.random.default_rng(seed).standard_normal((rows, 5)).astype(np.float32)
    made = folder(path, tensors(seed) | {f"{P}score.weight": score}, modules_to_save=["score"])
    if labels is not None:
        (path / "config.json").write_text(json.dumps({"id2label": {str(i): x for i, x in enumerate(labels)}}))
    return made, score


NER = ["O", "PER", "LOC"]


# A kind from the wild: C3, label maps.
def test_heads_of_other_labels_are_not_averaged(tmp_path):
    (a, first), (b, _) = headed(tmp_path / "a", 1, NER), headed(tmp_path / "b", 2, ["O", "LOC", "PER"])
    merge = lm.combine([a, b], extras="average", out=tmp_path / "m")
    assert any("their labels differ" in note for note in merge.report.notes)
    assert f"{P}score.weight" not in load_file(tmp_path / "m" / "adapter_model.safetensors")
    kept = lm.combine([a, b], extras="first").adapter.extras[f"{P}score.weight"].read()
    np.testing.assert_array_equal(kept, first)


@pytest.mark.parametrize(
    ("ours", "theirs", "unsaid"),
    [(NER, NER, ""), (NER, None, "b"), (None, None, "a, b"), (["LABEL_0", "LABEL_1", "LABEL_2"], NER, "a")],
)
def test_labels_that_nobody_knows_are_taken_on_trust_and_that_is_said(ours, theirs, unsaid, tmp_path):
    (a, first), (b, second) = headed(tmp_path / "a", 1, ours), headed(tmp_path / "b", 2, theirs)
    merge = lm.combine([a, b], extras="average")
    np.testing.assert_allclose(
        merge.adapter.extras[f"{P}score.weight"].read(), (first + second) / 2, rtol=1e-6
    )
    said = [note for note in merge.report.notes if "labels of" in note]
    assert len(said) == bool(unsaid)
    assert all(f"the labels of {unsaid} are not known" in note for note in said)


def test_the_smallest_config_beside_is_no_matter(tmp_path):
    (a, _), (b, _) = headed(tmp_path / "a", 1, NER), headed(tmp_path / "b", 2)
    (b / "config.json").write_text("{broken")
    assert any("labels of b are not known" in n for n in lm.combine([a, b], extras="average").report.notes)


EMBEDDED = {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head"]}


def words(count):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.lm_head = torch.nn.Embedding(count, 6), torch.nn.Linear(6, count)

        def forward(self, x):
            return self.lm_head(self.embed_tokens((x[:, 0] * 7).long().abs() % 8))

    return Words


# A kind from the wild: C4, two vocabularies.
@pytest.mark.parametrize("swapped", [False, True])
def test_vocabularies_of_two_sizes_are_padded_exactly(swapped, tmp_path):
    sizes = [64, 66][:: -1 if swapped else 1]
    sources = [zoo.save(tmp_path / str(n), words(n), n, EMBEDDED) for n in sizes]
    merge = lm.combine(sources, weights=[0.5, 2], out=tmp_path / "m")
    own = [{t.path: u.dense() for t, u in lm.load(source).items()} for source in sources]
    for target, update in merge.adapter.items():
        wanted = np.zeros(update.dense().shape)
        assert 66 in wanted.shape
        for weight, each in zip([0.5, 2], own, strict=True):
            part = each[target.path]
            wanted[: part.shape[0], : part.shape[1]] += weight * part
        np.testing.assert_allclose(update.dense(), wanted, atol=1e-6)
    assert sum("has 64 tokens and another source 66" in note for note in merge.report.notes) == 1
    peft.PeftModel.from_pretrained(zoo.base(words(66)), tmp_path / "m")
    assert lm.diff(*sources).worst(1)[0].error > 0


def test_another_vocabulary_is_another_model_and_the_way_out_is_named(tmp_path):
    sources = [zoo.save(tmp_path / str(n), words(n), n, EMBEDDED) for n in (64, 128)]
    with pytest.raises(lm.IncompatibleError, match="exclude="):
        lm.combine(sources)


def test_whole_embeddings_of_two_sizes_are_averaged_row_by_row(tmp_path):
    rng, made = np.random.default_rng(0), []
    for name, rows in (("a", 64), ("b", 66)):
        table = rng.standard_normal((rows, 6)).astype(np.float32)
        values = tensors() | {f"{P}model.embed_tokens.weight": table}
        made.append((folder(tmp_path / name, values), table))
    merge = lm.combine([m for m, _ in made], weights=[1, 3], extras="average")
    (found,) = (t.read() for t in merge.adapter.extras.values())
    np.testing.assert_allclose(found[:64], (made[0][1] + 3 * made[1][1][:64]) / 4, rtol=1e-5)
    np.testing.assert_array_equal(found[64:], made[1][1][64:])
    assert any("rows that some of them lack" in note for note in merge.report.notes)


MAPS = {
    "turned": lambda names: {"label2id": {name: i for i, name in enumerate(names)}},
    "of a part": lambda names: {"text_config": {"id2label": dict(enumerate(names))}},
    "of a part, turned": lambda names: {"text_config": {"label2id": {n: i for i, n in enumerate(names)}}},
}


@pytest.mark.parametrize("spelling", MAPS)
def test_labels_are_found_wherever_a_config_says_them(spelling, tmp_path):
    places = [headed(tmp_path / name, seed)[0] for seed, name in enumerate("ab")]
    for place, names in zip(places, ("ABC", "BAC"), strict=True):
        (place / "config.json").write_text(json.dumps(MAPS[spelling](list(names))))
    notes = lm.combine(places, extras="average").report.notes
    assert any("their labels differ" in note for note in notes)


def test_a_pair_in_what_peft_keeps_of_the_base_is_not_left_out(tmp_path):
    values = {key.replace(".lora_", ".original_module.lora_", 1): value for key, value in tensors().items()}
    with pytest.raises(lm.IncompatibleError, match=r"also saved whole \(base_model.*original_module\.lora_"):
        lm.load(folder(tmp_path / "a", tensors() | values))


def test_what_peft_keeps_of_the_base_is_no_part_of_a_merge(tmp_path):
    values = {
        f"{P}score.{end}.weight": np.ones((3, 5), "f4") for end in ("original_module", "modules_to_save")
    }
    source = folder(tmp_path / "a", tensors() | values, modules_to_save=["score"])
    merge = lm.combine([source], extras="first")
    assert list(merge.adapter.extras) == [f"{P}score.weight"]
    assert any("base's own beside what was trained" in note for note in merge.report.notes)
