"""One weight has one name in a merge: what is united, what keeps its name, what is refused, by kinds."""

from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import BaseModel
from loramerge.errors import IncompatibleError, UsageError
from tests.helpers.adapters import update
from tests.helpers.files import Cli

H, Q, KV, MID = 12, 12, 4, 10
LLAMA = {
    "self_attn.q_proj": (Q, H), "self_attn.k_proj": (KV, H), "self_attn.v_proj": (KV, H),
    "self_attn.o_proj": (H, Q), "mlp.gate_proj": (MID, H), "mlp.up_proj": (MID, H), "mlp.down_proj": (H, MID),
}  # fmt: skip
PHI = {
    "self_attn.qkv_proj": (Q + 2 * KV, H), "self_attn.o_proj": (H, Q), "mlp.gate_up_proj": (2 * MID, H),
    "mlp.down_proj": (H, MID),
}  # fmt: skip


def adapter(shapes, stem="model.layers", layers=(0, 1), seed=0, name=None, base=None, rank=2):
    """An adapter with these modules in every layer; scales differ, as a join must bear."""
    rng = np.random.default_rng(seed)
    made = {
        f"{stem}.{layer}.{path}": update(rng, rank, shape, 0.5 + seed + len(path) / 8)
        for layer in layers
        for path, shape in shapes.items()
    }
    return replace(lm.Adapter.of(made, name or f"{stem}{seed}"), base=BaseModel(base))


def dense(found):
    return {str(target): found[target].dense() for target in found}


def united(*sources, **asked):
    return lm.combine(list(sources), "linear", dtype="float64", **asked)


def rows(found, layer, *names):
    """Modules of a layer, one above the other."""
    return np.concatenate([found[f"model.layers.{layer}.{name}"] for name in names])


def parts(base=None):
    return adapter(LLAMA, seed=1, name="parts", base=base), adapter(PHI, seed=2, name="whole", base=base)


@pytest.mark.parametrize("turn", [1, -1])
def test_parts_join_a_whole_where_nothing_tells_what_the_model_has(turn):
    split, fused = parts()
    merge = united(*(split, fused)[::turn])
    found, first, second = dense(merge.adapter), dense(split), dense(fused)
    assert found.keys() == second.keys()
    for layer in (0, 1):
        qkv = rows(first, layer, *(f"self_attn.{x}_proj" for x in "qkv"))
        np.testing.assert_allclose(
            rows(found, layer, "self_attn.qkv_proj"),
            qkv + rows(second, layer, "self_attn.qkv_proj"),
            atol=1e-12,
        )
        gated = rows(first, layer, "mlp.gate_proj", "mlp.up_proj")
        np.testing.assert_allclose(
            rows(found, layer, "mlp.gate_up_proj"),
            gated + rows(second, layer, "mlp.gate_up_proj"),
            atol=1e-12,
        )
    assert any("rows of qkv_proj" in note for note in merge.report.notes)


# A kind from the wild: A2, fused and split.
@pytest.mark.parametrize("base", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-4B", "unsloth/phi-4"])
def test_a_whole_is_cut_where_the_model_has_parts(base):
    split, fused = parts(base)
    found, first, second = dense(united(fused, split).adapter), dense(split), dense(fused)
    assert found.keys() == first.keys()
    for layer in (0, 1):
        names = [f"self_attn.{x}_proj" for x in "qkv"]
        wanted = rows(first, layer, *names) + rows(second, layer, "self_attn.qkv_proj")
        np.testing.assert_allclose(rows(found, layer, *names), wanted, atol=1e-12)


@pytest.mark.parametrize("base", ["microsoft/Phi-3-mini-4k-instruct", "microsoft/phi-4", None])
def test_a_whole_stays_where_the_model_has_it(base):
    assert dense(united(*parts(base)).adapter).keys() == dense(parts()[1]).keys()


def test_some_parts_are_enough():
    for part in ("q_proj", "k_proj", "v_proj"):
        few = adapter({f"self_attn.{part}": LLAMA[f"self_attn.{part}"]}, name="few", seed=3)
        found, own = dense(united(few, parts()[1]).adapter), dense(few)
        start = {"q_proj": 0, "k_proj": Q, "v_proj": Q + KV}[part]
        left = (
            found["model.layers.0.self_attn.qkv_proj"]
            - dense(parts()[1])["model.layers.0.self_attn.qkv_proj"]
        )
        there = own[f"model.layers.0.self_attn.{part}"]
        np.testing.assert_allclose(left[start : start + len(there)], there, atol=1e-12)
        assert np.abs(np.delete(left, np.s_[start : start + len(there)], axis=0)).max() < 1e-12


def test_a_whole_and_its_part_in_one_source_are_refused_until_one_is_left_out():
    both = adapter({**LLAMA, **PHI}, seed=4)
    with pytest.raises(IncompatibleError, match="one weight under two names"):
        united(both, parts()[1])
    merge = united(both, parts()[1], exclude="qkv_proj|gate_up_proj")
    assert {target.path for target in merge.adapter} == {target.path for target in parts()[0]}


@pytest.mark.parametrize(
    ("whole", "shape"), [("self_attn.qkv_proj", (21, H)), ("attn.query_key_value", (20, H))]
)
def test_rows_that_are_not_known_are_refused(whole, shape):
    parent = whole.partition(".")[0]
    split = {f"{parent}.{x}_proj": s for x, s in (("q", (Q, H)), ("k", (KV, H)), ("v", (KV, H)))}
    with pytest.raises(IncompatibleError, match="same weights under two names"):
        united(adapter(split, seed=1), adapter({whole: shape}, seed=2))


STEMS = [
    "model.language_model.layers",
    "language_model.model.layers",
    "language_model.layers",
    "model.layers",
    "layers",
]


# A kind from the wild: A2, wrappers of the model.
@pytest.mark.parametrize("first", STEMS)
@pytest.mark.parametrize("second", STEMS)
def test_wrappers_of_a_model_do_not_make_another_module(first, second):
    one, two = adapter(LLAMA, first, seed=1), adapter(LLAMA, second, seed=2)
    merge = united(one, two)
    best = min((first, second), key=STEMS.index)
    assert {target.path for target in merge.adapter} == {
        f"{best}.{n}.{name}" for n in (0, 1) for name in LLAMA
    }
    same = adapter(LLAMA, second, seed=1)
    assert lm.diff(one, same).error == 0


# A kind from the wild: A2, renames by transformers.
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bert.encoder.layer.0.output.dense", "encoder.layer.0.output.dense"),
        ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
        ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.vision_model.encoder.layers.0.mlp.fc1"),
        ("model.decoder.layers.0.fc1", "decoder.layers.0.fc1"),
        ("vit.layers.0.attention.q_proj", "vit.encoder.layer.0.attention.attention.query"),
        ("vit.layers.0.mlp.fc2", "encoder.layer.0.output.dense"),
        ("mlp.experts.3.gate_proj", "block_sparse_moe.experts.3.w1"),
        ("encoder.layer.0.attention.v_proj", "encoder.layer.0.attention.attention.value"),
    ],
)
def test_two_names_of_one_module_are_one(old, new):
    rng = np.random.default_rng(0)
    change = update(rng, 2)
    first, second = lm.Adapter.of({old: change}, "first"), lm.Adapter.of({new: change}, "second")
    for pair in ((first, second), (second, first)):
        merge = united(*pair)
        assert list(dense(merge.adapter)) == [old]
        np.testing.assert_allclose(dense(merge.adapter)[old], 2 * change.dense())
        assert any(new in note for note in merge.report.notes)


def test_what_agrees_keeps_its_names():
    """Names of transformers 4, or of nobody, are as good as any where all sources have them."""
    for path in (
        "encoder.layer.0.attention.attention.query",
        "block_sparse_moe.experts.0.w1",
        "foo.bar.0.qkv",
    ):
        pair = [lm.Adapter.of({path: update(np.random.default_rng(i), 2)}, f"s{i}") for i in (0, 1)]
        assert list(dense(united(*pair).adapter)) == [path]


ATTENTION = {name: shape for name, shape in LLAMA.items() if "attn" in name}
MLP = {name: shape for name, shape in LLAMA.items() if "mlp" in name}
GPT2 = {"attn.c_attn": (36, H), "mlp.c_fc": (48, H)}
UNKNOWN = {"blk.alpha_in": (Q, H), "blk.beta": (MID, H)}
TOGETHER = {
    "attention and MLP": (adapter(ATTENTION), adapter(MLP), "other modules of one model"),
    "layers and layers": (adapter(LLAMA, layers=(0, 1)), adapter(LLAMA, layers=(2, 3)), "other layers"),
    "layers of a model that is not known": (adapter(UNKNOWN), adapter(UNKNOWN, layers=(4,)), "other layers"),
    "vision and language": (
        adapter({"attn.qkv": (36, H)}, "model.visual.blocks"),
        adapter(LLAMA, "model.language_model.layers"),
        "other parts of one model",
    ),
}
CLIP = ({"self_attn.q_proj": (H, H)}, {"mlp.fc1": (MID, H)})
TOGETHER |= {  # names that models share are called by what stands before them, or by none
    "attention and MLP of Phi": (*map(adapter, CLIP), "one model, such as Phi"),
    "attention and MLP of CLIP": (
        *(adapter(part, "vision_model.encoder.layers") for part in CLIP),
        "as CLIP",
    ),
}
TOGETHER["layers and a head"] = (
    adapter(LLAMA),
    lm.Adapter.of({"lm_head": update(np.random.default_rng(0), 2)}, "head"),
    "beside the layers",
)
APART = {
    "two models": (adapter(LLAMA), adapter(GPT2, "transformer.h"), "the second the names of GPT-2"),
    "a name that nobody knows": (adapter(LLAMA), adapter(UNKNOWN), "no model that is known"),
    "two that nobody knows": (adapter(UNKNOWN), adapter({"blk.gamma": (Q, H)}), "no model that is known"),
    "another beginning": (adapter(LLAMA), adapter(LLAMA, "foo.layers"), "rename={'foo': 'model'}"),
    "another stack of text": (
        adapter(LLAMA),
        adapter(LLAMA, "model.text_model.layers"),
        "rename={'model.text_model': 'model'}",
    ),
    "two names of what sees": (
        adapter(ATTENTION, "vision_model.encoder.layers"),
        adapter(ATTENTION, "vision_tower.encoder.layers"),
        "rename={'vision_tower.encoder': 'vision_model.encoder'}",
    ),
    "a decoder": (adapter(LLAMA, "decoder.layers"), adapter(LLAMA), "rename={'decoder': 'model'}"),
}


@pytest.mark.parametrize(("first", "second", "said"), TOGETHER.values(), ids=TOGETHER)
def test_parts_of_one_model_are_merged_with_a_note(first, second, said):
    merge = united(first, second)
    assert len(merge.adapter) == len(first) + len(second)
    assert any("share no module" in note and said in note for note in merge.report.notes)


def test_names_that_many_models_have_are_called_by_none():
    notes = united(adapter(ATTENTION), adapter({"mlp.up_proj": (MID, H)})).report.notes
    assert "they adapt other modules of one model" in [note.partition("; ")[2] for note in notes]


# A kind from the wild: A2, nothing shared.
@pytest.mark.parametrize(("first", "second", "said"), APART.values(), ids=APART)
def test_sources_that_share_no_module_are_refused_with_the_likely_reason(first, second, said):
    with pytest.raises(IncompatibleError, match="share no module") as caught:
        united(first, second)
    assert said in str(caught.value)
    assert "allow_disjoint=True" in str(caught.value)
    merge = united(first, second, allow_disjoint=True)
    assert len(merge.adapter) == len(first) + len(second)
    assert any("allow_disjoint=True says so" in note for note in merge.report.notes)


def test_one_that_hangs_together_with_nobody_is_found_among_many():
    with pytest.raises(IncompatibleError, match="foo"):
        united(
            adapter(ATTENTION, seed=1),
            adapter(LLAMA, seed=2),
            adapter(MLP, seed=3),
            adapter(LLAMA, "foo.layers", name="foo"),
        )


# A kind from the wild: A3, a rename that users ask for.
def test_a_beginning_is_renamed():
    odd = adapter(LLAMA, "foo.layers", seed=5)
    merge = united(adapter(LLAMA), odd, rename={"foo": "model"})
    assert len(merge.adapter) == len(odd)
    assert any("as rename= says" in note for note in merge.report.notes)
    assert lm.diff(odd, adapter(LLAMA, seed=5), rename={"foo": "model"}).error == 0


def test_a_star_is_one_part_of_a_name_and_the_longest_beginning_counts():
    odd = adapter({"a.x": (Q, H), "b": (MID, H)}, "foo.blk", seed=6)
    names = {
        "foo.blk": "model.layers",
        "foo.blk.*.a.x": "model.layers.*.self_attn.q_proj",
        "foo.blk.*.b": "model.layers.*.mlp.up_proj",
    }
    merge = united(adapter(LLAMA), odd, rename=names)
    assert {target.path for target in merge.adapter} == {target.path for target in adapter(LLAMA)}


@pytest.mark.parametrize("text", ["foo=model", "foo model  # of the trainer\n", '{"foo": "model"}'])
def test_a_table_of_names_may_be_a_file(tmp_path, text):
    table = tmp_path / "names.txt"
    table.write_text(text)
    merge = united(adapter(LLAMA), adapter(LLAMA, "foo.layers", seed=5), rename=table)
    assert len(merge.adapter) == len(adapter(LLAMA))


def test_a_renaming_that_meets_nothing_is_a_mistake():
    with pytest.raises(UsageError, match=r"bar.*matches no module.*model\.layers\.0"):
        united(adapter(LLAMA), adapter(LLAMA, seed=2), rename={"bar": "model"})


def test_two_modules_may_not_get_one_name():
    both = lm.Adapter.of(
        {"a.q": update(np.random.default_rng(0), 2), "b.q": update(np.random.default_rng(1), 2)}
    )
    with pytest.raises(IncompatibleError, match=r"would be called b\.q"):
        united(both, both, rename={"a": "b"})


def test_convert_renames_alone(tmp_path):
    lm.save(adapter(LLAMA, "foo.layers"), tmp_path / "a")
    done = lm.convert(tmp_path / "a", tmp_path / "b", "peft", rename={"foo": "model"})
    assert not done.copied
    assert lm.diff(lm.load(tmp_path / "b"), adapter(LLAMA)).largest < 1e-12


@pytest.mark.parametrize("grain", ["fused", "split", "fused-projections", "split-projections"])
def test_a_grain_that_is_asked_for_changes_no_update(tmp_path, grain):
    for number, source in enumerate(parts()):
        lm.save(source, tmp_path / f"a{number}")
        lm.convert(tmp_path / f"a{number}", tmp_path / f"b{number}-{grain}", "peft", grain=grain)
        made = lm.load(tmp_path / f"b{number}-{grain}")
        assert any("qkv" in target.path for target in made) == grain.startswith("fused")
        assert lm.diff(source, made).largest < 1e-12


def test_a_record_repeats_what_was_said_of_names(tmp_path):
    lm.save(adapter(PHI, "foo.layers", seed=5), tmp_path / "a")
    lm.save(adapter(ATTENTION, seed=6), tmp_path / "b")
    lm.save(adapter(UNKNOWN, seed=7), tmp_path / "c")
    sources = [tmp_path / name for name in "abc"]
    asked = {"rename": {"foo": "model"}, "allow_disjoint": True, "grain": "fused"}
    merge = lm.combine(sources, "svd", rank=3, out=tmp_path / "m", **asked)
    again = lm.replay(tmp_path / "m", tmp_path / "n", folders=[tmp_path])
    assert lm.diff(merge.adapter, again.adapter).error == 0
    names = {target.path for target in merge.adapter}
    assert "model.layers.0.self_attn.qkv_proj" in names
    assert "model.layers.0.self_attn.q_proj" not in names


def test_the_command_line_renames_and_reads_tables(capsys, tmp_path):
    cli = Cli(capsys)
    lm.save(adapter(LLAMA, "foo.layers"), tmp_path / "a")
    lm.save(adapter(LLAMA, seed=2), tmp_path / "b")
    (tmp_path / "names.json").write_text('{"foo": "model"}')
    a, b, table = (tmp_path / name for name in ("a", "b", "names.json"))
    cli("combine", a, b, "-o", tmp_path / "m").refused(3, "share no module", "--rename foo=model")
    assert cli("combine", a, b, "--rename", "foo=model", "-o", tmp_path / "m").code == 0
    assert cli("diff", tmp_path / "m", tmp_path / "m", "--rename", "model=m").code == 0
    assert cli("convert", a, tmp_path / "c", "--to", "peft", "--rename", table).code == 0
    assert {target.path for target in lm.load(tmp_path / "c")} == {target.path for target in lm.load(b)}
    wrong = cli("combine", a, b, "--rename", "no-such-file", "-o", tmp_path / "n")
    assert wrong.code == 2
    assert "neither OLD=NEW nor a file that can be read (no-such-file does not exist" in wrong.err


def test_many_that_share_no_module_are_told_of_in_a_sentence_for_each_reason(tmp_path):
    for i in range(7):
        lm.save(adapter({f"self_attn.{'qk'[i % 2]}_proj": (H, H)}, layers=(i,)), tmp_path / f"s{i}")
    merge = lm.combine([tmp_path / f"s{i}" for i in range(7)], "linear")
    notes = [note for note in merge.report.notes if "share no module" in note]
    assert [note.partition(";")[0] for note in notes] == [
        "s0, s1, s2, s3 and 3 more share no module",
        "s0 and s1 share no module",
    ]
