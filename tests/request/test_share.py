"""How much of every module is kept: by hand, and against the spectra of the merge."""

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import UsageError
from loramerge.request.share import Share, units
from tests.helpers.dialects import pairs, saved

SQUARES = np.array([[16.0, 9.0, 4.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
WANTED = {  # share -> units, counted by hand from σ = 4 3 2 1
    0.8: [2, 1, 1],
    0.85: [3, 1, 1],
    1.0: [4, 1, 1],
    "sv_fro=0.9": [2, 1, 1],
    "sv_fro=0.92": [3, 1, 1],
    "sv_ratio=2": [2, 1, 1],
    "sv_ratio=2.1": [3, 1, 1],
    "sv_cumulative=0.7": [2, 1, 1],
    "sv_cumulative=0.71": [3, 1, 1],
}
SHAPES = {
    "lora_unet_double_blocks_0_img_attn_proj": (8, 8),
    "lora_unet_double_blocks_0_txt_attn_proj": (8, 8),
}


@pytest.mark.parametrize("share", WANTED)
def test_units_are_counted_as_by_hand(share):
    assert units(SQUARES, share).tolist() == WANTED[share]


@pytest.mark.parametrize("share", [0.5, 0.9, "sv_fro=0.9", "sv_ratio=3"])
def test_every_module_of_a_merge_has_the_units_that_it_needs(tmp_path, share):
    paths = [saved(tmp_path / f"{i}.safetensors", pairs(SHAPES, rank=4, alpha=1.0, seed=i)) for i in (0, 1)]
    sums = {t: sum(lm.load(p)[t].dense() for p in paths) for t in lm.load(paths[0])}
    found = lm.combine(paths, "svd", energy_per_module=share, out=tmp_path / "m.safetensors")
    for target, whole in sums.items():
        squares = np.linalg.svd(whole, compute_uv=False)[None] ** 2
        assert found.adapter[target].rank == units(squares, share)[0]
        lost = np.linalg.norm(whole - found.adapter[target].dense()) ** 2
        assert lost == pytest.approx(squares[0, found.adapter[target].rank :].sum(), rel=1e-5, abs=1e-8)
    again = lm.replay(tmp_path / "m.safetensors", out=tmp_path / "again.safetensors")
    assert {t: u.rank for t, u in again.adapter.items()} == {t: u.rank for t, u in found.adapter.items()}


def test_a_rank_beside_it_is_the_most_and_other_sizes_are_refused(tmp_path):
    path = saved(tmp_path / "a.safetensors", pairs(SHAPES, rank=4, alpha=1.0))
    kept = lm.resize(path, energy_per_module=1.0, rank=2).adapter
    assert {update.rank for update in kept.values()} == {2}
    for other in ({"size": "1MB"}, {"energy": 0.9}, {"total_rank": 3}):
        with pytest.raises(UsageError, match=r"[Gg]ive one of"):
            lm.resize(path, energy_per_module=0.9, **other)
        with pytest.raises(UsageError, match="both set the size"):
            lm.combine([path], "svd", energy_per_module=0.9, **other)
    for odd in ("sv_what=1", "sv_fro", "sv_ratio 20", "95%"):
        with pytest.raises(UsageError, match="nor one of sv_fro"):
            lm.resize(path, energy_per_module=odd)


def test_no_digit_of_a_share_is_lost():
    assert Share().fit("sv_fro:0.99999999") == "sv_fro=0.99999999"
    assert Share().fit("sv_ratio=20") == "sv_ratio=20"


@pytest.mark.parametrize("format", ["comfy", "diffusers", "kohya", "peft"])
def test_the_file_is_as_small_as_its_ranks_in_every_format(tmp_path, format):
    tensors = pairs({name: (8, 8) for name in list(SHAPES)[:1]}, rank=1, alpha=1.0)
    tensors |= pairs({name: (8, 8) for name in list(SHAPES)[1:]}, rank=4, alpha=4.0)
    path = saved(tmp_path / "a.safetensors", tensors)
    only = r"single|double|transformer_blocks"
    kept = lm.resize(
        path, tmp_path / "m.safetensors", energy_per_module=1.0, format=format, only=only
    ).adapter
    assert {update.rank for update in kept.values()} == {1, 4}
