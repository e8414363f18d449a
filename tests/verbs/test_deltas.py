"""Dense deltas: the merge as full matrices, under the names and in the shapes of the base parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.adapters.adapter import Held, Slot
from loramerge.adapters.target import Layout
from loramerge.errors import IncompatibleError, SourceError, UsageError
from tests.helpers.adapters import cast, distance, merged, random_adapters
from tests.helpers.dialects import pairs, saved, updates
from tests.helpers.files import Cli

SHAPES = {"layers.0.q": (40, 30), "layers.0.v": (12, 30)}


def written(tmp_path, sources, method="ties", **options):
    out = tmp_path / "deltas.safetensors"
    made = lm.write_deltas(lm.plan(sources, method, dtype="float64", **options), out)
    return load_file(out), made


@pytest.mark.parametrize("method", ["ties", "dare", "sce", "linear", "iso_c", "cat"])
def test_the_file_holds_what_the_method_makes_of_all_ranks(tmp_path, method):
    sources = random_adapters(1, (3, 4), SHAPES)
    found, made = written(tmp_path, sources, method, weights=[1, -0.5])
    full = {"rank": 30} if method != "cat" else {}
    wanted = merged(sources, method, [1, -0.5], **full)
    assert distance(found, {f"{path}.weight": matrix for path, matrix in wanted.items()}) < 1e-10
    assert made.rounding_error == 0.0
    assert made.cut is None


def test_the_report_is_that_of_a_refit_that_cuts_nothing(tmp_path):
    sources = random_adapters(1, (3, 4), SHAPES)
    _, dense = written(tmp_path, sources)
    full = lm.combine(sources, "ties", rank=30, dtype="float64").report
    assert dense.energy_lost == pytest.approx(full.energy_lost)
    assert dense.cosines == pytest.approx(full.cosines)
    assert dense.norm_ratios == pytest.approx(full.norm_ratios)


def test_they_are_rounded_once_and_the_report_says_by_how_much(tmp_path):
    sources = [cast(s, np.float32) for s in random_adapters(1, (3, 4), SHAPES)]
    out = tmp_path / "deltas.safetensors"
    made = lm.write_deltas(lm.plan(sources, "ties", dtype="bfloat16", scale=2.0), out)
    assert 1e-4 < made.rounding_error < 2**-8
    with safe_open(out, "numpy") as file:
        said = json.loads(file.metadata()["loramerge"])
    assert said["settings"]["dense_delta"] is True
    assert said["settings"]["scale"] == 2.0
    assert said["method"]["name"] == "ties"


def turned(update, **said):
    target = lm.Target("m", **said)
    return lm.Adapter("a", {target: Slot(Held(update.up), Held(update.down), 1.0)})


@pytest.mark.parametrize(
    ("said", "shape"),
    [
        ({}, (6, 8)),
        ({"layout": Layout(fan_in_fan_out=True)}, (8, 6)),
        ({"kind": "embedding"}, (8, 6)),
        ({"kind": "conv", "layout": Layout(kernel=(2, 2))}, (6, 2, 2, 2)),
    ],
)
def test_a_delta_has_the_shape_of_its_parameter(tmp_path, said, shape):
    update = random_adapters(1, (2,), {"m": (6, 8)})[0][lm.Target("m")]
    source = turned(update, **said)
    out = tmp_path / "deltas.safetensors"
    todo = lm.plan([source], "linear", dtype="float64")
    lm.write_deltas(todo, out)
    found = load_file(out)["m.weight"]
    assert found.shape == shape
    matrix = update.dense()
    np.testing.assert_allclose(found, matrix.T if shape == (8, 6) else matrix.reshape(shape), atol=1e-12)


def test_what_they_cannot_hold_is_refused_by_name(tmp_path):
    sources, out = random_adapters(1, (3, 4), SHAPES), tmp_path / "deltas.safetensors"
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        lm.write_deltas(lm.plan(sources, "ties"), tmp_path / "folder")
    with pytest.raises(UsageError, match=r"total_rank=\d+ shares ranks"):
        lm.write_deltas(lm.plan(sources, "ties", total_rank=9), out)
    with pytest.raises(UsageError, match="cosine"):
        lm.write_deltas(lm.plan(sources, "ties", scale="cosine"), out)
    expert = turned(sources[0][lm.Target("layers.0.q")], kind="expert", index=0, layout=Layout(blocks=2))
    with pytest.raises(IncompatibleError, match=r"m\[0\] is one of many updates of one parameter"):
        lm.write_deltas(lm.plan([expert], "linear"), out)
    huge = lm.Adapter.of({"q": lm.LowRank(np.full((2, 1), 1e5), np.ones((1, 2)))})
    with pytest.raises(IncompatibleError, match="does not fit float16"):
        lm.write_deltas(lm.plan([huge], "linear", dtype="float16"), out)
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path, capsys):
    sources = ["fixtures/a.safetensors", "fixtures/b.safetensors"]
    out = tmp_path / "deltas.safetensors"
    cli = Cli(capsys)
    again = ["combine", *sources, "--method", "ties", "--dense-delta", "-o", str(out)]
    assert cli(*again).code == 0
    assert len(load_file(out)) == 18
    with pytest.raises(SourceError, match="it is of dense deltas: combine --dense-delta"):
        lm.replay(out)
    assert cli(*again).code == 1
    assert cli(*again, "--overwrite", "--dry-run").code == 2


IMAGE = {  # modules of Stable Diffusion 1.5 in the names of kohya: (out, in, *kernel)
    "lora_unet_down_blocks_0_resnets_0_conv1": (6, 4, 3, 3),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (8, 6),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 6),
}
FIRST = {  # the same as each format calls them
    "kohya": [f"{name}.diff" for name in IMAGE],
    "comfy": [
        "diffusion_model.input_blocks.1.0.in_layers.2.diff",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.diff",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.diff",
    ],
    "diffusers": [
        "unet.down_blocks.0.resnets.0.conv1.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight",
    ],
}


def images(tmp_path):
    base = {"ss_base_model_version": "sd_v1"}
    return [
        saved(tmp_path / f"{rank}.safetensors", pairs(IMAGE, rank=rank, alpha=1.5, seed=rank), base)
        for rank in (2, 3)
    ]


@pytest.mark.parametrize("format", FIRST)
def test_each_format_has_its_names_for_them(tmp_path, format):
    sources, out = images(tmp_path), tmp_path / "deltas.safetensors"
    lm.write_deltas(lm.plan(sources, "linear", format=format), out)
    found = load_file(out)
    assert set(found) == set(FIRST[format])
    for name, (module, shape) in zip(FIRST[format], IMAGE.items(), strict=True):
        wanted = sum(updates(load_file(source))[module] for source in sources)
        assert found[name].shape == shape
        np.testing.assert_allclose(found[name].reshape(len(wanted), -1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", [None, "kohya", "comfy"])
def test_differences_are_read_back_as_the_merge(tmp_path, format):
    """kohya's sources are written as kohya's, where no format is asked for."""
    sources, out = images(tmp_path), tmp_path / "deltas.safetensors"
    lm.write_deltas(lm.plan(sources, "ties", format=format), out)
    merge = lm.combine(sources, "ties", rank=36, format=format or "kohya").adapter
    found = lm.load(out)
    assert found.dialect == merge.dialect
    assert found.metadata["ss_base_model_version"] == "sd_v1"
    assert set(found) == set(merge)
    for target, update in found.items():
        np.testing.assert_allclose(update.dense(), merge[target].dense(), rtol=1e-3, atol=1e-4)


def test_the_command_line_takes_a_format_for_them(tmp_path, capsys):
    out = tmp_path / "deltas.safetensors"
    words = ["combine", *map(str, images(tmp_path)), "--dense-delta", "-o", str(out)]
    assert Cli(capsys)(*words, "--format", "comfy").code == 0
    assert set(load_file(out)) == set(FIRST["comfy"])
