"""The names of every family against diffusers: the layers of its classes, its converters of checkpoints."""

import pytest

from loramerge.formats.models.families import FAMILIES
from loramerge.formats.models.family import FIRST, OURS
from loramerge.formats.models.rules import filled
from tests.helpers.families import layers

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

CLASSES = [name for name, family in FAMILIES.items() if family.model]
CONVERTED = [name for name, family in FAMILIES.items() if family.converter]
UNLISTED = {  # layers that no adapter is known to be for, and names that depend on where a block stands
    "sd3": ("norm1_context.linear",),
    "mochi": ("norm1_context.linear_1",),
    "ace-step-1.5": ("proj_in_conv",),
    "hunyuan-video": ("x_embedder.proj",),
}
# LTX-2.3's, which diffusers renames in adapters alone, and what it keeps in another part of a pipeline
LATER = {"ltx-2": "prompt_adaln", "cosmos": "text_conditioner"}


@pytest.mark.parametrize("name", CLASSES)
def test_the_rules_have_every_layer_of_diffusers_class(name):
    family = FAMILIES[name]
    own = {f"{part}.{p}": size for part, c in family.beside.items() for p, size in layers(c).items()}
    for path, (outs, ins, *kernel) in (layers(family.model) | own).items():
        if path.endswith(UNLISTED.get(name, ("none",))):
            continue
        assert family.find(path, OURS) == path
        if not kernel:
            assert family.fits(path, outs, ins), (path, outs, ins)


class Checkpoint(dict):
    """A checkpoint in which everything is that a converter asks for; what is not ours is zero."""

    def __init__(self, tensors, naming):
        super().__init__(tensors)
        self.naming, self.whole = naming, dict(tensors)

    def pop(self, key, *default):
        if key in self or (default and not key.endswith("weight")):
            return super().pop(key, *default)
        place = self.naming.find(key.rpartition(".")[0])
        return torch.zeros(len(self.whole[filled_key(place.rule.theirs)]) if place else 6, 1)


def given(family):
    """(naming, name.weight -> (outs, 1) with another number in every row, the width)."""
    naming = family.namings["authors" if "authors" in family.namings else FIRST]
    width, made, start = next(iter(family.widths)), {}, 1
    for rule in naming.rules:
        outs = int(width * rule.ratios[0]) if rule.ratios else width * 2
        made[filled_key(rule.theirs)] = torch.arange(start, start + outs, dtype=torch.float64)[:, None]
        start += outs
    return naming, made, width


def filled_key(template):
    return f"{filled(template, ('0',) * template.count('*'))}.weight"


@pytest.mark.parametrize("name", CONVERTED)
def test_diffusers_moves_every_row_of_a_checkpoint_as_the_rules_say(name):
    from diffusers.loaders import single_file_utils as theirs

    family = FAMILIES[name]
    naming, made, width = given(family)
    last = {"joint_blocks.1.none.weight": torch.zeros(6, 1)} if name == "sd3" else {}  # which is another
    found = getattr(theirs, family.converter)(Checkpoint({**made, **last}, naming), config={})
    for rule in naming.rules:
        if LATER.get(name, "none") in rule.ours[0]:
            continue
        whole = made[filled_key(rule.theirs)]
        spans = rule.spans(len(whole), width) if rule.fused else [[slice(None)]]
        for part, rows in zip(rule.ours, spans, strict=True):
            wanted = torch.cat([whole[span] for span in rows])
            assert torch.equal(found[filled_key(part)].reshape(-1, 1), wanted), part
