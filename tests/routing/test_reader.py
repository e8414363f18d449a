"""A bundle is a stranger's folder: what does not fit together is a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.files.safetensors import Writer, open_file
from tests.routing.samples import RANKS, sample, tokens

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
    assert {name: each.get("field") for name, each in found["encoding"].items() if name != "tooltip"} == {
        "x": "token", "y": "expert", "yOffset": "unit", "color": "weight",
    }  # fmt: skip
    assert found["title"] == "layers.0.q: spectr"


@pytest.mark.parametrize(
    ("rows", "middle"), [({"ann": (1.0, 0.5, 2.0)}, []), ({"ann": (1.0, -3.0, 2.0)}, [0])]
)
def test_a_weight_below_zero_has_a_colour_of_its_own(rows, middle):
    pytest.importorskip("altair")
    seen = sample("table", rows=rows).explain(Q, tokens(2), row="ann")
    domain = seen.plot().to_dict()["encoding"]["color"]["scale"]["domain"]
    assert domain == ([-3.0, 0, 3.0] if middle else [0, 2.0])


def test_a_name_that_is_nearly_there_is_offered():
    with pytest.raises(KeyError, match=r"Did you mean layers\.0\.q"):
        sample("arrow").forward("layers.0.qq", tokens())
