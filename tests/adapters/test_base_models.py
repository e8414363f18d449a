"""Adapters of two base models are not merged unless told to; names that leave a doubt are told."""

from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge import Adapter, BaseModel, IncompatibleError
from loramerge.adapters.base_models import common_base, compare_bases, is_local
from tests.helpers.adapters import random_adapters
from tests.helpers.files import folder, tensors

REFUSED = "allow_base_mismatch=True"
NAMES = {  # names of the bases -> what is said of them: nothing, a word of the only note, or a refusal
    "one name": (("org/m", "org/m"), None),
    "one local path": (("/models/m", "/models/m"), None),
    "no names": ((None, None), "a, b do not name a base model"),
    "one is not named": (("org/m", None), "b does not name a base model"),
    "a path to what may be the same": (("org/m", "/models/m"), "local folder"),
    "a Windows path": (("C:\\models\\m", "org/m"), "local folder"),
    "two paths": (("./m", "../m"), "local folder"),
    "4 bits of it": (("meta-llama/Llama-3.2-1B", "unsloth/Llama-3.2-1B-bnb-4bit"), "quantisation"),
    "two quantised twins": (("a/Qwen2-7B-Instruct-AWQ", "b/Qwen2-7B-Instruct-GPTQ-Int4"), "quantisation"),
    "GPTQ": (("org/M-7B", "other/M-7B-GPTQ"), "quantisation"),
    "FP8": (("org/M-7B", "org/M-7B-FP8-dynamic"), "quantisation"),
    "an old name without an owner": (("gpt2", "openai-community/gpt2"), "owner"),
    "two names": (("org/m", "org/n"), REFUSED),
    "one name of two owners": (("org/m", "other/m"), REFUSED),
    "base and instruct": (("org/m", "org/m-Instruct"), REFUSED),
    "twins of two models": (("org/m-AWQ", "org/n-AWQ"), REFUSED),
    "two names around one that is not named": (("org/m", None, "org/n"), REFUSED),
    "two names around a path": (("/models/m", "org/m", "org/n"), REFUSED),
}


def adapters(names):
    made = random_adapters(0, [1] * len(names))
    return [
        replace(a, name=n, base=BaseModel(b), config={"r": 1})
        for a, n, b in zip(made, "abc", names, strict=False)
    ]


@pytest.mark.parametrize(("names", "word"), NAMES.values(), ids=NAMES)
def test_what_the_names_of_the_bases_say(names, word):
    sources = adapters(names)
    if word == REFUSED:
        with pytest.raises(IncompatibleError, match=REFUSED):
            compare_bases(sources, allow_mismatch=False)
        assert any("differ" in note for note in compare_bases(sources, allow_mismatch=True))
        return
    notes = compare_bases(sources, allow_mismatch=False)
    assert len(notes) == (word is not None)
    assert all(word in note for note in notes)


COMMON = {
    "one": (("org/m", "org/m", None), "org/m"),
    "a Hub name before a folder": (("/data/m", "org/m"), "org/m"),
    "the model before its twin": (("b/M-7B-AWQ", "org/M-7B"), "org/M-7B"),
    "the owner is kept": (("gpt2", "openai-community/gpt2"), "openai-community/gpt2"),
    "two models": (("org/m", "org/n"), None),
    "two folders": (("/data/m", "/data/n"), None),
    "none": ((None, None), None),
}


@pytest.mark.parametrize(("names", "common"), COMMON.values(), ids=COMMON)
def test_the_merge_names_what_the_names_have_in_common(names, common):
    assert common_base(adapters(names)) == common


def test_one_adapter_has_nothing_to_be_compared_with():
    assert compare_bases(adapters([None]), allow_mismatch=False) == []


@pytest.mark.parametrize("name", ["/a/b", "~/b", "./b", "..\\b", "D:/b", "a/b/c"])
def test_places_on_a_disk(name):
    assert is_local(name)


def deep(name, layers, stack="model.layers", **config):
    update = random_adapters(0, [1])[0]
    (value, *_) = update.values()
    made = Adapter.of({f"{stack}.{i}.self_attn.q_proj": value for i in layers}, name)
    return replace(made, config={"target_modules": ["q_proj"], **config})


def mixed(name, *layers):
    """An adapter of these projections, layer by layer."""
    (value, *_) = random_adapters(0, [1])[0].values()
    paths = [f"model.layers.{i}.self_attn.{x}_proj" for i, each in enumerate(layers) for x in each]
    made = Adapter.of(dict.fromkeys(paths, value), name)
    return replace(made, config={"target_modules": ["q_proj", "v_proj"]})


DEPTHS = {
    "the same": (deep("a", range(4)), deep("b", range(4)), False),
    "one deeper": (deep("a", range(4)), deep("b", range(6)), True),
    "chosen layers": (deep("a", range(4)), deep("b", range(6), layers_to_transform=[0]), False),
    "spelt out": (
        deep("a", range(4)),
        deep("b", [1], target_modules=["model.layers.1.self_attn.q_proj"]),
        False,
    ),
    "by a pattern": (deep("a", range(4)), deep("b", [1], target_modules=".*1.*q_proj"), False),
    "a subset of layers": (deep("a", range(4)), deep("b", [1]), False),
    "the last layers": (deep("a", range(4)), deep("b", [2, 3]), False),
    "one name in some layers": (mixed("a", "qv", "qv"), mixed("b", "q", "qv"), False),
    "one name in the first layer": (mixed("a", "qv", "qv"), mixed("b", "qv", "q"), False),
    "other stacks": (deep("a", range(4)), deep("b", range(6), "vision.layers"), False),
}


@pytest.mark.parametrize(("first", "other", "refused"), DEPTHS.values(), ids=DEPTHS)
def test_bases_of_two_depths_are_never_merged(first, other, refused):
    if refused:
        with pytest.raises(IncompatibleError, match="different depth"):
            compare_bases([first, other], allow_mismatch=True)
    else:
        compare_bases([first, other], allow_mismatch=True)


@pytest.mark.parametrize(
    ("bases", "refused"), [(("o/m", "o/m"), False), (("o/m", "o/n"), True), (("/m", "/m"), True)]
)
def test_a_stack_that_is_cut_short_is_a_subset_where_both_name_one_base(bases, refused):
    made = [replace(deep(b, range(n)), base=BaseModel(b)) for b, n in zip(bases, (4, 6), strict=True)]
    if refused:
        with pytest.raises(IncompatibleError, match="different depth"):
            compare_bases(made, allow_mismatch=True)
    else:
        assert compare_bases(made, allow_mismatch=False) == []


# A kind from the wild: E, a subset of layers.
def test_layers_that_one_source_lacks_count_as_zero_with_a_note(tmp_path):
    merge = lm.combine([mixed("a", "qv", "qv"), mixed("b", "q", "qv")])
    assert len(merge.adapter) == 4
    assert any("b has 3 of the 4 modules" in note for note in merge.report.notes)


# A kind from the wild: E, chains of training.
def test_an_adapter_on_top_of_another_is_summed_when_that_is_meant(tmp_path):
    """SFT on a base, then DPO on what SFT made: the bases differ, and the sum is right."""
    paths = [
        folder(tmp_path / name, tensors(seed, shapes={"h.0.q": (6, 5)}), base_model_name_or_path=base)
        for seed, (name, base) in enumerate({"sft": "org/llama", "dpo": "me/llama-sft"}.items())
    ]
    with pytest.raises(
        IncompatibleError, match=r"one was trained on top of the other and their sum is meant"
    ):
        lm.combine(paths)
    found = lm.combine(paths, "linear", allow_base_mismatch=True)
    (update,), *parts = (list(a.values()) for a in (found.adapter, *map(lm.load, paths)))
    np.testing.assert_allclose(update.dense(), sum(each.dense() for (each,) in parts), atol=1e-6)
    assert any("differ, and are merged because you allowed it" in note for note in found.report.notes)
