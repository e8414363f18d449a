"""`--for`: a merge keeps to what its consumer loads, says so, records it, or is refused in a sentence."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.consumers import CONSUMERS
from tests.consumers.hostile import HOSTILE
from tests.consumers.inputs import BASE, LAYERS, NAMES, SCALINGS, pairs, write
from tests.helpers.files import bare, folder, read


def two(tmp_path, **config):
    """Two adapters, of rank 12 each unless said otherwise."""
    return [write(tmp_path / n, i, {"r": 12, "lora_alpha": 12} | config, wide=8) for i, n in enumerate("ab")]


def written(place):
    return json.loads((place / "adapter_config.json").read_text())


def test_a_rank_above_what_it_loads_is_cut_to_it(tmp_path):
    merge = lm.combine(two(tmp_path), "linear", consumer="vllm", out=tmp_path / "m")
    assert written(tmp_path / "m")["r"] == merge.method.rank == 16
    assert "rank 16 is the largest that vLLM loads, so the merge is cut to it" in merge.report.notes
    best = lm.combine([tmp_path / "a", tmp_path / "b"], "svd", rank=16)
    for target in merge.adapter:
        assert np.allclose(merge.adapter[target].dense(), best.adapter[target].dense(), atol=1e-5)


def test_a_merge_that_fits_is_left_alone_but_for_a_note(tmp_path):
    sources = two(tmp_path, r=4)
    with_it = lm.combine(sources, consumer="vllm", out=tmp_path / "m")
    without = lm.combine(sources, out=tmp_path / "n")
    assert (tmp_path / "m" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "n" / "adapter_model.safetensors"
    ).read_bytes()
    assert set(with_it.report.notes) - set(without.report.notes) == {
        "vLLM 0.33.0 loads the merge as it is meant"
    }


def test_max_rank_says_how_much_it_was_told_to_load(tmp_path):
    sources = two(tmp_path)
    assert lm.combine(sources, consumer="vllm", max_rank=32).adapter.rank == 24
    assert lm.combine(sources, consumer="sglang").adapter.rank == 24
    assert lm.combine(sources, consumer="sglang", max_rank=8).adapter.rank == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "svd", "rank": 20}, "rank=20 gives rank 20, and vLLM loads rank 16 at most: give max"),
        ({"energy": 1.0}, "energy=1.0 gives rank 24"),
        ({"method": "cat"}, "cat gives rank 24, and vLLM loads rank 16 at most: give max_rank=24, and "
            "start it with --max-lora-rank 24 or more; or take one with a rank, such as svd"),
        ({"rules": [lm.Rule("q_proj", rank=20)], "rank": 2}, "the rule for q_proj gives rank 20"),
        ({"total_rank": 24 * len(LAYERS)}, "total_rank=192 gives rank 24"),
    ],
)  # fmt: skip
def test_a_size_that_was_asked_for_is_not_changed_but_refused(options, words, tmp_path):
    with pytest.raises(lm.UsageError, match=words.replace("(", r"\(")):
        lm.combine(two(tmp_path), consumer="vllm", **options)


def test_float64_is_written_as_float32_unless_it_is_asked_for(tmp_path):
    values = [pairs(i, SCALINGS["plain"], np.float64) for i in range(2)]
    said = {"peft_type": "LORA", "target_modules": NAMES, **SCALINGS["plain"]}
    said["base_model_name_or_path"] = BASE
    sources = [folder(tmp_path / n, v, config=said) for n, v in zip("ab", values, strict=True)]
    for dtype, wanted in {None: "float32", "float64": "float64"}.items():
        lm.combine(sources, consumer="vllm", dtype=dtype, out=tmp_path / wanted)
        values = read(tmp_path / wanted / "adapter_model.safetensors").values()
        assert {value.dtype.name for value in values} == {wanted}


@pytest.mark.parametrize(
    ("consumer", "options", "error", "words"),
    [
        ("sglang", {"profile": "compact"}, lm.UsageError, "SGLang reads no ranks by module"),
        ("llama.cpp", {"profile": "compact"}, lm.UsageError, "llama.cpp reads no ranks by module"),
        ("tgi", {}, lm.UsageError, "'tgi' is not one of peft, transformers, vllm"),
        ("vllm", {"max_rank": 0}, lm.UsageError, "max_rank=0 must be a whole number from 1 on"),
        (None, {"max_rank": 8}, lm.UsageError, "max_rank=8 is for a program: name it by consumer="),
        ("vllm", {"out": "m.safetensors"}, lm.UsageError, "write to m instead of m.safetensors"),
        ("diffusers", {}, lm.IncompatibleError, "belong to no image model that loramerge knows"),
        (
            "sglang",
            {"only": "q_proj"},
            lm.IncompatibleError,
            "q_proj without v_proj. What helps: serve it with",
        ),
    ],
)
def test_what_it_would_not_load_is_refused_in_a_sentence(
    consumer, options, error, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        lm.combine(two(tmp_path, r=4), consumer=consumer, **{"out": tmp_path / "m"} | options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_heads_that_it_does_not_load_must_be_dropped_by_the_user(tmp_path):
    head, score = HOSTILE["a head"](tmp_path / "a"), HOSTILE["a classifier"](tmp_path / "b")
    with pytest.raises(lm.IncompatibleError, match="Decide with extras="):
        lm.combine([head], consumer="vllm")
    with pytest.raises(lm.IncompatibleError, match="lm_head, and it takes only score and classifier"):
        lm.combine([head], consumer="vllm", extras="first")
    with pytest.raises(lm.IncompatibleError, match=r"score.weight. extras='drop' leaves these tensors out"):
        lm.combine([score], consumer="llama.cpp", extras="first")
    lm.combine([head], consumer="vllm", extras="drop", out=tmp_path / "m")
    lm.combine([score], consumer="vllm", extras="first", out=tmp_path / "n")
    assert not [*lm.check(tmp_path / "m", "vllm"), *lm.check(tmp_path / "n", "vllm")]


def test_a_replay_is_for_the_same_consumer(tmp_path):
    lm.combine(two(tmp_path), consumer="vllm", max_rank=8, out=tmp_path / "m")
    record = json.loads((tmp_path / "m" / "loramerge.json").read_text())
    assert record["settings"]["consumer"] == "vllm"
    assert record["settings"]["max_rank"] == 8
    again = lm.replay(tmp_path / "m", tmp_path / "again")
    assert again.plan.tailor.consumer.name == "vllm"
    assert read(tmp_path / "again" / "adapter_model.safetensors").keys()
    for name, value in read(tmp_path / "m" / "adapter_model.safetensors").items():
        assert np.array_equal(value, read(tmp_path / "again" / "adapter_model.safetensors")[name])


def test_resize_keeps_to_it_too(tmp_path):
    (place, _) = two(tmp_path)
    lm.resize(place, tmp_path / "m", rank=8, consumer="vllm")
    assert not lm.check(tmp_path / "m", "vllm")
    with pytest.raises(lm.UsageError, match="rank=12 gives rank 12, and vLLM loads rank 8 at most"):
        lm.resize(place, tmp_path / "n", rank=12, consumer="vllm", max_rank=8)


def test_many_weightings_may_be_for_one_consumer(tmp_path):
    merge = lm.open(two(tmp_path)).combine(weights=[0.5, 0.5], consumer="vllm")
    assert merge.adapter.rank == 16
    merge.save(tmp_path / "m")
    assert not lm.check(tmp_path / "m", "vllm")


def test_an_adapter_in_memory_is_taken_as_it_would_be_saved():
    unit = lm.LowRank(np.ones((4, 2)), np.ones((2, 6)), scale=3.0)
    names = [f"model.layers.0.self_attn.{n}_proj" for n in "qv"]
    adapter = lm.Adapter.of(dict.fromkeys(names, unit))
    assert not [finding for name in ("peft", "transformers") for finding in lm.check(adapter, name)]
    servers = [finding for name in ("vllm", "sglang", "llama.cpp") for finding in lm.check(adapter, name)]
    assert [finding.effect for finding in servers] == ["unknown"] * 3  # nothing says of which model it is
    (finding,) = lm.check(lm.Adapter.of({names[0]: unit}), "sglang")
    assert "q_proj without v_proj" in finding.sentence


def test_a_loaded_adapter_is_checked_by_its_files(tmp_path):
    adapter = lm.load(write(tmp_path / "a", 0, SCALINGS["rslora"]))
    (finding,) = lm.check(adapter, "llama.cpp")
    assert finding.effect == "scales"
    alone = lm.load(bare(tmp_path / "x.safetensors", pairs(0, SCALINGS["plain"])), alpha=8)
    (finding,) = lm.check(alone, "vllm")
    assert "this is one file" in finding.sentence


def test_the_format_is_the_one_that_it_loads(tmp_path):
    """PEFT adapters for mlx-lm become its own; kohya's for ComfyUI stay as they are."""
    merge = lm.combine(two(tmp_path, r=4), consumer="mlx", out=tmp_path / "m")
    assert merge.adapter.dialect == "mlx"
    assert not lm.check(tmp_path / "m", "mlx")
    written = {t.path: u.dense() for t, u in merge.adapter.items()}
    plain = lm.combine([tmp_path / "a", tmp_path / "b"]).adapter
    for target, update in plain.items():
        np.testing.assert_allclose(written[target.path], update.dense(), atol=1e-6)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    values = {f"{name}.lora_down.weight": np.ones((2, 1280), np.float32)}
    values |= {f"{name}.lora_up.weight": np.ones((1280, 2), np.float32), f"{name}.alpha": np.float32(1)}
    source = bare(tmp_path / "k.safetensors", values)
    for consumer, wanted in {"diffusers": "diffusers", "comfyui": "kohya"}.items():
        out = tmp_path / f"{consumer}.safetensors"
        assert lm.combine([source], consumer=consumer, out=out).adapter.dialect == wanted
        assert not lm.check(out, consumer)
    converted = lm.combine([source], consumer="diffusers", format="diffusers", out=tmp_path / "d").adapter
    assert converted.dialect == "diffusers"
    assert not lm.check(tmp_path / "d", "diffusers")


@pytest.mark.parametrize("consumer", sorted(CONSUMERS))
def test_a_replay_for_any_consumer_gives_the_same_bytes(consumer, tmp_path):
    sources = (kohya if consumer in ("diffusers", "comfyui") else two)(tmp_path)
    suffix = "" if CONSUMERS[consumer].folder else ".safetensors"
    first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
    lm.combine(sources, consumer=consumer, out=first)
    lm.replay(first, second)
    assert weights_of(first) == weights_of(second)


def weights_of(place):
    return next(place.glob("*.safetensors")).read_bytes() if place.is_dir() else place.read_bytes()


def kohya(tmp_path):
    """Two adapters of a UNet, of one module each."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    random = np.random.default_rng(0)
    for name, rank in {"a": 2, "b": 3}.items():
        values = {
            f"{stem}.lora_down.weight": random.normal(size=(rank, 1280)).astype(np.float32),
            f"{stem}.lora_up.weight": random.normal(size=(1280, rank)).astype(np.float32),
            f"{stem}.alpha": np.float32(1),
        }
        bare(tmp_path / f"{name}.safetensors", values)
    return [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize(
    ("consumer", "format"),
    [("mlx", "peft"), ("vllm", "mlx"), ("diffusers", "cloneofsimo"), ("comfyui", "mlx")],
)
def test_a_format_that_it_does_not_load_is_said_to_be_none(consumer, format, tmp_path):
    with pytest.raises(lm.UsageError, match=rf"does not load the format {format} .* drop format="):
        lm.combine(two(tmp_path), consumer=consumer, format=format)


def test_a_format_that_it_loads_of_some_models_is_refused_for_the_others(tmp_path):
    with pytest.raises(lm.IncompatibleError, match="it loads nothing in the names of ComfyUI"):
        lm.combine(kohya(tmp_path), consumer="diffusers", format="comfy")


@pytest.mark.parametrize("format", ["kohya", "comfy", "cloneofsimo"])
@pytest.mark.parametrize("out", ["m", "m.safetensors"])
def test_a_format_of_one_file_has_no_place_for_masks(format, out, tmp_path):
    words = f"the format {format} has no place for them: give format='peft' or format='diffusers'"
    with pytest.raises(lm.UsageError, match=words):
        lm.combine(kohya(tmp_path), "mergevla", format=format, out=tmp_path / out)
