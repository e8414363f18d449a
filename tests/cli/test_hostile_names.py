"""Names of strangers are shown so that no terminal obeys them, and a shell takes the paste for that name."""

import os
import subprocess

import pytest

from loramerge.errors import say, speaking, word
from tests.helpers.files import folder, tensors

NAMES = {
    "colours": "\x1b[31mred\x1b]0;title\x07\x9b31m",
    "other directions": "a\u202eb\u2066c\U000e0041",
    "lines": "a\nb\rc\td\x85e",
    "a shell": "$(touch PWNED)`touch PWNED`;'\"\\ & | !*?~",
    "bytes": "\udcff\udc80it's",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_word_is_pasted_as_it_was(name):
    shown = word(name)
    assert shown.isprintable()
    asked = ["bash", "-c", f"printf %s {shown}"]
    ran = subprocess.run(asked, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert ran.stdout == os.fsencode(name)
    with speaking("shell"):
        assert say("row", name).isprintable()
        assert say("blocks", {name: "double 3-7"}) == f"--blocks {shown}='double 3-7'"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_place_of_a_source_can_be_pasted(cli, tmp_path, name):
    folder(tmp_path / name.replace("/", ""), tensors(1))
    folder(tmp_path / "b", tensors(2))
    assert cli("combine", f"./{name}", "b", "-o", "out").code == 0
    (tmp_path / name).rename(tmp_path / "elsewhere")
    assert cli("replay", "out", "-o", "again").code == 1
    assert f"--source {word(name)}=PATH" in cli.err
    assert cli("replay", "out", "-o", "again", "--source", f"{name}=elsewhere").code == 0


def test_masks_under_a_name_that_is_no_utf_8_are_refused(cli, tmp_path):
    folder(tmp_path / NAMES["bytes"], tensors(1))
    folder(tmp_path / "b", tensors(2))
    assert cli("combine", NAMES["bytes"], "b", "--method", "mergevla", "-o", "out").code == 3
    assert "which is no UTF-8" in cli.err


def test_a_name_may_have_an_equals_sign(cli, tmp_path):
    folder(tmp_path / "a=b", tensors(1))
    folder(tmp_path / "c", tensors(2))
    assert cli("combine", "a=b", "c", "-o", "out").code == 0
    (tmp_path / "a=b").rename(tmp_path / "d=e")
    assert cli("replay", "out", "-o", "again", "--source", "a=b=d=e").code == 0


WRONG = ("!!int x", "!!bool x", "!!float x", "!!timestamp x", "!!binary x", "!!set x", "!!map x", "[" * 3000)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: value[:20])
def test_yaml_that_fits_no_tag_is_told_in_words_of_yaml(cli, tmp_path, value):
    (tmp_path / "r.yaml").write_text(f"sources: [a]\nalpha: {value}\n")
    assert cli("combine", "--recipe", "r.yaml").code in (1, 2)
    assert "r.yaml is not " in cli.err
    for words in ("attribute", "literal", "convert", "unpack", "recursion", "base64"):
        assert words not in cli.err
