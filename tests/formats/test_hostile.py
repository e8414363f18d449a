"""Files made to harm: one sentence and the right exit code, in bounded memory and time, and nothing left."""

import json
import os
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.errors import LoramergeError
from loramerge.merge.plan import Plan
from tests.helpers.files import CONFIG, Cli, bare, content, folder, key, raw, tensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@cache
def empties(count):
    """That many tensors of no bytes."""
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(b'"k%d":%b' % (i, entry) for i in range(count)) + b"}"


def high(path, rank):
    """A few kilobytes whose Grams would have gigabytes."""
    bare(path, {key("q", "A"): np.ones((rank, 1), np.float16), key("q", "B"): np.ones((1, rank), np.float16)})


def nothing_in(shape_up, shape_down):
    return {key("q", "B"): np.ones(shape_up, np.float32), key("q", "A"): np.ones(shape_down, np.float32)}


def signalling(path):
    """bfloat16 factors whose NaN makes the processor complain when it is widened."""
    entry = {"dtype": "BF16", "shape": [1, 1]}
    header = {
        key("q", "A"): {**entry, "data_offsets": [0, 2]},
        key("q", "B"): {**entry, "data_offsets": [2, 4]},
    }
    raw(path, header, b"\x81\x7f\x80\x3f")


BOMBS = {  # what is made at a path, exit code, words
    "10⁶ keys": (lambda p: raw(p, empties(10**6)), 1, "16 MiB is the limit"),
    "as many keys as the limit allows": (lambda p: raw(p, empties(100_000)), 3, "no LoRA pair"),
    "a header of brackets": (lambda p: raw(p, b'{"a":' + b"[" * 2**23), 1, "more than 3000000 values"),
    "a header of one number": (lambda p: raw(p, b'{"a":' + b"1" * 2**23 + b"}"), 1, "out of range"),
    "a header of one key": (lambda p: raw(p, b'{"' + b"a" * 2**23 + b'":1}'), 1, "500 is the limit"),
    "a header of one open text": (lambda p: raw(p, b'{"' + b"a" * 2**23), 1, "not JSON"),
    "rank 10⁶ in 4 MB": (lambda p: high(p, 10**6), 3, "1000000 units for 1×1"),
    "rank 16000 in 64 kB": (lambda p: high(p, 16_000), 3, "16000 units for 1×1"),
    "rank 10⁶ of nothing": (lambda p: bare(p, nothing_in((0, 10**6), (10**6, 0))), 1, "is empty"),
    "rank 0": (lambda p: bare(p, nothing_in((2, 0), (0, 2))), 1, "is empty"),
    "a signalling NaN": (signalling, 1, "NaN or infinity"),
}


@pytest.mark.parametrize("command", [pytest.param("inspect", marks=pytest.mark.slow), "combine"])
@pytest.mark.parametrize(("make", "code", "words"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_bounded_memory_and_time(tmp_path, make, code, words, command):
    make(tmp_path / "bomb.safetensors")
    before = sorted(os.listdir(tmp_path))
    begin = spent()
    command = [sys.executable, "-m", "loramerge", command, "bomb.safetensors", "--alpha", "rank"]
    one_thread = {**here(), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=in_one_gigabyte, env=one_thread
    )
    told = command[3] == "inspect" and code == 3  # what is in it, and that it cannot be merged
    assert done.returncode == (0 if told else code), done.stderr
    assert words in (done.stdout if told else done.stderr)
    if not told:
        assert (done.stdout, done.stderr[:7], done.stderr.count("\n")) == ("", "Error: ", 1)
    assert spent() - begin < 30
    assert sorted(os.listdir(tmp_path)) == before


def spent():
    """Seconds of the processor in children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_one_gigabyte():
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))


def here():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_many_adapters_of_large_rank_are_counted_together(tmp_path):
    wide = {"q": (3, 2)}
    folder(tmp_path / "a", tensors(0, 600, wide), r=600)
    assert lm.load(tmp_path / "a")
    with pytest.raises(LoramergeError, match="1200 units for 3×2 weights, and 1024 is the limit"):
        lm.combine([tmp_path / "a"] * 2, "cat")
    assert lm.combine([tmp_path / "a"] * 2, "linear").adapter, "a sum is folded, source by source"


PATHS = ["../../x", "/etc/x", "..", "~/x", "a\\..\\b", "C:\\x", "%2e%2e/x", "x\u202e\u200b", "-rf", " "]


def test_module_names_are_never_paths(cli, tmp_path):
    (tmp_path / "in").mkdir()
    source = folder(tmp_path / "in/a", tensors(shapes={path: (3, 2) for path in PATHS}))
    before = content(tmp_path)
    os.chdir(tmp_path / "in")
    for out in ("m", "m.safetensors"):
        assert cli("combine", "a", "-o", out).code == 0
        assert {str(target) for target in lm.load(out)} == set(PATHS)
        assert cli("diff", "a", out, "--max-error", "1e-12").code == 0
        assert "\u202e" not in cli.out
    after = {p: data for p, data in content(tmp_path).items() if not p.startswith(("in/m/", "in/m."))}
    assert (after, source.exists()) == (before, True)


def test_half_of_a_surrogate_pair_in_a_config_is_carried(cli, tmp_path):
    text = (
        '{"peft_type":"LORA","lora_alpha":4,"r":2,"base_model_name_or_path":"\\ud800","revision":"\\udfff"}'
    )
    folder(tmp_path / "a", config=text)
    for out in ("m", "m.safetensors"):
        assert cli("combine", "a", "-o", out).code == 0
        assert cli("replay", out).code == 0


SHRINKING = ["a", "c.safetensors"]


@pytest.mark.parametrize("source", SHRINKING)
@pytest.mark.parametrize("out", ["m", "m.safetensors"])
def test_a_source_that_shrinks_while_it_is_read(cli, tmp_path, monkeypatch, source, out):
    folder(tmp_path / "a")
    bare(tmp_path / "c.safetensors")
    assert cli("combine", "a", "-o", out).code == 0
    before = content(tmp_path / out)
    file = tmp_path / source / "adapter_model.safetensors" if source == "a" else tmp_path / source

    whole = Plan.batches

    def cut(plan, effort):
        os.truncate(file, file.stat().st_size // 2)
        return whole(plan, effort)

    monkeypatch.setattr(Plan, "batches", cut)
    cli("combine", source, "--alpha", "rank", "-o", out, "--overwrite").refused(1, "while it was read")
    assert content(tmp_path / out) == before
    assert sorted(os.listdir(tmp_path)) == sorted(["a", "c.safetensors", out])


def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


LIMIT = 20_000  # less than the weights, more than the config


@pytest.mark.parametrize("out", ["m", "m.safetensors"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_the_old_output_and_nothing_else(tmp_path, out, exists):
    sources = [str(ROOT / "fixtures" / f"{name}.safetensors") for name in "ab"]
    if exists:
        lm.combine(sources[:1], "svd", rank=1, out=tmp_path / out)
    before = content(tmp_path)
    command = [sys.executable, "-m", "loramerge", "combine", *sources, "-o", out, "--overwrite"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limited, env=here()
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: There is no space left while writing {out}. Free some, or choose another -o.\n"
    )
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ([out] if exists else [])


def test_a_full_disk_at_the_last_file(tmp_path, cli, monkeypatch):
    folder(tmp_path / "a")
    real = Path.write_text

    def full(path, *args, **kwargs):
        if path.name == "loramerge.json":
            raise OSError(28, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    cli("combine", "a").refused(1, "no space left")
    assert os.listdir(tmp_path) == ["a"]


LINKS = {  # a link in the place of what we write -> whether the merge succeeds
    "the new folder": (".m.loramerge-new", "m", True),
    "the new file": (".m.safetensors.loramerge-new", "m.safetensors", True),
    "the lock": (".m.loramerge-lock", "m", False),
    "the lock of a file": (".m.safetensors.loramerge-lock", "m.safetensors", False),
    "the weights in the old folder": ("m/adapter_model.safetensors", "m", True),
    "the config in the old folder": ("m/adapter_config.json", "m", True),
}


@pytest.mark.parametrize(("link", "out", "works"), LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("to", ["precious", "precious-folder"])
def test_a_link_laid_in_the_way_is_not_written_through(cli, tmp_path, link, out, works, to):
    folder(tmp_path / "a")
    (tmp_path / "precious").write_text("mine")
    folder(tmp_path / "precious-folder")
    if link.startswith("m/"):
        (tmp_path / "m").mkdir()
    (tmp_path / link).symlink_to(tmp_path / to)
    before = content(tmp_path / "precious-folder")
    if link.startswith("m/") and to == "precious-folder":
        cli("combine", "a", "-o", out, "--overwrite").refused(1, "would delete")
    else:
        assert (cli("combine", "a", "-o", out, "--overwrite").code == 0) == works
        assert cli.code in (0, 1)
    assert (tmp_path / "precious").read_text() == "mine"
    assert content(tmp_path / "precious-folder") == before


def test_a_source_may_be_linked_but_never_to_what_is_no_adapter(cli, tmp_path):
    """The Hub's cache is made of links."""
    folder(tmp_path / "a")
    (tmp_path / "secret").write_text("root:x:0:0")
    (tmp_path / "b").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "b" / name).symlink_to(tmp_path / "a" / name)
    assert cli("combine", "b").code == 0
    (tmp_path / "b/adapter_config.json").unlink()
    (tmp_path / "b/adapter_config.json").symlink_to(tmp_path / "secret")
    cli("inspect", "b").refused(1, "not valid JSON")
    assert "root" not in cli.err
    (tmp_path / "x.safetensors").symlink_to("/dev/zero")
    cli("inspect", "x.safetensors").refused(1, "is not a file")


NAMES = sorted(
    {*CONFIG, "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules", "modules_to_save",
     "bias", "init_lora_weights", "revision", "fan_in_fan_out", "task_type", "auto_mapping", "lora_bias",
     "layer_replication", "exclude_modules", "layers_to_transform", "peft_version", "target_parameters"}
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from([2, 4, "LORA", "none", "all", "q", "(a+)+$", "layers", 1e308, "\x1b[31m"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4) | st.sampled_from(["layers.0.q", "q", ".*"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.booleans())
def test_any_config_is_merged_or_refused(tmp_path, changes, bare_file):
    """Whatever JSON says: numbers or a sentence, and what is written can be read again."""
    if not (tmp_path / "a").exists():
        folder(tmp_path / "a", tensors(shapes={"layers.0.q": (3, 2)}))
    text = json.dumps({**CONFIG, **changes})
    if bare_file:
        source = bare(
            tmp_path / "c.safetensors",
            tensors(shapes={"layers.0.q": (3, 2)}),
            {"lora_adapter_metadata": text.encode("utf-8", "replace").decode()},
        )
    else:
        source = tmp_path / "a"
        (source / "adapter_config.json").write_bytes(text.encode("utf-8", "replace"))
    out = tmp_path / ("m.safetensors" if bare_file else "m")
    try:
        lm.inspect(source)
        lm.combine([source, source], out=out, overwrite=True, threads=1)
    except LoramergeError as error:
        check_sentence(error)
    else:
        assert lm.diff(out, lm.combine([source, source]).adapter).largest < 1e-6


def check_sentence(error):
    assert str(error).isprintable()
    assert len(str(error)) < 2000  # of two sources


KEYS = ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "base_model.model.q.alpha",
        "base_model.model.x.bias", "lora_", "base_model.model..lora_A.weight", "__metadata__"]  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "I8", "F8_E4M3", "BOOL", "X"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 2**40]), max_size=3),
        "data_offsets": st.tuples(st.integers(0, 24), st.integers(0, 48)).map(list),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ENTRY | VALUES, max_size=4), st.binary(max_size=48))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    source = raw(tmp_path / "x.safetensors", header, data)
    try:
        lm.inspect(lm.load(source, alpha="rank"))
    except LoramergeError as error:
        check_sentence(error)
