"""`loramerge diff`: the table, the JSON and the exit code."""

import pytest

from tests.helpers.files import bare, folder, tensors


@pytest.fixture(autouse=True)
def sources(cli, tmp_path):
    folder(tmp_path / "a", tensors(1))
    folder(tmp_path / "b", tensors(1), lora_alpha=5)  # 1.25 times as strong
    folder(tmp_path / "c", {k: v for k, v in tensors(1).items() if "layers.1.v" not in k})
    bare(tmp_path / "d.safetensors", tensors(1))


EXITS = {
    "the same": (["a", "a", "--max-error", "0"], 0),
    "the same, by another alpha": (["a", "d.safetensors", "--alpha", "d.safetensors=4", "--max-error=0"], 0),
    "no limit": (["a", "b"], 0),
    "within the limit": (["a", "b", "--max-error", "0.3"], 0),
    "above the limit": (["a", "b", "--max-error", "0.2"], 4),
    "a module less": (["a", "c", "--max-error", "0.9"], 4),
    "a module more": (["c", "a", "--max-error", "0.9"], 4),
    "no alpha": (["a", "d.safetensors"], 3),
    "no such source": (["a", "x"], 1),
    "one source": (["a"], 2),
    "a limit of nan": (["a", "b", "--max-error", "nan"], 2),
}


@pytest.mark.parametrize(("arguments", "code"), EXITS.values(), ids=EXITS)
def test_the_exit_code_tells_whether_they_are_close(cli, arguments, code):
    assert cli("diff", *arguments).code == code
    assert (cli.err == "") == (code == 0)


def test_the_table_shows_the_worst_modules_first(cli):
    assert cli("diff", "a", "c").code == 0
    head, columns, first, *_, last = cli.out.splitlines()
    assert head == "A a, B c"
    assert columns.split() == ["module", "error", "cosine", "‖B‖/‖A‖"]
    assert first.split() == ["layers.1.v", "only", "in", "A", "–", "–"]
    assert last.startswith("4 modules, 1 only in one of them; error ")


def test_json_is_every_module_and_comes_before_the_refusal(cli):
    assert cli("diff", "a", "b", "--json", "--max-error", "0.1").code == 4
    assert cli.err.startswith("Error: 4 of 4 modules differ by more than 0.1 of their norm; layers.")
    facts = cli.json()
    assert facts["sources"] == ["a", "b"]
    assert facts["missing"] == []
    assert len(facts["modules"]) == 4
    assert facts["largest_error"] == pytest.approx(0.25)
    assert {round(m["norm_ratio"], 9) for m in facts["modules"]} == {1.25}
