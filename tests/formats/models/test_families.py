"""What holds for every family of image and video models; a new row is held to it as soon as it is there."""

from itertools import pairwise

import pytest

from loramerge.formats.models.families import FAMILIES, LANGUAGE, likely, naming, ours, possible
from loramerge.formats.models.family import FIRST, OURS
from loramerge.formats.models.rules import skeleton
from tests.helpers.families import modules

NAMINGS = [(family, own) for family, row in FAMILIES.items() for own in row.namings]


def names(family, own=FIRST, block=0):
    return {name: size for name, _, size in modules(FAMILIES[family], own, block)}


@pytest.mark.parametrize(("family", "own"), NAMINGS)
def test_a_name_is_found_dotted_and_flat_and_spelled_again(family, own):
    row = FAMILIES[family]
    for name, rule, _ in modules(row, own, block=1):
        path = row.find(name, own)
        assert path is not None, name
        assert row.find(name.replace(".", "_"), own) == path
        assert row.spelled(path, own) == name
        assert (row.parts(path) is not None) == rule.fused


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_fused_module_have_all_its_rows_once_and_know_it(family):
    row = FAMILIES[family]
    for name, rule, (outs, ins) in modules(row):
        if not rule.fused:
            continue
        spans = [span for each in rule.spans(outs, ins) for span in each]
        ordered = sorted(spans, key=lambda span: span.start)
        assert ordered[0].start == 0
        assert ordered[-1].stop == outs
        assert all(one.stop == other.start for one, other in pairwise(ordered))
        path = row.find(name)
        for number, part in enumerate(row.parts(path)[1]):
            assert row.find(part) == part
            assert row.owner(part, FIRST)[:2] == (path, number)
            height = sum(span.stop - span.start for span in rule.spans(outs, ins)[number])
            assert row.fits(part, height, ins)
            if rule.ratios:
                assert rule.height(number, height, ins) == outs


@pytest.mark.parametrize(("family", "own"), NAMINGS)
def test_no_two_modules_of_a_family_have_one_name(family, own):
    rules = FAMILIES[family].namings[own].rules
    for spell in (lambda name: name, lambda name: name.replace(".", "_")):
        found = [spell(rule.theirs) for rule in rules]
        assert len(set(found)) == len(found)
        assert {skeleton(name) for name in found}


@pytest.mark.parametrize(("family", "own"), [pair for pair in NAMINGS if pair[1] in (OURS, FIRST)])
def test_a_file_of_all_modules_is_known_whatever_its_names(family, own):
    found = names(family, own)
    assert FAMILIES[family] in possible(found)
    assert possible(found, said=FAMILIES[family].title) == (FAMILIES[family],)
    assert naming(FAMILIES[family], found) in (own, OURS)
    if own == FIRST:
        assert set(ours([FAMILIES[family]], found)) == set(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_from_all_others_by_all_of_its_modules(family):
    assert possible(names(family)) == (FAMILIES[family],)


def test_a_file_of_several_families_is_known_where_they_call_its_modules_alike():
    attention = {"double_blocks.0.img_attn.qkv": (24, 8)}
    assert {row.name for row in possible(attention)} == {"flux.1", "flux.2", "chroma", "hunyuan-video"}
    assert ours(possible(attention), attention) == {name: name for name in attention}
    output = {"layers.0.attention.out": (8, 8), "layers.0.attention.qkv": (24, 8)}
    assert [row.name for row in possible(output)] == ["z-image"]
    alone = {"layers.0.attention.out": (8, 8)}
    assert ours(possible(alone), alone) is None


def test_a_width_and_a_number_of_blocks_tell_families_apart():
    wide = {"transformer_blocks.0.attn.to_q": (1536, 1536)}
    assert [row.name for row in likely(possible(wide), wide)] == ["sd3"]
    last = {f"double_blocks.{n}.img_attn.proj": (8, 8) for n in range(20)}
    assert [row.name for row in likely(possible(last), last)] == ["hunyuan-video"]
    assert FAMILIES["hunyuan-video"] in possible({"double_blocks.0.img_mlp.0": (32, 8)})
    assert FAMILIES["flux.1"] not in possible({"double_blocks.0.img_mlp.0": (48, 8)})


def test_no_family_has_names_that_begin_as_those_of_language_models():
    for row in FAMILIES.values():
        rules = [rule for own in row.namings.values() for rule in own.rules]
        assert not [n for rule in rules for n in (rule.theirs, *rule.ours) if n.startswith(LANGUAGE)]


def test_a_model_of_language_is_of_no_family():
    for name in ("layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "h.0.attn.c_attn"):
        assert not possible({name: (8, 8)})
    assert not possible({"layers.0.feed_forward.w1": (32, 8), "layers.0.feed_forward.w2": (8, 32)})
