"""A source that changes while it is merged: the merge is of what was opened, or there is none."""

import hashlib
import json
import os

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import SourceError
from loramerge.merge.run import run
from loramerge.sources.open import open_all
from tests.helpers.files import bare, content, folder, tensors

OTHER = {key: value + 1 for key, value in tensors().items()}


@pytest.fixture
def sources(tmp_path):
    return [folder(tmp_path / name, tensors(seed)) for seed, name in enumerate("ab")]


def saved_over(source):
    """As a trainer does it: the same file, the same size."""
    weights = source / "adapter_model.safetensors"
    text = bare(source.parent / "made", OTHER, {"format": "pt"}).read_bytes()
    (source.parent / "made").unlink()
    assert len(text) == weights.stat().st_size
    weights.write_bytes(text)


def replaced(source):
    made = bare(source.parent / "made", OTHER, {"format": "pt"})
    os.replace(made, source / "adapter_model.safetensors")


def config_rewritten(source):
    config = source / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))


def linked(source):
    os.link(source / "adapter_model.safetensors", source.parent / "link")


def meddling(act, source, after):
    """Calls `act` once modules begin to be merged, or once all are."""
    acted = []

    def progress(stage, done, total):
        if stage == "merging" and not acted and done >= (total if after == "all" else after):
            acted.append(act(source))

    return progress


WRITES = {
    "combine": lambda s, out, progress: lm.combine(s, out=out, progress=progress, threads=1),
    "bare": lambda s, out, progress: lm.combine(s, out=f"{out}.safetensors", progress=progress, threads=1),
}


@pytest.mark.parametrize("act", [saved_over, config_rewritten])
@pytest.mark.parametrize("after", [0, "all"])
@pytest.mark.parametrize("write", WRITES)
def test_a_source_that_is_saved_over_ends_the_merge_and_leaves_nothing(tmp_path, sources, act, after, write):
    there = {*os.listdir(tmp_path)}
    with pytest.raises(SourceError, match=r"a/adapter_.* was changed|of .*a was changed") as caught:
        WRITES[write](sources, tmp_path / "out", meddling(act, sources[0], after))
    assert caught.value.exit_code == 1
    assert {*os.listdir(tmp_path)} == there


@pytest.mark.parametrize("act", [replaced, linked])
@pytest.mark.parametrize("after", [0, "all"])
def test_a_source_that_is_replaced_or_linked_is_merged_and_recorded_as_it_was(tmp_path, sources, act, after):
    wanted = lm.combine(sources, out=tmp_path / "wanted")
    marks = [hashlib.sha256((s / "adapter_model.safetensors").read_bytes()).hexdigest() for s in sources]
    try:
        WRITES["combine"](sources, tmp_path / "out", meddling(act, sources[0], after))
    except SourceError:  # where the process holds too many files open, this one was not kept so
        assert not (tmp_path / "out").exists()
        return
    found = content(tmp_path / "out")
    assert found == content(wanted.out)
    record = json.loads(found["loramerge.json"])
    assert [s["sha256"]["adapter_model.safetensors"] for s in record["sources"]] == marks


def test_what_changes_between_opening_and_merging_is_seen(tmp_path, sources):
    plan = lm.plan(sources)
    saved_over(sources[1])
    for out in (None, tmp_path / "out"):
        with pytest.raises(SourceError, match="was changed"):
            run(plan.asking(out=out))


def test_a_copy_is_of_what_was_opened(tmp_path, sources, monkeypatch):
    from loramerge.formats import writer

    before = {*os.listdir(tmp_path)}
    copy = writer._copy
    monkeypatch.setattr(writer, "_copy", lambda *args: (copy(*args), saved_over(sources[0])))
    with pytest.raises(SourceError, match="was changed"):
        lm.convert(sources[0], tmp_path / "out", "peft")
    assert {*os.listdir(tmp_path)} == before


def test_a_thousand_sources_hold_few_descriptors(tmp_path):
    from loramerge.adapters import original
    from loramerge.request.recipe import Ingredient
    from loramerge.request.request import PLAIN

    folder(tmp_path / "a", {k: v[:, :] for k, v in tensors().items()})
    before = len(os.listdir("/proc/self/fd"))
    found = open_all([Ingredient(tmp_path / "a")] * 300, PLAIN)
    assert len(os.listdir("/proc/self/fd")) - before <= original.MOST
    assert np.isfinite(next(iter(found[-1].values())).up).all()
