"""`loramerge inspect` and `loramerge methods`: what they tell, and how."""

import numpy as np
import pytest

from loramerge.algorithms import METHODS
from tests.helpers.files import bare, dense, folder, read, tensors

B = "b.safetensors"


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    bare(tmp_path / "b.safetensors", tensors(2), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 3}'})


def test_the_table_has_a_row_for_every_kind_of_module(cli):
    assert cli("inspect", "a").code == 0
    assert cli.err == ""
    head, columns, q, v, loads = cli.out.splitlines()
    assert head.startswith("a: PEFT folder, 4 modules, float32, base model tiny, ‖ΔW‖ ")
    assert columns.split()[:5] == ["module", "count", "out×in", "rank", "scale"]
    assert q.split()[:5] == ["q", "2", "6×5", "2", "2"]
    assert v.split()[:5] == ["v", "2", "4×7", "2", "2"]
    well = "loads as it is meant in peft, transformers"  # of an unknown model llama.cpp cannot be told
    assert loads == f"{well}; not in vllm, sglang (loramerge check says why)"


def test_json_holds_every_module_with_its_spectrum(cli, tmp_path):
    assert cli("inspect", "a", "b.safetensors", "--json").code == 0
    first, second = cli.json()["adapters"]
    assert (first["name"], first["format"], first["base_model"]) == ("a", "PEFT folder", "tiny")
    assert (second["name"], second["format"], second["base_model"]) == (B, "bare PEFT file", None)
    wanted = dense(read(tmp_path / "a/adapter_model.safetensors"), 2.0)
    assert [module["name"] for module in first["modules"]] == sorted(wanted)
    for module in first["modules"]:
        update = wanted[module["name"]]
        assert (module["shape"], module["rank"], module["scale"]) == (list(update.shape), 2, 2.0)
        np.testing.assert_allclose(module["sigma"], np.linalg.svd(update)[1][:2], rtol=1e-9)
        assert module["norm"] == pytest.approx(np.linalg.norm(update), rel=1e-9)
        assert 1 <= module["effective_rank"] <= 2


def test_a_source_that_fails_does_not_hide_the_others(cli, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"a pickle")
    for order, code in [(["gone", "a", "x.bin", B], 1), (["x.bin", "a", "gone", B], 3)]:
        assert cli("inspect", *order).code == code, "that of the first failure"
        assert [line.split(":")[0] for line in cli.out.splitlines() if "modules," in line] == ["a", B]
        assert [line.split()[:2] for line in cli.err.splitlines()] == [
            ["Error:", name] for name in order if name in ("gone", "x.bin")
        ]
        assert cli("inspect", "--json", *order).code == code
        assert [facts["name"] for facts in cli.json()["adapters"]] == ["a", "b.safetensors"]
    assert cli("inspect", "gone", "--json").code == 1
    assert cli.json()["adapters"] == []


def test_zeros_are_told_and_are_no_nan(cli, tmp_path):
    folder(tmp_path / "zero", {k: v * ("lora_A" in k) for k, v in tensors().items()})
    assert cli("inspect", "zero").code == 0
    assert "odd: 4 of 4 modules are zero, such as layers.0.q" in cli.out
    facts = cli("inspect", "zero", "--json").json()["adapters"][0]
    assert facts["norm"] == 0
    assert {module["effective_rank"] for module in facts["modules"]} == {0}


ODD = {
    "a bias that is not there": ({"bias": "lora_only"}, "bias is lora_only, but there is no bias tensor"),
    "a head that is not there": ({"modules_to_save": ["score"]}, "modules_to_save lists score, but"),
    "no bias": ({"bias": "none", "modules_to_save": []}, None),
}


@pytest.mark.parametrize(("changes", "words"), ODD.values(), ids=ODD)
def test_oddities_are_told(cli, tmp_path, changes, words):
    folder(tmp_path / "x", **changes)
    assert cli("inspect", "x").code == 0
    assert (f"odd: {words}" in cli.out) if words else "odd:" not in cli.out


def test_an_alpha_by_name_reaches_the_file_wherever_it_lies(cli, tmp_path):
    (tmp_path / "deep er").mkdir()
    bare(tmp_path / "deep er" / "x.safetensors")
    for name in ("x.safetensors", "deep er/x.safetensors"):
        facts = cli("inspect", "a", "deep er/x.safetensors", "--alpha", f"{name}=8", "--json").json()[
            "adapters"
        ]
        assert [facts[i]["modules"][0]["scale"] for i in (0, 1)] == [2.0, 4.0]


def test_methods_lists_them_all_and_explains_one(cli):
    assert cli("methods").code == 0
    assert [line.split()[0] for line in cli.out.splitlines()] == ["method", *METHODS]
    for name, cls in METHODS.items():
        assert cli("methods", name).code == 0
        assert cli.out.startswith(f"{name}: ")
        for field in cls.names():
            assert f"\n  --{field.replace('_', '-')}" in cli.out
    assert "arXiv:2409.16167" in cli("methods", "lego").out
    cli("methods", "lgeo").refused(2, "Did you mean lego?")
