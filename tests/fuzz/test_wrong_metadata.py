"""Every field of a header, of masks, of a router and of a list on the Hub, with every wrong value."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.hub import lists
from loramerge.routing import router
from tests.fuzz.walk import FEW, WRONG, Outcomes, paths, put
from tests.helpers.files import bare, folder, tensors

MANY = pytest.mark.parametrize(
    "wrong", [FEW, pytest.param(WRONG, marks=pytest.mark.slow)], ids=["few", "all"]
)
FLAT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SMALL = {"down": np.ones((2, 4), np.float32), "up": np.ones((4, 2), np.float32)}
KOHYA = {f"{FLAT}.lora_{side}.weight": array for side, array in SMALL.items()}
PIPELINE = {f"{DOTTED}.lora_{side}.weight": SMALL[{"A": "down", "B": "up"}[side]] for side in "AB"}
SETTINGS = {"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 4}}
CLASSES = ["CrossAttention", "Attention"]
RECORD = {"method": {"name": "svd", "options": {"rank": 2}}, "sources": [{"name": "a", "weight": 1}]}
HEADERS = {  # name -> (tensors, what the header says); a value that is no text stands as JSON
    "kohya": (
        KOHYA,
        {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "2",
            "ss_network_alpha": "2.0",
            "ss_network_args": {"conv_dim": "2", "conv_alpha": "2", "rs_lora": "True"},
            "ss_base_model_version": "sd_v1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.title": "t",
            "ss_tag_frequency": {"folder": {"tag": 3}},
            "loramerge.family": "sd",
            "loramerge": RECORD,
        },
    ),
    "diffusers": (PIPELINE, {"lora_adapter_metadata": {f"unet.{key}": v for key, v in SETTINGS.items()}}),
    "cloneofsimo": (
        {"unet:0:down": SMALL["down"], "unet:0:up": SMALL["up"]},
        {"unet": CLASSES, "unet:0:rank": "2", "unet:0:alpha": "2"},
    ),
    "peft": (tensors(0, shapes={"q": (4, 4)}), {"format": "pt", "lora_adapter_metadata": SETTINGS}),
}


def texts(said, wrong):
    """The header with one field changed: a text for each, and inside those that are JSON each field."""
    for key, value in said.items():
        for other in [*(each for each in wrong if isinstance(each, str)), "{", "[]", "1", "1e400", "NaN"]:
            yield (key, other), {**said, key: other}
        if not isinstance(value, str):
            for path in paths(value):
                for other in wrong:
                    yield (key, path, other), {**said, key: put(value, path, other)}


def written(said):
    """A header holds texts alone; half a surrogate is refused before anything is read."""
    plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    return {key: value.encode("utf-8", "replace").decode() for key, value in plain.items()}


@MANY
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header(tmp_path, kind, wrong):
    values, said = HEADERS[kind]
    place, found = tmp_path / "x.safetensors", Outcomes()
    for told, header in texts(said, wrong):
        bare(place, values, written(header))
        found.of(lambda: lm.combine([place, place], "svd", rank=1, alpha=1, threads=1), told)
        found.of(
            lambda: lm.combine([place], "svd", rank=1, out=tmp_path / "m.safetensors", overwrite=True), told
        )
        found.of(lambda: lm.inspect(place).to_dict(), told)
        found.of(lambda: lm.replay(place, threads=1), told)
        for consumer in ("diffusers", "comfyui", "peft"):
            found.of(lambda name=consumer: lm.check(place, name), (told, consumer))
    found.check()
    assert found.count["fine"], "what it holds beside that is read"


@pytest.fixture
def merged(tmp_path):
    """A merge with masks, and a router."""
    names = [folder(tmp_path / name, tensors(i, shapes={"q": (4, 4)})) for i, name in enumerate("ab")]
    lm.combine(names, "mergevla", rank=1, out=tmp_path / "m", threads=1)
    return tmp_path / "m"


BESIDE = {
    "masks/masks.safetensors": lambda place: lm.restore(place, "a", rank=1, threads=1),
    router.PLACE: lm.load_router,
}


@MANY
@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_a_merge(merged, name, wrong):
    place, found = merged / name, Outcomes()
    raw = place.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    said = {key: json.loads(value) for key, value in header.pop("__metadata__").items()}
    found.of(lambda: BESIDE[name](merged), "as it was")
    assert found.count["fine"]
    changed = [(told, written(each), header) for told, each in texts(said, wrong)]
    changed += [
        ((path, value), written(said), put(header, path, value))
        for path in paths(header) if path for value in wrong
    ]  # fmt: skip
    for told, metadata, entries in changed:
        text = json.dumps({"__metadata__": metadata, **entries}).encode()
        place.write_bytes(len(text).to_bytes(8, "little") + text + body)
        found.of(lambda: BESIDE[name](merged), told)
    found.check()


COLLECTION = {
    "slug": "me/best-1",
    "title": "t",
    "owner": {"name": "me"},
    "items": [{"_id": "0", "type": "model", "id": "org/a", "position": 0, "note": {"text": "x"}}],
    "lastUpdated": "2026-01-01T00:00:00.000Z",
    "position": 0,
    "private": False,
    "theme": "blue",
    "upvotes": 0,
}


@MANY
def test_a_collection(monkeypatch, wrong):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    found, said = Outcomes(), [COLLECTION]

    class Api:
        def get_collection(self, slug):
            return huggingface_hub.Collection(**said[0])

    monkeypatch.setattr(lists, "api", Api)
    monkeypatch.setattr(lists, "_is_adapter", lambda name: True)
    found.of(lambda: lists.members("hf://collections/me/best-1"), "as it is")
    assert found.count["fine"]
    for path in paths(COLLECTION):
        for value in wrong:
            said[0] = put(COLLECTION, path, value) if path else {**COLLECTION, "items": value}
            found.of(lambda: lists.members("hf://collections/me/best-1"), (path, value))
    found.check()
