"""Strengths of blocks: by hand on U-Nets and Flux, and as a law on every family."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import UsageError
from loramerge.formats.dialects.blocks import TEXT, blocks_of
from loramerge.sources.strengths import UNET, strengthened
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import Cli
from tests.helpers.spelled import ROWS, tensors

FIRSTS = {met.family.name: row for row, met in reversed(ROWS.items())}
FLUX = {f"lora_unet_double_blocks_{n}_img_attn_{x}": s for n in (3, 18) for x, s in
        (("qkv", (24, 8)), ("proj", (8, 8)))} | {
    f"lora_unet_single_blocks_{n}_linear2": (8, 40) for n in (0, 37)
}  # fmt: skip
SD = {
    "lora_unet_down_blocks_1_attentions_0_proj_in": (8, 8),
    "lora_unet_mid_block_attentions_0_proj_in": (8, 8),
    "lora_unet_up_blocks_3_attentions_2_proj_in": (8, 8),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 8),
}


def strengths(adapter, asked):
    """Block -> by how much it is stronger now, and 0 where it is gone."""
    (found,) = strengthened([adapter], asked)
    return {
        name: found.slots[t].scale / adapter.slots[t].scale if t in found.slots else 0.0
        for t, name in blocks_of(adapter).items()
    }


@pytest.fixture
def flux(tmp_path):
    return lm.load(saved(tmp_path / "ink.safetensors", pairs(FLUX, alpha=1.0)))


ORDER = ["transformer_blocks.03", "transformer_blocks.18", "single_transformer_blocks.00"]
ORDER += ["single_transformer_blocks.37"]


def test_a_fused_module_is_in_the_block_of_its_parts(flux):
    assert set(blocks_of(flux).values()) == set(ORDER)


def test_fifty_seven_strengths_are_those_of_flux_in_order(flux):
    found = strengths(flux, ",".join(str(n) for n in range(1, 58)))
    assert found == dict(zip(ORDER, [4, 19, 20, 57], strict=True))
    assert strengths(flux, f"lbw=9,{','.join(map(str, range(1, 58)))}") == found, "a text encoder comes first"


def test_sixty_one_strengths_tell_what_is_around_the_blocks(tmp_path):
    """CLIP, T5, the inputs, 19 and 38 blocks, the output: as sd-webui-lora-block-weight has them."""
    around = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (8, 8),
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q": (8, 8),
        "lora_unet_img_in": (8, 4),
        "lora_unet_vector_in_in_layer": (8, 4),
        "lora_unet_final_layer_linear": (4, 8),
    }
    adapter = lm.load(saved(tmp_path / "ink.safetensors", pairs(FLUX | around, alpha=1.0)))
    (found,) = strengthened([adapter], ",".join(map(str, range(1, 62))))
    by = {t.path: found.slots[t].scale / slot.scale for t, slot in adapter.slots.items()}
    assert {by[path] for path in by if "block" not in path and "layers" not in path} == {3, 61}
    assert by["x_embedder"] == by["time_text_embed.text_embedder.linear_1"] == 3
    assert by["proj_out"] == 61
    assert by["text_model.encoder.layers.0.mlp.fc1"] == 1
    assert by["encoder.block.0.layer.0.SelfAttention.q"] == 2
    ends = {name: by[t.path] for t, name in blocks_of(adapter).items() if name in ORDER}
    assert ends == dict(zip(ORDER, [7, 22, 23, 60], strict=True))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    {
        "D00-D05=0": [0, 1, 1, 1],
        "S37, D18": [0, 1, 0, 1],
        "double 3-7": [1, 0, 0, 0],
        "double 3, 18": [1, 1, 0, 0],
        "single": [0, 0, 1, 1],
        "single_blocks 37=0.5; double=2": [2, 2, 1, 0.5],
        "<lora:ink:0.5:lbw=single 0>": [0, 0, 0.5, 0],
    }.items(),
)
def test_blocks_are_named(flux, asked, wanted):
    assert strengths(flux, asked) == dict(zip(ORDER, wanted, strict=True))


@pytest.mark.parametrize("count", UNET)
def test_a_u_net_has_its_four_counts(tmp_path, count):
    adapter = lm.load(saved(tmp_path / "a.safetensors", pairs(SD, alpha=1.0)))
    text = ",".join(map(str, range(count)))
    if count in (12, 20):
        with pytest.raises(UsageError, match=r"none of them is for OUT11"):
            strengths(adapter, text)
        return
    found, order = strengths(adapter, text), UNET[count]
    assert found == {name: order.index(name) for name in ("IN04", "M00", "OUT11", TEXT)}


def test_every_source_has_its_own(tmp_path):
    paths = [saved(tmp_path / f"{n}.safetensors", pairs(SD, alpha=1.0, seed=i)) for i, n in enumerate("ab")]
    merge = lm.combine(paths, method="cat", blocks={"a": "IN", "b.safetensors": "MID=0.5, OUT=0, BASE=0"})
    one, two = (lm.load(path) for path in paths)
    for target, update in merge.adapter.items():
        name = blocks_of(one)[target]
        wanted = (name == "IN04") * one[target].dense() + {"M00": 0.5}.get(name, name == "IN04") * two[
            target
        ].dense()
        np.testing.assert_allclose(update.dense(), wanted, atol=1e-6)
    assert {blocks_of(one)[target] for target in merge.adapter} == {"IN04", "M00"}


@pytest.mark.parametrize("family", FIRSTS)
def test_every_family_takes_a_strength_for_each_of_its_blocks(family, tmp_path):
    met = ROWS[FIRSTS[family]]
    path = saved(tmp_path / "a.safetensors", tensors(met, 0))
    (adapter,) = lm.open([path], alpha="rank", base=None).sources.adapters
    if family not in adapter.families:
        pytest.skip("nothing in this file tells its family")
    sizes = [met.family.blocks[name] for name in met.family.blocks]
    found = strengths(adapter, ",".join(["0.5"] * sum(sizes)))
    counted = tuple(name.rpartition(".")[2] for name in met.family.blocks)
    assert found == {name: 0.5 if name.startswith(counted) else 1 for name in found}


@pytest.mark.parametrize(("width", "count"), [(1536, 30), (5120, 40)])
def test_a_smaller_model_of_a_family_takes_as_many_as_it_has_blocks(width, count, tmp_path):
    """Of which the file may have a few."""
    names = {f"diffusion_model.blocks.{n}.self_attn.q": (width, width) for n in range(3)}
    (adapter,) = lm.open(
        [saved(tmp_path / "a.safetensors", pairs(names, rank=1))], alpha="rank"
    ).sources.adapters
    assert strengths(adapter, ",".join(["0.5"] * count)) == {f"blocks.0{n}": 0.5 for n in range(3)}
    with pytest.raises(
        UsageError, match=rf"has 35 strengths for a.safetensors: 3 or 4 or {count} or {count + 1} "
    ):
        lm.combine([tmp_path / "a.safetensors"], blocks=[0.5] * 35)


@pytest.mark.parametrize(
    ("asked", "why"),
    {
        "1,0": "has 2 strengths for ink.safetensors: 57 or 58 or 61",
        "IN04=1": "names IN 4, and ink.safetensors has other blocks: single_transformer_blocks 0 37, ",
        "double 4-7": "names double 4-7, and .* has other blocks: .*, transformer_blocks 3 18",
        "double 3, 18=0.3": "gives some blocks a strength and others none",
        "double=nan": "which is not a list of strengths",
        "single 0=0, double": "gives some blocks a strength and others none",
        "<lora:ink:1:lbw=single:stop=3>": "'stop=3', which means something while an image is made only",
        "single 7-3": "whose end is before its beginning",
    }.items(),
)
def test_what_does_not_fit_is_a_sentence(flux, asked, why):
    with pytest.raises(UsageError, match=why):
        lm.combine([flux], blocks={"ink.safetensors": asked})


def test_the_command_says_it_and_the_recipe_and_the_record_keep_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("ink", "oil")):
        saved(tmp_path / f"{name}.safetensors", pairs(FLUX, alpha=1.0, seed=i))
    cli, said = Cli(capsys), ("--blocks", "ink=double 3-7", "--blocks", "<lora:oil:1:lbw=single=0.5>")
    assert cli("combine", "ink.safetensors", "oil.safetensors", *said, "-o", "m.safetensors").code == 0, (
        cli.err
    )
    wanted = {"ink": "double 3-7", "oil": "<lora:oil:1:lbw=single=0.5>"}
    record = json.loads((tmp_path / "m.json").read_text()) if (tmp_path / "m.json").exists() else None
    assert record is None or record["settings"]["blocks"] == wanted
    assert cli("replay", "m.safetensors", "-o", "again.safetensors").code == 0, cli.err
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert cli("combine", "ink.safetensors", "--blocks", "ink=what is that").code == 2


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize("pattern", [r"double_blocks\.(3|4)\.", r"transformer_blocks\.3\.attn"])
def test_modules_are_chosen_by_the_names_of_either_grain(tmp_path, pattern, to):
    path = saved(tmp_path / "ink.safetensors", pairs(FLUX, alpha=1.0))
    lm.convert(path, tmp_path / "other.safetensors", to)
    only = lm.combine([tmp_path / "other.safetensors"], only=pattern).adapter
    assert {blocks_of(only)[target] for target in only} == {"transformer_blocks.03"}
    assert len(only) == (2 if to == "kohya" else 4)
    rules = [lm.Rule(pattern, weights=(0.0,))]
    ruled = lm.combine([tmp_path / "other.safetensors"], rules=rules).adapter
    assert all((update.norm() == 0) is (target in only) for target, update in ruled.items())


def test_modules_of_a_u_net_are_chosen_by_their_block(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs(SD, alpha=1.0))
    for pattern, block in {"^IN0[4-8]$": "IN04", r"output_blocks\.": "OUT11"}.items():
        only = lm.combine([path], only=pattern).adapter
        assert {blocks_of(only)[target] for target in only} == {block}
