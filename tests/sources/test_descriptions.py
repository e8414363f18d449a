"""What sources are for, in words, and how near words are: every way to say it, well and badly."""

import json
import subprocess
import sys

import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.request.request import Request
from loramerge.sources.choice import weighed
from loramerge.sources.descriptions import descriptions
from loramerge.sources.similarity import similarities
from tests.helpers.adapters import dense, distance, random_adapters, weighted
from tests.helpers.files import bare, content, folder, tensors

SQL, HAIKU = "Writes SQL queries for a database.", "Writes short poems about nature."


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Folders sql and haiku, a bare file c, all in the folder set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    folder(tmp_path / "set" / "sql", tensors(1, 2))
    folder(tmp_path / "set" / "haiku", tensors(2, 3), r=3, lora_alpha=6)
    bare(
        tmp_path / "set" / "c.safetensors", tensors(3), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'}
    )


def of(*names, given=None):
    return descriptions([lm.load(name) for name in names], given)


def listed(texts, path="set/descriptions.json"):
    with open(path, "w") as file:
        file.write(texts if isinstance(texts, str) else json.dumps(texts))


NAMES = ["set/sql", "./set/sql/", "sql"]


@pytest.mark.parametrize("name", NAMES)
def test_a_description_may_name_a_source_by_its_path_or_the_last_part(name):
    assert of("set/sql", given={name: SQL}) == [SQL]


@pytest.mark.parametrize("name", ["set/c.safetensors", "c.safetensors", "c", "set/c"])
def test_a_bare_file_goes_by_its_name_without_the_ending_too(name):
    listed({name: HAIKU})
    assert of("set/c.safetensors") == [HAIKU]


def test_the_user_comes_before_the_list_and_the_list_before_the_card(tmp_path):
    (tmp_path / "set/sql/README.md").write_text("# From the card")
    assert of("set/sql") == ["From the card"]
    listed({"sql": "from the list", "somebody else": "not asked"})
    assert of("set/sql") == ["from the list"]
    listed({"set/sql": "from another list"}, "other.json")
    assert of("set/sql", given="other.json") == ["from another list"]
    assert of("set/sql", given={"sql": "from the user"}) == ["from the user"]


def test_the_list_is_found_beside_an_adapter_that_is_the_current_folder(tmp_path, monkeypatch):
    listed({"sql": SQL})
    monkeypatch.chdir(tmp_path / "set" / "sql")
    assert of("../sql") == [SQL]


WRONG = {
    "no card": (
        {},
        UsageError,
        "what set/sql is good at: it has no README.md. Say it with descriptions={",
    ),
    "an unknown source": (
        {"sqll": "x"},
        UsageError,
        "descriptions= names sqll, which is not one of the sources",
    ),
    "an empty text": ({"sql": " "}, UsageError, "The description of sql is empty"),
    "no text": ({"sql": 3}, UsageError, "The description of sql is empty"),
}


@pytest.mark.parametrize(("given", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_is_said_badly_is_refused_by_name(given, error, words):
    with pytest.raises(error) as told:
        of("set/sql", given=given)
    assert words in str(told.value)


def test_an_empty_card_is_no_description(tmp_path):
    (tmp_path / "set/sql/README.md").write_text("---\nlicense: mit\n---\n# Model Card for Model ID\n")
    with pytest.raises(
        UsageError, match=r"what set/sql is good at: its README.md is empty, or only a template"
    ):
        of("set/sql")


def test_a_readme_beside_a_bare_file_is_not_its_card(tmp_path):
    (tmp_path / "set/README.md").write_text("A collection of adapters")
    with pytest.raises(
        UsageError, match=r"what set/c.safetensors is good at: it has no model card of its own"
    ):
        of("set/c.safetensors")


LISTS = {
    "no JSON": ("{", "set/descriptions.json is not valid JSON"),
    "a list": ("[]", "holds a list"),
    "a number": ({"sql": 1}, "set/descriptions.json has no text for sql"),
    "an empty text": ({"x\x1b": ""}, r"has no text for x\x1b"),
}


@pytest.mark.parametrize(("texts", "words"), LISTS.values(), ids=LISTS)
def test_a_list_that_is_none_is_refused(texts, words):
    listed(texts)
    with pytest.raises(SourceError) as told:
        of("set/sql")
    assert words in str(told.value)
    with pytest.raises(SourceError, match=r"absent.json does not exist"):
        of("set/sql", given="absent.json")


def test_a_merge_by_descriptions_is_the_mixture_of_its_similarities():
    sources = random_adapters(1, (2, 3, 1))
    texts = {"source0": SQL, "source1": HAIKU, "source2": "Translates to French."}
    merge = lm.combine(sources, lm.Sg(describe="SQL queries"), descriptions=texts, dtype="float64")
    found = similarities("SQL queries", [(name,) for name in texts], lambda: list(texts.values()), None)
    plain = lm.combine(sources, lm.Sg(), weights=found, dtype="float64")
    assert distance(dense(merge.adapter), dense(plain.adapter)) == 0
    assert merge.report.similarities == tuple(found[:1])
    assert merge.report.left_out.keys() == {"source1", "source2"}


def test_asked_for_in_its_own_words_an_expert_comes_back_as_itself():
    sources = random_adapters(1, (2, 3, 1))
    texts = {"source0": SQL, "source1": HAIKU, "source2": "Translates queries to French."}
    for (name, text), source in zip(texts.items(), sources, strict=True):
        merge = lm.combine(sources, "sg", describe=text, temperature=0, descriptions=texts, dtype="float64")
        assert merge.report.sources == (name,)
        assert distance(dense(merge.adapter), dense(source)) < 1e-12


def test_the_order_of_a_collection_is_nothing():
    sources = random_adapters(1, (2, 3, 1, 2))
    texts = {"source0": SQL, "source1": HAIKU, "source2": SQL, "source3": "Queries poems."}
    asked = {"describe": "poems queries database", "top_k": 2, "descriptions": texts, "dtype": "float64"}
    found = [lm.combine(some, "sg", **asked) for some in (sources, sources[::-1], sources[2:] + sources[:2])]
    shares = [dict(zip(m.report.sources, m.report.weights, strict=True)) for m in found]
    assert shares[0] == shares[1] == shares[2]
    assert sum(shares[0].values()) == pytest.approx(1, abs=1e-15)
    for merge in found[1:]:
        assert distance(dense(merge.adapter), dense(found[0].adapter)) < 1e-12


def test_adapters_held_open_are_mixed_alike():
    sources = random_adapters(1, (2, 3, 1))
    texts = {"source0": SQL, "source1": HAIKU, "source2": "Paints."}
    asked = {"describe": "queries about nature", "descriptions": texts}
    opened = lm.open(sources).combine("sg", **asked)
    merge = lm.combine(sources, "sg", dtype="float64", **asked)
    assert distance(dense(opened.adapter), dense(merge.adapter)) < 1e-14
    assert opened.report.weights[2] == 0
    assert distance(dense(opened.adapter), weighted(sources, opened.report.weights)) < 1e-14


def test_another_base_model_is_refused_whatever_is_described():
    folder_of = lm.load("set/sql")
    folder(
        folder_of.provenance.files[0].parent.parent / "other", tensors(5), base_model_name_or_path="org/other"
    )
    folder(
        folder_of.provenance.files[0].parent.parent / "first", tensors(5), base_model_name_or_path="org/base"
    )
    with pytest.raises(IncompatibleError, match="org/other"):
        lm.combine(
            ["set/first", "set/other"], "sg", describe="sql", descriptions={"first": SQL, "other": HAIKU}
        )


USES = {
    "weights beside a query": ("sg", {"describe": "sql", "weights": [1, 2]}, "finds the weights itself"),
    "weights in a rule": (
        "sg",
        {"describe": "sql", "rules": [lm.Rule("q", weights=(1, 2))]},
        "finds the weights itself",
    ),
    "descriptions of another method": ("linear", {"descriptions": {"sql": SQL}}, "linear has no describe="),
    "an embedding without a query": ("sg", {"embedding": "tfidf", "weights": [1, 1]}, "use method='sg'"),
    "a query of another method": ("svd", {"describe": "sql"}, "describe is an option of sg, not of svd"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "options", "words"), USES.values(), ids=USES)
def test_what_contradicts_itself_is_refused(method, options, words):
    with pytest.raises(UsageError) as told:
        lm.combine(["set/sql", "set/haiku"], method, **options)
    assert words in str(told.value)


def test_a_record_keeps_what_was_decided_and_asks_for_no_words_again(tmp_path):
    listed({"sql": SQL, "haiku": HAIKU, "c": "Queries of nature."})
    lm.combine(["set"], "sg", describe="SQL queries", top_k=2, temperature=float("inf"), out="m")
    (tmp_path / "set/descriptions.json").unlink()
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    assert record["method"]["options"]["describe"] == "SQL queries"
    assert record["method"]["options"]["temperature"] == "inf"
    assert record["settings"]["embedding"] == "tfidf"
    assert record["settings"]["left_out"].keys() == {"haiku"}
    assert {source["name"] for source in record["sources"]} == {"sql", "c.safetensors"}
    assert all(0 < source["similarity"] < 1 and "weight" not in source for source in record["sources"])
    lm.replay("m", "again", folders=["set"])
    assert content(tmp_path / "m") == content(tmp_path / "again")
    lm.replay("again", "third", folders=["set"])
    assert content(tmp_path / "m") == content(tmp_path / "third")


def test_a_bare_output_is_replayed_too(tmp_path):
    listed({"sql": SQL, "haiku": HAIKU})
    lm.combine(["set/sql", "set/haiku"], "sg", describe="writes nature queries", out="m.safetensors")
    lm.replay("m.safetensors", "n.safetensors", folders=["set"])
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


RECORDS = {
    "a similarity in words": (("sources", 0, "similarity"), "near", "similarity is 'near', not a number"),
    "left out in words": (
        ("settings", "left_out"),
        {"x": "far"},
        "the similarity of x is 'far', not a number",
    ),
    "an embedding of numbers": (("settings", "embedding"), 3, "embedding is 3, which must be text"),
    "another temperature": (
        ("method", "options", "temperature"),
        "hot",
        "temperature='hot' must be a number",
    ),
}


@pytest.mark.parametrize(("place", "value", "words"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_was_tampered_with_is_a_sentence(place, value, words, tmp_path):
    listed({"sql": SQL, "haiku": HAIKU})
    lm.combine(["set/sql", "set/haiku"], "sg", describe="SQL", out="m")
    path = tmp_path / "m/loramerge.json"
    record = json.loads(path.read_text())
    table = record
    for step in place[:-1]:
        table = table[step]
    table[place[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(SourceError) as told:
        lm.replay("m", folders=["set"])
    assert words in str(told.value)


def test_similarities_that_were_decided_are_not_decided_again():
    adapters = random_adapters(1, (2, 3))
    assert weighed(lm.Sg(describe="x"), adapters, Request(weights=[0.3, 0.1]), {}) == (0.3, 0.1)


def test_only_a_query_loads_scikit_learn():
    script = (
        "import sys; from tests.helpers.adapters import random_adapters; import loramerge as lm;"
        "s = random_adapters(1, (2, 2)); lm.combine(s, 'sg', weights=[0.5, 0.4]);"
        "print('sklearn' in sys.modules);"
        "lm.combine(s, 'sg', describe='red', descriptions={'source0': 'red', 'source1': 'blue'});"
        "print('sklearn' in sys.modules, 'torch' in sys.modules)"
    )
    root = lm.__path__[0] + "/.."
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\nTrue False\n"
