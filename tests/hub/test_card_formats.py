"""The card of an adapter in the format of any tool: which library loads it, and what is not said of it."""

import numpy as np
import pytest

import loramerge as lm
from tests.helpers.dialects import SD15, flat, pairs, saved
from tests.helpers.files import folder, tensors
from tests.hub.loopback import files_of
from tests.hub.test_card import BASE, LLAMA
from tests.hub.test_formats import TOOLS

SAYS = "---\nlicense: {}\nbase_model: org/base\npipeline_tag: {}\n---\n"
KINDS = {  # name of the tool -> (output of a merge, library, task, what is said of loading, what is not)
    "peft": (
        "m",
        "peft",
        "text-generation",
        ["PeftModel", "load_adapter"],
        ["diffusers", "hf download", "vllm"],  # whether vLLM has a place for org/base is not known
    ),
    "kohya": (
        "m.safetensors",
        "diffusers",
        "text-to-image",
        ['weight_name="m.safetensors"', "hf download me/m m.safetensors --local-dir ComfyUI"],
        ["peft", "vllm"],
    ),
    "diffusers": (
        "m",
        "diffusers",
        "text-to-image",
        ['pipeline.load_lora_weights("me/m")'],
        ["peft", "vllm", "ComfyUI"],
    ),
    "mlx": (
        "m",
        "mlx",
        "text-generation",
        ["mlx_lm.generate --model org/base"],
        ["peft", "vllm", "diffusers"],
    ),
}


def sources(hub, tool, tmp_path, licences=("mit", "mit")):
    """Two repositories of that tool on one base (MIT)."""
    task = KINDS[tool][2]
    hub.add(BASE, {"README.md": SAYS.format("mit", task).encode()})
    for seed, licence in enumerate(licences, 1):
        where = tmp_path / f"{tool}{seed}"
        if tool == "peft":
            folder(where, tensors(seed, shapes=LLAMA), base_model_name_or_path=BASE, task_type="CAUSAL_LM")
        else:
            where.mkdir()
            TOOLS[tool](where, seed)
        files = {**files_of(where), "README.md": SAYS.format(licence, task).encode()}
        hub.add(f"org/{tool}{seed}", files, tags=["lora"])
    return [f"org/{tool}{seed}" for seed in (1, 2)]


def client_card(hub, name="me/m"):
    """As the client of the Hub parses it, and its text; what that complains of is an error."""
    from huggingface_hub import ModelCard

    card = ModelCard(hub.repos[name].files()["README.md"].decode())
    return card.data.to_dict(), card.text


@pytest.mark.parametrize("listed", ["a collection", "a file"])
@pytest.mark.parametrize("tool", KINDS)
def test_the_card_of_a_merge_of_a_list_is_right_for_its_format(hub, login, tmp_path, cli, tool, listed):
    out, library, task, said, unsaid = KINDS[tool]
    names = sources(hub, tool, tmp_path)
    hub.collections["org/list"] = [("model", name) for name in names]
    (tmp_path / "list.txt").write_text("\n".join(names))
    source = "hf://collections/org/list" if listed == "a collection" else f"@{tmp_path}/list.txt"
    assert cli("combine", source, "--weights", "0.5,-2", "-o", out, "--push", "me/m").code == 0, cli.err
    matter, text = client_card(hub)
    assert matter == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": library,
        "pipeline_tag": task,
        "license": "mit",
        "tags": ["lora", library, "merge", "loramerge", f"base_model:adapter:{BASE}"],
    }
    for name, weight in zip(names, ("0.5", "-2"), strict=True):
        commit, file = hub.repos[name].sha("main"), "/cats.safetensors" if tool == "kohya" else ""
        link = f"[{name}{file}](https://huggingface.co/{name}/tree/{commit})"
        assert f"| {link} | {weight} | `{commit}` |" in text
    place = f"hf://me/m{'/m.safetensors' if out.endswith('s') else ''}"
    for words in (*said, "`linear`, with", "rounding error", f"loramerge replay {place} -o again"):
        assert words in text
    how = text.partition("## How to load it")[2].partition("## How to make it again")[0]
    assert not [words for words in unsaid if words.lower() in how.lower()]


@pytest.mark.parametrize("tool", KINDS)
def test_licences_that_differ_are_listed_in_every_format(hub, login, tmp_path, tool):
    names = sources(hub, tool, tmp_path, ("mit", "apache-2.0"))
    lm.combine(names, out=tmp_path / KINDS[tool][0])
    lm.push(tmp_path / KINDS[tool][0], "me/m")
    matter, text = client_card(hub)
    assert (matter["license"], matter["license_name"]) == ("other", "see-the-list-below")
    rows = [line for line in text.splitlines() if line.startswith("* org/")]
    assert [row.rpartition(": ")[2] for row in rows] == ["mit", "apache-2.0", "mit"]


def test_the_card_of_a_merge_with_masks_says_how_a_task_comes_back(hub, login, tmp_path):
    lm.combine(sources(hub, "peft", tmp_path), "mergevla", out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    _, text = client_card(hub)
    assert "of it: `peft1`, `peft2`." in text
    assert "loramerge restore hf://me/m --task NAME -o task" in text
    assert "* cut by the rank, of what the method makes: 0 %" in text


CONVERTED = {
    "diffusers": ("c", "diffusers", ['pipeline.load_lora_weights("me/m")']),
    "kohya": ("c.safetensors", "diffusers", ['weight_name="c.safetensors"', "ComfyUI/models/loras"]),
    "comfy": ("c.safetensors", None, ["ComfyUI/models/loras", "loramerge convert hf://me/m/c.safetensors"]),
}


@pytest.mark.parametrize("form", CONVERTED)
def test_the_card_of_what_was_converted_says_what_is_known(hub, login, tmp_path, form):
    out, library, said = CONVERTED[form]
    lm.convert(sources(hub, "kohya", tmp_path)[0], tmp_path / out, form)
    done = lm.push(tmp_path / out, "me/m")
    assert [note.partition(":")[0] for note in done.notes] == [
        "nothing says its base model, so its card names none"
    ]
    matter, text = client_card(hub)
    assert matter == {
        **({"library_name": library} if library else {}),
        "tags": ["lora", *([library] if library else []), "loramerge"],
    }
    assert all(words in text for words in said)
    assert "replay" not in text


def test_a_form_that_diffusers_refuses_is_not_said_to_be_loaded_by_it(hub, login, tmp_path):
    values = pairs(flat(SD15), alpha=1)
    name = next(key for key in values if key.endswith("lora_down.weight")).partition(".")[0]
    values = {key: value for key, value in values.items() if not key.startswith(f"{name}.")}
    factors = {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)}
    values |= {f"{name}.{part}": np.ones(shape, "f4") for part, shape in factors.items()}
    lm.push(saved(tmp_path / "x" / "loha.safetensors", values), "me/m")
    matter, text = client_card(hub)
    assert "library_name" not in matter
    assert "load_lora_weights" not in text
    assert "ComfyUI/models/loras" in text


def test_a_bare_file_of_peft_is_no_repository_of_peft(hub, login, tmp_path):
    lm.combine(sources(hub, "peft", tmp_path), out=tmp_path / "m.safetensors")
    lm.push(tmp_path / "m.safetensors", "me/m")
    matter, text = client_card(hub)
    assert "library_name" not in matter
    assert "loramerge combine hf://me/m/m.safetensors -o adapter" in text
