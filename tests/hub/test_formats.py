"""Repositories in the formats of other tools: read, looked at, pushed, replayed, cached."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import IncompatibleError, SourceError, UsageError
from loramerge.formats.dialects import FOLDER_FILES, named
from loramerge.hub import choice
from loramerge.hub.card import write
from loramerge.hub.front_matter import Facts
from loramerge.sources.descriptions import descriptions
from tests.helpers.dialects import SD15, flat, pairs, saved
from tests.hub.loopback import files_of

DIFFUSERS, MLX = FOLDER_FILES
CARD = b"---\nlicense: mit\nbase_model: org/base\n---\n# cats\nDraws cats in watercolour.\n"
Q = "model.layers.0.self_attn.q_proj"
PARAMETERS = {"rank": 2, "scale": 3.5, "dropout": 0.0}
SAID = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": PARAMETERS, "model": "org/base"}

MODULES = SD15 | {"text_encoder.text_model.encoder.layers.11.self_attn.out_proj": (6, 6)}  # as diffusers asks


def diffusers(path, seed=1):
    return saved(path / DIFFUSERS, pairs(MODULES, ("lora_A", "lora_B"), seed=seed)).parent


def kohya(path, seed=1):
    return saved(path / "cats.safetensors", pairs(flat(MODULES), alpha=1, seed=seed)).parent


def factors(seed):
    rng = np.random.default_rng(seed)
    return {
        f"{Q}.lora_a": rng.standard_normal((5, 2)).astype("f4"),
        f"{Q}.lora_b": rng.standard_normal((2, 6)).astype("f4"),
    }


def mlx(path, seed=1):
    """As mlx-lm's trainer leaves it: with checkpoints."""
    saved(path / MLX, factors(seed))
    saved(path / "0000100_adapters.safetensors", factors(seed + 100))
    (path / "adapter_config.json").write_text(json.dumps(SAID))
    return path


TOOLS = {"diffusers": diffusers, "mlx": mlx, "kohya": kohya}
FOLDERS = {name: TOOLS[name] for name in ("diffusers", "mlx")}
every_tool = pytest.mark.parametrize("tool", TOOLS)
every_folder = pytest.mark.parametrize("tool", FOLDERS)


def put(hub, tool, tmp_path, name="org/x", seed=1, **more):
    """A repository of that tool, and where the same lies here."""
    here = TOOLS[tool](tmp_path / f"{name.rpartition('/')[2]}-here", seed)
    hub.add(name, {**files_of(here), "README.md": CARD, **more})
    return here / "cats.safetensors" if tool == "kohya" else here


def test_the_hub_knows_the_names_that_formats_have():
    assert choice.FOLDER_FILES == FOLDER_FILES


@every_tool
@pytest.mark.parametrize("peeking", [False, True], ids=["downloaded", "looked at"])
def test_it_is_the_one_that_was_put_there(hub, tmp_path, tool, peeking):
    here = lm.load(put(hub, tool, tmp_path))
    there = lm.load("org/x", peeking=peeking)
    assert (there.dialect, there.bare, there.base) == (tool, here.bare, here.base)
    assert there.provenance.licence == "mit"
    assert lm.diff(there, here).largest == 0


@every_folder
def test_other_files_beside_the_known_one_are_others(hub, tmp_path, tool):
    place = put(hub, tool, tmp_path, **{"for_comfy.safetensors": b"x", "epoch-2.safetensors": b"y"})
    assert lm.diff("org/x", place).largest == 0


@pytest.mark.parametrize("file", [MLX, "0000100_adapters.safetensors"])
@pytest.mark.parametrize("peeking", [False, True], ids=["downloaded", "looked at"])
def test_a_file_of_mlx_comes_with_the_config_that_tells_its_scale(hub, tmp_path, file, peeking):
    place = put(hub, "mlx", tmp_path)
    there = lm.load(f"hf://org/x/{file}", peeking=peeking)
    assert lm.diff(there, place / file).largest == 0


def test_of_checkpoints_only_one_must_be_named(hub, tmp_path):
    files = files_of(mlx(tmp_path / "x"))
    files["0000200_adapters.safetensors"] = files.pop(MLX)
    hub.add("org/x", files)
    with pytest.raises(SourceError, match=r"2 files of weights .*such as hf://org/x/0000100_adapters"):
        lm.load("org/x")


@every_folder
def test_in_a_folder_of_a_repository(hub, tmp_path, tool):
    here = FOLDERS[tool](tmp_path / "x")
    hub.add("org/many", {f"sub/{name}": data for name, data in files_of(here).items()})
    assert lm.diff("hf://org/many/sub", here).largest == 0
    assert lm.diff(lm.load("hf://org/many/sub", peeking=True), here).largest == 0


@every_tool
def test_a_pushed_merge_is_made_again_from_its_name(hub, login, tmp_path, tool, cli):
    put(hub, tool, tmp_path)
    put(hub, tool, tmp_path, "org/y", seed=2)
    ending = "" if tool in FOLDERS else ".safetensors"
    assert cli("combine", "org/x", "org/y", "-o", f"m{ending}", "--push", "me/m").code == 0
    place = f"hf://me/m{'' if tool in FOLDERS else '/m.safetensors'}"
    card = hub.repos["me/m"].files()["README.md"].decode()
    assert f"loramerge replay {place} -o again{ending}\n" in card
    assert cli("replay", place, "-o", f"again{ending}").code == 0
    assert cli("replay", "me/m", "-o", f"third{ending}").code == 0
    assert lm.diff(f"again{ending}", f"m{ending}").largest == 0


@every_folder
def test_offline_the_cache_has_it(hub, tmp_path, tool, offline):
    here = put(hub, tool, tmp_path)
    lm.load("org/x")
    offline()
    assert lm.diff("org/x", here).largest == 0


def test_offline_a_checkpoint_alone_is_not_the_adapter(hub, tmp_path, offline):
    put(hub, "mlx", tmp_path)
    lm.load("hf://org/x/0000100_adapters.safetensors")
    offline()
    with pytest.raises(SourceError, match="is not in the cache"):
        lm.load("org/x")


@every_folder
def test_a_collection_holds_it_without_a_tag(hub, tmp_path, tool):
    put(hub, tool, tmp_path)
    hub.add("org/model", {"model.safetensors": b"x", "config.json": b"{}"})
    hub.collections["org/list"] = [("model", "org/x"), ("model", "org/model")]
    from loramerge.hub.lists import members

    assert [str(each) for each in members("hf://collections/org/list").members] == ["hf://org/x"]


def test_old_weights_of_diffusers_are_called_a_pickle(hub):
    hub.add("org/old", {"pytorch_lora_weights.bin": b"x", "README.md": CARD})
    with pytest.raises(
        IncompatibleError, match=r"pickle only \(pytorch_lora_weights\.bin\).*allow_pickle=True"
    ):
        lm.load("org/old")


@every_tool
def test_the_card_of_a_merge_takes_the_base_from_its_sources_and_says_what_loads_it(
    hub, login, tmp_path, tool
):
    put(hub, tool, tmp_path)
    place = tmp_path / ("m" if tool in FOLDERS else "m.safetensors")
    lm.combine(["org/x"], out=place)
    lm.push(place, "me/m")
    card = hub.repos["me/m"].files()["README.md"].decode()
    library = "mlx" if tool == "mlx" else "diffusers"
    for line in ('base_model: "org/base"', f"library_name: {library}", '- "base_model:adapter:org/base"'):
        assert line in card.splitlines()
    named = ', weight_name="m.safetensors"' if tool == "kohya" else ""
    how = {
        "mlx": "hf download me/m --local-dir adapter\nmlx_lm.generate --model org/base --adapter-path a",
        "diffusers": f'.from_pretrained("org/base")\npipeline.load_lora_weights("me/m"{named})',
    }
    assert how[library] in card


def test_bases_on_which_the_cards_differ_are_not_named(hub, login, tmp_path):
    put(hub, "diffusers", tmp_path)
    put(hub, "diffusers", tmp_path, "org/y", 2)
    hub.add("org/y", {"README.md": CARD.replace(b"org/base", b"org/other")})
    lm.combine(["org/x", "org/y"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    assert "base_model" not in hub.repos["me/m"].files()["README.md"].decode()


@pytest.mark.parametrize(("form", "words"), [("comfy", "ComfyUI"), ("cloneofsimo", "cloneofsimo")])
def test_what_diffusers_does_not_load_is_told_to_be_converted(form, words):
    loaders = ("comfyui",) if form == "comfy" else ()
    words = named(form).words
    card = write(
        Facts("me/m", 1, 1, "F32", place="m.safetensors", library=None, loaders=loaders, words=words)
    )
    assert "load_lora_weights" not in card
    assert "library_name" not in card
    assert words in card
    assert "loramerge convert hf://me/m/m.safetensors adapter.safetensors --to diffusers" in card


@every_tool
def test_the_card_of_its_repository_says_what_it_is_good_at(hub, tmp_path, tool):
    put(hub, tool, tmp_path)
    assert descriptions([lm.load("org/x")]) == ["cats\nDraws cats in watercolour."]


def test_the_card_of_a_repository_is_that_of_a_file_deep_in_it(hub, tmp_path):
    files = {f"a/b/{name}": data for name, data in files_of(kohya(tmp_path / "x")).items()}
    hub.add("org/x", {**files, "README.md": CARD})
    assert descriptions([lm.load("hf://org/x/a/b/cats.safetensors")]) == ["cats\nDraws cats in watercolour."]


def test_a_file_of_a_repository_without_a_card_is_told(hub, tmp_path):
    hub.add("org/x", files_of(kohya(tmp_path / "x")))
    with pytest.raises(UsageError, match=r"it has no README\.md"):
        descriptions([lm.load("org/x")])


def test_old_weights_of_diffusers_are_read_where_pickles_are_allowed(hub, tmp_path):
    torch = pytest.importorskip("torch")
    values = pairs(MODULES, ("lora_A", "lora_B"), seed=1)
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, tmp_path / "old.bin")
    hub.add("org/old", {"pytorch_lora_weights.bin": (tmp_path / "old.bin").read_bytes()})
    there = lm.load("org/old", allow_pickle=True)
    assert lm.diff(there, diffusers(tmp_path / "here")).largest == 0
