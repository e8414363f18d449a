"""What pipelines read: a schema, the facts of the output, the same in dry and real runs."""

import hashlib
import json

import pytest

from loramerge.algorithms import METHODS
from tests.helpers.files import folder, tensors

FACTS = ("schema", "loramerge", "out", "method", "rank", "ranks", "dtype", "format", "bytes")


def test_a_merge_tells_the_facts_of_its_output_dry_or_real(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    command = ("combine", "a", "a", "--method", "svd", "--json", "-o", "m")
    dry, real = (json.loads(cli(*command, *more).out) for more in (["--dry-run"], []))
    assert {key: dry[key] for key in FACTS} == {key: real[key] for key in FACTS}
    weights = (tmp_path / "m" / "adapter_model.safetensors").read_bytes()
    assert real["sha256"]["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    for module in real["modules"]:
        assert module["cosines"] == pytest.approx([1, 1])


def test_methods_are_listed_with_their_options(cli):
    found = json.loads(cli("methods", "--json").out)
    assert found["schema"] == 1
    assert [each["name"] for each in found["methods"]] == list(METHODS)
    (ties,) = json.loads(cli("methods", "TIES", "--json").out)["methods"]
    assert {"density", "rank"} <= {option["name"] for option in ties["options"]}
