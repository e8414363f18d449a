"""A model is found as its library wrote it: one file, shards, a pipeline; what is none is refused by name."""

import json

import numpy as np
import pytest

from loramerge.checkpoints.open import open_checkpoint
from loramerge.errors import IncompatibleError, SourceError
from tests.helpers.models import random_model, read_model, save_model


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_folder_holds_the_same_tensors_in_any_number_of_shards(tmp_path, shards):
    tensors = random_model()
    model = open_checkpoint(save_model(tmp_path / "m", tensors, shards=shards))
    assert {key for _, key in model.tensors} == tensors.keys()
    assert len(model.files) == shards
    assert (model.models["model"].index is not None) == (shards > 1)
    assert all(np.array_equal(array, tensors[key]) for key, array in read_model(tmp_path / "m").items())


def test_the_models_of_a_pipeline_are_its_components(tmp_path):
    for part in ("unet", "text_encoder"):
        save_model(tmp_path / "p" / part, random_model(shapes={f"{part}.q.weight": (2, 2)}))
    (tmp_path / "p" / "scheduler").mkdir()
    listed = {"_class_name": "X", "unet": ["diffusers", "U"], "text_encoder": [], "scheduler": [], "vae": []}
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(listed))
    model = open_checkpoint(tmp_path / "p")
    assert list(model.tensors) == [("unet", "unet.q.weight"), ("text_encoder", "text_encoder.q.weight")]


def test_weights_beside_their_variants_are_those_without_a_variant(tmp_path):
    folder = save_model(tmp_path / "m", random_model())
    save_model(folder / "model.fp16.safetensors", random_model(1))
    assert [path.name for path in open_checkpoint(folder).files] == ["model.safetensors"]


def broken(change):
    def prepare(folder):
        save_model(folder, random_model(), shards=3)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return prepare


def without_one(index):
    first = min(index["weight_map"].values())
    return {**index, "weight_map": {key: file for key, file in index["weight_map"].items() if file != first}}


def mapped(name):
    return broken(lambda index: {**index, "weight_map": {key: name for key in index["weight_map"]}})


def only(*names):
    def prepare(folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for name in names:
            (folder / name).write_bytes(b"GGUF" * 8)

    return prepare


def double(folder):
    save_model(folder, random_model(), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    save_model(folder / "model-00002-of-00002.safetensors", random_model())


REFUSED = {
    "nothing there": (lambda folder: None, SourceError, "does not exist"),
    "a shard elsewhere": (mapped("../model.safetensors"), SourceError, "which is no shard"),
    "a shard that is missing": (mapped("x.safetensors"), SourceError, "does not exist"),
    "an index of nothing": (broken(lambda index: {}), SourceError, "has no weight_map"),
    "an index of some of its shards": (broken(without_one), SourceError, "names 2 of 3 shards"),
    "a tensor twice": (double, SourceError, "is in two files"),
    "pickles": (only("pytorch_model.bin"), IncompatibleError, "in pickles only"),
    "GGUF": (only("model-q4.gguf"), IncompatibleError, "is a GGUF model"),
    "an adapter": (only("adapter_config.json"), IncompatibleError, "is an adapter"),
    "no weights": (only(), SourceError, "has no .safetensors"),
    "two files": (only("a.safetensors", "b.safetensors"), SourceError, "several files of weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_refused_by_name(tmp_path, name):
    prepare, error, words = REFUSED[name]
    prepare(tmp_path / "m")
    with pytest.raises(error, match=words):
        open_checkpoint(tmp_path / "m")


def test_a_gguf_file_is_refused_as_a_model_not_as_an_adapter(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(IncompatibleError, match="is a GGUF model: name the model that it was made from"):
        open_checkpoint(file)


def test_a_link_to_nothing_is_not_offered_in_its_own_place(tmp_path):
    (tmp_path / "model").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"does not exist\. Check the path"):
        open_checkpoint(tmp_path / "model")
