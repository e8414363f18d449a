"""What is written: the portable profile exactly, one metadata key, provenance, and only if it was proved."""

import json
import os
import platform
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import loramerge
from loramerge import combine, load, save
from loramerge.errors import OutputError, VerificationError
from loramerge.formats import output
from loramerge.formats.files.safetensors import Writer
from loramerge.merge.run import run
from tests.helpers.files import SHAPES, bare, content, dense, folder, key, read, tensors

FILES = ["adapter_config.json", "adapter_model.safetensors", "loramerge.json"]
PROFILE = {
    "peft_type": "LORA",
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "lora_dropout": 0.0,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
}
MIXED = dict(zip(SHAPES, (1, 2, 3, 4), strict=True))


def written(path):
    return json.loads((path / "adapter_config.json").read_text())


def two(tmp_path, first=None, second=None):
    """Two PEFT folders that differ in rank, scale and targets."""
    a = folder(tmp_path / "a", tensors(1, 2), **(first or {}))
    shapes = {path: shape for path, shape in SHAPES.items() if path != "layers.1.v"}
    shapes["layers.0.o"] = (3, 3)
    b = folder(tmp_path / "b", tensors(2, 3, shapes), r=3, lora_alpha=16, use_rslora=True, **(second or {}))
    return a, b


def expected(a, b, weights=(1.0, 1.0)):
    total = {path: weights[0] * value for path, value in dense(read(a / FILES[1]), 2.0).items()}
    for path, value in dense(read(b / FILES[1]), 16 / 3**0.5).items():
        total[path] = total.get(path, 0) + weights[1] * value
    return total


def test_a_merge_of_mixed_ranks_is_one_rank_at_scale_1_and_exact(tmp_path):
    a, b = two(tmp_path)
    combine([a, b], "linear", weights=[0.5, -2.0], dtype="float64", out=tmp_path / "m")
    made = written(tmp_path / "m")
    assert made["r"] == made["lora_alpha"] == 5
    values = read(tmp_path / "m" / FILES[1])
    assert all(value.shape[0 if "lora_A" in name else 1] == 5 for name, value in values.items())
    assert not values[key("layers.0.o", "A")][3:].any(), "padding is zero"
    assert not values[key("layers.0.o", "B")][:, 3:].any(), "padding is zero"
    total = expected(a, b, (0.5, -2.0))
    found = dense(values)
    assert found.keys() == total.keys()
    for path in total:
        np.testing.assert_allclose(found[path], total[path], rtol=1e-12, atol=1e-12)


def test_the_folder_is_the_portable_profile_and_nothing_else(tmp_path):
    said = {"task_type": "CAUSAL_LM", "peft_version": "0.19.0", "revision": "main", "auto_mapping": {"x": 1}}
    a, b = two(tmp_path, said, said)
    combine([a, b], out=tmp_path / "m")
    assert sorted(os.listdir(tmp_path / "m")) == FILES
    made = written(tmp_path / "m")
    assert made == {
        **PROFILE,
        **said,
        "base_model_name_or_path": "tiny",
        "fan_in_fan_out": False,
        "r": 5,
        "lora_alpha": 5,
        "target_modules": made["target_modules"],
    }
    with safe_open(tmp_path / "m" / FILES[1], framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_sources_disagree_about_is_left_open(tmp_path):
    a, b = two(tmp_path, {"task_type": "CAUSAL_LM", "peft_version": "0.19.0"}, {"peft_version": "0.12.0"})
    combine([a, b], out=tmp_path / "m")
    made = written(tmp_path / "m")
    assert made["task_type"] == "CAUSAL_LM", "one source with an opinion is enough"
    assert "peft_version" not in made
    assert made["auto_mapping"] is made["revision"] is None


ALL = ["layers.0.o", "layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"]
NAMES = {  # target_modules of a (has q, v) and of b (has q, one v, o) -> those of the merge
    "suffixes, where a source meant the same": (["q", "v"], ["q", "v", "o"], ["o", "q", "v"]),
    "paths, where none did": (["q"], ["q"], ["layers.0.o", "layers.0.v", "layers.1.v", "q"]),
    "no list": ("all-linear", ".*", ALL),
    "no statement": (None, None, ALL),
    "longer names": (["layers.0.q", "layers.1.q"], ["o"], [*ALL[1:], "o"]),
    "things that are no names": ([1, None, {}], [["q"]], ALL),
}  # fmt: skip


@pytest.mark.parametrize(("first", "second", "names"), NAMES.values(), ids=NAMES)
def test_target_modules_name_the_modules_of_the_merge_and_no_others(tmp_path, first, second, names):
    a, b = two(tmp_path, {"target_modules": first}, {"target_modules": second})
    combine([a, b], out=tmp_path / "m")
    assert written(tmp_path / "m")["target_modules"] == names


@pytest.mark.parametrize("narrowing", [{"layers_to_transform": [0, 1]}, {"exclude_modules": ["o"]}])
def test_a_suffix_that_a_source_narrowed_is_spelt_out(tmp_path, narrowing):
    a, b = two(tmp_path, {"target_modules": ["q", "v"], **narrowing})
    combine([a, b], out=tmp_path / "m")
    assert written(tmp_path / "m")["target_modules"] == ALL


def test_a_suffix_that_lost_modules_to_only_is_spelt_out(tmp_path):
    a, b = two(tmp_path, {"target_modules": ["q", "v"]}, {"target_modules": ["q", "v", "o"]})
    combine([a, b], out=tmp_path / "m", only=r"\.0\.")
    assert written(tmp_path / "m")["target_modules"] == ["layers.0.q", "layers.0.v", "o"]


WIDEST = {
    ("float32", "float32"): "float32",
    ("bfloat16", "bfloat16"): "bfloat16",
    ("float16", "float16"): "float16",
    ("bfloat16", "float16"): "float32",
    ("float16", "float32"): "float32",
    ("bfloat16", "float64"): "float64",
}


def dtypes_of(path):
    with safe_open(path, framework="numpy") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}


CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@pytest.mark.parametrize(("kinds", "widest"), WIDEST.items(), ids=map("+".join, WIDEST))
def test_the_dtype_is_the_widest_of_the_sources_unless_told(tmp_path, kinds, widest):
    types = {"bfloat16": ml_dtypes.bfloat16}
    sources = [
        folder(tmp_path / name, tensors(seed, dtype=types.get(kind, kind)))
        for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True))
    ]
    combine(sources, out=tmp_path / "m")
    assert dtypes_of(tmp_path / "m" / FILES[1]) == {CODES[widest]}
    for told, code in CODES.items():
        combine(sources, out=tmp_path / "m", dtype=told, overwrite=True)
        assert dtypes_of(tmp_path / "m" / FILES[1]) == {code}


def test_a_bare_file_has_one_metadata_key_and_describes_itself(tmp_path):
    a, b = two(tmp_path)
    out = tmp_path / "m.safetensors"
    combine([a, b], "svd", rank=2, out=out)
    with safe_open(out, framework="numpy") as file:
        ((name, text),) = file.metadata().items()
    assert name == "loramerge"
    header = json.loads(text)
    assert header["schema"] == 1
    assert header["method"]["name"] == "svd"
    assert header["method"]["options"] | {"rank": 2, "energy": None} == header["method"]["options"]
    assert header["config"]["r"] == header["config"]["lora_alpha"] == 2
    assert header["config"]["target_modules"]
    moved = out.rename(tmp_path / "elsewhere.safetensors")
    merged = load(moved)
    assert merged.base.name == "tiny"
    assert {slot.scale for slot in merged.slots.values()} == {1.0}


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_what_was_written_can_be_merged_again(tmp_path, name):
    a, b = two(tmp_path)
    first, second = tmp_path / name, tmp_path / f"again_{name}"
    combine([a, b], "linear", out=first, dtype="float64")
    again = combine([first, a], weights=[1, -1], out=second, dtype="float64")
    assert again.adapter.bare == name.endswith(".safetensors")
    total, less = expected(a, b), dense(read(a / FILES[1]), 2.0)
    for target, update in again.adapter.items():
        wanted = total[target.path] - less.get(target.path, 0.0)
        np.testing.assert_allclose(update.dense(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_save_folds_the_scale_and_pads(tmp_path, name):
    source = folder(tmp_path / "a", tensors(rank=MIXED), r=1, lora_alpha=3, rank_pattern=MIXED)
    save(load(source), tmp_path / name, dtype="float64")
    back = load(tmp_path / name)
    assert {slot.rank for slot in back.slots.values()} == {4}
    assert {slot.scale for slot in back.slots.values()} == {1.0}
    scales = {path: 3 / rank for path, rank in MIXED.items()}
    for path, wanted in dense(read(source / FILES[1]), scales).items():
        np.testing.assert_allclose(back[loramerge.Target(path)].dense(), wanted, rtol=1e-15, atol=1e-15)


def test_save_writes_other_tensors_as_they_are(tmp_path):
    source = folder(tmp_path / "a", {**tensors(), "head.weight": np.ones(2)})
    save(load(source), tmp_path / "m")
    np.testing.assert_array_equal(read(tmp_path / "m" / FILES[1])["head.weight"], np.ones(2))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_modes_follow_the_umask(tmp_path, mask, name):
    a, b = two(tmp_path)
    before = os.umask(mask)
    try:
        combine([a, b], out=tmp_path / name)
    finally:
        os.umask(before)
    for path in [tmp_path / name, *(tmp_path / name).glob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


def test_an_output_is_replaced_only_when_told_and_never_with_foreign_files_in_it(tmp_path):
    a, b = two(tmp_path)
    for name in ("m", "m.safetensors"):
        combine([a], out=tmp_path / name)
        before = content(tmp_path / name)
        with pytest.raises(OutputError, match="overwrite=True"):
            combine([a, b], out=tmp_path / name)
        assert content(tmp_path / name) == before
        combine([a, b], out=tmp_path / name, overwrite=True)
        assert content(tmp_path / name) != before
    (tmp_path / "m" / "optimizer.pt").touch()
    before = content(tmp_path / "m")
    with pytest.raises(OutputError, match=r"would delete optimizer\.pt"):
        combine([a], out=tmp_path / "m", overwrite=True)
    assert content(tmp_path / "m") == before


@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_an_output_is_never_one_of_the_sources(tmp_path, name):
    a, b = two(tmp_path)
    out = tmp_path / name
    combine([a], out=out, dtype="float64")
    before = content(tmp_path)
    with pytest.raises(OutputError, match="which is merged"):
        combine([out, b], out=out, overwrite=True)
    assert content(tmp_path) == before


def test_the_same_merge_twice_is_the_same_bytes_in_every_file(tmp_path):
    a, b = two(tmp_path)
    for method, options in [("lego", {"seed": 3}), ("svd", {"rank": 2}), ("linear", {"energy": 0.9})]:
        made = []
        for at, threads in (("x", 1), ("y", 4)):
            out = tmp_path / f"{method}_{at}"
            combine([a, b], method, weights=[1, 0.3], out=out, threads=threads, **options)
            combine(
                [a, b],
                method,
                weights=[1, 0.3],
                out=out.with_suffix(".safetensors"),
                threads=threads,
                **options,
            )
            made.append([content(out), content(out.with_suffix(".safetensors"))])
        assert made[0] == made[1]
        assert sorted(made[0][0]) == FILES


def test_provenance_says_what_was_merged_and_how_without_paths_or_times(tmp_path):
    a, b = two(tmp_path)
    lone = bare(tmp_path / "lone.safetensors", tensors(5))
    out = tmp_path / "m"
    merge = combine(
        [a, str(b) + "/", lone],
        "lego",
        weights=[1, -0.5, 2],
        alpha={"lone.safetensors": 8},
        out=out.resolve(),
        only="q|v",
        seed=7,
    )
    text = (out / "loramerge.json").read_text()
    assert str(tmp_path) not in text
    assert "/tmp" not in text
    record = json.loads(text)
    assert set(record) == {"schema", "sources", "method", "settings", "versions", "report"}
    assert record["schema"] == 1
    assert [(s["name"], s["weight"], s["base_model"], s["revision"]) for s in record["sources"]] == [
        ("a", 1.0, "tiny", None),
        ("b", -0.5, "tiny", None),
        ("lone.safetensors", 2.0, None, None),
    ]
    for source, place in zip(record["sources"], [a, b, lone], strict=True):
        files = [place] if place.is_file() else [place / name for name in FILES[:2]]
        assert source["sha256"] == {file.name: sha256(file) for file in files}
    assert record["method"] == {"name": "lego", "options": merge.method.options()}
    assert record["method"]["options"]["rank"] == 3, "the rank that was decided"
    assert record["settings"]["only"] == "q|v"
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["loramerge"] == loramerge.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["report"] == merge.report.to_dict()
    assert {module["name"] for module in record["report"]["modules"]} == set(SHAPES)


def sha256(path: Path) -> str:
    from hashlib import sha256

    return sha256(path.read_bytes()).hexdigest()


# Proof. Each fault happens after the numbers were decided; the output must be as it was before.


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def restrengthen(path):
    settings = path.parent / FILES[0]
    if settings.exists():
        settings.write_text(settings.read_text().replace('"lora_alpha": 5', '"lora_alpha": 10'))
    else:
        path.write_bytes(path.read_bytes().replace(b'"schema\\"', b'"shemca\\"'))


@pytest.mark.parametrize("fault", [flip, shorten, restrengthen])
@pytest.mark.parametrize("name", ["m", "m.safetensors"])
def test_a_fault_on_the_disk_is_found_and_the_old_output_stays(tmp_path, monkeypatch, cli, fault, name):
    two(tmp_path)
    assert cli("combine", "a", "-o", name).code == 0
    before = content(tmp_path)
    close = Writer.close
    paths = []

    def opened(self, path, *args, **kwargs):
        paths.append(path)
        init(self, path, *args, **kwargs)

    def damage(self):
        close(self)
        fault(paths[-1])

    init = Writer.__init__
    monkeypatch.setattr(Writer, "__init__", opened)
    monkeypatch.setattr(Writer, "close", damage)
    cli("combine", "a", "b", "-o", name, "--overwrite").refused(4)
    assert content(tmp_path) == before


def test_a_module_that_goes_missing_is_found(tmp_path, monkeypatch):
    a, b = two(tmp_path)
    real = output.Draft.reread

    def forgetful(draft):
        adapter = real(draft)
        del adapter.slots[next(iter(adapter))]
        return adapter

    monkeypatch.setattr(output.Draft, "reread", forgetful)
    with pytest.raises(VerificationError, match="5 modules were written"):
        combine([a, b], out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_max_error_holds_every_module_and_leaves_nothing(tmp_path, cli):
    two(tmp_path)
    cli("combine", "a", "b", "--dtype", "bfloat16", "--max-error", "1e-5").refused(
        4, "--max-error", "a wider dtype"
    )
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert cli("combine", "a", "b", "--dtype", "bfloat16", "--max-error", "0.01").code == 0
    assert cli("combine", "a", "b", "-o", "n", "--dtype", "float64", "--max-error", "0").code == 0


def test_a_plan_may_be_run_to_memory_or_disk_with_the_same_numbers(tmp_path):
    a, b = two(tmp_path)
    todo = loramerge.plan([a, b], "lego")
    held, stored = run(todo), run(todo.asking(out=tmp_path / "m"))
    assert held.report.to_dict() == stored.report.to_dict()
    for target, update in held.adapter.items():
        assert update.up.tobytes() == stored.adapter[target].up.tobytes()
        assert update.down.tobytes() == stored.adapter[target].down.tobytes()
