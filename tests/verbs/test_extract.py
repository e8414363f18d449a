"""An extracted adapter is the best of its rank; what is not extracted is counted and said."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.request.recipe_text import parse, written
from tests.helpers.adapters import truncated
from tests.helpers.models import BF16, CONFIG, SHAPES, random_model, read_model, save_model

Q = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
UP = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]

LARGE = {key: tuple(8 * n for n in shape) for key, shape in SHAPES.items()}


def tuned(base, modules, rank=None, seed=1, size=1.0):
    """The base with something added to these modules: of a rank, or full."""
    rng, found = np.random.default_rng(seed), dict(base)
    for module in modules:
        key = f"{module}.weight"
        outs, ins = base[key].shape
        added = rng.standard_normal((outs, rank or ins)) @ rng.standard_normal((rank or ins, ins))
        found[key] = (base[key].astype(np.float64) + size * added).astype(base[key].dtype)
    return found


def models(tmp_path, after, before, config=CONFIG, **shards):
    return save_model(tmp_path / "t", after, config, **shards), save_model(tmp_path / "b", before, config)


def delta(after, before, module):
    key = f"{module}.weight"
    return after[key].astype(np.float64) - before[key].astype(np.float64)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("out", ["a", "a.safetensors"])
def test_a_planted_difference_comes_back(tmp_path, shards, out):
    before = random_model()
    after = tuned(before, [*Q, *UP], rank=3)
    pair = models(tmp_path, after, before, shards=shards)
    done = lm.extract(*pair, tmp_path / out, rank=3)
    adapter = lm.load(tmp_path / out)
    assert {target.path for target in adapter} == {*Q, *UP}
    for target in adapter:
        wanted = delta(after, before, target.path)
        assert np.linalg.norm(adapter[target].dense() - wanted) < 1e-6 * np.linalg.norm(wanted)
    assert done.energy_lost < 1e-12
    assert len(done.modules) == 5, "the head was looked at, and is the same"
    assert not list(done.notes)


def test_a_large_module_is_fitted_within_a_thousandth_of_the_best(tmp_path):
    shapes = {"model.layers.0.mlp.up_proj.weight": (700, 500)}
    before = random_model(0, shapes)
    after = tuned(before, UP[:1], size=0.01)
    done = lm.extract(*models(tmp_path, after, before), rank=8)
    matrix = delta(after, before, UP[0])
    best = np.square(matrix - truncated(matrix, 8)).sum()
    lost = np.square(matrix - next(iter(done.adapter.values())).dense()).sum()
    assert best * (1 - 1e-9) < lost < best * 1.001
    assert done.modules[0].lost == pytest.approx(lost, rel=1e-4)


def test_row_33_lisa_is_extracted_along_the_energy_curve_of_its_dense_layers(tmp_path):
    """LISA trains some layers whole and freezes the others: these are extracted, as well as can be."""
    before = random_model()
    after = tuned(before, [Q[1], UP[1]])
    pair = models(tmp_path, after, before)
    squares = {p: np.linalg.svd(delta(after, before, p), compute_uv=False) ** 2 for p in (Q[1], UP[1])}
    curves = {path: np.cumsum(each) / each.sum() for path, each in squares.items()}
    for rank in (1, 4, 16):
        done = lm.extract(*pair, rank=rank)
        assert {target.path for target in done.adapter} == curves.keys()
        for module in done.changed:
            kept = curves[module.target.path][rank - 1]
            assert module.lost / module.energy == pytest.approx(1 - kept, abs=1e-6)
            up, down = done.adapter[module.target].up, done.adapter[module.target].down
            matrix = delta(after, before, module.target.path)
            assert np.allclose(up @ down, truncated(matrix, rank), atol=1e-4)
    done = lm.extract(*pair, energy=0.7, profile="compact")
    ranks = {module.target.path: len(module.squares) for module in done.changed}
    assert ranks == {path: int((curve < 0.7).sum()) + 1 for path, curve in curves.items()}


def test_row_43_layra_unites_its_layers_and_adds_a_dense_residual(tmp_path):
    """LayRA: adapters of the first and the last layer, and the instruct model's difference beside them."""
    before = random_model()
    after = tuned(before, [*Q, *UP], rank=2, size=0.1)
    save_model(tmp_path / "instruct", after)
    save_model(tmp_path / "base", before)
    rng = np.random.default_rng(5)
    ends = [lm.LowRank(rng.standard_normal((16, 2)), rng.standard_normal((2, 16))) for _ in Q]
    for path, update in zip(Q, ends, strict=True):
        lm.save(lm.Adapter.of({path: update}), tmp_path / path, format="peft")
    residual = lm.Tuned(tmp_path / "instruct", tmp_path / "base", rank=2)
    apart = lm.extract(tmp_path / "instruct", tmp_path / "base", rank=1)
    assert apart.energy_lost > 0.1, "the residual that is truncated says how much it lost"
    merge = lm.combine([tmp_path / Q[0], tmp_path / Q[1], residual], weights=[1, 1, 0.5])
    found = {target.path: merge.adapter[target].dense() for target in merge.adapter}
    assert found.keys() == {*Q, *UP}
    for i, path in enumerate(Q):
        wanted = ends[i].dense() + 0.5 * delta(after, before, path)
        assert np.allclose(found[path], wanted, atol=1e-5)
    assert np.allclose(found[UP[0]], 0.5 * delta(after, before, UP[0]), atol=1e-5)


def test_a_recipe_names_a_tuned_model_and_its_base(tmp_path, monkeypatch):
    before = random_model()
    models(tmp_path, tuned(before, Q, rank=2), before)
    lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "a", rank=2)
    monkeypatch.chdir(tmp_path)
    text = {"sources": [{"tuned": "t", "base": "b", "rank": 2, "weight": -1.0}, "a"]}
    recipe = parse(text, "recipe")
    import yaml

    assert parse(yaml.safe_load(written(recipe)), "recipe").sources == recipe.sources
    merge = lm.combine([each.source for each in recipe.sources], weights=[-1, 1])
    assert all(np.abs(update.dense()).max() < 1e-5 for update in merge.adapter.values())
    with pytest.raises(UsageError, match="rank=0 of a tuned model"):
        parse({"sources": [{"tuned": "t", "base": "b", "rank": 0}]}, "recipe")
    with pytest.raises(UsageError, match="a tuned model and no base"):
        parse({"sources": [{"tuned": "t"}]}, "recipe")
    with pytest.raises(UsageError, match="a source has the key 'revision'"):
        parse({"sources": [{"tuned": "t", "base": "b", "revision": "x"}]}, "recipe")


def test_rounding_to_bfloat16_is_told_from_training(tmp_path):
    exact = random_model()
    after = {key: array.astype(BF16) for key, array in tuned(exact, Q[:1], rank=2, size=0.1).items()}
    done = lm.extract(*models(tmp_path, after, exact), rank=4)
    assert {target.path for target in done.adapter} == {Q[0]}
    assert sum(module.rounded for module in done.modules) == 4
    assert "7 tensors differ by no more than rounding" in " ".join(done.notes)
    save_model(tmp_path / "short", {key: array.astype(BF16) for key, array in exact.items()})
    with pytest.raises(IncompatibleError, match="by more than rounding"):
        lm.extract(tmp_path / "short", tmp_path / "b", rank=4)


def test_an_update_smaller_than_the_rounding_of_its_base_is_still_an_update(tmp_path):
    before = random_model(0, LARGE, BF16)
    wide = {key: array.astype(np.float32) for key, array in before.items()}
    after = tuned(wide, Q, rank=1, size=3e-4)
    done = lm.extract(*models(tmp_path, after, before), rank=1)
    assert {module.target.path for module in done.changed} == set(Q)
    assert all(module.energy < module.noise for module in done.changed)
    assert done.energy_lost < 1e-4


def test_units_within_the_rounding_of_bfloat16_are_reported(tmp_path):
    before = random_model(0, LARGE, BF16)
    after = tuned(before, [*Q, *UP], rank=2, size=0.05)
    done = lm.extract(*models(tmp_path, after, before), rank=8)
    assert {module.above for module in done.changed} == {2}
    notes = " ".join(done.notes)
    assert "what is lost is no more than the rounding" in notes
    assert "no module has more than 2 units above what rounding makes" in notes


def test_what_is_no_module_is_refused_kept_or_left_out_as_asked(tmp_path):
    before = random_model()
    after = tuned(before, Q, rank=2)
    for key in ("model.norm.weight", "model.embed_tokens.weight"):
        after[key] = after[key] + 1
    pair = models(tmp_path, after, before)
    with pytest.raises(IncompatibleError, match=r"changes 2 tensors.*Decide with extras="):
        lm.extract(*pair, tmp_path / "a", rank=2)
    assert not (tmp_path / "a").exists()
    left = lm.extract(*pair, tmp_path / "left", rank=2, extras="drop")
    config = json.loads((tmp_path / "left" / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not left.adapter.extras
    assert "2 other tensors differ: left out" in " ".join(left.notes)
    kept = lm.extract(*pair, tmp_path / "kept", rank=2, extras="first")
    config = json.loads((tmp_path / "kept" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.embed_tokens", "model.norm"]
    assert len(kept.adapter.extras) == 2
    lm.extract(*pair, tmp_path / "some", rank=2, only="q_proj")
    lm.fuse(tmp_path / "kept", tmp_path / "b", tmp_path / "back")
    back, whole = read_model(tmp_path / "back"), read_model(tmp_path / "t")
    assert all(np.allclose(back[key], whole[key], atol=1e-5) for key in whole)


def test_an_embedding_that_the_head_is_tied_to_is_one_tensor(tmp_path):
    before = random_model()
    after = tuned(before, Q, rank=2)
    after["model.embed_tokens.weight"] = after["model.embed_tokens.weight"] + 1
    del after["lm_head.weight"]
    config = {**CONFIG, "tie_word_embeddings": True}
    done = lm.extract(*models(tmp_path, after, before, config), rank=2, extras="first")
    assert [key for key in done.adapter.extras] == ["base_model.model.model.embed_tokens.weight"]
    assert all("lm_head" not in target.path for target in done.adapter)


@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_each_size_that_is_asked_for_is_met(tmp_path, profile):
    before = random_model()
    after = tuned(tuned(before, Q, rank=1), UP)
    pair = models(tmp_path, after, before)
    asked = {"profile": profile}
    lm.extract(*pair, tmp_path / "s", size="9kB", **asked)
    file = tmp_path / "s" / "adapter_model.safetensors"
    assert 6000 < file.stat().st_size <= 9000
    total = lm.extract(*pair, tmp_path / "r", total_rank=17, **asked)
    assert sum(slot.rank for slot in total.adapter.slots.values()) == {"portable": 16, "compact": 17}[profile]
    most = lm.extract(*pair, tmp_path / "e", energy=0.9, **asked)
    assert all(module.lost <= 0.1 * module.energy for module in most.changed)
    ranks = {target.path: slot.rank for target, slot in most.adapter.slots.items()}
    assert (ranks[Q[0]] == 1) == (profile == "compact")


WRONG = {
    "two sizes": ({"rank": 2, "energy": 0.5}, "both set the size"),
    "no rank": ({"rank": 0}, "rank=0 must be at least 1"),
    "no share": ({"energy": 1.5}, "energy=1.5 must be"),
    "a mean of one": ({"extras": "average"}, "is for several sources"),
    "nothing left": ({"only": "nowhere"}, "No module is left"),
    "too small": ({"size": 100}, "too little for rank 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_a_sentence(tmp_path, name):
    asked, words = WRONG[name]
    before = random_model()
    pair = models(tmp_path, tuned(before, Q), before)
    with pytest.raises(UsageError, match=words):
        lm.extract(*pair, tmp_path / "a", **asked)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("change", ["another shape", "one is missing", "no number"])
def test_models_that_do_not_belong_together_are_refused(tmp_path, change):
    before = random_model()
    after, key = tuned(before, Q), f"{Q[0]}.weight"
    words = {"another shape": "different models", "one is missing": "has no model", "no number": "damaged"}
    if change == "another shape":
        after[key] = np.ones((16, 8), np.float32)
    elif change == "one is missing":
        del after[key]
    else:
        after[key] = np.full_like(after[key], np.nan)
    with pytest.raises(IncompatibleError, match=words[change]):
        lm.extract(*models(tmp_path, after, before), tmp_path / "a")


def test_the_command_says_what_was_lost_and_left_out(tmp_path, capsys):
    from loramerge.cli import main

    before = random_model()
    after = tuned(before, Q)
    after["model.norm.weight"] = after["model.norm.weight"] + 1
    t, b = map(str, models(tmp_path, after, before))
    with pytest.raises(SystemExit) as ended:
        main(["extract", t, b, "--rank", "2", "--extras", "drop", "-o", str(tmp_path / "a")])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "2 of 5 modules, 3 are the same in both models" in said.out
    assert "1 other tensor differs: left out (model.norm.weight)" in said.err
    assert len(lm.load(tmp_path / "a")) == 2


def test_a_merge_of_a_tuned_model_is_replayed(tmp_path, monkeypatch):
    before = random_model()
    models(tmp_path, tuned(before, Q, rank=2), before)
    lm.extract(tmp_path / "t", tmp_path / "b", tmp_path / "a", rank=2)
    monkeypatch.chdir(tmp_path)
    first = lm.combine([lm.Tuned("t", "b", rank=2), "a"], weights=[0.5, 1], out="m")
    again = lm.replay("m", "n")
    assert (tmp_path / "n/adapter_model.safetensors").read_bytes() == (
        tmp_path / "m/adapter_model.safetensors"
    ).read_bytes()
    assert len(first.adapter) == len(again.adapter)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").rename(tmp_path / "elsewhere/other")
    with pytest.raises(SourceError, match="The model b, of which a source was extracted, is neither"):
        lm.replay("m")
    assert lm.replay("m", sources={"b": "elsewhere/other"}).adapter.slots.keys() == first.adapter.slots.keys()
    save_model(tmp_path / "b", random_model(7))
    with pytest.raises(IncompatibleError, match="is not the t that was merged"):
        lm.replay("m")


LIMITS = [
    ({"max_lost": 0.01}, "misses .* of the energy of the difference, more than max_lost=0.01"),
    ({"min_cosine": 0.999}, r"cosine of the adapter with the difference is 0\.\d+, below min_cosine=0.999"),
    ({"max_error": 1e-9, "dtype": "float16"}, "is off by .* of its norm after rounding, more than max_error"),
]


@pytest.mark.parametrize(("limit", "words"), LIMITS)
def test_an_adapter_beyond_its_limits_is_not_written(tmp_path, limit, words):
    before = random_model()
    pair = models(tmp_path, tuned(before, Q, rank=3), before)
    with pytest.raises(lm.VerificationError, match=words):
        lm.extract(*pair, tmp_path / "a", rank=1, **limit)
    assert not (tmp_path / "a").exists()
    done = lm.extract(*pair, tmp_path / "a", rank=3, max_lost=1e-6, min_cosine=0.999, max_error=1e-3)
    assert done.adapter.rank == 3


def test_the_cosine_of_a_limit_is_that_of_the_adapter_with_the_difference(tmp_path):
    before = random_model()
    after = tuned(before, Q, rank=3)
    pair = models(tmp_path, after, before)
    done = lm.extract(*pair, rank=1)
    kept, whole = (np.concatenate([f(q).ravel() for q in Q]) for f in (
        lambda q: done.adapter[q].dense(), lambda q: delta(after, before, q)))  # fmt: skip
    cosine = kept @ whole / np.linalg.norm(kept) / np.linalg.norm(whole)
    assert cosine == pytest.approx((1 - done.energy_lost) ** 0.5, rel=1e-4)
    for least, passes in ((cosine - 1e-3, True), (cosine + 1e-3, False)):
        if passes:
            lm.extract(*pair, rank=1, min_cosine=least)
        else:
            with pytest.raises(lm.VerificationError, match="cosine"):
                lm.extract(*pair, rank=1, min_cosine=least)


@pytest.mark.parametrize("bare", ["tuned", "base"])
def test_one_of_both_may_be_a_file(tmp_path, bare):
    before = random_model()
    after = tuned(before, [*Q, *UP], rank=3)
    pair = models(tmp_path, after, before, shards=2)
    file = save_model(tmp_path / "f.safetensors", after if bare == "tuned" else before)
    pair = (file, pair[1]) if bare == "tuned" else (pair[0], file)
    done = lm.extract(*pair, tmp_path / "a", rank=3)
    assert done.energy_lost < 1e-12
    assert {target.path for target in lm.load(tmp_path / "a")} == {*Q, *UP}
    one, other = (lm.Tuned(*each, rank=3) for each in (pair, (tmp_path / "t", tmp_path / "b")))
    merge = lm.combine([one, other], "linear", weights=[1, -1], allow_base_mismatch=True)
    assert all(np.abs(update.dense()).max() < 1e-5 for update in merge.adapter.values())


def test_a_file_under_first_names_and_a_folder_are_two_spellings(tmp_path):
    names = {f"model.diffusion_model.input_blocks.{i}.0.weight": (4, 4) for i in range(3)}
    file = save_model(tmp_path / "f.safetensors", random_model(0, names))
    folder = save_model(tmp_path / "b", random_model(0, {"down_blocks.0.weight": (4, 4)}))
    with pytest.raises(IncompatibleError, match=r"names differ: give two files, or two folders\."):
        lm.extract(file, folder)


@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_no_number_is_told_wherever_it_is(tmp_path, key, value):
    before = random_model()
    after = {**tuned(before, Q), key: np.full_like(before[key], value)}
    with pytest.raises(IncompatibleError, match=f"{key.removesuffix('.weight')}.* no finite numbers"):
        lm.extract(*models(tmp_path, after, before), rank=2, extras="first")


def test_shards_without_their_index_are_told_as_such(tmp_path):
    pair = models(tmp_path, random_model(), random_model(1), shards=2)
    (tmp_path / "t" / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match="2 shards and no index"):
        lm.extract(*pair)


def test_what_is_beside_the_modules_can_be_excluded_alone(tmp_path):
    before = random_model()
    after = {**tuned(before, Q, rank=2), "model.norm.weight": before["model.norm.weight"] + 1}
    done = lm.extract(*models(tmp_path, after, before), rank=2, extras="first", exclude="norm")
    assert not done.beside
    assert len(done.adapter) == len(Q)
