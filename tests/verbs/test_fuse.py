"""A fused model computes what its base with the adapter does; all else in it is the base, byte by byte."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Held
from loramerge.checkpoints import write
from loramerge.checkpoints.copy import Copy
from loramerge.errors import IncompatibleError, OutputError, SourceError, UsageError
from tests.helpers.files import content
from tests.helpers.models import BF16, CONFIG, random_model, read_model, save_model

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


def adapter(*paths, size=1.0, shapes=None):
    rng, known = np.random.default_rng(3), shapes or {Q: (16, 16), UP: (40, 16), "lm_head": (24, 16)}
    paths = paths or (Q, UP)
    return lm.Adapter.of(
        {
            path: lm.LowRank(
                size * rng.standard_normal((known[path][0], 2)), rng.standard_normal((2, known[path][1]))
            )
            for path in paths
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_sum_is_rounded_once_and_nothing_else_changes(tmp_path, dtype, shards):
    kind = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    before = random_model(dtype=kind)
    base = save_model(tmp_path / "b", before, shards=shards)
    given = adapter()
    done = lm.fuse(given, base, tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert sorted(os.listdir(base)) == sorted(os.listdir(tmp_path / "f"))
    for key, array in before.items():
        target = lm.Target(key.removesuffix(".weight"))
        wanted = array.astype(np.float64) + (given[target].dense() if target in given else 0.0)
        assert after[key].dtype == kind
        exact = wanted.astype(kind)
        apart = np.abs(after[key].astype(np.float64) - exact.astype(np.float64))
        assert np.count_nonzero(apart) <= 0.01 * apart.size, "but where float32 sums fall on an edge"
        assert (apart <= np.abs(exact.astype(np.float64)) * np.finfo(np.float16).eps * 8).all()
    for name in os.listdir(base):
        same = (base / name).read_bytes() == (tmp_path / "f" / name).read_bytes()
        changed = [k for k in read_shard(base / name) if k.removesuffix(".weight") in (Q, UP)]
        assert same == (not changed)
        assert header(base / name) == header(tmp_path / "f" / name)
    assert {each.name for each in done.tensors} == {f"{Q}.weight", f"{UP}.weight"}


def read_shard(path):
    return read_model(path) if path.suffix == ".safetensors" else {}


def header(path):
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")] if path.suffix == ".safetensors" else raw


def test_subtracting_takes_it_out_again_up_to_rounding(tmp_path):
    base = save_model(tmp_path / "b", random_model())
    lm.fuse(adapter(), base, tmp_path / "f")
    lm.fuse(adapter(), tmp_path / "f", tmp_path / "again", subtract=True)
    before, after = read_model(base), read_model(tmp_path / "again")
    assert all(np.allclose(before[key], after[key], atol=2e-6) for key in before)
    lm.fuse(adapter(), base, tmp_path / "half", scale=0.5)
    half = read_model(tmp_path / "half")[f"{Q}.weight"] - before[f"{Q}.weight"]
    assert np.allclose(half, 0.5 * adapter()[lm.Target(Q)].dense(), atol=1e-5)


def test_an_update_that_rounding_swallows_is_reported(tmp_path):
    base = save_model(tmp_path / "b", random_model(dtype=BF16))
    done = lm.fuse(adapter(size=1e-4), base, tmp_path / "f")
    assert done.rounding > 0.5
    assert "2 tensors, such as" in " ".join(done.notes)
    clear = lm.fuse(adapter(), base, tmp_path / "g")
    assert clear.rounding < 0.01
    assert not list(clear.notes)


def test_a_head_that_is_tied_gets_weights_of_its_own_only_if_it_must(tmp_path):
    before = random_model()
    del before["lm_head.weight"]
    config = {**CONFIG, "tie_word_embeddings": True}
    base = save_model(tmp_path / "b", before, config, shards=2)
    lm.fuse(adapter(), base, tmp_path / "tied")
    assert "lm_head.weight" not in read_model(tmp_path / "tied")
    done = lm.fuse(adapter("lm_head"), base, tmp_path / "f")
    after = read_model(tmp_path / "f")
    embedding = before["model.embed_tokens.weight"]
    assert np.array_equal(after["model.embed_tokens.weight"], embedding)
    wanted = embedding + adapter("lm_head")[lm.Target("lm_head")].dense()
    assert np.allclose(after["lm_head.weight"], wanted, atol=1e-6)
    assert json.loads((tmp_path / "f" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "no longer tied" in " ".join(done.notes)
    index = json.loads((tmp_path / "f" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in after.values())


def test_an_update_that_depends_on_the_weights_before_it_is_not_taken_out(tmp_path):
    from safetensors.numpy import save_file

    rng, start = np.random.default_rng(0), f"base_model.model.{Q}"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A.weight": (2, 16), "lora_B.weight": (16, 2), "lora_magnitude_vector": (16,)}
    tensors = {f"{start}.{k}": rng.random(shape).astype(np.float32) for k, shape in parts.items()}
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    base = save_model(tmp_path / "b", random_model())
    lm.fuse(tmp_path / "a", base, tmp_path / "f")
    with pytest.raises(IncompatibleError, match="cannot be taken out again"):
        lm.fuse(tmp_path / "a", tmp_path / "f", tmp_path / "u", subtract=True)
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("who", ["model", "adapter"])
def test_what_is_no_number_is_told_and_not_written(tmp_path, who):
    before, update = random_model(), adapter(Q)
    if who == "model":
        before[f"{Q}.weight"][0, 0] = np.nan
    else:
        key = lm.Target(Q)
        update = lm.Adapter.of({Q: lm.LowRank(np.nan * update[key].up, update[key].down)})
    base = save_model(tmp_path / "b", before)
    with pytest.raises(IncompatibleError, match="the model or the adapter is damaged"):
        lm.fuse(update, base, tmp_path / "f")
    assert not (tmp_path / "f").exists()


TIED = {**CONFIG, "tie_word_embeddings": True}


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("written", [False, True])
def test_an_embedding_that_was_trained_with_its_head_comes_back_tied(tmp_path, more, written):
    before = random_model()
    del before["lm_head.weight"]
    base = save_model(tmp_path / "b", before, TIED)
    embedding = np.ones((24 + more, 16), np.float32)
    q = "model.layers.0.self_attn.q_proj.weight"
    after = {**before, "model.embed_tokens.weight": embedding, q: before[q] + 1}
    save_model(tmp_path / "t", {**after, **({"lm_head.weight": embedding} if written else {})}, TIED)
    lm.extract(tmp_path / "t", base, tmp_path / "e", rank=1, extras="first")
    extras = lm.load(tmp_path / "e").extras
    assert {key.removeprefix("base_model.model.") for key in extras} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    lm.fuse(tmp_path / "e", base, tmp_path / "f")
    found = read_model(tmp_path / "f")
    assert found.keys() == before.keys()
    assert np.array_equal(found["model.embed_tokens.weight"], embedding)
    alone = {key: tensor for key, tensor in extras.items() if "embed" in key}
    kept = replace(lm.load(tmp_path / "e"), extras=alone)
    if more:
        with pytest.raises(lm.errors.IncompatibleError, match="holds no head with as many"):
            lm.fuse(kept, base, tmp_path / "g")
    else:
        lm.fuse(kept, base, tmp_path / "g")
        assert np.array_equal(
            read_model(tmp_path / "g")["lm_head.weight"], before["model.embed_tokens.weight"]
        )


def test_a_head_that_was_written_although_it_is_tied_is_its_embedding(tmp_path):
    before = random_model()
    head = before.pop("lm_head.weight")
    q = "model.layers.0.self_attn.q_proj.weight"
    after = {**before, q: before[q] + 1}
    base = save_model(tmp_path / "b", before, TIED)
    tuned = save_model(tmp_path / "t", {**after, "lm_head.weight": before["model.embed_tokens.weight"]}, TIED)
    assert not lm.extract(tuned, base, rank=1).beside
    other = save_model(
        tmp_path / "o", {**after, "lm_head.weight": head}, {**TIED, "tie_word_embeddings": False}
    )
    (beside,) = lm.extract(other, base, rank=1, extras="first").beside
    assert beside.key[1] == "lm_head.weight"
    assert beside.energy == pytest.approx(
        np.square(head - before["model.embed_tokens.weight"]).sum(), rel=1e-5
    )


def test_a_bare_file_becomes_a_file_with_the_same_header(tmp_path):
    file = save_model(tmp_path / "m.safetensors", random_model(), metadata={"b": "1", "a": "2"})
    lm.fuse(adapter(), file, tmp_path / "f.safetensors")
    assert header(file) == header(tmp_path / "f.safetensors")
    with pytest.raises(UsageError, match="is one file"):
        lm.fuse(adapter(), file, tmp_path / "f")


def quant(folder):
    return save_model(folder, random_model(), {**CONFIG, "quantization_config": {"quant_method": "awq"}})


LAYER_7, VISION = Q.replace("0", "7"), Q.replace("layers", "vision_tower.layers")
REFUSED = {
    "another model": (adapter("x", shapes={"x": (4, 4)}), None, {}, IncompatibleError, "has no x"),
    "a layer that the model lacks": (
        adapter(LAYER_7, shapes={LAYER_7: (16, 16)}),
        None,
        {},
        IncompatibleError,
        "has no model.layers.7.self_attn.q_proj",
    ),
    "a part that the model lacks": (
        adapter(VISION, shapes={VISION: (16, 16)}),
        None,
        {},
        IncompatibleError,
        "has no model.vision_tower.layers.0.self_attn.q_proj",
    ),
    "another shape": (
        adapter(Q, shapes={Q: (8, 8)}),
        None,
        {},
        IncompatibleError,
        "trained on another model",
    ),
    "quantised": (adapter(), quant, {}, IncompatibleError, "quantised with AWQ"),
    "no model": (adapter(), lambda folder: folder, {}, SourceError, "does not exist"),
    "a word": (adapter(), None, {"scale": "norm"}, UsageError, "for merges of several adapters"),
    "nothing left": (adapter(), None, {"only": "nowhere"}, UsageError, "No module is left"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused_and_leaves_nothing(tmp_path, name):
    given, make, asked, error, words = REFUSED[name]
    base = (make or (lambda folder: save_model(folder, random_model())))(tmp_path / "b")
    with pytest.raises(error, match=words):
        lm.fuse(given, base, tmp_path / "f", **asked)
    assert {path.name for path in tmp_path.iterdir()} <= {"b"}


def test_a_sum_that_does_not_fit_float16_is_refused_and_leaves_nothing(tmp_path):
    base = save_model(tmp_path / "b", random_model(dtype=np.float16))
    with pytest.raises(IncompatibleError, match="does not fit float16"):
        lm.fuse(adapter(size=1e5), base, tmp_path / "f")
    assert os.listdir(tmp_path) == ["b"]


def test_what_lies_at_out_is_kept_unless_it_is_such_a_model(tmp_path):
    base = save_model(tmp_path / "b", random_model(), shards=2)
    lm.fuse(adapter(), base, tmp_path / "f")
    with pytest.raises(OutputError, match="is not empty"):
        lm.fuse(adapter(), base, tmp_path / "f")
    lm.fuse(adapter(), base, tmp_path / "f", overwrite=True)
    (tmp_path / "f" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"would delete diary\.txt"):
        lm.fuse(adapter(), base, tmp_path / "f", overwrite=True)
    with pytest.raises(UsageError, match="is the model "):
        lm.fuse(adapter(), base, base, overwrite=True)


def test_other_forms_of_the_weights_and_what_is_said_of_the_base_are_not_carried(tmp_path):
    base = save_model(tmp_path / "b", random_model())
    for name in ("pytorch_model.bin", "model.gguf", "README.md", "LICENSE", "chat_template.jinja", ".hidden"):
        (base / name).write_text("x")
    (base / "onnx").mkdir()
    (base / "onnx" / "model.onnx").write_text("x")
    lm.fuse(adapter(), base, tmp_path / "f")
    there = {"config.json", "tokenizer.json", "model.safetensors", "LICENSE", "chat_template.jinja"}
    assert set(os.listdir(tmp_path / "f")) - {".hidden"} == there


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, kind):
    end = "" if kind == "folder" else ".safetensors"
    base = save_model(tmp_path / f"b{end}", random_model())
    true, count = os.pwrite, [0]

    def full(fd, data, at):
        count[0] += 1
        if count[0] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="no space left"):
        lm.fuse(adapter(), base, tmp_path / f"f{end}", threads=1)
    assert os.listdir(tmp_path) == [base.name]


FUSING = """
import sys
import loramerge as lm
print("ready", flush=True)
lm.fuse(*sys.argv[1:], overwrite=True)
"""


def test_a_killed_fusion_leaves_the_old_or_the_new_model(tmp_path):
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (1024, 1024) for i in range(6)}
    base = save_model(tmp_path / "b", random_model(0, shapes), shards=3)
    lm.save(
        adapter(*sorted(k[:-7] for k in shapes), shapes={k[:-7]: s for k, s in shapes.items()}),
        tmp_path / "a",
    )
    began = time.perf_counter()
    lm.fuse(tmp_path / "a", base, tmp_path / "new" if (tmp_path / "new").mkdir() else tmp_path / "new" / "f")
    span, new = time.perf_counter() - began, content(tmp_path / "new" / "f")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    rng, seen = random.Random(0), set()
    for moment in range(6):
        place = tmp_path / str(moment)
        place.mkdir()
        command = [sys.executable, "-c", FUSING, str(tmp_path / "a"), str(base), str(place / "f")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(span * rng.random() * 2)
            child.send_signal(signal.SIGKILL)
        there = content(place / "f") if (place / "f").exists() else None
        assert there in (None, new), "half a model"
        seen.add(there is None)
    lm.fuse(tmp_path / "a", base, place / "f", overwrite=True)
    assert content(place / "f") == new
    assert os.listdir(place) == ["f"]


def test_the_commands_fuse_a_merge_and_an_adapter(tmp_path, capsys):
    from loramerge.cli import main

    base = save_model(tmp_path / "b", random_model())
    for name in ("x", "y"):
        lm.save(adapter(size=0.5), tmp_path / name)
    paths = [str(tmp_path / name) for name in ("x", "y")]
    lm.fuse(adapter(), base, tmp_path / "wanted")
    run(
        main,
        ["combine", *paths, "--method", "linear", "--fuse", str(base), "-o", str(tmp_path / "merged"), "-q"],
    )
    run(main, ["fuse", paths[0], str(base), "--scale", "2", "-o", str(tmp_path / "doubled"), "--json"])
    capsys.readouterr()
    wanted = read_model(tmp_path / "wanted")
    for name in ("merged", "doubled"):
        found = read_model(tmp_path / name)
        assert all(np.allclose(found[key], wanted[key], atol=1e-5) for key in wanted)
    strong = ["--method", "linear", "--scale", "2", "--fuse", str(base), "--json"]
    run(main, ["combine", *paths, *strong, "-o", str(tmp_path / "strong")])
    assert "4 times as strong as its sources" in " ".join(json.loads(capsys.readouterr().out)["notes"])
    run(main, ["combine", *paths, "--fuse", str(base), "--dry-run", "-o", str(tmp_path / "z")], 2)
    assert "--dry-run is not for --fuse" in capsys.readouterr().err
    run(main, ["fuse", paths[0], str(base), "--scale", "norm", "-o", str(tmp_path / "z")], 2)
    assert "--scale norm is for merges" in capsys.readouterr().err


def test_a_renamed_adapter_is_added_where_its_new_names_are(tmp_path):
    base = save_model(tmp_path / "b", random_model())
    lm.fuse(adapter(Q), base, tmp_path / "wanted")
    lm.save(lm.Adapter.of({Q.replace("self_attn", "other"): adapter(Q)[Q]}), tmp_path / "away")
    with pytest.raises(IncompatibleError, match=r"no model\.layers\.0\.other\.q_proj"):
        lm.fuse(tmp_path / "away", base, tmp_path / "none")
    lm.fuse(
        tmp_path / "away", base, tmp_path / "f", rename={"model.layers.*.other": "model.layers.*.self_attn"}
    )
    assert content(tmp_path / "f") == content(tmp_path / "wanted")


GATED = ("gate_proj", "up_proj")
MLP = "model.layers.0.mlp"


@pytest.mark.parametrize("grain", ["fused", "split"])
def test_projections_are_added_where_the_model_has_them_in_the_grain_asked_for(grain, tmp_path):
    rng = np.random.default_rng(5)
    names = {"split": [f"{MLP}.{part}" for part in GATED], "fused": [f"{MLP}.gate_up_proj"]}
    shapes = {f"{path}.weight": (40 // len(names[grain]), 16) for path in names[grain]}
    base = save_model(tmp_path / "b", before := random_model(shapes=shapes))
    given = names["split" if grain == "fused" else "fused"]
    outs = 40 // len(given)
    updates = {
        path: lm.LowRank(rng.standard_normal((outs, 2)), rng.standard_normal((2, 16))) for path in given
    }
    lm.save(lm.Adapter.of(updates), tmp_path / "a")
    lm.fuse(tmp_path / "a", base, tmp_path / "f", grain=grain)
    lm.fuse(tmp_path / "a", base, tmp_path / "none")
    assert content(tmp_path / "none") == content(tmp_path / "f")
    after = read_model(tmp_path / "f")
    moved = np.vstack([after[key] - before[key] for key in shapes])
    np.testing.assert_allclose(moved, np.vstack([each.dense() for each in updates.values()]), atol=1e-5)


SIZES = {"q_proj": 8, "k_proj": 4, "v_proj": 4}
ATTENTION = "model.layers.0.self_attn"


def attention(grain, prefix="", leave=()):
    """The modules of grouped queries in a grain, with their outputs."""
    if grain == "fused":
        return {f"{prefix}{ATTENTION}.qkv_proj": 16}
    return {f"{prefix}{ATTENTION}.{name}": rows for name, rows in SIZES.items() if name not in leave}


def moved(folder, base, names):
    after, before = read_model(folder), read_model(base)
    return np.vstack([after[f"{name}.weight"] - before[f"{name}.weight"] for name in names])


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize(("mine", "theirs"), [("fused", "split"), ("split", "fused")])
def test_grouped_queries_are_added_in_the_other_grain_by_the_sizes_of_the_model(
    mine, theirs, prefix, tmp_path
):
    rng = np.random.default_rng(6)
    shapes = {f"{path}.weight": (rows, 16) for path, rows in attention(theirs, prefix).items()}
    base = save_model(tmp_path / "b", random_model(shapes=shapes))
    updates = {
        path: lm.LowRank(rng.standard_normal((rows, 2)), rng.standard_normal((2, 16)))
        for path, rows in attention(mine).items()
    }
    lm.save(lm.Adapter.of(updates), tmp_path / "a")
    lm.fuse(tmp_path / "a", base, tmp_path / "f")
    wanted = np.vstack([each.dense() for each in updates.values()])
    found = moved(tmp_path / "f", base, attention(theirs, prefix))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_part_alone_is_added_to_its_rows_if_these_are_known(tmp_path):
    base = save_model(tmp_path / "b", random_model(shapes={f"{ATTENTION}.qkv_proj.weight": (16, 16)}))
    shapes = {path: (rows, 16) for path, rows in attention("split").items()}
    key = f"{ATTENTION}.k_proj"
    lm.save(adapter(key, shapes=shapes), tmp_path / "a")
    lm.fuse(tmp_path / "a", base, tmp_path / "f")
    found = moved(tmp_path / "f", base, attention("fused"))
    np.testing.assert_allclose(found[8:12], adapter(key, shapes=shapes)[lm.Target(key)].dense(), atol=1e-5)
    assert not found[:8].any()
    assert not found[12:].any()


def test_rows_whose_order_is_not_known_are_refused_with_what_helps(tmp_path):
    base = save_model(tmp_path / "b", random_model(shapes={f"{ATTENTION}.query_key_value.weight": (16, 16)}))
    shapes = {path: (rows, 16) for path, rows in attention("split").items()}
    lm.save(adapter(*shapes, shapes=shapes), tmp_path / "a")
    with pytest.raises(
        IncompatibleError, match=r"has query_key_value in its place.*leave it out with exclude"
    ):
        lm.fuse(tmp_path / "a", base, tmp_path / "f")


def run(main, args, code=0):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code


def saved_over(file):
    """As a trainer does it: the same file, the same size."""
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[:start] + bytes(len(whole) - start))


def replaced(file):
    made = file.with_name("made")
    made.write_bytes(file.read_bytes())
    saved_over(made)
    os.replace(made, file)


def config_rewritten(file):
    config = file.with_name("config.json")
    config.write_text(config.read_text().replace("{", '{"x": 1, ', 1))


STEPS = {"copying": (Copy, "_keep"), "adding": (Copy, "_put"), "config": (write, "_carry")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("act", [saved_over, replaced, config_rewritten])
def test_a_base_that_changes_is_fused_as_it_was_or_not_at_all(tmp_path, monkeypatch, act, step):
    base = save_model(tmp_path / "b", random_model())
    lm.fuse(adapter(), base, tmp_path / "wanted")
    owner, name = STEPS[step]
    true, acted = getattr(owner, name), []

    def meddling(*given):
        if not acted:
            acted.append(act(base / "model.safetensors"))
        return true(*given)

    monkeypatch.setattr(owner, name, meddling)
    if act is replaced:
        with suppress(SourceError):  # where the process holds too many files open, this one was not kept so
            lm.fuse(adapter(), base, tmp_path / "f", threads=1)
            assert content(tmp_path / "f") == content(tmp_path / "wanted")
        assert (tmp_path / "f").exists() or sorted(os.listdir(tmp_path)) == ["b", "wanted"]
    else:
        with pytest.raises(SourceError, match="was changed"):
            lm.fuse(adapter(), base, tmp_path / "f", threads=1)
        assert sorted(os.listdir(tmp_path)) == ["b", "wanted"]


@pytest.mark.parametrize("out", ["b", "b/o", "link", "link/o", "a", "a/o", "."])
def test_no_model_is_written_into_what_is_read(tmp_path, out):
    base = save_model(tmp_path / "b", random_model())
    lm.save(adapter(), tmp_path / "a", format="peft")
    (tmp_path / "link").symlink_to("b")
    before = content(base), content(tmp_path / "a")
    with pytest.raises((OutputError, UsageError)):
        lm.fuse(tmp_path / "a", base, tmp_path / out, overwrite=True)
    assert (content(base), content(tmp_path / "a")) == before
    if not out.startswith("a"):
        with pytest.raises((OutputError, UsageError)):
            lm.extract(base, base, tmp_path / out, overwrite=True)


SIGHT, TALK = "layers.0.self_attn.k_proj", "layers.0.self_attn.q_proj"
TOWERS = {  # of models that see: path in the adapter -> path on the disk
    "Qwen2-VL": {
        "model.visual.blocks.0.attn.proj": "visual.blocks.0.attn.proj",
        "model.visual.merger.mlp.0": "visual.merger.mlp.0",
        f"model.language_model.{TALK}": f"model.{TALK}",
        "lm_head": "lm_head",
    },
    "Gemma 3": {
        f"model.vision_tower.vision_model.encoder.{SIGHT}": f"vision_tower.vision_model.encoder.{SIGHT}",
        f"model.language_model.{TALK}": f"language_model.model.{TALK}",
        "model.multi_modal_projector.linear": "multi_modal_projector.linear",
    },
    "LLaVA": {
        f"model.vision_tower.encoder.{SIGHT}": f"vision_tower.vision_model.encoder.{SIGHT}",
        f"model.language_model.{TALK}": f"language_model.model.{TALK}",
    },
    "Whisper": {f"model.encoder.{TALK}": f"encoder.{TALK}", f"model.decoder.{TALK}": f"decoder.{TALK}"},
}


@pytest.mark.parametrize("table", TOWERS.values(), ids=TOWERS)
def test_every_tower_of_a_model_is_found_under_its_name_on_the_disk(tmp_path, table):
    base = save_model(
        tmp_path / "b", random_model(shapes={f"{name}.weight": (8, 8) for name in table.values()})
    )
    ones = {path: lm.LowRank(np.full((8, 1), i + 1.0), np.ones((1, 8))) for i, path in enumerate(table)}
    lm.fuse(lm.Adapter.of(ones), base, tmp_path / "f")
    for i, name in enumerate(table.values()):
        np.testing.assert_allclose(moved(tmp_path / "f", base, [name]), i + 1.0, atol=1e-5)


RENAMED = {  # as transformers 5 has it -> as files have it still
    "vit.layers.0.attention.q_proj": "vit.encoder.layer.0.attention.attention.query",
    "vit.layers.0.attention.o_proj": "vit.encoder.layer.0.attention.output.dense",
    "vit.layers.0.mlp.fc1": "vit.encoder.layer.0.intermediate.dense",
    "vit.layers.0.mlp.fc2": "vit.encoder.layer.0.output.dense",
}


def test_modules_that_transformers_has_renamed_are_found_in_older_files(tmp_path):
    before = random_model(0, {f"{name}.weight": (8, 8) for name in RENAMED.values()})
    save_model(tmp_path / "b", before, {"model_type": "vit"})
    updates = {
        name: lm.LowRank(*np.random.default_rng(i).standard_normal((2, 8, 8)))
        for i, name in enumerate(RENAMED)
    }
    lm.fuse(lm.Adapter.of(updates), tmp_path / "b", tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert after.keys() == before.keys()
    for name, there in RENAMED.items():
        np.testing.assert_allclose(
            after[f"{there}.weight"], before[f"{there}.weight"] + updates[name].dense(), atol=1e-4
        )


def test_a_router_that_is_kept_whole_is_found_under_its_older_name(tmp_path):
    names = "model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"
    q = "model.layers.0.self_attn.q_proj"
    before = random_model(0, {names[1]: (4, 8), f"{q}.weight": (8, 8)})
    save_model(tmp_path / "b", before, {"model_type": "mixtral"})
    trained = {f"base_model.model.{names[0]}": Held(np.ones((4, 8), np.float32))}
    update = lm.Adapter.of({q: lm.LowRank(np.ones((8, 1)), np.ones((1, 8)))})
    kept = replace(update, extras=trained, config={"modules_to_save": ["mlp.gate"]})
    lm.fuse(kept, tmp_path / "b", tmp_path / "f")
    after = read_model(tmp_path / "f")
    assert after.keys() == before.keys()
    assert np.array_equal(after[names[1]], np.ones((4, 8)))
