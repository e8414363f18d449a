"""One hostile text in every name that files and users give, through every output."""

import json
import os
import re
import subprocess
from html.parser import HTMLParser

import pytest
import yaml

import loramerge as lm
from loramerge.consumers import CONSUMERS
from loramerge.hub.escape import code, markdown, quoted, shell
from tests.helpers.files import CONFIG, folder, tensors
from tests.helpers.models import random_model, save_model

HOSTILE = "a\x1b[31m\r\n<script>x</script>|`$(touch ran)`;'\"&[l](javascript:y)*_{{\u202e\u2028"
NAME = "n" + HOSTILE.replace("/", "")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


def terminal(text):
    assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    assert "\n<script" not in text


def html(text):
    parser = Tags()
    parser.feed(text)
    assert parser.seen <= {"table", "tr", "th", "td", "p", "br", "pre", "h3"}
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """An adapter whose folder, base, modules, heads and settings all have that name."""
    monkeypatch.chdir(tmp_path)
    inside, head = HOSTILE.replace("\r\n", ""), tensors()["base_model.model.layers.0.q.lora_A.weight"]
    shapes = {f"layers.0.{inside}": (6, 5), "layers.0.q": (6, 5)}
    values = tensors(0, shapes=shapes) | {f"base_model.model.{HOSTILE}.weight": head}
    said = {**CONFIG, "base_model_name_or_path": HOSTILE, "modules_to_save": [HOSTILE], "task_type": HOSTILE}
    folder(tmp_path / "other", tensors(1, shapes={"layers.0.q": (6, 5)}), base_model_name_or_path=HOSTILE)
    return folder(tmp_path / NAME, values, config=said)


def test_what_is_read_and_merged(hostile, tmp_path):
    merge = lm.combine([hostile, "other"], "svd", rank=1, extras="first", out=tmp_path / "m")
    for each in (merge.report, lm.inspect(hostile), lm.diff(hostile, hostile)):
        terminal(str(each))
        html(each._repr_html_())
    json.loads((tmp_path / "m/loramerge.json").read_text())


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_what_check_says(hostile, consumer):
    for finding in lm.check(hostile, consumer):
        for text in (finding.sentence, finding.mend, finding.command):
            terminal(text)
        assert "\n" not in finding.command
        assert words(finding.command)


def test_every_command_of_the_terminal(hostile, capsys, tmp_path):
    from loramerge.cli import main

    theirs = {"merge_method": "ties", "models": [{"model": HOSTILE, "parameters": {HOSTILE: 1}}], HOSTILE: 1}
    (tmp_path / "mergekit.yaml").write_text(json.dumps(theirs))
    commands = [
        ["inspect", NAME],
        ["check", NAME],
        ["diff", NAME, "other"],
        ["combine", NAME, "other"],
        ["combine", NAME, "other", "--extras", "first", "-o", "m"],
        ["combine", NAME, "other", "--print-recipe"],
        ["convert", NAME, "c", "--to", "kohya"],
        ["resize", NAME, "--rank", "1"],
        ["replay", "m"],
        ["inspect", f"{NAME}x"],
        ["combine", f"@{NAME}"],
        ["combine", "--recipe", "mergekit.yaml"],
        ["combine", NAME, "--only", HOSTILE],
        ["combine", NAME, "--alpha", f"{HOSTILE}=1"],
        ["methods", HOSTILE],
    ]
    for command in commands:
        with pytest.raises(SystemExit):
            main(command)
        told = capsys.readouterr()
        terminal(told.out)
        terminal(told.err.replace("\r", ""))
    assert not (tmp_path / "ran").exists()


def test_models_and_bundles(hostile, capsys, tmp_path):
    from loramerge.cli import main

    inside, (base, tuned) = HOSTILE.replace("\r\n", ""), (f"M{NAME}", f"T{NAME}")
    shapes = {f"layers.0.{inside}.weight": (6, 5), "layers.0.q.weight": (6, 5), f"norm{inside}.weight": (5,)}
    weights, said = random_model(shapes=shapes), {"architectures": [HOSTILE], "model_type": HOSTILE}
    save_model(tmp_path / base, weights, config=said)
    save_model(tmp_path / tuned, {key: 1.5 * each for key, each in weights.items()}, config=said)
    folder(tmp_path / "plain", tensors(0, shapes={f"layers.0.{inside}": (6, 5)}))
    commands = {
        "refused": ["extract", tuned, base, "-o", "refused"],
        "e": ["extract", tuned, base, "--extras", "drop", "-o", "e"],
        "f": ["fuse", "plain", base, "-o", "f"],
        "inside": ["fuse", "plain", base, "-o", f"{base}/x"],
        "c": [
            "combine",
            "plain",
            "other",
            "--allow-base-mismatch",
            "--allow-disjoint",
            "--fuse",
            base,
            "-o",
            "c",
        ],
        "r": ["route", "plain", "other", "--allow-base-mismatch", "--allow-disjoint", "-o", "r"],
        "check": ["check", "r"],
        "inspect": ["inspect", "e"],
        "again": ["fuse", "e", base, "--subtract", "-o", "g"],
        "gate": ["route", "plain", "other", "--gate", HOSTILE],
        "format": ["convert", "plain", "x", "--to", HOSTILE],
        "blocks": ["combine", "plain", "--blocks", HOSTILE],
        "recipe": ["combine", "--recipe", HOSTILE],
        "push": ["push", "r", HOSTILE],
    }
    done = {}
    for name, command in commands.items():
        for more in ([], ["--json", "--overwrite"]) if name in ("e", "f", "r") else ([],):
            with pytest.raises(SystemExit) as stop:
                main([*command, *more])
            told = capsys.readouterr()
            terminal(told.out)
            terminal(told.err.replace("\r", ""))
            done[name] = stop.value.code
            if more:
                json.loads(told.out)
    assert {name: done[name] for name in ("refused", "e", "f", "inside", "c", "r")} == {
        "refused": 3, "e": 0, "f": 0, "inside": 2, "c": 0, "r": 0}  # fmt: skip
    assert 70 not in done.values()
    text, tags = (tmp_path / "r/README.md").read_text(), Tags()
    terminal(text)
    tags.feed(re.sub(r"(?ms)^```python$.*?^```$", "", text))  # in code it is text
    assert not tags.seen
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text", [HOSTILE, "", "-", "a: b", "#x", "---", "yes", "1e5", "\\", "'", '"', "`", "||"]
)
def test_every_escape(text):
    assert words(shell(text)) == [text]
    assert yaml.safe_load(f"x: {quoted(text)}")["x"] == shell_text(text)
    for made in (markdown(text), code(text)):
        assert "\n" not in made
    tags = Tags()
    tags.feed(markdown(text))
    assert not tags.seen


def words(command):
    """The words that a shell takes a line for."""
    asked = ["bash", "-c", f"printf '%s\\0' {command}"]
    ran = subprocess.run(asked, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert not ran.stderr
    return os.fsdecode(ran.stdout).split("\0")[:-1]


def shell_text(text):
    from loramerge.errors import printable

    return printable(text)
