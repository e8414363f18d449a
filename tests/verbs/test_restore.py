"""A task's part of a merge is given back by its mask, and by no other's."""

import json

import numpy as np
import pytest

from loramerge import MergeVla, combine, load, plan, replay, restore, write_deltas
from loramerge.errors import IncompatibleError, LoramergeError, OutputError, SourceError, UsageError
from tests.helpers.adapters import dense, distance, random_adapters, truncated
from tests.helpers.files import Cli, bare, content, folder, tensors

SHAPES = {"layers.0.q": (7, 9), "layers.0.v": (8, 6), "layers.1.q": (7, 9)}
SOURCES = random_adapters(21, (3, 2, 4), SHAPES)
MASKS = "masks/masks.safetensors"


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@pytest.fixture
def merge(tmp_path):
    """A merge of three tasks, on the disk."""
    return combine(SOURCES, MergeVla(), out=tmp_path / "m", dtype="float64")


@pytest.mark.parametrize(
    "method", [MergeVla(), MergeVla(rule="ties", rank=3), MergeVla(rank=5, mask_lambda=0.9)]
)
@pytest.mark.parametrize("rank", [1, 3, None])
def test_it_is_the_mask_times_the_merge_fitted_to_the_rank(tmp_path, method, rank):
    written = combine(SOURCES, method, out=tmp_path / "m", dtype="float64")
    held = combine(SOURCES, method, dtype="float64")
    for task, own in zip(("source0", "source1", "source2"), (3, 2, 4), strict=True):
        found = restore(tmp_path / "m", task, rank=rank)
        for target, packed in held.masks[task].items():
            tau = written.adapter[target].dense()
            wanted = np.where(np.unpackbits(packed, axis=1, count=tau.shape[1]), tau, 0.0)
            best = truncated(wanted, rank or own)
            np.testing.assert_allclose(dense(found.adapter)[target.path], best, atol=1e-9)
        assert found.adapter.rank == (rank or own)
        assert found.report.cut is not None


def test_its_report_tells_what_the_rank_cuts(merge, tmp_path):
    full = restore(tmp_path / "m", "source0", rank=9, dtype="float64")
    cut = restore(tmp_path / "m", "source0", rank=1, dtype="float64")
    lost = distance(dense(cut.adapter), dense(full.adapter)) ** 2
    assert full.report.cut == pytest.approx(0.0, abs=1e-12)
    assert cut.report.cut == pytest.approx(lost, rel=1e-9)


def test_energy_chooses_a_rank(merge, tmp_path):
    found = restore(tmp_path / "m", "source0", energy=0.9)
    assert 1 <= found.method.rank <= 9
    assert found.report.cut <= 0.1
    smaller = (
        restore(tmp_path / "m", "source0", rank=found.method.rank - 1) if found.method.rank > 1 else None
    )
    assert smaller is None or max(m.cut / m.whole for m in smaller.report.modules) > 0.1


@pytest.mark.parametrize("base", ["linear", "ties", "emr"])
@pytest.mark.parametrize("weight", [1.0, -0.3])
def test_one_task_restores_exactly(tmp_path, base, weight):
    combine(SOURCES[:1], MergeVla(rule=base), weights=[weight], out=tmp_path / "m", dtype="float64")
    found = restore(tmp_path / "m", "source0")
    own = {path: weight * matrix for path, matrix in dense(SOURCES[0]).items()}
    assert distance(dense(found.adapter), own) < 1e-9


def test_masks_bring_each_task_nearer_than_the_merge_is(merge, tmp_path):
    for source in SOURCES:
        own = dense(source)
        found = dense(restore(tmp_path / "m", source.name, rank=9).adapter)
        assert distance(found, own) < distance(dense(merge.adapter), own)


def test_it_has_the_modules_of_its_task_alone(tmp_path):
    part = random_adapters(3, (2,), {"layers.1.q": (7, 9)})[0]
    combine([SOURCES[0], part], MergeVla(), out=tmp_path / "m")
    names = ["source0#1", "source0#2"]
    found = [restore(tmp_path / "m", name).adapter for name in names]
    assert [len(adapter) for adapter in found] == [3, 1]


def test_written_and_read_again(merge, tmp_path):
    found = restore(tmp_path / "m", "source2", out=tmp_path / "back", dtype="float32")
    again = load(tmp_path / "back")
    assert distance(dense(again), dense(restore(tmp_path / "m", "source2").adapter)) < 1e-6
    assert found.report.rounding_error < 1e-6


def test_the_masks_are_for_this_merge_alone(merge, tmp_path):
    combine(SOURCES, MergeVla(), weights=[1, 1, 2], out=tmp_path / "other", dtype="float64")
    (tmp_path / "m" / MASKS).write_bytes((tmp_path / "other" / MASKS).read_bytes())
    with pytest.raises(IncompatibleError, match="made for another merge"):
        restore(tmp_path / "m", "source0")


def test_the_same_merge_has_the_same_bytes_and_can_be_replayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab", 1):
        folder(tmp_path / name, tensors(seed))
    combine(["a", "b"], MergeVla(), out="m", threads=1)
    combine(["a", "b"], MergeVla(), out="n", threads=3)
    replay("m", out="again")
    assert content(tmp_path / "m") == content(tmp_path / "n") == content(tmp_path / "again")


def test_an_older_merge_is_replaced_with_its_masks(merge, tmp_path):
    with pytest.raises(OutputError, match="not empty"):
        combine(SOURCES, MergeVla(), out=tmp_path / "m")
    combine(SOURCES, "linear", out=tmp_path / "m", overwrite=True)
    assert not (tmp_path / "m" / "masks").exists()


def test_what_else_lies_among_masks_is_not_deleted(merge, tmp_path):
    (tmp_path / "m" / "masks" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="would delete masks"):
        combine(SOURCES, "linear", out=tmp_path / "m", overwrite=True)


def test_dense_deltas_have_no_place_for_masks(tmp_path):
    with pytest.raises(UsageError, match="cannot hold masks"):
        write_deltas(plan(SOURCES, MergeVla()), tmp_path / "d.safetensors")


def test_a_restored_adapter_is_not_replayed(merge, tmp_path):
    restore(tmp_path / "m", "source0", out=tmp_path / "back")
    with pytest.raises(SourceError, match="wrote this: run it again"):
        replay(tmp_path / "back", out=tmp_path / "again", sources={})


WRONG = {
    "no task": (
        lambda f: restore(f / "m", "nobody"),
        UsageError,
        "no task nobody; it has source0, source1, source2",
    ),
    "no masks": (lambda f: restore(f / "plain", "a"), SourceError, "only a merge by mergevla"),
    "a file": (lambda f: restore("x.safetensors", "a"), UsageError, "name the folder"),
    "two sizes": (lambda f: restore(f / "m", "source0", rank=1, energy=0.5), UsageError, "both set the size"),
    "masks in a file": (
        lambda f: combine(SOURCES, MergeVla(), out=f / "m.safetensors"),
        UsageError,
        "need a folder beside the merge",
    ),
}


@pytest.mark.parametrize(("act", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_restored_is_a_sentence(merge, tmp_path, act, error, words):
    combine(SOURCES, out=tmp_path / "plain")
    with pytest.raises(error, match=words):
        act(tmp_path)


def damaged(path, change):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    text = json.dumps(change(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def without_metadata(header):
    return {key: value for key, value in header.items() if key != "__metadata__"}


def with_metadata(**said):
    return lambda header: {**header, "__metadata__": {"loramerge.masks": json.dumps(said)}}


def flat(header):
    return {k: {**v, "shape": [int(np.prod(v["shape"]))]} if "shape" in v else v for k, v in header.items()}


@pytest.mark.parametrize(
    "change",
    [
        without_metadata,
        with_metadata(),
        with_metadata(tasks=[1], merge="x"),
        with_metadata(tasks={"source0": -1}, merge="x"),
        with_metadata(tasks={"source0": "three"}, merge=None),
        flat,
    ],
)
def test_masks_that_are_damaged_are_a_sentence(merge, tmp_path, change):
    damaged(tmp_path / "m" / MASKS, change)
    with pytest.raises(LoramergeError, match="mask"):
        restore(tmp_path / "m", "source0")


def test_on_the_command_line(cli, tmp_path):
    for seed, name in enumerate("ab", 1):
        bare(
            tmp_path / f"{name}.safetensors",
            tensors(seed),
            {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 2}'},
        )
    both = ("a.safetensors", "b.safetensors")
    assert cli("combine", *both, "--method", "mergevla").code == 0
    assert "the masks of 2 tasks take 40 B" in cli.err  # 6·1 + 4·1 bytes, twice, for each of two
    assert "selfish" in cli.out
    assert (tmp_path / "merged" / MASKS).exists()
    assert cli("restore", "merged", "--task", "a.safetensors", "--rank", "3", "-o", "a-again").code == 0
    assert "cut by the rank" in cli.out
    assert load(tmp_path / "a-again").rank == 3
    cli("restore", "merged", "--task", "c").refused(2, "no task c", "a.safetensors, b.safetensors")
    assert cli("restore", "merged").code == 2
    assert (
        cli("restore", "merged", "--task", "b.safetensors", "--json", "-o", "b-again").json()["cut_by_rank"]
        >= 0
    )
    asked = ("restore", "merged", "--task", "a.safetensors", "--rank", "1", "-o", "gated")
    for gate, value in (("--max-lost", "1e-09"), ("--min-cosine", "0.9999"), ("--max-error", "1e-12")):
        told = cli(*asked, gate, value)
        assert (told.code, f"{gate} {value}: " in told.err, "method" in told.err) == (4, True, False)
    assert not (tmp_path / "gated").exists()
    assert cli(*asked, "--max-lost", "0.99", "--min-cosine", "0.01", "--max-error", "0.01").code == 0
