"""A model and its tuned copy are matched, whatever names and buffers a library saved them with."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.checkpoints.difference import paired
from loramerge.checkpoints.open import open_checkpoint
from tests.helpers.models import random_model, read_model, save_model

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
PLAIN = {
    "wte.weight": (24, 16),
    "h.0.attn.c_attn.weight": (16, 48),
    "h.0.ln_1.weight": (16,),
    "h.0.attn.c_attn.bias": (48,),
}
MASK = {
    "h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4), np.float32)),
    "h.0.attn.masked_bias": np.float32([-1e4]),
}


def begun(tensors, start):
    return {start + key: array for key, array in tensors.items()}


def tuned(tensors, key):
    rng = np.random.default_rng(1)
    outs, ins = tensors[key].shape
    added = rng.standard_normal((outs, 2)) @ rng.standard_normal((2, ins))
    return {**tensors, key: (tensors[key] + added).astype(np.float32)}, added


NAMES = {  # what stands before the names -> of the tuned model, of its base, of the adapter
    "GPT-2 as transformers saves it, and as it is on the Hub": ("transformer.", "", "transformer."),
    "the other way round": ("", "transformer.", "transformer."),
    "two names more": ("", "a.b.", "a.b."),
    "alike": ("transformer.",) * 3,
}


@pytest.mark.parametrize("masked", ["base", "tuned", "both", "neither"])
@pytest.mark.parametrize(("ours", "theirs", "wanted"), NAMES.values(), ids=NAMES)
def test_names_that_begin_differently_are_those_of_one_model(tmp_path, ours, theirs, wanted, masked):
    before = random_model(0, PLAIN)
    after, added = tuned(before, "h.0.attn.c_attn.weight")
    before |= MASK if masked in ("base", "both") else {}
    after |= MASK if masked in ("tuned", "both") else {}
    save_model(tmp_path / "b", begun(before, theirs), GPT2)
    save_model(tmp_path / "t", {**begun(after, ours), "lm_head.weight": before["wte.weight"]}, GPT2)
    done = lm.extract(tmp_path / "t", tmp_path / "b", rank=2, extras="drop")
    (target,) = done.adapter
    assert target.path == f"{wanted}h.0.attn.c_attn"
    np.testing.assert_allclose(done.adapter[target].dense(), added.T, atol=1e-5)
    assert {each.key[1] for each in done.beside} <= {"lm_head.weight"}


CLASSES = {  # of a base whose names begin with its layers -> how the adapter's do
    "GPT2LMHeadModel": "transformer.",
    "GPT2ForSequenceClassification": "transformer.",
    "GPT2Model": "",
    None: "",
}


@pytest.mark.parametrize("name", CLASSES)
def test_an_adapter_has_the_names_of_the_class_of_its_base(tmp_path, name):
    before = random_model(0, PLAIN)
    after, added = tuned(before, "h.0.attn.c_attn.weight")
    head = {"lm_head.weight": before["wte.weight"]} if name == "GPT2LMHeadModel" else {}
    config = {"model_type": "gpt2", **({"architectures": [name]} if name else {})}
    save_model(tmp_path / "b", {**before, **head}, config)
    save_model(tmp_path / "t", {**after, **head}, config)
    done = lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "e", rank=2)
    (target,) = lm.load(tmp_path / "e")
    assert target.path == f"{CLASSES[name]}h.0.attn.c_attn"
    assert ("names no class" in " ".join(done.notes)) == (name is None)
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    assert read_model(tmp_path / "f").keys() == {*before, *head}
    np.testing.assert_allclose(
        read_model(tmp_path / "f")["h.0.attn.c_attn.weight"],
        before["h.0.attn.c_attn.weight"] + added,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["vit", "opt"])
def test_who_extracts_from_a_model_that_is_called_otherwise_once_loaded_is_told(tmp_path, kind):
    path = "encoder.layer.0.attention.attention.query" if kind == "vit" else "decoder.layers.0.fc1"
    before = random_model(0, {f"{path}.weight": (8, 8)})
    after, _ = tuned(before, f"{path}.weight")
    for name, tensors in (("b", before), ("t", after)):
        save_model(tmp_path / name, tensors, {"model_type": kind, "architectures": ["AModel"]})
    done = lm.extract(tmp_path / "t", tmp_path / "b", rank=2)
    assert ("otherwise than its files do" in " ".join(done.notes)) == (kind == "vit")


def test_the_layers_of_distilbert_are_in_a_tower_inside_the_model(tmp_path):
    config = {"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"]}
    query = "transformer.layer.0.attention.q_lin"
    before = random_model(0, {f"{query}.weight": (8, 8), "pre_classifier.weight": (8, 8)})
    save_model(tmp_path / "b", before, config)
    save_model(tmp_path / "t", {key: array + 1 for key, array in before.items()}, config)
    found = lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "e", rank=1).adapter
    assert {target.path for target in found} == {f"distilbert.{query}", "pre_classifier"}
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert all(np.allclose(after[key], before[key] + 1, atol=1e-5) for key in before)


NORM = "bert.encoder.layer.0.output.LayerNorm"


@pytest.mark.parametrize(
    ("ours", "theirs"), [(("gamma", "beta"), ("weight", "bias")), (("weight", "bias"), ("gamma", "beta"))]
)
def test_norms_have_the_names_of_today_whatever_version_wrote_them(tmp_path, ours, theirs):
    """BERT was first saved with TensorFlow's names."""
    query = "bert.encoder.layer.0.attention.self.query.weight"
    before = random_model(0, {query: (8, 8)})
    after, added = tuned(before, query)
    norms = np.ones(8, np.float32), np.zeros(8, np.float32)
    trained = norms[0], np.full(8, 0.5, np.float32)
    save_model(
        tmp_path / "t", {**after, **{f"{NORM}.{n}": a for n, a in zip(ours, trained, strict=True)}}, {}
    )
    save_model(
        tmp_path / "b", {**before, **{f"{NORM}.{n}": a for n, a in zip(theirs, norms, strict=True)}}, {}
    )
    done = lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "e", rank=2, extras="first")
    assert [each.key[1] for each in done.beside] == [f"{NORM}.bias"]
    np.testing.assert_allclose(next(iter(done.adapter.values())).dense(), added, atol=1e-5)
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert found.keys() == {query, *(f"{NORM}.{each}" for each in theirs)}
    assert found[f"{NORM}.{theirs[1]}"][0] == 0.5


def test_a_norm_under_both_names_is_two_tensors(tmp_path):
    query = "bert.encoder.layer.0.attention.self.query.weight"
    before = random_model(0, {query: (8, 8), f"{NORM}.gamma": (8,), f"{NORM}.weight": (8,)})
    save_model(tmp_path / "b", before, {})
    save_model(tmp_path / "t", {**before, query: before[query] + 1, f"{NORM}.weight": np.ones(8, "f4")}, {})
    done = lm.extract(tmp_path / "t", tmp_path / "b", rank=1, extras="drop")
    assert [each.key[1] for each in done.beside] == [f"{NORM}.weight"]
    save_model(tmp_path / "u", {**before, query: before[query] + 1, f"{NORM}.gamma": np.ones(8, "f4")}, {})
    done = lm.extract(tmp_path / "u", tmp_path / "b", rank=1, extras="drop")
    assert [each.key[1] for each in done.beside] == [f"{NORM}.gamma"]


def test_towers_that_a_library_has_moved_are_those_of_one_model(tmp_path):
    moved = {
        "visual.blocks.0.attn.proj": "model.visual.blocks.0.attn.proj",
        "visual.merger.ln_q": "model.visual.merger.ln_q",
        "model.layers.0.self_attn.q_proj": "model.language_model.layers.0.self_attn.q_proj",
        "model.embed_tokens": "model.language_model.embed_tokens",
        "model.norm": "model.language_model.norm",
    }
    before = random_model(0, {f"{name}.weight": (8, 8) if "proj" in name else (8,) for name in moved})
    after, added = tuned(before, "model.layers.0.self_attn.q_proj.weight")
    after, more = tuned(after, "visual.blocks.0.attn.proj.weight")
    save_model(tmp_path / "b", before, {})
    save_model(
        tmp_path / "t", {f"{moved[k.removesuffix('.weight')]}.weight": a for k, a in after.items()}, {}
    )
    done = lm.extract(tmp_path / "t", tmp_path / "b", rank=2)
    assert {target.path for target in done.adapter} == {name for name in moved.values() if "proj" in name}
    for target in done.adapter:
        wanted = more if "visual" in target.path else added
        np.testing.assert_allclose(done.adapter[target].dense(), wanted, atol=1e-5)
    lm.save(done.adapter, tmp_path / "e")
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    assert lm.extract(tmp_path / "f", tmp_path / "b", rank=2).energy_lost < 1e-9


def test_another_model_is_another_model_whatever_stands_before_its_names(tmp_path):
    before = random_model(0, PLAIN)
    save_model(
        tmp_path / "b", begun({**before, "h.1.ln_1.weight": before["h.0.ln_1.weight"]}, "transformer."), GPT2
    )
    save_model(tmp_path / "t", before, GPT2)
    with pytest.raises(lm.errors.IncompatibleError, match="different models"):
        lm.extract(tmp_path / "t", tmp_path / "b", rank=2)


def test_the_head_of_another_task_is_not_compared(tmp_path):
    before = random_model(0, PLAIN)
    after, added = tuned(before, "h.0.attn.c_attn.weight")
    config = {**GPT2, "tie_word_embeddings": False}
    save_model(tmp_path / "b", {**before, "lm_head.weight": before["wte.weight"]}, config)
    save_model(
        tmp_path / "t", {**begun(after, "transformer."), "score.weight": np.ones((2, 16), np.float32)}, config
    )
    with pytest.raises(lm.errors.IncompatibleError, match=r"score\.weight"):
        lm.extract(tmp_path / "t", tmp_path / "b", rank=2)
    done = lm.extract(tmp_path / "t", tmp_path / "b", rank=2, extras="first")
    assert "only one of the models has such a name: 1 tensor (lm_head.weight)" in " ".join(done.notes)
    assert done.adapter.config["modules_to_save"] == ["score"]
    (target,) = done.adapter
    np.testing.assert_allclose(done.adapter[target].dense(), added.T, atol=1e-5)


def test_a_base_that_was_copied_into_two_towers_is_not_taken_for_one(tmp_path):
    before = random_model(0, PLAIN)
    save_model(tmp_path / "b", before, {})
    save_model(tmp_path / "t", {**begun(before, "query."), **begun(before, "answer.")}, {})
    with pytest.raises(lm.errors.IncompatibleError, match=r"more than once \(under query\. and answer\.\)"):
        lm.extract(tmp_path / "t", tmp_path / "b", rank=2, extras="drop")


def test_a_bias_of_an_attention_is_no_mask(tmp_path):
    before = random_model(0, {"h.0.attn.weight": (8, 8), "h.0.attn.bias": (8,)})
    save_model(tmp_path / "b", before, {})
    del before["h.0.attn.bias"]
    save_model(tmp_path / "t", before, {})
    with pytest.raises(lm.errors.IncompatibleError, match=r"has no h\.0\.attn\.bias"):
        lm.extract(tmp_path / "t", tmp_path / "b", rank=2)


LAYER = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("ours", ["", "text_model."])
@pytest.mark.parametrize("theirs", ["", "text_model."])
def test_text_encoders_of_every_version_of_transformers_get_one_adapter(tmp_path, ours, theirs):
    before = random_model(0, {f"{LAYER}.weight": (8, 8), "final_layer_norm.weight": (8,)})
    after, added = tuned(before, f"{LAYER}.weight")
    for name, tensors in (("t", begun(after, ours)), ("b", begun(before, theirs))):
        save_model(tmp_path / name / "text_encoder", tensors, {"model_type": "clip_text_model"})
        (tmp_path / name / "model_index.json").write_text(json.dumps({"text_encoder": ["a", "b"]}))
    lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "e", rank=2)
    (target,) = lm.load(tmp_path / "e")
    assert (target.component, target.path) == ("text_encoder", f"text_model.{LAYER}")
    lm.fuse(tmp_path / "e", tmp_path / "b", tmp_path / "f")
    again = lm.extract(tmp_path / "f", tmp_path / "b", rank=2)
    np.testing.assert_allclose(again.adapter[target].dense(), added, atol=1e-5)


def test_a_text_encoder_in_a_file_of_diffusers_has_one_name(tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    factors = {"A": rng.standard_normal((2, 8)), "B": rng.standard_normal((8, 2))}
    for name, start in (("new", ""), ("old", "text_model.")):
        keys = {f"text_encoder.{start}{LAYER}.lora_{side}.weight": array for side, array in factors.items()}
        save_file(
            {key: array.astype(np.float32) for key, array in keys.items()}, tmp_path / f"{name}.safetensors"
        )
    assert lm.diff(tmp_path / "new.safetensors", tmp_path / "old.safetensors").largest == 0


def test_an_image_model_in_one_file_needs_only_what_adapters_change(tmp_path):
    key = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
    before = random_model(0, {key: (8, 8)})
    after, added = tuned(before, key)
    beside = {"betas": (5,), "model_ema.decay": (1,), "first_stage_model.conv_in.weight": (4, 4)}
    position = {"cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(4)[None]}
    save_model(tmp_path / "b.safetensors", {**before, **random_model(0, beside), **position})
    save_model(tmp_path / "t.safetensors", after)
    done = lm.extract(tmp_path / "t.safetensors", tmp_path / "b.safetensors", rank=2)
    (target,) = done.adapter
    np.testing.assert_allclose(done.adapter[target].dense(), added, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [("model.diffusion_model.", ""), ("", "model.diffusion_model.")])
def test_a_flux_is_one_model_in_the_file_of_its_authors_and_in_that_of_comfyui(tmp_path, ours, theirs):
    key = "double_blocks.0.img_attn.proj.weight"
    before = random_model(0, {key: (8, 8), "double_blocks.0.img_mlp.0.weight": (32, 8)})
    after, added = tuned(before, key)
    save_model(tmp_path / "b.safetensors", begun(before, theirs))
    save_model(tmp_path / "t.safetensors", begun(after, ours))
    pair = paired(open_checkpoint(tmp_path / "t.safetensors"), open_checkpoint(tmp_path / "b.safetensors"))
    found = {tuned.target.path: pair.module((tuned, base), 2, None) for tuned, base in pair.weights}
    module = found["transformer_blocks.0.attn.to_out.0"]
    np.testing.assert_allclose(module.up @ module.down, added, atol=1e-5)
    assert not list(pair.beside(lambda _: True))
