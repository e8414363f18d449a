"""A recorded merge can be done again: the same bytes from the same sources, and nothing else is obeyed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.errors import IncompatibleError, LoramergeError, SourceError, UsageError
from tests.helpers.adapters import random_adapters
from tests.helpers.files import Cli, bare, content, folder, tensors

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Folders a and b, bare files: c says its alpha, d does not, e says it in a file beside it."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "a", tensors(1, 2))
    folder(tmp_path / "b", tensors(2, 3), r=3, lora_alpha=6, base_model_name_or_path="other")
    bare(tmp_path / "c.safetensors", tensors(3), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'})
    bare(tmp_path / "d.safetensors", tensors(4))
    bare(tmp_path / "e.safetensors", tensors(5))
    (tmp_path / "e.json").write_text('{"r": 2, "lora_alpha": 7}')
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name / "lora", tensors(len(name)))


@pytest.fixture
def cli_here(capsys):
    return Cli(capsys)


MERGES = {
    "linear": (["a", "c.safetensors"], {}),
    "weights": (["a", "c.safetensors"], {"weights": [0.1, -1e-7]}),
    "lego": (["a", "c.safetensors"], {"method": "lego", "rank": 2, "seed": 3, "restarts": 2}),
    "lego in another reading": (["a", "c.safetensors"], {"method": "lego", "variant": "ctm"}),
    "average": (["a", "c.safetensors"], {"method": "average", "weights": [1, 3]}),
    "energy": (["a", "c.safetensors"], {"method": "svd", "energy": 0.9}),
    "a rank beyond all": (["a"], {"method": "svd", "rank": 10**6}),
    "bfloat16": (["a", "c.safetensors"], {"dtype": "bfloat16"}),
    "float64": (["a", "c.safetensors"], {"dtype": "F64"}),
    "only and exclude": (["a", "c.safetensors"], {"only": r"\.[qv]$", "exclude": "layers.1.v"}),
    "two base models": (["a", "b"], {"allow_base_mismatch": True}),
    "one alpha for all": (["a", "d.safetensors"], {"alpha": 3}),
    "an alpha by name": (["d.safetensors", "c.safetensors"], {"alpha": {"d.safetensors": "rank"}}),
    "an alpha beside the file": (["e.safetensors", "a"], {}),
    "a ramp": (["a", "c.safetensors"], {"weights": [lm.Ramp(0, 1), lm.Ramp(0.1, -0.7)], "method": "lego"}),
    "rules": (
        ["a", "c.safetensors"],
        {"rules": [lm.Rule("q$", (lm.Ramp(1, 0), 0.5)), lm.Rule("1", rank=1)], "method": "svd"},
    ),
    "the same source twice": (["a", "a"], {"method": "lego"}),
}


@pytest.mark.parametrize("out", ["m", "m.safetensors"])
@pytest.mark.parametrize(("sources", "options"), MERGES.values(), ids=MERGES)
def test_a_replay_writes_the_same_bytes(sources, options, out, tmp_path):
    lm.combine(sources, out=out, **options)
    again = "again" + out[1:]
    lm.replay(out, again, threads=1)
    assert without_notes(content(tmp_path / again)) == without_notes(content(tmp_path / out))


def without_notes(files):
    """A replay has nothing to say of an --alpha that was not used."""
    record = json.loads(files.get("loramerge.json", '{"report": {"notes": []}}'))
    record["report"].pop("notes")
    return {**files, "loramerge.json": record}


def test_a_replay_of_a_replay_and_from_the_json_alone(tmp_path):
    lm.combine(["a", "c.safetensors"], "svd", rank=2, out="m")
    os.mkdir("far")
    os.rename("m/loramerge.json", "far/record.json")
    for source in ("a", "c.safetensors"):
        os.rename(source, f"far/{source}")
    lm.replay("far/record.json", "n")
    lm.replay("n", "o", sources={"a": "far/a", "c.safetensors": "far/c.safetensors"})
    wanted = (tmp_path / "m" / WEIGHTS).read_bytes()
    assert (tmp_path / "n" / WEIGHTS).read_bytes() == (tmp_path / "o" / WEIGHTS).read_bytes() == wanted
    assert lm.replay("n", sources={"a": "far/a", "c.safetensors": "far/c.safetensors"}).out is None


def test_sources_of_one_name_are_told_apart_by_the_user(tmp_path):
    lm.combine(["x/lora", "y/lora"], out="m")
    with pytest.raises(SourceError, match=r"x/lora is neither beside .*sources={'x/lora': 'PATH'}"):
        lm.replay("m")
    lm.replay("m", "n", sources={"x/lora": "x/lora", "y/lora": "y/lora"})
    assert content(tmp_path / "n") == content(tmp_path / "m")


def spoil(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


CHANGES = {
    "the weights": (lambda p: spoil(p / "a" / WEIGHTS), "a is not the a that was merged: adapter_model.saf"),
    "the config": (
        lambda p: (p / "a/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}'),
        "adapter_config.json has another SHA-256",
    ),
    "a bare file": (lambda p: spoil(p / "e.safetensors"), "e.safetensors has another SHA-256"),
    "the alpha beside it": (
        lambda p: (p / "e.json").write_text('{"r": 2, "lora_alpha": 8}'),
        "a file beside it gives it another alpha",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_source_that_has_changed_is_refused_by_its_file(change, words, tmp_path):
    lm.combine(["a", "e.safetensors"], out="m")
    change(tmp_path)
    with pytest.raises(IncompatibleError, match=words):
        lm.replay("m", "n")
    assert not (tmp_path / "n").exists()


def test_a_changed_source_here_is_passed_over_for_the_right_one_elsewhere(tmp_path):
    (tmp_path / "sub").mkdir()
    lm.combine(["a", "e.safetensors"], out="sub/m")
    os.rename("a", "sub/a")
    folder(tmp_path / "a", tensors(9))
    assert lm.replay("sub/m").adapter
    with pytest.raises(IncompatibleError, match="a is not the a that was merged"):
        lm.replay("sub/m", sources={"a": "a"})


def recorded(tmp_path, change):
    """A record of a and c, changed."""
    if not (tmp_path / "m").exists():
        lm.combine(["a", "c.safetensors"], out="m")
    values = json.loads((tmp_path / "m/loramerge.json").read_text())
    values = change(values) or values
    (tmp_path / "bad.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return "bad.json"


OLD = {  # method -> options as an old record has them, and those that mean the same today
    "mergevla": ({"rule": "wudi", "mask_lambda": 0.6}, {"rule": "wudi", "ridge": 0.1}),
    "wudi": ({"filter": "top", "ridge": 0.1}, {"filter": "top"}),
}


@pytest.mark.parametrize("method", OLD)
def test_a_record_from_before_a_default_changed_is_replayed_as_it_was(method, tmp_path):
    old, today = OLD[method]
    wanted = lm.combine(["a", "c.safetensors"], method, rank=2, **today)
    lm.combine(["a", "c.safetensors"], method, rank=2, **today, out="m")
    values = json.loads((tmp_path / "m/loramerge.json").read_text())
    values["method"]["options"] = {"rank": 2, **old}
    (tmp_path / "m/loramerge.json").write_text(json.dumps(values))
    again = lm.replay("m", "again")
    for target in wanted.adapter:
        np.testing.assert_allclose(again.adapter[target].dense(), wanted.adapter[target].dense(), atol=1e-6)
    other = lm.combine(["a", "c.safetensors"], method, rank=2, **old | {"ridge": 1.0})
    apart = [np.abs(other.adapter[t].dense() - wanted.adapter[t].dense()).max() for t in wanted.adapter]
    assert method == "wudi" or max(apart) > 1e-4  # with filter=top there is no ridge


RECORDS = Path(__file__).with_name("records")  # x, y and merges of them, as e3adbab and a08401b wrote them


@pytest.mark.parametrize("name", sorted({path.stem for path in RECORDS.iterdir()} - {"x", "y"}))
def test_a_merge_that_was_written_once_is_replayed_as_it_was(name):
    """Whatever default or formula changes: what a record of then says keeps its meaning."""
    record = RECORDS / f"{name}.safetensors"
    assert lm.diff(lm.load(record), lm.replay(record).adapter).error < 1e-6


COSINES = {"cosine": "unbounded cosine", "bounded cosine": "cosine"}  # in a record, and today


@pytest.mark.parametrize("word", COSINES)
def test_a_record_of_a_strength_is_replayed_by_the_formula_of_then(word, tmp_path):
    lm.combine(["a", "c.safetensors"], "linear", scale="cosine", out="m")
    values = json.loads((tmp_path / "m/loramerge.json").read_text())
    assert values["settings"]["scale"] == "bounded cosine"
    values["settings"]["scale"] = word  # before it had a bound, it was `cosine` in records, too
    (tmp_path / "m/loramerge.json").write_text(json.dumps(values))
    again = lm.replay("m", "again")
    assert json.loads((tmp_path / "again/loramerge.json").read_text())["settings"]["scale"] == word
    plain = lm.combine(["a", "c.safetensors"], "linear").report
    sources = np.sqrt(np.sum([module.squares for module in plain.modules], axis=0)).mean()
    whole = np.sqrt(sum(module.merged for module in plain.modules))
    assert whole > 1.1 * sources  # so that the two formulas differ
    found = np.sqrt(sum(module.merged for module in again.report.modules))
    assert found == pytest.approx(whole if word == "cosine" else sources, rel=1e-5)


def setting(*path, value):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


BAD = {
    "no JSON": (lambda v: "{", "not valid JSON"),
    "a list": (lambda v: "[1]", "holds a list"),
    "an empty object": (lambda v: "{}", "its schema is None"),
    "another schema": (setting("schema", value=2), "its schema is 2"),
    "no sources": (setting("sources", value=[]), "names no sources"),
    "sources in an object": (setting("sources", value={"a": 1}), "not a list"),
    "a source that is text": (setting("sources", 0, value="a"), "a source is no table"),
    "a name that is a number": (setting("sources", 0, "name", value=1), "name is 1, not text"),
    "no hash": (setting("sources", 0, "sha256", value={}), "merged from memory"),
    "half a hash": (setting("sources", 0, "sha256", value={"a": "0f"}), "64 hexadecimal digits"),
    "a weight of text": (setting("sources", 0, "weight", value="1"), "weight is '1', not a number"),
    "a weight of true": (setting("sources", 0, "weight", value=True), "weight is True, not a number"),
    "a huge weight": (setting("sources", 0, "weight", value=10**400), "is too large"),
    "an alpha of text": (setting("sources", 0, "alpha", value="x"), "alpha is 'x', not a number"),
    "an alpha below 0": (setting("sources", 1, "alpha", value=-1), "alpha is -1"),
    "a revision of numbers": (setting("sources", 0, "revision", value=[1]), r"revision is \[1\], not text"),
    "no method": (setting("method", value=None), "method is None, not a table"),
    "an unknown method": (setting("method", "name", value="x"), "There is no method 'x'"),
    "an unknown option": (setting("method", "options", "x", value=1), "level has no option x"),
    "a bad option": (setting("method", "options", "rank", value="8"), "rank='8' must be a whole number"),
    "an option of the driver": (setting("method", "options", "threads", value=1), "threads"),
    "an unknown setting": (setting("settings", "out", value="/etc/x"), "setting out, which this version"),
    "allow_pickle": (setting("settings", "allow_pickle", value=True), "setting allow_pickle"),
    "only a list": (setting("settings", "only", value=["q"]), r"only is \['q'\], which must be text"),
    "an unknown dtype": (setting("settings", "dtype", value="int8"), "dtype is 'int8', which is not one of"),
    "a pattern that hangs": (setting("settings", "only", value="(?>(a+)+$)b"), "not read"),
    "a rule that hangs": (setting("settings", "modules", value=[{"match": r"(a)\1"}]), "not read"),
    "a pattern that is none": (
        setting("settings", "only", value="(a"),
        "cannot be replayed: only '.a' is no",
    ),
    "a rule of rules": (setting("settings", "modules", value=[[]]), r"a rule in modules is \[\]"),
    "a rule with a path": (setting("settings", "modules", value=[{"out": "x"}]), "has the key 'out'"),
    "half a ramp": (setting("sources", 0, "weight", value={"from": 1}), "to of weight is None"),
    "no regular expression": (setting("settings", "only", value="("), "unbalanced parenthesis"),
    "no module left": (setting("settings", "only", value="zzz"), "No module is left"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_record_that_is_wrong_is_refused_by_name(tmp_path, change, words):
    with pytest.raises((SourceError, IncompatibleError), match=words):
        lm.replay(recorded(tmp_path, change), "n")
    assert not (tmp_path / "n").exists()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["rank", "svd", "q", "float16", "(a+)+$", "\x1b[31m", "..", 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4) | st.sampled_from(["from", "match", "rank"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_record_is_replayed_or_refused(tmp_path, data):
    def change(values):
        at = values
        while isinstance(at, dict | list) and at:
            key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
            if not isinstance(at[key], dict | list) or data.draw(st.booleans()):
                break
            at = at[key]
        if at:
            at[key] = data.draw(ANY)
        if isinstance(at, dict) and data.draw(st.booleans()):
            at[data.draw(st.text(max_size=4))] = data.draw(ANY)

    try:
        lm.replay(recorded(tmp_path, change), tmp_path / "n", overwrite=True, threads=1)
    except LoramergeError as error:
        said = str(error)
        assert (said.isprintable(), len(said) < 1000) == (True, True)
    assert set(os.listdir(tmp_path)) <= {*"abnxymn", "bad.json", "c.safetensors", "d.safetensors",
                                         "e.safetensors", "e.json"}  # fmt: skip


def test_a_nest_is_not_printed(tmp_path):
    for depth in (10, 900, 5000):
        nest = "[" * depth + "]" * depth
        for field in ("sources", "method", "settings", "versions", "schema"):
            (tmp_path / "bad.json").write_text(
                f'{{"schema": 1, "sources": [1], "method": {{}}, "{field}": {nest}}}'
            )
            with pytest.raises(SourceError):
                lm.replay("bad.json")
        bad = recorded(tmp_path, lambda values: None)
        text = (tmp_path / bad).read_text().replace('"rank": null', f'"rank": {nest}')
        (tmp_path / bad).write_text(text)
        with pytest.raises(SourceError) as caught:
            lm.replay(bad)
        assert len(str(caught.value)) < 500


def test_a_pattern_from_a_record_cannot_hang(tmp_path):
    name = "a" * 400 + "b"
    lm.combine(["a", "c.safetensors"], out="m")
    bare(tmp_path / "long.safetensors", tensors(shapes={name: (3, 2)}))
    lm.combine(["long.safetensors"], out="m2", alpha=1)
    values = json.loads((tmp_path / "m2/loramerge.json").read_text())
    values["settings"]["exclude"] = "(a+)+$"
    (tmp_path / "bad.json").write_text(json.dumps(values))
    assert lm.replay("bad.json").adapter, "it matches nothing, and says so at once"


@pytest.mark.parametrize("name", ["../secret/a", "/etc/secret/a", r"..\secret\a", "secret/../a"])
def test_a_name_leads_to_no_other_folder(tmp_path, name):
    record = recorded(tmp_path, setting("sources", 0, "name", value=name))
    assert lm.replay(record).adapter, "found as `a`, here"
    (tmp_path / "secret").mkdir()
    os.rename("a", "secret/a")
    with pytest.raises(SourceError, match="neither beside the record nor here"):
        lm.replay(record)


@pytest.mark.parametrize("name", ["", ".", "..", "x/..", "/"])
def test_a_name_that_is_no_name_must_be_given_a_place(tmp_path, name):
    record = recorded(tmp_path, setting("sources", 0, "name", value=name))
    with pytest.raises(SourceError, match="Say where it lies"):
        lm.replay(record)
    assert lm.replay(record, sources={name: "a"}).adapter


def test_a_source_that_was_not_merged_cannot_be_given(tmp_path):
    with pytest.raises(UsageError, match=r"sources= names z, but the merge was of a, c.safetensors"):
        lm.replay(recorded(tmp_path, lambda v: None), sources={"z": "a"})


def test_what_was_merged_from_memory_cannot_be_replayed():
    lm.combine(random_adapters(0, [2]), out="m")
    with pytest.raises(SourceError, match="source0 was merged from memory"):
        lm.replay("m")


def test_files_without_a_record(tmp_path):
    lm.save(lm.load("a"), "saved.safetensors")
    for path, words in {
        "c.safetensors": "holds no record",
        "saved.safetensors": "its sources|names no sources",
        "a": "a has no loramerge.json: it was not written by loramerge combine",
        "nowhere.json": "does not exist",
    }.items():
        with pytest.raises(LoramergeError, match=words):
            lm.replay(path)


def test_no_thread_count_or_order_on_disk_changes_a_byte(tmp_path):
    lm.combine(["a", "c.safetensors"], "lego", out="m", threads=4)
    for threads in (1, 2, 3):
        lm.replay("m", "n", threads=threads, overwrite=True)
        assert content(tmp_path / "n") == content(tmp_path / "m")


def test_the_merge_is_the_same_to_1e_6_when_products_are_rounded_otherwise(monkeypatch):
    """As another BLAS would do it: every core is off in its last digits."""
    kept = {}
    for noise in (0.0, 1e-15):
        real = np.linalg.svd

        def shaken(a, *args, noise=noise, real=real, **kwargs):
            return real(a * (1 + noise * np.random.default_rng(0).standard_normal(a.shape)), *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(np.linalg, "svd", shaken)
            kept[noise] = lm.combine(["a", "c.safetensors"], "svd", rank=2, dtype="float64").adapter
    assert lm.diff(*kept.values()).largest < 1e-6


@pytest.mark.parametrize("method", ["svd", "lego"])
def test_with_the_kernels_of_another_processor_it_is_the_same_merge(method, tmp_path):
    """OpenBLAS is told that this is an old processor: other kernels, other last digits, one ΔW."""
    fixtures = Path(__file__).resolve().parents[2] / "fixtures"
    pair = [fixtures / "a.safetensors", fixtures / "b.safetensors"]
    lm.combine(pair, method, rank=6, dtype="float64", out=tmp_path / "here")
    command = [sys.executable, "-m", "loramerge", "replay", "here", "-o", "there", "--source", str(fixtures)]
    old = {**os.environ, "OPENBLAS_CORETYPE": "Prescott"}
    subprocess.run(command, cwd=tmp_path, env=old, check=True, capture_output=True)
    assert lm.diff(tmp_path / "here", tmp_path / "there").largest < 1e-6


def started(where):
    """A PiSSA-like adapter and the one that its training began with."""
    folder(where / "tuned", tensors(6), init_lora_weights="pissa")
    folder(where / "start", tensors(7), init_lora_weights=True)


@pytest.mark.parametrize("out", ["m", "m.safetensors"])
def test_a_merge_with_an_initial_adapter_is_replayed_too(tmp_path, out):
    started(tmp_path)
    lm.combine(["tuned", "a"], initial={"tuned": "start"}, out=out)
    lm.replay(out, "again" + out[1:])
    assert content(tmp_path / ("again" + out[1:])) == content(tmp_path / out)


def test_an_initial_adapter_that_is_not_found_is_asked_for_in_words_that_work(tmp_path, cli_here):
    started(tmp_path)
    assert cli_here("combine", "tuned", "--initial", "tuned=start", "-o", "m").code == 0
    os.rename("start", "far")
    cli_here("replay", "m", "-o", "n").refused(1, "The adapter start", "--source start=PATH")
    assert cli_here("replay", "m", "-o", "n", "--source", "start=far").code == 0
    assert cli_here("replay", "m", "-o", "o", "--initial", "tuned=far").code == 0
    wanted = content(tmp_path / "m")
    assert content(tmp_path / "n") == wanted == content(tmp_path / "o")
    folder(tmp_path / "other", tensors(8), init_lora_weights=True)
    done = cli_here("replay", "m", "-o", "p", "--initial", "tuned=other")
    assert done.code == 3
    assert "another SHA-256" in done.err


GATES = (("--max-lost", "0.001"), ("--min-cosine", "0.999"), ("--max-error", "1e-9"))


@pytest.mark.parametrize(("gate", "limit"), GATES)
def test_a_replay_beyond_a_limit_is_not_written(gate, limit, tmp_path, capsys):
    paths = [folder(tmp_path / name, tensors(seed)) for seed, name in enumerate(("one", "two"))]
    run = Cli(capsys)
    made = tmp_path / "m"
    assert (
        run("combine", *paths, "--method", "svd", "--rank", "1", "--dtype", "float16", "-o", made).code == 0
    )
    done = run("replay", made, "-o", tmp_path / "again", gate, limit)
    assert (done.code, gate in done.err) == (4, True)
    assert not (tmp_path / "again").exists()
    assert run("replay", made, "-o", tmp_path / "again", gate, "0.01" if "cos" in gate else "0.99").code == 0
