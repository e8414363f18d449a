"""A law for every family in every spelling: what is made of sources of one spelling is called as they are.

A new row of the table of spellings enters by itself.
"""

import re

import pytest
from safetensors.numpy import load_file

import loramerge as lm
from tests.helpers.files import bare
from tests.helpers.spelled import ROWS, stems, tensors

BLOCK = r"[._]1[._]"  # the files have this block and the first one


def source(path, met, seed):
    """A file with two blocks, and what is around them."""
    values = tensors(met, seed) | tensors(met, seed, around=True, block=1)
    return bare(path, values, {"modelspec.architecture": met.family.name})


def combined(paths, out, **asked):
    lm.combine(paths, "linear", alpha="rank", out=out, **asked)


def resized(paths, out):
    lm.resize(paths[0], out, rank=1, alpha="rank")


WORKS = {  # what makes a file -> how
    "combine": combined,
    "resize": resized,
    "only": lambda paths, out: combined(paths, out, only=BLOCK),
    "exclude": lambda paths, out: combined(paths, out, exclude=BLOCK),
}
TURNS = [(row, work, (n + m) % len(WORKS)) for n, row in enumerate(ROWS) for m, work in enumerate(WORKS)]


@pytest.mark.parametrize(
    ("row", "work"),
    [pytest.param(*case, marks=[pytest.mark.slow] if turn else []) for *case, turn in TURNS],
)
def test_what_is_made_is_called_as_its_sources(row, work, tmp_path):
    met, out = ROWS[row], tmp_path / "m.safetensors"
    paths = [source(tmp_path / f"{n}.safetensors", met, n) for n in (0, 1)]
    WORKS[work](paths, out)
    mine, found = stems(load_file(paths[0])), stems(load_file(out))
    inside = {stem for stem in mine if re.search(BLOCK, stem)}
    assert found == {"only": inside, "exclude": mine - inside}.get(work, mine)


UNTOLD = {  # rows whose file of one module is no image model's for certain, or several tools' -> such modules
    "z-image no prefix diffusers": "feed_forward",
    "z-image no prefix, default diffusers": "feed_forward",
    "ace-step-1 no prefix diffusers": "_conv|timestep_embedder",
    "hunyuan-video transformer. authors": "single_blocks",
}
AMBIGUOUS = {  # in files of their own they are of several families, which call them differently
    "hunyuan-video lora_unet_ authors": "img_mlp_fc1",
    "hunyuan-video diffusion_model. authors": "img_attn_proj",
    "ltx-video diffusion_model. first": "adaln_single.linear",
    "qwen-image lycoris_ diffusers": "img_in",
    "z-image lycoris_ first": "cap_embedder_1",
    "hidream transformer. diffusers": "final_layer.adaLN",
    "flux.1 transformer. with alphas diffusers": "x_embedder",
}


ALONE = [*AMBIGUOUS.items(), *(pytest.param(row, "", marks=pytest.mark.slow) for row in ROWS)]


@pytest.mark.parametrize(("row", "pattern"), ALONE)
def test_one_module_alone_keeps_its_name(row, pattern, tmp_path):
    """Nothing in the file need tell the family: then the name stays as it came."""
    met, out = ROWS[row], tmp_path / "m.safetensors"
    values = tensors(met, 0, around=True)
    known = {stem for stem in stems(values) if not re.search(UNTOLD.get(row, "^$"), stem)}
    for stem in sorted(stem for stem in known if re.search(pattern, stem)):
        one = {key: value for key, value in values.items() if key.startswith(f"{stem}.")}
        resized([bare(tmp_path / "a.safetensors", one)], out)
        assert stems(load_file(out)) == {stem}
        out.unlink()
