"""`only`: one method where a name matches, another for the rest, as if each had merged its part alone."""

import numpy as np
import pytest

from loramerge import (
    Average,
    IsoC,
    Lego,
    Level,
    Linear,
    MergeVla,
    Rule,
    Svd,
    Ties,
    combine,
    load,
    only,
    open,
    replay,
)
from loramerge.errors import SourceError, UsageError
from tests.helpers.adapters import dense, distance, merged, random_adapters
from tests.helpers.files import bare, tensors

SHAPES = {"layers.0.q": (7, 9), "layers.0.v": (8, 6), "layers.1.q": (7, 9), "layers.1.v": (8, 6)}
SOURCES = random_adapters(5, (3, 2, 4), SHAPES)
WEIGHTS = [1.0, -0.5, 0.7]
METHODS = {
    "lego": Lego(rank=3),
    "svd, 80 %": Svd(energy=0.8),
    "iso_c": IsoC(),
    "linear": Linear(),
    "published lego": Lego(variant="ctm", rank=2),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("otherwise", [None, Svd(rank=2), Lego(rank=2)], ids=["linear", "svd", "lego"])
def test_each_part_is_merged_as_if_alone(method, otherwise):
    whole = merged(SOURCES, only(method, r"q$", otherwise), WEIGHTS)
    parts = [merged(SOURCES, method, WEIGHTS, only="q$")]
    parts.append(merged(SOURCES, otherwise or Linear(), WEIGHTS, exclude="q$"))
    assert distance(whole, {**parts[0], **parts[1]}) < 1e-12


def test_every_part_uses_the_weights_as_its_method_does():
    whole = merged(SOURCES, only(Average(), "q$"), [1, 1, 2])
    for path, matrix in whole.items():
        total = sum(w * dense(source)[path] for w, source in zip([1, 1, 2], SOURCES, strict=True))
        np.testing.assert_allclose(matrix, total / (4 if path.endswith("q") else 1), rtol=1e-9)


@pytest.mark.parametrize(
    ("rest", "remedy", "mended"),
    [
        (Level(), "the scope module", Level(scope="module")),
        (Ties(scope="adapter"), "the scope module", Ties(scope="module")),
        (Svd(energy=0.9), "a rank in place of its energy", Svd(rank=2)),
    ],
)
def test_a_rest_that_must_see_all_modules_is_told_what_would_do(rest, remedy, mended):
    with pytest.raises(UsageError, match=remedy):
        only(Lego(rank=1), "q$", rest)
    assert merged(SOURCES, only(Lego(rank=1), "q$", mended))


def test_a_match_of_nothing_leaves_the_rest():
    assert distance(merged(SOURCES, only(Lego(rank=1), "nowhere")), merged(SOURCES, "linear")) < 1e-14


def test_rules_come_on_top():
    rules = [Rule("layers.1", rank=1)]
    merge = combine(SOURCES, only(Lego(rank=3), "q$", Svd(rank=2)), rules=rules, profile="compact")
    assert {t.path: s.rank for t, s in merge.adapter.slots.items()} == {
        "layers.0.q": 3,
        "layers.0.v": 2,
        "layers.1.q": 1,
        "layers.1.v": 1,
    }


@every_method
def test_a_record_of_it_replays_to_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab", 1):
        metadata = {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'}
        bare(tmp_path / f"{name}.safetensors", tensors(seed), metadata)
    combine(["a.safetensors", "b.safetensors"], only(method, "q$", Svd(rank=2)), out="m.safetensors")
    replay("m.safetensors", out="again.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert len(load("m.safetensors")) == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"match": "q"},
        {"match": 3, "method": {}, "otherwise": {}},
        {"match": "q", "method": {"name": "svd"}, "otherwise": {"name": "svd", "options": {}}},
    ],
)
def test_a_record_of_it_that_makes_no_sense_is_refused(tmp_path, monkeypatch, options):
    import json

    monkeypatch.chdir(tmp_path)
    bare(tmp_path / "a.safetensors", tensors(1), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    combine(["a.safetensors"], only(Svd(rank=1), "q"), out="m")
    values = json.loads((tmp_path / "m" / "loramerge.json").read_text())
    values["method"]["options"] = options
    (tmp_path / "m" / "loramerge.json").write_text(json.dumps(values))
    with pytest.raises(SourceError, match="only"):
        replay("m", out="again")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: only(Svd(), "("), "is not a regular expression"),
        (lambda: only(only(Svd(), "q"), "v"), "no other `only`"),
        (lambda: only(MergeVla(), "v"), "no method with masks"),
        (lambda: only("svd", "v"), "only takes methods such as"),
        (lambda: only(Svd(), "q", Svd(energy=0.5)), "give it a rank"),
        (lambda: open(SOURCES).combine(only(Svd(), "q")), "needs loramerge.combine"),
        (lambda: combine(SOURCES, "only"), "made in Python"),
        (lambda: combine(SOURCES, only(Svd(), "q"), total_rank=9), "total_rank=9 is for methods with a rank"),
    ],
)
def test_what_it_cannot_do_is_a_sentence(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()
