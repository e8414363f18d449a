"""mlx-lm's folders: read by its own rule, merged with PEFT's, and written so that mlx-lm takes them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import loramerge
from loramerge import Target
from tests.helpers.files import content, folder, key, read, tensors
from tests.helpers.models import save_model

Q, V, GATE = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.switch.up_proj",
)
SHAPES = {Q: (6, 5), V: (4, 5)}
PARAMETERS = {"rank": 2, "scale": 3.5, "dropout": 0.0}
CONFIG = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": PARAMETERS, "model": "tiny"}
EXPERTS = 3


def factors(seed=0, rank=2, shapes=SHAPES):
    rng, made = np.random.default_rng(seed), {}
    for path, (outs, ins) in shapes.items():
        made[f"{path}.lora_a"] = rng.standard_normal((ins, rank)).astype("f4")
        made[f"{path}.lora_b"] = rng.standard_normal((rank, outs)).astype("f4")
    return made


def switched(seed=0, rank=2, size=(4, 7)):
    rng, (outs, ins) = np.random.default_rng(seed), size
    return {
        f"{GATE}.lora_a": rng.standard_normal((EXPERTS, rank, ins)).astype("f4"),
        f"{GATE}.lora_b": rng.standard_normal((EXPERTS, outs, rank)).astype("f4"),
    }


def mlx(path, values=None, config=CONFIG, weights="adapters.safetensors", **parameters):
    """A folder as mlx-lm's trainer leaves it; `parameters` go into lora_parameters."""
    path.mkdir(exist_ok=True)
    save_file(factors() if values is None else values, path / weights)
    if parameters:
        config = {**config, "lora_parameters": {**PARAMETERS, **parameters}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def forward(x, a, b, scale):
    """What LoRALinear adds to its output for one input, number by number."""
    inner = [sum(x[i] * a[i][k] for i in range(len(x))) for k in range(len(b))]
    return [scale * sum(inner[k] * b[k][o] for k in range(len(b))) for o in range(len(b[0]))]


def test_an_update_is_what_the_layer_of_mlx_adds(tmp_path):
    values = factors()
    adapter = loramerge.load(mlx(tmp_path / "a", values))
    assert adapter.dialect == "mlx"
    assert adapter.base.name == "tiny"
    for path, (_, ins) in SHAPES.items():
        x = np.random.default_rng(1).standard_normal(ins)
        a, b = (values[f"{path}.lora_{side}"].astype("f8").tolist() for side in "ab")
        np.testing.assert_allclose(
            adapter[Target(path)].dense() @ x, forward(x.tolist(), a, b, 3.5), rtol=1e-12
        )


@pytest.mark.parametrize("old", [False, True], ids=["one factor for each expert", "one matrix of all"])
def test_the_experts_of_a_switch_layer_are_told_apart(old, tmp_path):
    values = switched()
    stored = dict(values)
    if old:
        stored[f"{GATE}.lora_a"] = values[f"{GATE}.lora_a"].reshape(-1, 7)
    adapter = loramerge.load(mlx(tmp_path / "a", stored))
    assert len(adapter) == EXPERTS
    for expert in range(EXPERTS):
        a, b = (values[f"{GATE}.lora_{side}"][expert].astype("f8").T.tolist() for side in "ab")
        x = np.random.default_rng(expert).standard_normal(7)
        update = adapter[Target(GATE, index=expert)]
        np.testing.assert_allclose(update.dense() @ x, forward(x.tolist(), a, b, 3.5), rtol=1e-12)


def test_an_embedding_is_known_by_its_name(tmp_path):
    path = "model.embed_tokens"
    values = factors(shapes={path: (3, 9)})  # dim, tokens
    (target,) = adapter = loramerge.load(mlx(tmp_path / "a", values))
    assert target.kind == "embedding"
    rows = 3.5 * values[f"{path}.lora_a"] @ values[f"{path}.lora_b"]  # (tokens, dim): what LoRAEmbedding adds
    np.testing.assert_allclose(adapter[target].dense(), rows.T, rtol=1e-6)


def test_a_checkpoint_has_the_config_beside_it(tmp_path):
    where = mlx(tmp_path / "a", weights="0000100_adapters.safetensors")
    adapter = loramerge.load(where / "0000100_adapters.safetensors")
    assert {slot.scale for slot in adapter.slots.values()} == {3.5}


def test_a_file_without_a_config_asks_for_its_scale(cli, tmp_path):
    where = mlx(tmp_path / "a")
    (where / "adapter_config.json").unlink()
    source = where / "adapters.safetensors"
    cli("combine", source).refused(3, "does not say its scale", "--alpha")
    assert {s.scale for s in loramerge.load(source, alpha=8).slots.values()} == {4.0}
    assert {s.scale for s in loramerge.load(source, alpha="rank").slots.values()} == {1.0}


def test_an_alpha_is_not_used_by_mlx_and_that_is_said(cli, tmp_path):
    where = mlx(tmp_path / "a", alpha=16)
    assert {slot.scale for slot in loramerge.load(where).slots.values()} == {3.5}
    assert "alpha (16), which mlx-lm does not use" in cli("inspect", where).out


REFUSED = {
    "full fine-tuning": (dict(config=CONFIG | {"fine_tune_type": "full"}), 3, "fine_tune_type full"),
    "DoRA without lengths": (dict(config=CONFIG | {"fine_tune_type": "dora"}), 1, ".m) of"),
    "DoRA": (dict(values=factors() | {f"{Q}.m": np.ones(6, "f4")}), 3, "DoRA, which needs the weights"),
    "a fused layer's own factors": (
        dict(values=factors() | {"x.lora_a.0": np.ones((5, 2), "f4")}),
        3,
        "x.lora_a.0",
    ),
    "no scale": (dict(config=CONFIG | {"lora_parameters": {"rank": 2}}), 1, "scale in lora_parameters"),
    "a scale that is text": (dict(scale="3"), 1, "scale in lora_parameters"),
    "a scale without end": (dict(scale=1e400), 1, "adapter_config.json"),
    "no parameters": (dict(config=CONFIG | {"lora_parameters": [2]}), 1, "lora_parameters"),
    "another rank": (dict(rank=4), 1, "says rank 4"),
    "no pairs": (dict(values={"model.norm.weight": np.ones(3, "f4")}), 3, "no lora_a and lora_b"),
    "an early version's alpha": (
        dict(config={"lora_layers": 4, "lora_parameters": {**PARAMETERS, "alpha": 16}}),
        3,
        "alpha / rank",
    ),
    "two ranks": (dict(values=factors() | {f"{Q}.lora_b": np.ones((3, 6), "f4")}), 1, "do not share a rank"),
    "four dimensions": (
        dict(values=factors() | {f"{Q}.lora_a": np.ones((1, 1, 5, 2), "f4")}),
        1,
        "share a rank",
    ),
    "experts of two counts": (
        dict(values=switched() | {f"{GATE}.lora_a": np.ones((2, 2, 7), "f4")}),
        1,
        "do not share a rank",
    ),
    "integers": (dict(values=factors() | {f"{Q}.lora_a": np.ones((5, 2), "i1")}), 3, "I8"),
    "an empty factor": (dict(values=factors() | {f"{Q}.lora_a": np.ones((0, 2), "f4")}), 1, "empty"),
}


@pytest.mark.parametrize(("made", "code", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_lora_of_mlx_is_refused(cli, tmp_path, made, code, word):
    cli("combine", mlx(tmp_path / "a", **made)).refused(code, "a", word)


@pytest.mark.parametrize("side", "ab")
def test_a_missing_factor_is_named(cli, tmp_path, side):
    values = factors()
    del values[f"{V}.lora_{side}"]
    cli("inspect", mlx(tmp_path / "a", values)).refused(1, f"{V}.lora_{side} is missing")


def test_more_experts_than_a_file_may_mean_are_refused(cli, tmp_path):
    values = {"x.lora_a": np.ones((10_001, 1, 1), "f4"), "x.lora_b": np.ones((10_001, 1, 1), "f4")}
    cli("combine", mlx(tmp_path / "a", values, rank=1)).refused(3, "10001 experts")


def test_only_checkpoints_in_a_folder_are_named(cli, tmp_path):
    where = mlx(tmp_path / "a", weights="0000200_adapters.safetensors")
    cli("inspect", where).refused(1, "0000200_adapters.safetensors")


def merged_sum(sources, weights):
    total = {}
    for source, weight in zip(sources, weights, strict=True):
        for target, update in loramerge.load(source).items():
            total[target] = total.get(target, 0) + weight * update.dense()
    return total


def test_a_merge_of_mlx_adapters_is_one(tmp_path):
    one = mlx(tmp_path / "a", factors() | switched())
    two = mlx(tmp_path / "b", factors(seed=1, rank=3) | switched(seed=1, rank=3), rank=3, scale=0.5)
    loramerge.combine([one, two], method="cat", weights=[1, -2], out=tmp_path / "m")
    assert set(content(tmp_path / "m")) == {"adapters.safetensors", "adapter_config.json", "loramerge.json"}
    made = loramerge.load(tmp_path / "m")
    expected = merged_sum([one, two], [1, -2])
    assert made.dialect == "mlx"
    assert set(made) == set(expected)
    for target, update in made.items():
        np.testing.assert_allclose(update.dense(), expected[target], rtol=1e-5, atol=1e-6)


def test_the_config_that_is_written_holds_what_mlx_needs(tmp_path):
    head, embedding = "lm_head", "model.embed_tokens"
    values = factors(shapes=SHAPES | {head: (9, 5), embedding: (5, 9)}) | switched()
    loramerge.combine([mlx(tmp_path / "a", values)], out=tmp_path / "m")
    config = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    keys = ["lm_head", "mlp.switch.up_proj", "model.embed_tokens", "self_attn.q_proj", "self_attn.v_proj"]
    assert config == {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, "keys": keys, "rank": 2, "scale": 1.0},
        "model": "tiny",
        "num_layers": -1,
    }


def test_mlx_and_peft_merge_since_modules_are_called_alike(tmp_path):
    ours = mlx(tmp_path / "a")
    theirs = folder(tmp_path / "b", tensors(5, 3, SHAPES), r=3, lora_alpha=6)
    expected = merged_sum([ours, theirs], [0.5, 2])
    for form in ("peft", "mlx"):
        out = tmp_path / form
        loramerge.combine([ours, theirs], method="cat", weights=[0.5, 2], format=form, out=out)
        made = loramerge.load(out)
        assert made.dialect == form
        for target, update in made.items():
            np.testing.assert_allclose(update.dense(), expected[target], rtol=1e-6)


@pytest.mark.parametrize("form", ["peft", "mlx"])
def test_a_conversion_keeps_every_update(cli, tmp_path, form):
    source = mlx(tmp_path / "a", factors() | switched())
    assert cli("convert", source, tmp_path / "m", "--to", form).code == 0, cli.err
    before, after = loramerge.load(source), loramerge.load(tmp_path / "m")
    assert set(before) == set(after)
    for target, update in before.items():
        np.testing.assert_allclose(update.dense(), after[target].dense(), rtol=1e-6)


def test_a_conversion_into_its_own_format_copies_every_byte(cli, tmp_path):
    source = mlx(tmp_path / "a")
    assert cli("convert", source, tmp_path / "m", "--to", "mlx").code == 0
    assert content(source) == content(tmp_path / "m")


ROUNDS = {  # an adapter of scale 1, so that no rounding is left; the other format; the name of the weights
    "PEFT": (
        lambda path: folder(path, tensors(), lora_alpha=2),
        ("mlx", "peft"),
        "adapter_model.safetensors",
    ),
    "mlx-lm": (
        lambda path: mlx(path, factors() | switched(), scale=1.0),
        ("peft", "mlx"),
        "adapters.safetensors",
    ),
}


@pytest.mark.parametrize(("make", "forms", "weights"), ROUNDS.values(), ids=ROUNDS)
def test_there_and_back_again_are_the_same_bytes(cli, tmp_path, make, forms, weights):
    make(tmp_path / "a")
    for source, out, form in zip("ab", "bc", forms, strict=True):
        assert cli("convert", tmp_path / source, tmp_path / out, "--to", form).code == 0, cli.err
    before, after = (read(tmp_path / name / weights) for name in "ac")
    assert {name: value.tobytes() for name, value in before.items()} == {
        name: value.tobytes() for name, value in after.items()
    }


def test_what_mlx_has_no_name_for_is_refused(cli, tmp_path):
    values = {key("conv", "B"): np.ones((6, 2, 1, 1)), key("conv", "A"): np.ones((2, 5, 3, 3))}
    cli("convert", folder(tmp_path / "a", values), tmp_path / "m", "--to", "mlx").refused(3, "conv", "mlx-lm")
    cli("convert", mlx(tmp_path / "b"), tmp_path / "m.safetensors", "--to", "mlx").refused(2, "folder")


def test_tensors_beside_the_pairs_have_no_place_in_mlx(cli, tmp_path):
    head = {"base_model.model.score.weight": np.ones((2, 3), "f4")}
    source = folder(tmp_path / "a", tensors() | head, modules_to_save=["score"])
    cli("convert", source, tmp_path / "m", "--to", "mlx").refused(3, "score", "--extras")
    assert cli("convert", source, tmp_path / "m", "--to", "mlx", "--extras", "drop").code == 0
    assert set(loramerge.load(tmp_path / "m").extras) == set()


def test_float64_is_refused_since_mlx_does_not_load_it(cli, tmp_path):
    source = folder(tmp_path / "a", tensors(dtype=np.float64))
    cli("convert", source, tmp_path / "m", "--to", "mlx").refused(3, "F64", "--dtype float32")
    assert cli("convert", source, tmp_path / "m", "--to", "mlx", "--dtype", "float32").code == 0


def test_modules_cannot_have_ranks_of_their_own(cli, tmp_path):
    source, out = mlx(tmp_path / "a"), tmp_path / "m"
    cli("combine", source, "--profile", "compact", "-o", out).refused(2, "compact", "mlx-lm")
    assert cli("combine", source, "--total-rank", 2, "--method", "svd", "-o", out).code == 0
    assert {slot.rank for slot in loramerge.load(out).slots.values()} == {1}


def dora(path, rng):
    """A folder of DoRA for a layer and an embedding, its base, and the weights that mlx-lm's fuse gives."""
    table = "model.embed_tokens"
    weights = {name: rng.standard_normal((n, 5)).astype("f4") for name, n in ((Q, 6), (table, 9))}
    values, wanted = {}, {}
    for name, weight in weights.items():
        down, up = rng.standard_normal((9 if name == table else 5, 2)), rng.standard_normal((2, len(weight)))
        if name == table:
            up = rng.standard_normal((2, 5))
        lengths = rng.uniform(0.5, 2, len(weight))
        values |= {f"{name}.lora_a": down, f"{name}.lora_b": up, f"{name}.m": lengths}
        turned = weight + 3.5 * ((down @ up) if name == table else (down @ up).T)
        for row in turned:  # one output, one token
            row /= np.sqrt(sum(x * x for x in row))
        change = lengths[:, None] * turned - weight
        wanted[name] = change.T if name == table else change
    save_model(path / "base", {f"{name}.weight": weight for name, weight in weights.items()})
    singles = {name: value.astype("f4") for name, value in values.items()}
    return mlx(path / "a", singles, CONFIG | {"fine_tune_type": "dora"}), path / "base", wanted


def test_dora_is_read_with_its_base_as_mlx_fuses_it(tmp_path, cli):
    source, base, wanted = dora(tmp_path, np.random.default_rng(8))
    adapter = loramerge.load(source, base=base)
    assert adapter.full == ("DoRA",)
    assert "its 2 DoRA modules are read exactly, but at full rank" in adapter.oddities
    for target, update in adapter.items():
        np.testing.assert_allclose(update.dense(), wanted[target.path], atol=1e-5)
    cli("combine", source, "--base", base, "-o", tmp_path / "m").refused(3, "full rank", "--rank")
    assert cli("combine", source, "--base", base, "--rank", "2", "-o", tmp_path / "m").code == 0
    assert cli("fuse", source, base, "-o", tmp_path / "model").code == 0
    fused, before = (read(tmp_path / name / "model.safetensors") for name in ("model", "base"))
    np.testing.assert_allclose(fused[f"{Q}.weight"] - before[f"{Q}.weight"], wanted[Q], atol=1e-5)
    other = tmp_path / "other"
    save_model(other, {"model.embed_tokens.weight": np.ones((9, 5), "f4")})
    with pytest.raises(loramerge.IncompatibleError, match="no linear layer for"):
        loramerge.load(source, base=other)
