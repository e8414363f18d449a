"""What holds for every format: a new row of the table is held to it as soon as it has a sample."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.arrays import dtypes
from loramerge.errors import LoramergeError
from loramerge.formats.dialects import DIALECTS, FORMATS, PEFT, find, named
from loramerge.formats.dialects.table import ROWS
from loramerge.formats.raw import look
from tests.helpers.files import bare, content
from tests.helpers.samples import LAYERS, OTHERS, SPELLINGS, adapter, dense

DTYPES = ("float64", "float32", "float16", "bfloat16")
ALL = {
    name: {t: size for layers in kinds.values() for t, size in layers.items()}
    for name, kinds in LAYERS.items()
}
WRITTEN = [(format, layer) for format, kinds in LAYERS.items() for layer in kinds]
NAMELESS = [(f, kind) for f in FORMATS for kind in OTHERS if kind not in LAYERS[f]]
HOSTILE = {
    "NUL": "a\0b",
    "a line break": "a\nb",
    "an escape": "\x1b[31mred",
    "no ASCII": "größe.\u202e",
    "very long": "x" * 5000,
    "a path": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a dot": ".",
    "braces": "{0}%s",
    "nothing": "",
}
STRANGE = (".strange", ".scalar", ".lora_strange.weight", ".lora_C", ".gate.weight", ".scale_weight", ".mask")
ALPHAS = {"float32": np.float32(4), "I64": np.int64(4), "I32": np.int32(4), "one row": np.array([4.0], "f4")}


def place(tmp_path, dialect, name="out"):
    """Where a format is written: a folder where it has one."""
    return tmp_path / (f"{name}.safetensors" if dialect.weights is None else name)


def opened(path, **said):
    return lm.load(path, optional=True, **said)


def close(found, wanted, tolerance):
    """The same modules, and each ΔW within the tolerance of its norm."""
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        assert np.linalg.norm(found[name] - update) <= tolerance * np.linalg.norm(update), name


@pytest.mark.parametrize("name", DIALECTS)
def test_a_row_says_of_its_dialect_what_the_dialect_says(name):
    row, dialect = ROWS[name], DIALECTS[name]
    assert (dialect.name, dialect.writes, dialect.weights) == (name, row.writes, row.weights)


def test_every_format_has_a_sample_of_every_kind_of_layer_that_it_declares():
    assert set(SPELLINGS) == set(DIALECTS) - {"nola"}  # which stores no factors
    assert set(LAYERS) == set(FORMATS)
    for name in FORMATS:
        assert {target.kind for target in ALL[name]} == set(named(name).kinds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "layer"), WRITTEN)
def test_what_is_saved_is_loaded_with_the_same_updates(format, layer, dtype, tmp_path):
    dialect, sample = named(format), adapter(LAYERS[format][layer], ranks=(2, 3, 1))
    out = place(tmp_path, dialect)
    if dtypes.parse(dtype) in dialect.unread:
        with pytest.raises(lm.IncompatibleError, match="cannot hold"):
            lm.save(sample, out, format=format, dtype=dtype)
        return
    lm.save(sample, out, format=format, dtype=dtype)
    close(dense(lm.load(out)), dense(dialect.adopt(sample)), 4 * dtypes.epsilon(dtypes.parse(dtype)))


@pytest.mark.parametrize("profile", ["portable", "compact"])
@pytest.mark.parametrize("bare_file", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_place_and_profile_holds_the_same_updates(format, bare_file, profile, tmp_path):
    dialect, sample = named(format), adapter(ALL[format], ranks=(2, 3, 1))
    out = tmp_path / ("out.safetensors" if bare_file else "out")
    possible = dialect.single if bare_file else dialect.weights is not None
    if not possible or (dialect.one_rank and profile == "compact"):
        with pytest.raises(lm.UsageError, match=dialect.tool):
            lm.convert(sample, out, format, profile=profile)
        assert not out.exists()
        return
    lm.convert(sample, out, format, profile=profile, dtype="float32")
    close(dense(lm.load(out)), dense(dialect.adopt(sample)), 1e-6)


@pytest.mark.parametrize(("format", "kind"), NAMELESS)
def test_a_kind_of_layer_without_a_name_is_refused_by_its_module(format, kind, tmp_path):
    component = "model" if format in ("mlx", "peft") else "unet"
    with pytest.raises(lm.IncompatibleError, match=r"shared\.") as refusal:
        lm.save(adapter(OTHERS[kind](component)), place(tmp_path, named(format)), format=format)
    assert str(refusal.value).isprintable()
    assert not content(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_adapter_is_written_to_the_same_bytes_whatever_its_order(format, tmp_path):
    layers = ALL[format]
    sample = adapter(layers, ranks=(2, 3, 1))
    again = lm.Adapter("again", dict(reversed(sample.slots.items())))
    first, second = (place(tmp_path, named(format), name) for name in ("first", "second"))
    lm.save(sample, first, format=format)
    lm.save(again, second, format=format)
    assert content(first) == content(second)


def detected(path):
    """The formats that take a file for theirs; PEFT takes what is left."""
    header = look(path, path.name).header
    assert all(ROWS[name].may(header) for name, d in DIALECTS.items() if d.detects(header))
    return find(header).name, [name for name, d in DIALECTS.items() if d is not PEFT and d.detects(header)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_format_writes_no_other_takes_for_its_own(format, tmp_path):
    out = place(tmp_path, named(format))
    lm.save(adapter(ALL[format]), out, format=format)
    assert detected(out) == (format, [format] * (format != "peft"))


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_file_of_a_tool_is_taken_by_its_format_alone(name, tmp_path):
    path = bare(tmp_path / "a.safetensors", SPELLINGS[name].file())
    assert detected(path) == (name, [name] * (name != "peft"))


@pytest.mark.parametrize("name", SPELLINGS)
def test_without_an_alpha_the_scale_is_1_and_said_or_asked_for(name, tmp_path):
    path = bare(tmp_path / "a.safetensors", SPELLINGS[name].file())
    if SPELLINGS[name].asks:
        with pytest.raises(lm.IncompatibleError, match="alpha="):
            lm.load(path)
        assert {update.scale for update in opened(path, alpha="rank").values()} == {1.0}
        return
    sample = lm.load(path)
    assert {update.scale for update in sample.values()} == {1.0}
    assert not SPELLINGS[name].alpha or any("the scale is 1" in oddity for oddity in sample.oddities)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", [name for name, spelling in SPELLINGS.items() if spelling.alpha])
def test_an_alpha_of_any_type_of_number_is_divided_by_the_rank(name, alpha, tmp_path):
    spelling = SPELLINGS[name]
    alphas = {f"{spelling.prefix}{each}{spelling.alpha}": ALPHAS[alpha] for each in spelling.names}
    sample = lm.load(bare(tmp_path / "a.safetensors", spelling.file(rank=2) | alphas))
    assert not sample.extras
    assert [update.scale for update in sample.values()] == [2.0, 2.0]


@pytest.mark.parametrize("name", [name for name, spelling in SPELLINGS.items() if spelling.alpha])
def test_an_alpha_of_0_is_no_strength_unless_the_format_means_the_rank_by_it(name, tmp_path):
    spelling = SPELLINGS[name]
    alphas = {f"{spelling.prefix}{each}{spelling.alpha}": np.float32(0) for each in spelling.names}
    sample = lm.load(bare(tmp_path / "a.safetensors", spelling.file() | alphas))
    assert [update.scale for update in sample.values()] == [float(named(name).zero_is_rank)] * 2


@pytest.mark.parametrize(
    "value", [np.bool_(1), np.float32("nan"), np.ones(2, "f4")], ids=["bool", "nan", "two"]
)
@pytest.mark.parametrize("name", [name for name, spelling in SPELLINGS.items() if spelling.alpha])
def test_an_alpha_that_is_no_number_is_refused_by_its_module(name, value, tmp_path):
    spelling = SPELLINGS[name]
    alphas = {f"{spelling.prefix}{each}{spelling.alpha}": value for each in spelling.names}
    refused(bare(tmp_path / "a.safetensors", spelling.file() | alphas), *spelling.names)


def refusal(act):
    """The sentence by which something is refused, which a terminal can show; "" if it is not."""
    try:
        act()
    except LoramergeError as error:
        sentence = str(error)
    else:
        return ""
    assert sentence.isprintable()
    return sentence


def refused(path, *words):
    """It is refused by one of these words."""
    sentence = refusal(lambda: opened(path, alpha=2))
    assert any(word in sentence for word in words), sentence


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_hostile_name_is_read_and_written_as_it_is_or_refused(name, hostile, tmp_path):
    spelling, dialect = SPELLINGS[name], named(name)
    values = spelling.file([HOSTILE[hostile]])
    path, out = bare(tmp_path / "a.safetensors", values), place(tmp_path, dialect)
    if refusal(lambda: opened(path, alpha="rank")):
        return
    sample = opened(path, alpha="rank")
    assert len(sample) == 3
    assert not sample.extras
    wanted = product(spelling, values, HOSTILE[hostile])
    assert any(np.allclose(update.dense(), wanted) for update in sample.values())
    if not dialect.writes or refusal(lambda: lm.save(sample, out, format=name)):
        assert list(content(tmp_path)) == ["a.safetensors"]
        return
    close(dense(lm.load(out)), dense(sample), 1e-6)
    assert {key.partition("/")[0] for key in content(tmp_path)} == {"a.safetensors", out.name}


def product(spelling, values, name):
    """ΔW by hand: no alpha is there."""
    down, up = (np.asarray(values[key], np.float64) for key in spelling.keys(name))
    return up.T @ down.T if spelling.transposed else up @ down


def test_hostile_names_are_not_only_refused(tmp_path):
    """The law above holds for a reader that refuses everything: an odd name without harm is read by most."""
    reads = {
        name
        for name, spelling in SPELLINGS.items()
        for path in [bare(tmp_path / f"{name}.safetensors", spelling.file([HOSTILE["NUL"]]))]
        if not refusal(lambda path=path: opened(path, alpha="rank"))
    }
    knowing = {"xlabs", "bfl", "cloneofsimo", "clip-lora", "sam"}  # all of their names
    assert set(SPELLINGS) - reads == knowing


@pytest.mark.parametrize("other", SPELLINGS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_pairs_under_the_names_of_two_tools_are_refused_by_one_of_them(name, other, tmp_path):
    if name == other:
        return
    values = SPELLINGS[name].file() | SPELLINGS[other].file()
    modules = [key.rpartition(".lora_")[0] or key for key in values]
    refused(bare(tmp_path / "a.safetensors", values), *modules)


@pytest.mark.parametrize("end", STRANGE)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_strange_tensor_inside_a_module_is_refused_by_name(name, end, tmp_path):
    key = f"{SPELLINGS[name].module}{end}"
    values = SPELLINGS[name].file() | {key: np.ones(2, "f4")}
    path = bare(tmp_path / "a.safetensors", values)
    refused(path, key)


@pytest.mark.parametrize("side", [0, 1], ids=["down", "up"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_half_a_pair_is_refused_by_its_module(name, side, tmp_path):
    spelling, values = SPELLINGS[name], SPELLINGS[name].file()
    del values[spelling.keys(spelling.names[1])[side]]
    refused(
        bare(tmp_path / "a.safetensors", values), f"{spelling.prefix}{spelling.names[1]}", spelling.names[1]
    )
