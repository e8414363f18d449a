"""`check` takes what is on the Hub: from its config and header, and under the name that was given."""

import numpy as np
import pytest

import loramerge as lm
from tests.consumers.inputs import SCALINGS, write
from tests.helpers.dialects import pairs, saved
from tests.helpers.files import bare, content, tensors
from tests.hub.loopback import files_of

WIDE = {f"layers.{i}.q": (200, 300) for i in range(4)}


def add(hub, place, name="org/a", scaling="plain", under="", **changes):
    """An adapter of three linear layers, at the top of a repository or in a folder of it."""
    files = files_of(write(place, 0, SCALINGS[scaling], **changes))
    return hub.add(name, {f"{under}{path}": data for path, data in files.items()})


@pytest.mark.parametrize("source", ["org/a", "hf://org/a", "org/a@main", "hf://org/a@main"])
def test_a_repository_is_checked_as_its_folder_is(hub, cli, tmp_path, source):
    add(hub, tmp_path / "a", scaling="rslora")
    here, there = (lm.check(each, "sglang") for each in (tmp_path / "a", source))
    assert [finding.sentence for finding in here] == [finding.sentence for finding in there]
    assert cli("check", source, "--for", "sglang").code == 3
    assert cli.out.startswith(f"{source}: a PEFT adapter in a folder with its config, 16 tensors\n")


def test_a_commit_and_a_folder_of_it_are_what_is_checked(hub, cli, tmp_path):
    first = add(hub, tmp_path / "a", scaling="rslora", under="sub/")
    add(hub, tmp_path / "b", under="sub/")
    assert cli("check", f"hf://org/a@{first}/sub", "--for", "sglang").code == 3
    assert cli("check", "hf://org/a/sub", "--for", "sglang").code == 0


def test_only_the_header_is_read(hub, cli, tmp_path):
    file = bare(tmp_path / "a.safetensors", tensors(0, 100, WIDE), {"lora_adapter_metadata": "{}"})
    hub.add("org/a", {"a.safetensors": file.read_bytes()})
    assert cli("check", "org/a", "--for", "vllm").code == 3
    assert not [path for path in content(tmp_path / "cache") if "safetensors" in path]


def test_the_command_names_the_repository_and_an_output_here(hub, cli, tmp_path):
    add(hub, tmp_path / "a", scaling="rslora", under="sub/")
    (finding,) = lm.check("hf://org/a/sub", "sglang")
    assert finding.command == "loramerge combine hf://org/a/sub --for sglang -o sub-sglang"
    assert cli(*finding.command.split()[1:]).code == 0
    assert cli("check", "sub-sglang", "--for", "sglang").code == 0
    add(hub, tmp_path / "b", "org/b", "rslora")
    (finding,) = lm.check("org/b@main", "sglang")
    assert finding.command.endswith("combine org/b@main --for sglang -o b-sglang")


def test_files_beside_it_on_the_hub_count(hub, tmp_path):
    add(hub, tmp_path / "a")
    assert not lm.check("org/a", "sglang")
    hub.repos["org/a"].commit({"added_tokens.json": b'{"<new>": 12}'})
    (finding,) = lm.check("org/a", "sglang")
    assert "added_tokens.json" in finding.sentence


def test_files_of_image_tools_are_known_there_too(hub, cli, tmp_path):
    flat = {"lora_unet_mid_block_attentions_0_proj_in": (8, 6)}
    file = saved(tmp_path / "a.safetensors", pairs(flat, alpha=1.0))
    hub.add("org/a", {"style.safetensors": file.read_bytes()})
    file = saved(
        tmp_path / "b.safetensors",
        pairs({"unet.mid_block.attentions.0.proj_in": (8, 6)}, ("lora_A", "lora_B")),
    )
    hub.add("org/b", {"pytorch_lora_weights.safetensors": file.read_bytes()})
    assert cli("check", "org/a", "hf://org/b").code == 0
    assert (
        cli.out.count("diffusers     loads it as it is meant\ncomfyui       loads it as it is meant\n") == 2
    )


def test_what_is_read_only_as_a_whole_is_downloaded(hub, cli, tmp_path):
    place = write(tmp_path / "a")
    values = (place / "adapter_model.safetensors").read_bytes()
    files = {"a.safetensors": values, "adapter_config.json": (place / "adapter_config.json").read_bytes()}
    hub.add("org/a", {f"sub/{name}": data for name, data in files.items()} | {"other.bin": b""})
    assert cli("check", "hf://org/a/sub", "--for", "vllm").code == 0


@pytest.mark.parametrize("form", ["list", "collection", "names"])
def test_of_several_each_has_its_findings_under_its_name(hub, cli, tmp_path, form):
    add(hub, tmp_path / "a", "org/a")
    add(hub, tmp_path / "b", "org/b", "rslora")
    hub.collections["org/best-1"] = [("model", "org/a"), ("model", "org/b")]
    (tmp_path / "here" / "all.txt").write_text("org/a\norg/b\n")
    sources = {
        "list": ["@all.txt"],
        "collection": ["hf://collections/org/best-1"],
        "names": ["org/a", "org/b"],
    }
    assert cli("check", *sources[form], "--for", "sglang", "--for", "vllm").code == 3
    first, second = cli.out.split("\n\n")[:2]
    assert first.splitlines()[0].endswith("org/a: a PEFT adapter in a folder with its config, 16 tensors")
    assert first.count("loads it as it is meant") == 2
    assert second.splitlines()[0].endswith("org/b: a PEFT adapter in a folder with its config, 16 tensors")
    assert "SGLang ignores use_rslora" in second
    rows = cli("check", *sources[form], "--json").json()["adapters"]
    assert [row["source"].removeprefix("hf://") for row in rows] == ["org/a", "org/b"]


def test_what_cannot_be_had_is_told_and_the_others_are_checked(hub, cli, tmp_path):
    add(hub, tmp_path / "a")
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": b""})
    assert cli("check", "org/gone", "org/a", "org/model", "--for", "vllm").code == 1
    assert "org/gone does not exist here, and " in cli.err
    assert "org/model" in cli.err
    assert cli.out.startswith("org/a: ")


def test_offline_the_cache_is_asked(hub, cli, tmp_path, offline):
    add(hub, tmp_path / "a", scaling="rslora")
    lm.load("org/a")
    offline()
    assert cli("check", "org/a", "--for", "sglang").code == 3
    assert "SGLang ignores use_rslora" in cli.out
    cli("check", "org/b").refused(1, "org/b does not exist here")


def test_an_adapter_that_was_only_looked_at_can_be_checked(hub, tmp_path):
    add(hub, tmp_path / "a", scaling="rslora")
    peeked = lm.inspect("org/a").adapter
    assert peeked.provenance.peeked
    assert [finding.effect for finding in lm.check(peeked, "sglang")] == ["scales"]
    assert np.isfinite(next(iter(peeked.slots.values())).scale)
