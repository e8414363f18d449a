"""The head of a model is found by every name that files give it, and is tied to its embedding or is not."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Held, Slot
from loramerge.checkpoints.difference import paired
from loramerge.checkpoints.open import open_checkpoint
from loramerge.checkpoints.tie import embedding, head, is_tied
from loramerge.errors import IncompatibleError
from tests.helpers.models import random_model, read_model, save_model

EMBEDDING, Q = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
SHAPES = {EMBEDDING: (24, 16), Q: (16, 16)}
CAUSAL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
NAMES = [f"{name}.weight" for name in ("lm_head", "language_model.lm_head", "embed_out", "output", "head")]


def update(rows, size=0.1):
    rng = np.random.default_rng(3)
    return lm.LowRank(rng.standard_normal((rows, 2)), size * rng.standard_normal((2, 16)))


@pytest.mark.parametrize("name", NAMES)
def test_the_update_of_a_head_goes_to_the_head_whatever_the_file_calls_it(tmp_path, name):
    before = random_model(0, {**SHAPES, name: (24, 16)})
    base = save_model(tmp_path / "b", before, {**CAUSAL, "tie_word_embeddings": False})
    added = update(24)
    lm.fuse(lm.Adapter.of({"lm_head": added}), base, tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert after.keys() == before.keys()
    np.testing.assert_allclose(after[name], before[name] + added.dense(), atol=1e-5)
    lm.fuse(lm.Adapter.of({"lm_head": added}), tmp_path / "f", tmp_path / "g", subtract=True)
    np.testing.assert_allclose(read_model(tmp_path / "g")[name], before[name], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_of_its_own_is_not_taken_for_the_embedding(tmp_path, name):
    before = random_model(0, {**SHAPES, name: (24, 16)})
    base = save_model(tmp_path / "b", before, CAUSAL)
    after = {**before, EMBEDDING: before[EMBEDDING] + 1, Q: before[Q] + 1}
    tuned = save_model(tmp_path / "t", after, CAUSAL)
    done = lm.extract(tuned, base, tmp_path / "e", rank=1, extras="first")
    assert list(done.adapter.extras) == [f"base_model.model.{EMBEDDING}"]
    lm.fuse(tmp_path / "e", base, tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert all(np.allclose(found[key], after[key], atol=1e-5) for key in after)


TYING = {  # (classes, what the config says, whether the file has a head) -> whether it is the embedding
    "as it says": (["LlamaForCausalLM"], True, False, True),
    "without a word": (["LlamaForCausalLM"], None, False, True),
    "its own": (["LlamaForCausalLM"], False, True, False),
    "its own, without a word": (["LlamaForCausalLM"], None, True, False),
    "held twice": (["LlamaForCausalLM"], True, "twice", True),
    "no class, but it says so": (None, True, False, True),
    "no class and no word": (None, None, False, False),
    "a model without a head": (["LlamaModel"], True, False, False),
    "several classes": (["LlamaModel", "LlamaForCausalLM"], True, False, True),
}


@pytest.mark.parametrize("name", TYING)
def test_a_head_is_tied_by_what_the_config_and_the_file_say(tmp_path, name):
    classes, says, has, wanted = TYING[name]
    before = random_model(0, SHAPES)
    if has:
        before["lm_head.weight"] = before[EMBEDDING] + (has != "twice")
    config = {"architectures": classes, "tie_word_embeddings": says}
    save_model(tmp_path / "b", before, {key: value for key, value in config.items() if value is not None})
    assert is_tied(open_checkpoint(tmp_path / "b")) == wanted


def test_a_head_that_is_held_twice_is_untied_where_one_changes(tmp_path):
    before = random_model(0, SHAPES)
    before["lm_head.weight"] = before[EMBEDDING]
    base = save_model(tmp_path / "b", before, {**CAUSAL, "tie_word_embeddings": True})
    added = update(24)
    lm.fuse(lm.Adapter.of({"lm_head": added}), base, tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert np.array_equal(after[EMBEDDING], before[EMBEDDING])
    np.testing.assert_allclose(after["lm_head.weight"], before["lm_head.weight"] + added.dense(), atol=1e-5)
    assert json.loads((tmp_path / "f" / "config.json").read_text())["tie_word_embeddings"] is False


def test_two_files_that_hold_a_tied_head_twice_differ_in_one_tensor(tmp_path):
    before = random_model(0, SHAPES)
    config = {**CAUSAL, "tie_word_embeddings": True}
    save_model(tmp_path / "b", {**before, "lm_head.weight": before[EMBEDDING]}, config)
    after = {EMBEDDING: before[EMBEDDING] + 1, Q: before[Q] + 1}
    save_model(tmp_path / "t", {**after, "lm_head.weight": after[EMBEDDING]}, config)
    done = lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "e", rank=1, extras="first")
    assert [each.key[1] for each in done.beside] == [EMBEDDING]
    assert [target.path for target in done.adapter] == [Q.removesuffix(".weight")]
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert np.array_equal(found["lm_head.weight"], after[EMBEDDING])
    assert np.array_equal(found[EMBEDDING], after[EMBEDDING])


def test_a_model_that_was_tied_since_says_that_its_head_is_another(tmp_path):
    before = random_model(0, {**SHAPES, "lm_head.weight": (24, 16)})
    save_model(tmp_path / "b", before, {**CAUSAL, "tie_word_embeddings": False})
    del before["lm_head.weight"]
    save_model(tmp_path / "t", {**before, Q: before[Q] + 1}, {**CAUSAL, "tie_word_embeddings": True})
    pair = paired(open_checkpoint(tmp_path / "t"), open_checkpoint(tmp_path / "b"))
    assert pair.alone == [("model", "lm_head.weight")]


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_that_were_added_are_kept_whole_and_fused(tmp_path, tied):
    shapes = SHAPES if tied else {**SHAPES, "lm_head.weight": (24, 16)}
    config = {**CAUSAL, "tie_word_embeddings": tied, "vocab_size": 24}
    before = random_model(0, shapes)
    more = random_model(1, {key: (3, 16) for key in shapes if key != Q})
    after = {key: np.concatenate([before[key], more[key]]) for key in more} | {Q: before[Q] + 1}
    base, tuned = save_model(tmp_path / "b", before, config), save_model(tmp_path / "t", after, config)
    with pytest.raises(IncompatibleError, match="also changes"):
        lm.extract(tuned, base, rank=1)
    lm.extract(tuned, base, tmp_path / "e", rank=1, extras="first")
    lm.fuse(tmp_path / "e", base, tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert found.keys() == after.keys()
    assert all(np.allclose(found[key], after[key], atol=1e-5) for key in after)
    assert json.loads((tmp_path / "f" / "config.json").read_text())["vocab_size"] == 27


BERT = "bert.embeddings.word_embeddings"
MORE = {  # heads that are more than an embedding, as they are on the disk: class -> (type, embedding)
    "BertForMaskedLM": ("bert", BERT),
    "BertLMHeadModel": ("bert", BERT),
    "RobertaForCausalLM": ("roberta", "roberta.embeddings.word_embeddings"),
    "T5ForConditionalGeneration": ("t5", "shared"),
    "BartForConditionalGeneration": ("bart", "model.shared"),
}


@pytest.mark.parametrize("name", MORE)
def test_an_update_of_an_embedding_whose_head_is_more_is_refused(tmp_path, name):
    kind, table = MORE[name]
    config = {"model_type": kind, "architectures": [name], "is_encoder_decoder": kind in ("t5", "bart")}
    base = save_model(tmp_path / "b", random_model(0, {f"{table}.weight": (24, 16)}), config)
    assert embedding(open_checkpoint(base)) == ("model", f"{table}.weight")
    assert head(open_checkpoint(base)) is None
    target = lm.Target(table, kind="embedding")
    slot = Slot(Held(np.ones((16, 1), "f4")), Held(np.ones((1, 24), "f4")), 1.0)
    adapter = lm.Adapter("a", {target: slot})
    with pytest.raises(IncompatibleError, match="which is more than this embedding"):
        lm.fuse(adapter, base, tmp_path / "f")


COPIES = {  # (class, type, embedding) -> what PEFT needs beside it to compute the same
    "T5ForConditionalGeneration": (
        "t5",
        "shared",
        ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"],
    ),
    "BartForConditionalGeneration": (
        "bart",
        "model.shared",
        ["model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"],
    ),
    "WhisperForConditionalGeneration": ("whisper", "model.decoder.embed_tokens", ["proj_out"]),
    "LlamaForCausalLM": ("llama", "model.embed_tokens", ["lm_head"]),
    "LlamaModel": ("llama", "embed_tokens", []),
}


@pytest.mark.parametrize("name", COPIES)
def test_an_embedding_that_is_kept_is_kept_wherever_the_model_has_it(tmp_path, name):
    kind, table, more = COPIES[name]
    config = {"model_type": kind, "architectures": [name], "tie_word_embeddings": True}
    before = random_model(0, {f"{table}.weight": (24, 16), "layers.0.q.weight": (16, 16)})
    after = {key: array + 1 for key, array in before.items()}
    base, tuned = save_model(tmp_path / "b", before, config), save_model(tmp_path / "t", after, config)
    done = lm.extract(tuned, base, tmp_path / "e", rank=1, extras="first")
    assert done.adapter.config["modules_to_save"] == sorted([table, *more])
    extras = {key.removeprefix("base_model.model."): each.read() for key, each in done.adapter.extras.items()}
    assert extras.keys() == {f"{each}.weight" for each in (table, *more)}
    assert all(np.array_equal(array, after[f"{table}.weight"]) for array in extras.values())
    task = "SEQ_2_SEQ_LM" if "shared" in table else "CAUSAL_LM" if name.endswith("LM") else None
    assert done.adapter.config["task_type"] == task
    lm.fuse(tmp_path / "e", base, tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert found.keys() == after.keys()
    assert all(np.allclose(found[key], after[key], atol=1e-5) for key in after)


def test_the_head_of_pythia_has_its_name_of_today(tmp_path):
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    before = random_model(0, {"gpt_neox.embed_in.weight": (24, 16), "embed_out.weight": (24, 16)})
    after = {**before, "embed_out.weight": before["embed_out.weight"] + 1}
    base, tuned = save_model(tmp_path / "b", before, config), save_model(tmp_path / "t", after, config)
    assert [target.path for target in lm.extract(tuned, base, tmp_path / "e", rank=1).adapter] == ["lm_head"]
    lm.fuse(tmp_path / "e", base, tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert found.keys() == before.keys()
    np.testing.assert_allclose(found["embed_out.weight"], after["embed_out.weight"], atol=1e-5)
