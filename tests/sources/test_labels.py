"""Two pairs of one head are summed only if their rows are the same labels."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError
from tests.helpers import files

P = "base_model.model."
LABELS = {"0": "no", "1": "maybe", "2": "yes"}
TURNED = {"0": "yes", "1": "maybe", "2": "no"}
NAMELESS = {str(i): f"LABEL_{i}" for i in range(3)}


def classifier(place, labels=None, rows=3, head="score"):
    shapes = {f"{P}layers.0.q.lora_A.weight": (2, 5), f"{P}layers.0.q.lora_B.weight": (6, 2)}
    shapes |= {f"{P}{head}.lora_A.weight": (2, 5), f"{P}{head}.lora_B.weight": (rows, 2)}
    config = {**files.CONFIG, "task_type": "SEQ_CLS", "target_modules": ["q", head]}
    files.folder(place, {key: np.ones(shape, "f4") for key, shape in shapes.items()}, config=config)
    if labels:
        (place / "config.json").write_text(json.dumps({"id2label": labels}))
    return place


# A kind from the wild: C3, label maps of pairs.
@pytest.mark.parametrize("head", ["score", "classifier.out_proj", "head.of.its.own"])
def test_other_labels_are_not_summed(head, tmp_path):
    places = [classifier(tmp_path / n, each, head=head) for n, each in (("a", LABELS), ("b", TURNED))]
    with pytest.raises(IncompatibleError, match=rf"Row 0 of {head} is no in a and yes in b: their labels"):
        lm.combine(places, "linear")
    assert len(lm.combine(places, "linear", exclude=head).adapter) == 1
    same = classifier(tmp_path / "c", LABELS, head=head)
    assert lm.combine([places[0], same], "linear").report.notes == ()


@pytest.mark.parametrize("labels", [None, NAMELESS], ids=["none", "no names"])
def test_what_is_not_known_of_them_is_said(labels, tmp_path):
    merge = lm.combine([classifier(tmp_path / "a", LABELS), classifier(tmp_path / "b", labels)], "linear")
    assert merge.report.notes == ("the labels of score in b are not known, and taken to be the same",)


def test_another_number_of_them_is_no_other_base(tmp_path):
    places = [classifier(tmp_path / "a"), classifier(tmp_path / "b", rows=4)]
    with pytest.raises(IncompatibleError, match="unless it is for other labels: then leave it out"):
        lm.combine(places, "linear")
