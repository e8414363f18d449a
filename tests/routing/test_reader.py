"""A bundle is a stranger's folder: what does not fit together is a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import Writer, open_file
from tests.routing.samples import RANKS, sample, tokens, told

Q = "layers.0.q"


def record(change):
    def apply(place):
        said = json.loads((place / "loramerge.json").read_text())
        change(said)
        (place / "loramerge.json").write_text(json.dumps(said))

    return apply


def router(change):
    def apply(place):
        path = place / "router.safetensors"
        tensors = {key: t.read() for key, t in open_file(path).tensors.items()}
        change(tensors)
        path.unlink()
        kinds = {"f": "F32", "i": "I64"}
        layout = {k: (kinds[v.dtype.kind], v.shape) for k, v in tensors.items()}
        with Writer(path, layout, {}) as writer:
            for key, array in tensors.items():
                writer.write(key, array)

    return apply


def starts(values):
    return router(lambda t: t.update({f"{Q}.rank_starts": np.array(values, np.int64)}))


DAMAGE = {
    "no experts": (record(lambda r: r.update(experts=[])), "names no expert"),
    "experts that are none": (
        record(lambda r: r.update(experts=[1])),
        "does not say its gate and its experts",
    ),
    "one expert too many": (record(lambda r: r["experts"].append({"name": "x"})), "task_3"),
    "one expert too few": (record(lambda r: r["experts"].pop()), "does not say whose the units|needs"),
    "no gate": (record(lambda r: r.pop("gate")), "does not say its gate"),
    "an unknown gate": (record(lambda r: r["gate"].update(name="best")), "not read here.*best"),
    "an option of another gate": (record(lambda r: r["gate"]["options"].update(signed=True)), "signed"),
    "an impossible option": (record(lambda r: r["gate"]["options"].update(top_k=0)), "top_k=0"),
    "more than there are": (record(lambda r: r["gate"]["options"].update(top_k=9)), "more than the 3"),
    "options that are none": (record(lambda r: r["gate"].update(options=[])), "does not say its gate"),
    "a gate for nobody": (
        record(lambda r: r.update(gates={"other": {"name": "static", "options": {}}})),
        "a gate for other, which no expert has",
    ),
    "no router": (lambda place: (place / "router.safetensors").unlink(), "router"),
    "no starts": (router(lambda t: t.pop(f"{Q}.rank_starts")), "whose the units of layers.0.q are"),
    "starts that go back": (starts([0, 5, 2, 10]), "whose the units"),
    "starts beyond the rank": (starts([0, 9, 10, 11]), "whose the units"),
    "starts from elsewhere": (starts([1, 2, 7, 10]), "whose the units"),
    "no prototypes": (router(lambda t: t.pop(f"{Q}.prototypes")), "lacks prototypes"),
    "prototypes of another width": (
        router(lambda t: t.update({f"{Q}.prototypes": np.zeros((3, 8), np.float32)})),
        r"lacks prototypes \(3, 9\)",
    ),
    "a module of nobody": (
        router(lambda t: t.update({"layers.9.q.prototypes": np.zeros(1, np.float32)})),
        "layers.9.q.prototypes, whose module no expert has",
    ),
    "a tensor that the gate does not know": (
        router(lambda t: t.update({f"{Q}.moments": np.zeros(1, np.float32)})),
        "layers.0.q.moments, which its gate does not know",
    ),
    "another kind": (record(lambda r: r.update(kind="merge")), "no bundle"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_fit_together_is_a_sentence(damage, words, tmp_path):
    lm.save_bundle(sample("arrow"), tmp_path / "b")
    damage(tmp_path / "b")
    with pytest.raises(lm.SourceError, match=words):
        lm.load_bundle(tmp_path / "b")


@pytest.mark.parametrize("name", ["arrow", "spectr", "seqr", "linear", "rank-sigmoid", "outchan"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_of_a_gate_that_is_none_does_not_pass(name, value, tmp_path):
    """`load_bundle` reads headers, so that it shows when the module is read; `check` reads all."""
    bundle = sample(name)
    lm.save_bundle(bundle, tmp_path / "b")
    tensor = next(iter(bundle[Q].tensors))
    router(lambda t: t[f"{Q}.{tensor}"].flat.__setitem__(0, value))(tmp_path / "b")
    for verb in (lambda b: lm.load_bundle(b)[Q], lambda b: lm.check(b, "peft")):
        with pytest.raises(lm.SourceError, match=rf"NaN or infinity in {tensor} of layers\.0\.q"):
            verb(tmp_path / "b")


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_load_does_not_pass_the_check(damage, words, tmp_path):
    lm.save_bundle(sample("arrow"), tmp_path / "b")
    damage(tmp_path / "b")
    if "no bundle" not in words:
        with pytest.raises(lm.SourceError, match=words):
            lm.check(tmp_path / "b", "peft")


def test_a_router_that_is_cut_short_is_a_sentence(tmp_path):
    lm.save_bundle(sample("arrow"), tmp_path / "b")
    place = tmp_path / "b" / "router.safetensors"
    for content in (place.read_bytes()[:-20], b"", b"x" * 99):
        place.write_bytes(content)
        for verb in (lm.load_bundle, lambda b: lm.check(b, "peft")):
            with pytest.raises(lm.SourceError, match="router"):
                verb(tmp_path / "b")


def test_an_alpha_that_somebody_changed_counts(tmp_path):
    bundle = sample("static", dtype="F32")
    lm.save_bundle(bundle, tmp_path / "b")
    path = tmp_path / "b" / "task_1" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": 2 * config["r"]}))
    again = lm.load_bundle(tmp_path / "b")
    assert np.allclose(again[Q].expert(1).dense(), 2 * bundle[Q].expert(1).dense(), rtol=1e-6)
    assert np.array_equal(again[Q].expert(0).dense(), bundle[Q].expert(0).dense())


def test_a_picture_shows_every_unit_for_every_token():
    pytest.importorskip("altair")
    seen = sample("spectr").explain(Q, tokens())
    found = seen.plot().to_dict()
    rows = found["data"]["values"]
    assert len(rows) == 10 * 12
    assert list(dict.fromkeys(row["expert"] for row in rows)) == ["source0", "source1", "source2"]
    (one,) = (row for row in rows if (row["expert"], row["unit"], row["token"]) == ("source1", 2, 7))
    assert one["weight"] == seen.units[7, RANKS[0] + 1]
    assert one["score"] == seen.scores[7, RANKS[0] + 1]
    assert one["chosen"] == ("yes" if one["weight"] else "no")
    fields, dots = (layer["encoding"] for layer in found["layer"])
    assert {name: each.get("field") for name, each in fields.items() if name != "tooltip"} == {
        "x": "token", "y": "expert", "yOffset": "unit", "color": "weight",
    }  # fmt: skip
    assert dots["opacity"]["field"] == "score"
    assert found["title"] == "layers.0.q: spectr (top_k 2, temperature 1)"


def test_an_explanation_says_why(tmp_path):
    """Scores before the choice, of those too that lost; the bar that they missed; the options of the gate."""
    bundle, x = sample("arrow", top_k=1), tokens()
    seen = bundle.explain(Q, x)
    scores = np.abs(x @ bundle[Q].tensors["prototypes"].astype(float).T)
    assert np.allclose(seen.best, scores)
    assert np.allclose(seen.bar, scores.max(axis=1))
    assert [seen.experts[e] for e in scores.argmax(axis=1)] == [
        seen.experts[e] for e in seen.weights.argmax(axis=1)
    ]
    first = str(seen).splitlines()
    assert first[0] == "layers.0.q, gate arrow (top_k 1, temperature 1), 12 tokens"
    order = np.argsort(-scores[0])
    told = [f"{seen.experts[e]}{' 1.000' * int(e == order[0])} (score {scores[0, e]:.3g})" for e in order]
    assert f"token 0: {told[0]}; not {told[1]}, {told[2]}" in first
    assert "score" in seen._repr_html_()
    assert set(seen.table.column("chosen")) == {"yes", "no"}


def test_an_explanation_tells_who_came_to_no_choice_and_of_units_each_score():
    lag = sample("lag", candidates=1).explain(Q, tokens())
    assert (np.isinf(lag.best).sum(axis=1) == 2).all(), "Arrow lets one through"
    assert lag.table.column("score").count(None) == np.isinf(lag.scores).sum() > 0
    own = sample("rank-self", top_k=4, threshold=0.3).explain(Q, tokens())
    assert "threshold 0.3" in str(own).splitlines()[0]
    assert ((own.scores >= own.bar[:, None]) >= (own.units != 0)).all()
    assert sample("outchan").explain(Q, tokens(), **told(sample("outchan").gate)).scores is None


@pytest.mark.parametrize(
    ("rows", "middle"), [({"ann": (1.0, 0.5, 2.0)}, []), ({"ann": (1.0, -3.0, 2.0)}, [0])]
)
def test_a_weight_below_zero_has_a_colour_of_its_own(rows, middle):
    pytest.importorskip("altair")
    seen = sample("table", rows=rows).explain(Q, tokens(2), row="ann")
    domain = seen.plot().to_dict()["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert domain == ([-3.0, 0, 3.0] if middle else [0, 2.0])


def test_a_name_that_is_nearly_there_is_offered():
    with pytest.raises(KeyError, match=r"Did you mean layers\.0\.q"):
        sample("arrow").forward("layers.0.qq", tokens())
