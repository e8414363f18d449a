"""Every family in every spelling that is met: read, named, written as it came, and merged with others."""

from itertools import combinations

import numpy as np
import pytest
from safetensors.numpy import load_file

import loramerge as lm
from loramerge.formats.dialects.together import described
from loramerge.formats.models.families import FAMILIES
from loramerge.formats.peft.names import WEIGHTS
from tests.helpers.files import bare
from tests.helpers.spelled import ROWS, modules, stems, tensors, updates

PAIRS = [(one, two) for one, two in combinations(ROWS, 2) if ROWS[one].family is ROWS[two].family]
PAIRS = [
    pair for pair in PAIRS if {ROWS[row].dialect for row in pair} != {"diffusers"} or "_2" not in str(pair)
]


def told(met):
    return {"modelspec.architecture": met.family.name}


def written(path, row, seed):
    met = ROWS[row]
    values = tensors(met, seed)
    bare(path, values, told(met))
    return values


def test_every_family_is_met_in_some_spelling():
    assert {met.family.name for met in ROWS.values()} == set(FAMILIES)


# A kind from the wild: A4, A5 and A7, image families.
@pytest.mark.parametrize("row", ROWS)
def test_a_file_is_read_and_written_with_its_own_stems(row, tmp_path):
    met, path = ROWS[row], tmp_path / "a.safetensors"
    values = written(path, row, seed=0)
    adapter = lm.load(path, "rank", optional=True)
    assert adapter.dialect == met.dialect
    assert met.family.means(described(adapter))
    lm.save(adapter, tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")
    assert stems(again) == stems(values)
    close(updates(met, again), updates(met, values))


FIRST = {met.family.name: row for row, met in reversed(ROWS.items())}  # of each family


def narrow(pairs):
    """By default every spelling meets the first of its family; all pairs are slow."""
    return [
        pytest.param(*pair, marks=() if pair[0] in FIRST.values() else pytest.mark.slow) for pair in pairs
    ]


# A kind from the wild: A6, two spellings.
@pytest.mark.parametrize(("one", "two"), narrow(PAIRS))
def test_two_spellings_merge_exactly_into_either(one, two, tmp_path):
    values = [written(tmp_path / f"{n}.safetensors", row, n) for n, row in enumerate((one, two))]
    dense = [updates(ROWS[row], found) for row, found in zip((one, two), values, strict=True)]
    wanted = {
        name: 0.7 * dense[0].get(name, 0.0) - 0.4 * dense[1].get(name, 0.0)
        for name in dense[0].keys() | dense[1].keys()
    }
    for order in ((0, 1), (1, 0)):
        row = (one, two)[order[0]]
        files, weights = [tmp_path / f"{n}.safetensors" for n in order], [(0.7, -0.4)[n] for n in order]
        lm.combine(
            files, "cat", weights=weights, format=ROWS[row].dialect, alpha="rank", dtype="float32",
            out=tmp_path / f"m{order[0]}.safetensors",
        )  # fmt: skip
        found = load_file(tmp_path / f"m{order[0]}.safetensors")
        assert stems(found) >= stems(values[order[0]])
        close(updates(ROWS[row], found), wanted)


SOME = [
    pytest.param(*pair, format, marks=[pytest.mark.slow] if (n + m) % 40 else [])
    for n, pair in enumerate(PAIRS)
    for m, format in enumerate(("kohya", "comfy", "peft"))
]


# A kind from the wild: A6, the union of two spellings in one output.
@pytest.mark.parametrize(("one", "two", "format"), SOME)
def test_what_is_made_of_two_spellings_has_one(one, two, format, tmp_path):
    """The sources share no module, so that nothing has to be united for the merge."""
    for block, row in enumerate((one, two)):
        bare(tmp_path / f"{block}.safetensors", tensors(ROWS[row], block, block=block), told(ROWS[row]))
    files, out = [tmp_path / f"{n}.safetensors" for n in (0, 1)], tmp_path / "m.safetensors"
    family = ROWS[one].family
    if format == "peft" and family.beside:
        with pytest.raises(lm.IncompatibleError, match="in a model of its own in diffusers"):
            lm.combine(files, "cat", format=format, alpha="rank", out=out)
        return
    lm.combine(files, "cat", format=format, alpha="rank", out=out)
    found = stems(load_file(out))
    prefixes = sorted({row.prefix for row in ROWS.values()} | {""}, key=len, reverse=True)
    ways = [(prefix, own) for prefix in prefixes for own in family.namings]
    assert any(
        all(s.startswith(prefix) and family.find(s.removeprefix(prefix), own) for s in found)
        for prefix, own in ways
    )
    assert {n for n in (0, 1) if any(f"_{n}_" in s.replace(".", "_") for s in found)} == {0, 1}


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        assert np.linalg.norm(found[name] - update) <= 1e-5 * np.linalg.norm(update), name


@pytest.mark.parametrize("family", FIRST)
def test_every_module_has_a_name_for_peft(family, tmp_path):
    """Also one without dots, as `patch_embedding`. PEFT refuses the text_conditioner, a model apart."""
    met = ROWS[FIRST[family]]
    values = tensors(met, 0, around=True)
    kept = {key: value for key, value in values.items() if not key.startswith(met.stem("llm_adapter."))}
    bare(tmp_path / "a.safetensors", kept, told(met))
    lm.convert(tmp_path / "a.safetensors", tmp_path / "b", "peft", alpha="rank")
    wanted = {part for parts, *_ in modules(met, around=True).values() for part in parts}
    found = {stem.removeprefix("base_model.model.") for stem in stems(load_file(tmp_path / "b" / WEIGHTS))}
    assert found == {path for path in wanted if not path.startswith("text_conditioner.")}
