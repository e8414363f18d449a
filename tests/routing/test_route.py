"""`loramerge route` and `lm.route`: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.formats.bundles import is_bundle

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
A, B = FIXTURES / "a.safetensors", FIXTURES / "b.safetensors"


def test_the_command_writes_what_the_function_writes(cli):
    done = cli("route", A, B, "--gate", "smile", "--top-k", 2, "--directions", 3, "-o", "b")
    bundle = lm.load_bundle("b")
    lm.route([A, B], "smile", top_k=2, directions=3, out="c")

    assert done.code == 0, done.err
    assert "gate smile: top_k 2, temperature 1.0, directions 3" in done.out
    assert "wrote b: gate smile, 2 experts" in done.err
    assert bundle.experts == ("a.safetensors", "b.safetensors")
    assert bundle.record["kind"] == "bundle"
    for name in ("router.safetensors", "loramerge.json", "README.md", "task_1/adapter_model.safetensors"):
        assert (Path("b") / name).read_bytes() == (Path("c") / name).read_bytes()
    assert is_bundle("b")


def test_the_record_says_where_every_expert_came_from(cli):
    said = cli("route", A, B, "--json").json()["bundle"]
    (name, digest), *rest = said["experts"][0]["sha256"].items()

    assert (name, rest) == ("a.safetensors", [])
    assert len(digest) == 64
    assert said["gate"] == {"name": "arrow", "options": {"top_k": 2, "temperature": 1.0}}
    assert {"loramerge", "numpy"} <= said["versions"].keys()
    assert said == json.loads(Path("bundle/loramerge.json").read_text())


def test_every_expert_is_a_plain_adapter_with_its_own_update(cli):
    assert cli("route", A, B, "-q").out == "bundle\n"
    for task, source in (("task_0", A), ("task_1", B)):
        folder, wanted = lm.load(f"bundle/{task}"), lm.load(source)
        assert folder.rank == 8
        for target in folder:
            if target in wanted:
                assert np.allclose(folder[target].dense(), wanted[target].dense(), atol=1e-7)
            else:
                assert not folder[target].dense().any()


def test_rows_of_a_table_come_from_a_file(cli):
    rows = {"ann": [1.0, 0.0], "bob": [0.25, -2.0]}
    Path("rows.json").write_text(json.dumps(rows))
    np.savez("rows.npz", **{name: np.array(row) for name, row in rows.items()})
    for kind in ("json", "npz"):
        assert cli("route", A, B, "--gate", "table", "--table", f"rows.{kind}", "-o", kind).code == 0
        assert lm.load_bundle(kind).gate.row("bob") == (0.25, -2.0)


def test_what_all_share_is_taken_away_from_dw_and_not_from_its_factors(cli):
    """GenKnowSub: ΔW_e − mean ΔW_g; PEFT takes mean A and mean B apart, which is another update."""
    assert cli("route", A, B, "--subtract", A, "--subtract", B, "-o", "b").code == 0
    bundle, (a, b) = lm.load_bundle("b"), (lm.load(A), lm.load(B))
    assert bundle.rank == 8 + 8 + 4
    assert [each["name"] for each in bundle.record["subtracted"]] == [
        "fixtures/a.safetensors#3",
        "fixtures/b.safetensors#4",
    ]
    for target in bundle:
        nothing = np.zeros(bundle.layouts[target].shape)
        first, second = (each[target].dense() if target in each else nothing for each in (a, b))
        assert np.allclose(bundle[target].expert(0).dense(), first - (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gate", "arow"], "Did you mean arrow?"),
        (["--gate", "linear"], "comes with a file"),
        (
            ["--gate", "arrow", "--directions", 3],
            "--directions is not an option of arrow; it is one",
        ),
        (["--gate", "arrow", "--top-k", 3], "--top-k 3 is more than the 2 experts"),
        (["--gate", "table"], "needs --table FILE: by name one weight"),
        (["--gate", "arrow", "--weights", "1,2"], "--weights is for the gate static"),
        (["--gate", "static", "--weights", "1,2,3"], "3 weights for 2 experts"),
        (["-o", "b.safetensors"], "A bundle is a folder"),
        (["--extras", "average"], "kept apart"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(words, sentence, cli):
    cli("route", A, B, *words).refused(2, sentence)
    assert list(Path().iterdir()) == []


def test_a_folder_that_is_no_bundle_is_told_so(cli):
    cli("combine", A, B, "-o", "merged")
    with pytest.raises(lm.SourceError, match=r"no bundle: its loramerge\.json is of kind merge"):
        lm.load_bundle("merged")
    with pytest.raises(lm.SourceError, match="was not written by"):
        lm.load_bundle(FIXTURES)


def test_a_bundle_may_be_put_under_another_gate(cli):
    cli("route", A, B, "--top-k", 1, "-o", "one")
    assert cli("route", "one", "--gate", "spectr", "--top-k", 2, "-o", "two").code == 0
    direct = lm.route([A, B], "spectr", top_k=2)
    again = lm.load_bundle("two")
    x = np.random.default_rng(0).standard_normal((4, 64))
    name = "model.layers.0.self_attn.q_proj"
    assert np.allclose(again.forward(name, x), direct.forward(name, x), atol=1e-9)
    assert again.record["experts"] == lm.load_bundle("one").record["experts"]
    cli("route", "one", "-o", "three").refused(2, "a bundle already", "--gate")
    cli("route", "one", "--gate", "static", "-o", "one", "--overwrite").refused(1, "one")
