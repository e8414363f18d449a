"""Every damaged or mistaken input: one sentence, the right exit code, nothing left behind."""

import json
import math
import os

import numpy as np
import pytest

from tests.helpers.files import CONFIG, bare, content, folder, key, raw, tensors

Q = "layers.0.q"
ENTRY = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}


def changed(name, value):
    return {**tensors(), name: value}


def without(name):
    return {k: v for k, v in tensors().items() if k != name}


def spoilt(value):
    factor = tensors()[key(Q, "B")].copy()
    factor[1, 1] = value
    return changed(key(Q, "B"), factor)


def truncated(path):
    folder(path)
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def weights(path, header, data=b"", length=None):
    folder(path)
    raw(path / "adapter_model.safetensors", header, data, length)


def twice(path):
    text = json.dumps({"a": ENTRY})
    weights(path, f"{text[:-1]}, {text[1:]}".encode(), b"1")


def incomplete(path):
    folder(path)
    (path / "adapter_model.safetensors").unlink()


FILES = {  # how the source is made, exit code, words of the sentence
    "cut short": (truncated, 1, ["adapter_model.safetensors", "cut short: 8 bytes"]),
    "an empty file": (lambda p: p.touch(), 1, ["has only 0 bytes"]),
    "a header longer than the file": (lambda p: weights(p, b"{}", length=2**40), 1, ["cannot have"]),
    "a huge header": (lambda p: weights(p, b" " * (2**24 + 1)), 1, ["16 MiB is the limit"]),
    "a header that is no JSON": (lambda p: weights(p, b"{'"), 1, ["not JSON"]),
    "overlapping tensors": (lambda p: weights(p, {"a": ENTRY, "b": ENTRY}, b"1"), 1, ["overlaps"]),
    "a tensor twice": (twice, 1, ["'a' twice"]),
    "no weights": (incomplete, 1, ["no adapter_model.safetensors", "incomplete"]),
    "nan": (lambda p: folder(p, spoilt(math.nan)), 1, ["NaN or infinity", "up factor", Q]),
    "infinity": (lambda p: folder(p, spoilt(-math.inf)), 1, ["NaN or infinity", "up factor", Q]),
    "no lora_B": (lambda p: folder(p, without(key(Q, "B"))), 1, [f"lora_B of {Q}", "missing"]),
    "no lora_A": (lambda p: folder(p, without(key(Q, "A"))), 1, [f"lora_A of {Q}", "missing"]),
    "ranks that differ": (
        lambda p: folder(p, changed(key(Q, "B"), np.ones((6, 3), np.float32))),
        1,
        ["[6, 3]", "[2, 5]", "do not share a rank"],
    ),
    "an empty factor": (
        lambda p: folder(p, changed(key(Q, "B"), np.ones((0, 2), np.float32))),
        1,
        ["is empty"],
    ),
    "no pair": (lambda p: folder(p, {"x": np.ones(2)}), 3, ["no LoRA pair (x)"]),
    "an empty folder": (lambda p: p.mkdir(), 1, ["no adapter_config.json", "no files"]),
    "a folder of folders of adapters": (
        lambda p: (p.mkdir(), (p / "more").mkdir(), folder(p / "more/one")),
        1,
        ["no adapter_config.json"],
    ),
    "a folder of files": (
        lambda p: (p.mkdir(), bare(p / "x.safetensors")),
        1,
        ["name it: ", "bad/x.safetensors"],
    ),
    "a named pipe": (os.mkfifo, 1, ["not a file"]),
    "nothing": (lambda p: None, 1, ["does not exist"]),
    "a link to nothing": (lambda p: p.symlink_to("gone"), 1, ["does not exist"]),
    "a link to itself": (lambda p: p.symlink_to("bad"), 1, ["cannot be read"]),
    "another shape": (
        lambda p: folder(p, tensors(shapes={Q: (6, 8)})),
        3,
        ["6×5 in good but 6×8 in bad", "different base models"],
    ),
    "another base model": (
        lambda p: folder(p, base_model_name_or_path="other"),
        3,
        ["tiny", "other", "--allow-base-mismatch"],
    ),
}


def config(text, *words):
    return (lambda p: folder(p, config=text)), 1, list(words)


def setting(*words, **changes):
    return (lambda p: folder(p, **changes)), 1, list(words)


def unset(name):
    return (lambda p: folder(p, config={k: v for k, v in CONFIG.items() if k != name})), 1, [name]


CONFIGS = {
    "a list": config("[1]", "holds a list"),
    "a number": config("1", "holds a single value"),
    "not JSON": config("{'r': 2}", "not valid JSON"),
    "empty": config("", "not valid JSON"),
    "not UTF-8": (lambda p: (folder(p), (p / "adapter_config.json").write_bytes(b'{"\xff'))[0], 1, ["JSON"]),
    "nested too deeply": config('{"a":' + "[" * 100_000, "not valid JSON"),
    "larger than 16 MiB": config(" " * (2**24 + 1), "16 MiB"),
    "NaN for alpha": config('{"r": 2, "lora_alpha": NaN}', "NaN is no JSON number"),
    "a number beyond float": config('{"r": 2, "lora_alpha": 1e999}', "too large"),
    "no r": unset("r"),
    "r 0": setting("r of", "not 0", r=0),
    "r '8'": setting("r of", "not '8'", r="8"),
    "r true": setting("r of", "not True", r=True),
    "r 2.0": setting("r of", "not 2.0", r=2.0),
    "r of other tensors": setting("rank 8", "rank 2", "do not belong together", r=8),
    "no lora_alpha": unset("lora_alpha"),
    "alpha null": setting("lora_alpha", lora_alpha=None),
    "alpha '4'": setting("lora_alpha of", "not '4'", lora_alpha="4"),
    "alpha beyond float": setting("is too large", lora_alpha=10**400),
    "alpha beyond reason": setting("lora_alpha of", "1e+300", lora_alpha=1e300),
    "rsLoRA 1": setting("use_rslora of", "not 1", use_rslora=1),
    "rsLoRA 'true'": setting("use_rslora of", "not 'true'", use_rslora="true"),
    "a rank pattern in a list": setting("rank_pattern of", "not ['q']", rank_pattern=["q"]),
    "a rank pattern to text": setting("rank_pattern of q", rank_pattern={"q": "8"}),
    "a rank pattern of other tensors": setting("rank 4", "rank 2", rank_pattern={"q": 4}),
    "an alpha pattern to nothing": setting("alpha_pattern of q", alpha_pattern={"q": None}),
    "a pattern that is no pattern": setting("alpha_pattern key '('", alpha_pattern={"(": 4}),
}


@pytest.mark.parametrize("command", ["inspect", "combine", "combine to a file", "combine over"])
@pytest.mark.parametrize(("make", "code", "words"), [*FILES.values(), *CONFIGS.values()],
                         ids=[*FILES, *(f"a config: {name}" for name in CONFIGS)])  # fmt: skip
def test_a_sentence_an_exit_code_and_nothing_left(cli, tmp_path, make, code, words, command):
    folder(tmp_path / "good")
    make(tmp_path / "bad")
    out = {"combine to a file": "m.safetensors"}.get(command, "merged")
    if command == "combine over":
        folder(tmp_path / out, tensors(seed=9))
    before = content(tmp_path)
    if command == "inspect":
        if words[-1] in ("different base models", "--allow-base-mismatch"):
            assert cli("inspect", "good", "bad").code == 0
            return
        if cli("inspect", "bad").code == 0:  # what is in it is told, and why it is not merged
            assert code == 3
            assert all(word in cli.out for word in ("cannot be merged", *words))
            assert content(tmp_path) == before
            return
    else:
        cli("combine", "good", "bad", "-o", out, "--overwrite")
    cli.refused(code, *words)
    assert content(tmp_path) == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_huge_config_value_is_not_printed_in_full(cli, tmp_path):
    folder(tmp_path / "bad", lora_alpha="x" * 10_000)
    cli("inspect", "bad").refused(1, "lora_alpha")
    assert len(cli.err) < 300


def test_base_models_that_differ_merge_when_told_to_and_none_is_then_named(cli, tmp_path):
    folder(tmp_path / "a")
    folder(tmp_path / "b", base_model_name_or_path="other/model")
    folder(tmp_path / "c", base_model_name_or_path=None)
    cli("combine", "c", "a", "b").refused(3, "a was trained on tiny but b on other/model")
    assert cli("combine", "a", "b", "--allow-base-mismatch").code == 0
    assert base_of(tmp_path / "merged") is None
    assert cli("combine", "a", "c", "--overwrite").code == 0, "a base that is not named decides nothing"
    assert base_of(tmp_path / "merged") == "tiny"


def base_of(where):
    return json.loads((where / "adapter_config.json").read_text())["base_model_name_or_path"]


HUB = ["org/name", "org-1/name_2.x"]
PATHS = ["./nowhere", "nowhere/", "/nowhere", "~/nowhere", "a/b/c", "org/name.safetensors", "nowhere"]


@pytest.mark.parametrize("name", HUB + PATHS)
def test_a_name_of_the_hub_is_taken_for_one_only_where_it_looks_like_one(cli, name):
    cli("inspect", name).refused(1, name, "does not exist")
    assert ("Hub" in cli.err) == (name in HUB)


def test_a_dot_means_the_working_folder_and_an_empty_name_nothing(cli):
    cli("inspect", ".").refused(1, ". has no adapter_config.json")
    assert cli("inspect", "").code == 2
    assert "A word is empty" in cli.err


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_longer_than_the_system_allows_is_a_sentence(cli, length):
    cli("inspect", "x" * length).refused(1, "too long")
    cli("inspect", "x" * length + "/y").refused(1, "x")


def test_a_folder_that_may_not_be_listed_is_a_sentence(cli, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    cli("inspect", "secret").refused(1, "secret cannot be read: Permission denied")
    monkeypatch.setattr(os, "listdir", refuse)
    source = bare(tmp_path / "x.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    cli("combine", source).refused(3, "does not say its alpha")


EVIL, SAFE = "\x1b[31mred\x07\n", "\\x1b[31mred"


def test_no_name_from_a_file_reaches_the_terminal_raw(cli, tmp_path):
    values = tensors(shapes={EVIL.replace("\n", "\r") + ".q": (3, 2)})
    source = folder(tmp_path / "a", values, base_model_name_or_path=EVIL, bias=EVIL, modules_to_save=[EVIL])
    assert cli("inspect", source).code == 0
    assert SAFE in cli.out
    assert cli("combine", source, source, "--method", "svd", "--rank", 1).code == 0
    assert "\x1b" not in cli.out + cli.err
    cli("inspect", tmp_path / EVIL).refused(1, SAFE)
    cli("combine", bare(tmp_path / "x.safetensors", {EVIL: np.ones(2)}), "--alpha", 4).refused(3, SAFE)
    cli("combine", source, "--method", EVIL).refused(2, SAFE)


SETTINGS = [
    ({"rank_pattern": {EVIL: "8"}}, 1),
    ({"peft_type": EVIL}, 3),
    ({"init_lora_weights": "pissa" + EVIL}, 3),
]


@pytest.mark.parametrize(("setting", "code"), SETTINGS)
def test_no_setting_reaches_the_terminal_raw(cli, tmp_path, setting, code):
    cli("combine", folder(tmp_path / "a", **setting)).refused(code, SAFE)
