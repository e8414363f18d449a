"""A look at an adapter of the Hub reads its header, not its file."""

import json
import os

import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.hub.names import HubName
from loramerge.hub.ranges import Ranged
from tests.dialects import pairs, saved
from tests.files import bare, content, folder, raw, tensors
from tests.hub.answers import Handler
from tests.hub.loopback import files_of

SAID = {"lora_adapter_metadata": '{"r": 100, "lora_alpha": 100}'}
WIDE = {f"layers.{i}.q": (200, 300) for i in range(4)}


@pytest.fixture
def big(hub, tmp_path):
    """800 kB of weights."""
    return hub.add("org/big", files_of(folder(tmp_path / "big", tensors(1, 100, WIDE), r=100)))


def read(hub):
    """Bytes of weights that were asked for."""
    spans = [each.span for each in hub.got("GET", "/lfs/")]
    assert None not in spans, "the whole file"
    ends = [span.removeprefix("bytes=").split("-") for span in spans]
    return sum(int(stop) + 1 - int(start) for start, stop in ends)


def test_only_the_header_is_read(hub, big, tmp_path, cli):
    assert cli("inspect", "org/big").code == 0
    assert "norm" not in cli.out
    assert cli.out.startswith(
        f"org/big: PEFT folder, 4 modules, float32, base model tiny, commit {big[:8]}\n"
    )
    assert "q           4  200×300   100   0.04\n" in cli.out
    assert "only the header was read" in cli.err
    assert read(hub) == 100_000
    assert not any("adapter_model" in path for path in content(tmp_path / "cache"))


def test_the_facts_are_those_of_the_file(hub, big, tmp_path, cli):
    near, far = lm.inspect(tmp_path / "big"), lm.inspect("org/big")
    assert far.peeked
    assert not near.peeked
    for one, other in zip(near.modules, far.modules, strict=True):
        assert (one.name, one.shape, one.rank, one.scale, one.dtype) == (
            other.name, other.shape, other.rank, other.scale, other.dtype,
        )  # fmt: skip
        assert (other.norm, other.effective_rank, other.sigma) == (None, None, None)
    said = cli("inspect", "org/big", "--json").json()[0]
    assert (said["hub"], said["revision"], said["norm"]) == ("org/big", big, None)
    json.dumps(far.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="download=True"):
        lm.plot_spectra(far)


def test_with_download_it_is_measured(hub, big, tmp_path, cli):
    assert lm.inspect("org/big", download=True).norm == lm.inspect(tmp_path / "big").norm
    assert cli("inspect", "org/big", "--download").code == 0
    assert "energy in 1, 2, 4, 8 units" in cli.out


def test_a_tensor_of_a_header_can_be_fetched_alone(hub, big, tmp_path):
    adapter = lm.load("org/big", peeking=True)
    target = lm.Target("layers.2.q")
    assert (adapter[target].down == lm.load(tmp_path / "big")[target].down).all()
    assert read(hub) < 500_000


def test_a_long_header_takes_a_second_request(hub, tmp_path):
    shapes = {f"layers.{i}.{'x' * 100}": (2, 2) for i in range(400)}
    hub.add("org/long", files_of(folder(tmp_path / "long", tensors(1, 1, shapes), r=1)))
    assert len(lm.inspect("org/long").modules) == 400
    assert len(hub.got("GET", "/lfs/")) == 2


def test_a_bare_file_by_its_header(hub, tmp_path):
    path = bare(tmp_path / "x.safetensors", tensors(1, 100, WIDE), SAID)
    hub.add("org/x", {"x.safetensors": path.read_bytes()})
    facts = lm.inspect("org/x")
    assert (facts.peeked, facts.adapter.bare, facts.modules[0].scale) == (True, True, 1.0)
    silent = bare(tmp_path / "y.safetensors", tensors(1))
    hub.add("org/y", {"y.safetensors": silent.read_bytes()})
    with pytest.raises(IncompatibleError, match="does not say its alpha"):
        lm.inspect("org/y")
    assert lm.inspect("org/y", alpha=4).modules[0].scale == 2.0


def test_offline_it_is_read_from_the_cache(hub, big, offline, tmp_path):
    lm.load("org/big")
    offline()
    assert lm.inspect("org/big").norm == lm.inspect(tmp_path / "big").norm


def test_where_the_hub_is_down_it_is_read_from_the_cache(hub, big, tmp_path, cli):
    lm.load("org/big")
    hub.status["/api/models"] = 503
    assert cli("inspect", "org/big").code == 0
    assert "norm" in cli.out
    assert f"odd: the Hub could not be asked, so this is the commit {big[:8]} that the cache has" in cli.out


def test_what_was_only_looked_at_is_not_merged(hub, big, tmp_path):
    with pytest.raises(SourceError, match=r"Only the header of big was read: load it without peeking"):
        lm.combine([lm.load("org/big", peeking=True)], out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_server_without_ranges_is_read_from_the_beginning(hub, big, tmp_path):
    hub.ranges = False
    adapter = lm.load("org/big", peeking=True)
    assert len(adapter) == 4
    target = lm.Target("layers.3.q")
    assert (adapter[target].up == lm.load(tmp_path / "big")[target].up).all()


@pytest.mark.parametrize("answer", [{"Content-Range": "bytes 5-9/10"}, {"Content-Range": "?"}, {}])
def test_an_answer_that_is_another_part_is_refused(hub, big, monkeypatch, answer):
    def bytes_of(self, data, headers):
        self._reply(206, data[:10], {**headers, **answer})

    monkeypatch.setattr(Handler, "_bytes", bytes_of)
    with pytest.raises(
        SourceError, match=r"does not let a part of adapter_model\.safetensors of org/big be read"
    ):
        Ranged(HubName("org/big"), big, "adapter_model.safetensors").open()


def test_a_part_that_does_not_come_whole_is_told(hub, big, monkeypatch):
    def bytes_of(self, data, headers):
        self._reply(206, data[:10], {**headers, "Content-Range": f"bytes 0-99999/{len(data)}"})

    monkeypatch.setattr(Handler, "_bytes", bytes_of)
    with pytest.raises(SourceError, match="did not arrive whole: run it again"):
        lm.inspect("org/big")


BROKEN = {
    "an impossible length": (lambda path: raw(path, {}, length=2**60), "its header cannot have"),
    "a huge header": (
        lambda path: raw(path, b"{}", bytes(20 * 2**20), length=17 * 2**20),
        "16 MiB is the limit",
    ),
    "cut short": (
        lambda path: raw(path, {"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        "cut",
    ),
    "next to nothing": (lambda path: path.write_bytes(b"abc"), "it has only 3 bytes"),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
def test_a_malformed_header_from_afar_is_checked_as_one_from_here(hub, tmp_path, make, words):
    files = files_of(folder(tmp_path / "a", tensors(1)))
    make(tmp_path / "w")
    hub.add("org/a", {**files, "adapter_model.safetensors": (tmp_path / "w").read_bytes()})
    with pytest.raises(SourceError, match=words) as error:
        lm.inspect("org/a")
    assert "org/a" in str(error.value)


def test_many_at_once_and_what_fails_is_told_beside_them(hub, big, cli):
    assert cli("inspect", "org/big", "org/none", "org/big@main").code == 1
    assert cli.out.count("PEFT folder, 4 modules") == 2
    assert "org/none does not exist here" in cli.err
    assert os.listdir() == []


def numbered(path, modules, rank, together=False):
    """kohya's alphas: each before the factors of its module, or all behind them, as another type is."""
    shapes = {f"lora_unet_mid_block_attentions_{i}_proj_in": (100, 100) for i in range(modules)}
    values = pairs(shapes, rank=rank, alpha=1)
    alphas = {key: value.astype("f2") for key, value in values.items() if key.endswith(".alpha")}
    return saved(path / "k.safetensors", values | (alphas if together else {}))


def test_alphas_that_lie_together_are_read_together(hub, tmp_path):
    path = numbered(tmp_path / "k", 40, 20, together=True)
    hub.add("org/k", {"k.safetensors": path.read_bytes()})
    far, near = lm.inspect("org/k"), lm.inspect(path)
    assert far.peeked
    assert (
        [module.scale for module in far.modules] == [module.scale for module in near.modules] == [1 / 20] * 40
    )
    assert len(hub.got("GET", "/lfs/")) == 2, "the head, and all alphas"


@pytest.mark.parametrize("rank", [300, 20], ids=["far from each other", "near, and so half of the file"])
def test_a_file_with_its_alphas_all_over_it_is_downloaded(hub, tmp_path, rank):
    path = numbered(tmp_path / "k", 40, rank)
    hub.add("org/k", {"k.safetensors": path.read_bytes()})
    assert lm.inspect("org/k").norm == lm.inspect(path).norm
    assert len(hub.got("GET", "/lfs/")) == 2, "the head, and the file"
