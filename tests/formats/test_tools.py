"""The name of a program as a format: every family comes out in the spelling that the program reads."""

from collections import defaultdict

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.errors import UsageError
from loramerge.formats.models.spellings import MET
from loramerge.formats.tools import SPELLINGS, TOOLS
from tests.helpers.dialects import pairs, saved
from tests.helpers.spelled import ROWS, factors, stems, tensors

FORMATS = TOOLS | SPELLINGS
EVERY = [(tool.name, family) for tool in FORMATS.values() for family in tool.rows]
OTHERS = defaultdict(list)
for met in ROWS.values():
    OTHERS[met.family.name].append(met)
SD = {"lora_unet_down_blocks_1_attentions_0_proj_in": (8, 8)}


@pytest.mark.parametrize(
    ("tool", "family"),
    [case if i % 8 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(EVERY)],
)
def test_a_program_gets_the_names_that_it_reads(tool, family, tmp_path):
    row, (first, *more) = FORMATS[tool].rows[family], OTHERS[family]
    other = next((met for met in (first, *more) if met.dialect not in (row.dialect, "peft")), first)
    path = saved(tmp_path / "a.safetensors", tensors(other, 0), {"modelspec.architecture": family})
    lm.convert(path, tmp_path / "m.safetensors", tool)
    found = load_file(tmp_path / "m.safetensors")
    assert stems(found) <= stems(tensors(row, 0))
    assert {key.rpartition(".lora_")[2] for key in found if ".lora_" in key} == {
        end.removeprefix(".lora_") for end in row.ends
    }
    assert any(key.endswith(".alpha") for key in found) is row.alpha
    mine, theirs = factors(row, found), factors(other, load_file(path))
    assert mine.keys() >= theirs.keys()
    for name, (up, down) in theirs.items():
        np.testing.assert_allclose(mine[name][0] @ mine[name][1], up @ down, atol=1e-4)


def test_every_spelling_that_is_met_is_a_format():
    written = {met for tool in SPELLINGS.values() for met in tool.rows.values()}
    assert written == set(MET)


def test_a_merge_of_one_spelling_is_written_in_another_and_replayed(tmp_path):
    met = ROWS["wan diffusion_model. first"]
    paths = [saved(tmp_path / f"{n}.safetensors", tensors(met, n)) for n in (0, 1)]
    lm.combine(paths, "cat", format="videox-fun", out=tmp_path / "m.safetensors")
    assert all(key.startswith("lora_unet__blocks_0_") for key in load_file(tmp_path / "m.safetensors"))
    lm.replay(tmp_path / "m.safetensors", out=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_u_nets_are_written_for_those_that_have_them_and_others_say_what_they_read(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs(SD, alpha=1.0))
    lm.convert(path, tmp_path / "m.safetensors", "comfyui")
    assert all(
        key.startswith("diffusion_model.input_blocks.4.1.") for key in load_file(tmp_path / "m.safetensors")
    )
    with pytest.raises(UsageError, match=r"how musubi-tuner calls modules is known of Flux.1, .*Wan"):
        lm.convert(path, tmp_path / "n.safetensors", "musubi-tuner")
