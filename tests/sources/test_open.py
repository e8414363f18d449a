"""Which sources, weights and modules are merged, and which adapters do not belong together."""

import numpy as np
import pytest

from loramerge import combine, plan
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.request.recipe import Ingredient
from loramerge.request.request import Request
from loramerge.request.schedule import check_weights
from loramerge.sources.open import missing_modules, open_all
from loramerge.sources.select import select
from tests.helpers.files import bare, folder, tensors


@pytest.fixture
def two(tmp_path):
    """Two folders, the second with a module more, under one name in two places."""
    for name, shapes in (("x", {"l.0.q": (3, 4)}), ("y", {"l.0.q": (3, 4), "l.1.q": (3, 4)})):
        (tmp_path / name).mkdir()
        folder(tmp_path / name / "lora", tensors(shapes=shapes))
    return [tmp_path / "x/lora", tmp_path / "y/lora"]


def opened(sources, alpha=None):
    return open_all([Ingredient(source) for source in sources], Request(alpha=alpha))


@pytest.mark.parametrize("sources", [[], (), "a", None])
def test_sources_are_a_list(sources):
    with pytest.raises(UsageError, match="list of adapters"):
        plan(sources)


def test_names_are_as_short_as_they_can_be_and_never_absolute(two, tmp_path):
    def names(sources):
        adapters = opened(sources)
        assert [a.provenance.name for a in adapters] == [a.name for a in adapters]
        return [adapter.name for adapter in adapters]

    assert names(two[:1]) == ["lora"]
    assert names(two) == ["x/lora", "y/lora"]
    assert names([*map(str, two), two[0]]) == ["x/lora#1", "y/lora", "x/lora#3"]
    assert names([*two, folder(tmp_path / "other")]) == ["x/lora", "y/lora", "other"]
    assert names([f"{two[0]}/", two[1].parent / "../y/lora"]) == ["x/lora", "y/lora"]
    assert names(opened(two)) == ["x/lora", "y/lora"], "adapters keep the names they have"


def test_an_alpha_for_all_serves_those_that_need_it_and_one_by_name_must_be_needed(two, tmp_path):
    lone = bare(tmp_path / "z.safetensors", tensors(shapes={"l.0.q": (3, 4)}))
    scales = [next(iter(a.slots.values())).scale for a in opened([*two, lone], 6)]
    assert scales == [2.0, 2.0, 3.0]
    for name in (str(lone), "z.safetensors"):
        assert opened([lone], {name: "rank"})[0].slots
    with pytest.raises(UsageError, match="drop alpha="):
        opened([*two, lone], {"z.safetensors": 6, "lora": 6})
    with pytest.raises(UsageError, match="not one of the sources"):
        opened([lone], {"elsewhere/z.safetensors": 6})
    with pytest.raises(IncompatibleError, match="does not say its alpha"):
        opened([*two, lone], {})


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [1, float("nan")], [1, float("inf")], [1, True], []])
def test_weights_that_cannot_be_meant(weights):
    with pytest.raises(UsageError, match="weight"):
        check_weights(weights, 2)


def test_weights_are_1_each_or_as_given():
    assert check_weights(None, 3).tolist() == [1, 1, 1]
    assert check_weights([0, -2], 2).tolist() == [0.0, -2.0]
    assert check_weights(np.array([0.5, 1.5], np.float32), 2).tolist() == [0.5, 1.5]


def test_modules_are_chosen_by_searching_their_names(two):
    adapters = opened(two)

    def chosen(only, exclude):
        return [[str(target) for target in adapter] for adapter in select(adapters, only, exclude)]

    assert chosen(None, None) == [["l.0.q"], ["l.0.q", "l.1.q"]]
    assert chosen("1", None) == [[], ["l.1.q"]]
    assert chosen(None, r"\.1\.") == [["l.0.q"], ["l.0.q"]]
    assert chosen("q$", "^l.0") == [[], ["l.1.q"]]
    for only, exclude in (("k", None), (None, "q"), ("0", "0")):
        with pytest.raises(UsageError, match=r"a module here is called l\.0\.q"):
            chosen(only, exclude)
    for only, exclude in (("(", None), (None, "*")):
        with pytest.raises(UsageError, match="not a regular expression"):
            chosen(only, exclude)


def test_a_source_that_keeps_no_module_counts_as_zero(two):
    merge = combine(two, "cat", only=r"l\.1", weights=[5, 2])
    assert [str(target) for target in merge.adapter] == ["l.1.q"]
    assert merge.report.cosines == [None, pytest.approx(1)]


def test_a_module_that_a_source_lacks_is_said(two):
    (note,) = missing_modules(opened(two))
    assert note == "x/lora has 1 of the 2 modules; it counts as zero in the others"
    assert note in plan(two).notes


def test_a_plan_reads_no_factors(two):
    weights = two[0] / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + b"\xff\xff\xff\xff")  # NaN
    assert plan(two, "lego").outline.rank == 2
    with pytest.raises(SourceError, match="NaN"):
        plan(two, "lego", energy=0.5)
