"""Files with some modules of a model alone: what check says of diffusers is what its own loaders do."""

import re

import pytest

import loramerge as lm
from loramerge.consumers.families import reads, trips
from tests.helpers.files import bare
from tests.helpers.loaders import MIXINS, _same, loaded
from tests.helpers.spelled import ROWS, factors, tensors

WHOLE = ["wan lora_unet_ first", "lumina-2 diffusion_model. first", "hunyuan-video transformer. authors"]
PARTS = {  # what is trained -> a pattern for its modules
    "all": "",
    "attention": "att",
    "the text's attention": r"cross_attn|txt_attn|attn2|add_",
    "no attention": r"ffn|mlp|feed_forward|ff\.|linear2",
    "half of the image's": r"^(?!.*v_img)",
    "no block": r"text_embedding|txt_in|final_layer",
}


def read(met):
    return met.family.name in MIXINS and met.dialect != "peft" and reads("diffusers", met)


READ = [row for row, met in ROWS.items() if read(met)]
SOME = [row if row in WHOLE else pytest.param(row, marks=pytest.mark.slow) for row in READ]


@pytest.mark.parametrize("row", SOME)
def test_part_of_a_block_is_read_or_refused_as_check_says(row, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    met = ROWS[row]
    width = next(iter(met.family.widths))
    odd = "|".join(keys.replace("[.]", "") for _, keys in trips(met)) or "$."
    whole = {
        key: value
        for key, value in tensors(met, 0, width, around=True).items()
        if not re.search(rf"{odd}|[.]47[.]", key)
    }
    for pattern in PARTS.values():
        values = {key: value for key, value in whole.items() if re.search(pattern, key)}
        if not values:
            continue
        wanted, found = factors(met, values, width, around=True), loaded(met.family, values)
        path = bare(tmp_path / "a.safetensors", values, {"modelspec.architecture": met.family.name})
        said = {finding.effect for finding in lm.check(path, "diffusers")}
        fine = found is not None and all(_same(wanted[name], found.get(name)) for name in wanted)
        assert "unknown" in said or (not said) is fine, (row, pattern, said)


@pytest.mark.parametrize("block", [0, 3])
def test_blocks_are_counted_from_the_first_on(block, tmp_path):
    """A file with block 3 alone is looked through for block 0."""
    met = ROWS[WHOLE[0]]
    path = bare(tmp_path / "a.safetensors", tensors(met, 0, 1536, block=block))
    found = " ".join(finding.sentence for finding in lm.check(path, "diffusers"))
    assert ("looks in vain for lora_unet_blocks_0_self_attn_q" in found) is (block > 0)
