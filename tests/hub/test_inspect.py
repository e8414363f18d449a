"""A look at an adapter of the Hub reads its header, not its file."""

import json
import os

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import SourceError, UsageError
from loramerge.hub.names import HubName
from loramerge.hub.ranges import Ranged
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import bare, content, folder, raw, tensors
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
    assert "only headers were read" in cli.err
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
    said = cli("inspect", "org/big", "--json").json()["adapters"][0]
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
    assert "does not say its alpha" in lm.inspect("org/y").refusal
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


WIDTH = 8000  # the factors of a module are larger than what one request fetches, and of a small rank
CLIP = {f"lora_te_text_model_encoder_layers_{i}_mlp_fc1": (WIDTH, WIDTH) for i in range(10)}
KOHYA = {f"lora_unet_mid_block_attentions_{i}_proj_in": (WIDTH, WIDTH) for i in range(40)}
RESNET = {f"lora_unet_mid_block_resnets_{i}_conv1": (1600, 1600, 3, 3) for i in range(20)}
STATED = {"ss_network_alpha": "8.0", "ss_network_dim": "2", "ss_network_args": "{}"}


def numbered(path, rank=2, alpha=8, said=None, together=False, shapes=KOHYA | CLIP, odd=()):
    """kohya's alphas: each before the factors of its module, or all behind them, as another type is."""
    values = pairs(shapes, rank=rank, alpha=alpha)
    values |= {f"{module}.alpha": np.array(value, "f4") for module, value in odd}
    alphas = {key: value.astype("f2") for key, value in values.items() if key.endswith(".alpha")}
    return saved(path / "k.safetensors", values | (alphas if together else {}), said)


def put(hub, path):
    hub.add("org/k", {"k.safetensors": path.read_bytes()})
    return path


def test_alphas_that_lie_together_are_read_together(hub, tmp_path):
    path = put(hub, numbered(tmp_path / "k", together=True))
    far, near = lm.inspect("org/k"), lm.inspect(path)
    assert far.peeked
    assert [m.scale for m in far.modules] == [m.scale for m in near.modules] == [8 / 2] * 50
    assert len(hub.got("GET", "/lfs/")) == 2, "the head, and all alphas"
    assert "stated" not in str(far)


def test_alphas_in_few_places_are_read_in_as_many_ranges(hub, tmp_path):
    few = dict(list(KOHYA.items())[:10])
    path = put(hub, numbered(tmp_path / "k", shapes=few, odd=[(name, i + 1) for i, name in enumerate(few)]))
    far, near = lm.inspect("org/k"), lm.inspect(path)
    assert far.peeked
    assert sorted(m.scale for m in far.modules) == [(i + 1) / 2 for i in range(10)]
    assert [m.scale for m in far.modules] == [m.scale for m in near.modules]
    assert read(hub) < 100_100 < path.stat().st_size / 10, "the head, and ten numbers"


def test_alphas_all_over_a_file_are_as_its_metadata_states_and_said_to_be(hub, tmp_path, cli):
    path = put(hub, numbered(tmp_path / "k", said=STATED))
    assert cli("inspect", "org/k").code == 0
    assert cli.out.splitlines()[1].split()[-3:] == ["rank", "stated", "scale"]
    assert (
        "odd: the alpha (8) is as the metadata states it (ss_network_alpha): 16 of the 50 alphas "
        "inside the file were read, and say the same; the others were not (a download reads all)\n"
    ) in cli.out
    assert len(hub.got("GET", "/lfs/")) == 16, "the head, with the first alpha, and fifteen others"
    assert read(hub) == 100_000 + 15 * 4 < path.stat().st_size / 50
    far, near = lm.inspect("org/k"), lm.inspect(path)
    assert [(m.name, m.shape, m.rank, m.scale) for m in far.modules] == [
        (m.name, m.shape, m.rank, m.scale) for m in near.modules
    ]
    assert far.to_dict()["scales"] == "as the metadata states"
    assert "scales" not in near.to_dict()


def test_convolutions_have_the_alpha_that_is_stated_for_them(hub, tmp_path):
    said = STATED | {"ss_network_args": '{"conv_dim": "2", "conv_alpha": "3"}'}
    path = put(hub, numbered(tmp_path / "k", said=said, shapes=KOHYA | RESNET, odd=[(n, 3) for n in RESNET]))
    far, near = lm.inspect("org/k"), lm.inspect(path)
    assert far.peeked
    assert {m.scale for m in far.modules} == {8 / 2, 3 / 2}
    assert [m.scale for m in far.modules] == [m.scale for m in near.modules]


def test_a_stated_alpha_gets_into_no_sum(hub, tmp_path):
    put(hub, numbered(tmp_path / "k", said=STATED))
    far = lm.load("org/k", peeking=True)
    for use in (lambda: far[min(far)], lambda: lm.diff(far, far), lambda: lm.save(far, "x.safetensors")):
        with pytest.raises(
            SourceError, match="not all read, only what its metadata states: load it without pe"
        ):
            use()


def test_a_merge_reads_the_alphas_themselves(hub, tmp_path):
    middle = list(KOHYA)[20]
    put(hub, numbered(tmp_path / "k", said=STATED, odd=[(middle, 9)]))
    lm.combine(["org/k"], out=tmp_path / "m.safetensors")
    scales = {slot.scale for slot in lm.load("org/k").slots.values()}
    assert scales == {8 / 2, 9 / 2}
    assert lm.diff(tmp_path / "m.safetensors", tmp_path / "k/k.safetensors").largest < 1e-6


ANYWAY = {
    "nothing is stated": ({}, ()),
    "the ranks and alphas are dynamic": (STATED | {"ss_network_alpha": "Dynamic"}, ()),
    "another is stated": (STATED | {"ss_network_alpha": "16"}, ()),
    "one of the sample is another": (STATED, [(min(CLIP), 9)]),
    "blocks have their own": (STATED | {"ss_network_args": '{"block_alphas": "1,2"}'}, ()),
    "the settings are no JSON": (STATED | {"ss_network_args": "None"}, ()),
    "the stated alpha is no number": (STATED | {"ss_network_alpha": "nan"}, ()),
}


@pytest.mark.parametrize(("said", "odd"), ANYWAY.values(), ids=ANYWAY)
def test_a_file_that_does_not_state_its_alphas_is_downloaded(hub, tmp_path, said, odd):
    path = put(hub, numbered(tmp_path / "k", said=said, odd=odd, shapes=dict([*KOHYA.items()][:12]) | CLIP))
    far = lm.inspect("org/k")
    assert not far.peeked
    assert far.norm == lm.inspect(path).norm
    assert [each.span for each in hub.got("GET", "/lfs/")].count(None) == 1


@pytest.mark.parametrize("numbers", [[8, 8], [8, 8, 8]], ids=str)
def test_an_alpha_that_is_none_is_told_whatever_is_stated(hub, tmp_path, numbers):
    path = put(
        hub, numbered(tmp_path / "k", said=STATED, odd=[(name, numbers) for name in sorted(CLIP)[1:2]])
    )
    with pytest.raises(lm.LoramergeError, match="alpha") as here:
        lm.inspect(path)
    with pytest.raises(type(here.value), match="alpha"):
        lm.inspect("org/k")


def test_a_convolution_whose_alpha_is_left_to_the_tool_is_not_known(hub, tmp_path):
    said = STATED | {"ss_network_args": '{"conv_dim": "2"}'}
    put(hub, numbered(tmp_path / "k", said=said, shapes=KOHYA | RESNET))
    assert not lm.inspect("org/k").peeked


def test_a_config_beside_a_file_tells_its_alpha_from_afar_too(hub, tmp_path):
    files = files_of(folder(tmp_path / "x", tensors(1, 100, WIDE), r=100, lora_alpha=50))
    files["mine.safetensors"] = files.pop("adapter_model.safetensors")
    hub.add("org/x", files)
    for place in ("hf://org/x/mine.safetensors", "org/x"):
        far = lm.inspect(place)
        assert (far.peeked, {m.scale for m in far.modules}) == (True, {0.5})
    assert read(hub) == 200_000
