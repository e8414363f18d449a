"""The benchmark of the GPU runs from its first line to its last, before anybody has a GPU for it."""

import json
import sys

import pytest

from benchmarks.speed import bench, gpu, peers_gpu
from benchmarks.speed.bench import Bench, Row
from tests.cuda.stand_in import installed
from tests.cuda.test_batch import by_numpy

ALWAYS = {
    "copy on the device",
    "reading the files",
    "7B 2×r4 svd, compute",
    "7B 2×r4 lego, files to memory",
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(bench, "SMALL", {"layers.0.q_proj": (48, 64), "layers.0.v_proj": (48, 64)})
    monkeypatch.setattr(gpu, "SOURCES", 2)
    monkeypatch.setattr(gpu, "RANK", 4)


def run(tmp_path, device):
    out = tmp_path / "deep" / "gpu.json"
    gpu.main(["--device", device, "--small", "--json", str(out), "--work", str(tmp_path)])
    return json.loads(out.read_text(encoding="utf-8"))


def test_on_the_host(tmp_path, capsys):
    pytest.importorskip("torch")

    found = run(tmp_path, "cpu")

    names = {row["name"] for row in found["rows"]}
    assert names >= ALWAYS | {"7B 2×r4, PEFT's dense SVD, times the modules"}
    assert all(row["ms"] > 0 for row in found["rows"])
    assert all(row["met"] is None for row in found["rows"]), "that is no GPU"
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("date ")
    assert {line.count("|") for line in table[2:]} == {6}


def test_without_a_gpu_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    with pytest.raises(SystemExit, match="CuPy is not installed"):
        gpu.main([])


def test_on_a_stand_in_for_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("loramerge.cuda.batch.launch", by_numpy)
    monkeypatch.setattr(gpu, "peers", lambda *_: iter(()))  # torch has no stand-in
    with installed(monkeypatch):
        found = run(tmp_path, "cuda")

    names = {row["name"] for row in found["rows"]}
    assert names >= ALWAYS | {"from pinned memory to the device", "k-means, 2 × (64 units, k = 8)"}
    assert found["about"].keys() >= {"date", "gpu", "cupy", "driver", "runtime", "options"}


def test_what_there_is_no_time_for_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "MINUTES", -1)

    found = run(tmp_path, "cpu")["rows"]

    assert {row["ms"] for row in found} == {None}
    assert {row["found"] for row in found} == {"not measured: the time was over"}


def test_a_goal_is_judged_on_a_gpu_alone():
    made = Bench("cpu", small=False)
    made.computed["svd"] = 2.0

    assert peers_gpu._against(made, "torch", 200.0, 50).met is None
    made.gpu = object()
    assert peers_gpu._against(made, "torch", 200.0, 50).met is True
    assert peers_gpu._against(made, "torch", 60.0, 50).met is False


def test_a_line_has_the_share_of_the_floor():
    assert Row("x", 10.0, 1.0, found="2 ×", met=False).line() == "| x | 10.00 | 10.0% |  | missed; 2 × |"
    assert bench.Row("x", None, found="not measured").line() == "| x |  |  |  | not measured |"
