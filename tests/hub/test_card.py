"""The card says what was merged and how; text of others is shown in it, and does nothing."""

import ast
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import loramerge as lm
from loramerge.errors import printable
from loramerge.hub.card import write
from loramerge.hub.escape import code, markdown, quoted
from loramerge.hub.front_matter import CardSource, Facts, agreed
from tests.helpers.files import folder, tensors
from tests.hub.loopback import files_of

BASE = "org/base"
LLAMA = {f"model.layers.0.self_attn.{name}_proj": (6, 5) for name in "qkvo"}  # which vLLM has places for


def parts(card):
    """The front matter as values, and the text."""
    _, matter, text = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(matter), text


def pushed(hub, name="me/m"):
    return parts(hub.repos[name].files()["README.md"].decode())


@pytest.fixture
def a(hub, tmp_path, login):
    """`org/a` on the Hub (MIT), of the base `org/base` (MIT), and `b` here."""
    settings = {"base_model_name_or_path": BASE, "task_type": "CAUSAL_LM"}
    files = files_of(folder(tmp_path / "a", tensors(1, shapes=LLAMA), **settings))
    folder(tmp_path / "b", tensors(2, shapes=LLAMA), **settings)
    hub.add(BASE, {"README.md": b"---\nlicense: mit\n---\n"})
    return hub.add("org/a", {**files, "README.md": b"---\nlicense: mit\n---\n"})


def test_the_front_matter_of_a_merge(hub, a, tmp_path):
    lm.combine(["org/a"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    matter, _ = pushed(hub)
    assert matter == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["lora", "peft", "merge", "loramerge", f"base_model:adapter:{BASE}"],
    }


def test_the_client_of_the_hub_reads_it(hub, a, tmp_path):
    from huggingface_hub import ModelCard

    lm.combine(["org/a"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    card = ModelCard(hub.repos["me/m"].files()["README.md"].decode())
    assert card.data.base_model == BASE
    assert card.data.license == "mit"
    assert card.data.to_dict()["base_model_relation"] == "adapter"


def test_the_text_names_sources_method_figures_and_ways_on(hub, a, tmp_path):
    merge = lm.combine(["org/a", tmp_path / "b"], "svd", weights=[0.75, -2], rank=2, out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    _, text = pushed(hub)
    mark = lm.load(tmp_path / "b").provenance.sha256()["adapter_model.safetensors"]
    for words in (
        f"A LoRA adapter of [org/base](https://huggingface.co/{BASE}), merged from others by loramerge: 4",
        f"| [org/a](https://huggingface.co/org/a/tree/{a}) | 0.75 | `{a}` |",
        f"| b | -2 | `{mark}` |",
        "`svd`, with\n\n* ",
        "* rank: `2`\n",
        f"energy lost, of the weighted sum of the updates: {100 * merge.report.energy_lost:.3g} %",
        f"| a | {merge.report.cosines[0]:.3f} | {merge.report.norm_ratios[0]:.3f} |",
        f'model = AutoModelForCausalLM.from_pretrained("{BASE}")\nmodel = PeftModel.from_pretrained(model, ',
        'model.load_adapter("me/m")',
        "loramerge replay hf://me/m -o again",
        "`--source NAME=PATH` says where they lie",
    ):
        assert words in text


def test_vllm_is_named_where_it_has_a_place_for_the_model(hub, login, tmp_path):
    for base, is_named in (("Qwen/Qwen3-4B", True), (BASE, False), ("openai-community/gpt2", False)):
        hub.add(base, {"README.md": b"---\nlicense: mit\n---\n"})
        name = base.rpartition("/")[2]
        place = folder(tmp_path / name, tensors(1, shapes=LLAMA), base_model_name_or_path=base)
        lm.combine([place], out=tmp_path / f"{name} merged")
        lm.push(tmp_path / f"{name} merged", f"me/{name}")
        _, text = pushed(hub, f"me/{name}")
        serve = f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules {name}=me/{name}"
        assert (serve in text) is is_named


def test_the_python_in_it_is_python(hub, a, tmp_path):
    lm.combine(["org/a"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    blocks = re.findall(r"```python\n(.*?)```", pushed(hub)[1], re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


LICENCES = {
    "all agree": (["mit", "mit"], "mit", "mit"),
    "the base is not known": (["mit", "mit"], None, "mit"),
    "two differ": (["mit", "apache-2.0"], None, None),
    "one says nothing": (["mit", None], "mit", None),
    "none says anything": ([None, None], None, None),
    "only the base says one": ([None], "mit", None),
    "the base differs": (["mit", "mit"], "llama3.1", None),
}


@pytest.mark.parametrize(("sources", "base", "licence"), LICENCES.values(), ids=LICENCES)
def test_a_licence_is_written_only_where_all_agree(sources, base, licence):
    named = tuple(CardSource(f"s{i}", "1", licence=each) for i, each in enumerate(sources))
    facts = Facts("me/m", 1, 1, "float32", base=BASE, base_licence=base, sources=named)
    assert agreed(facts) == licence
    matter, text = parts(write(facts))
    assert matter["license"] == (licence or "other")
    assert ("license_name" in matter) == (licence is None)
    for i, each in enumerate(sources):
        assert f"* s{i}: {each or 'not said'}" in text
    assert f"* org/base (base): {base or 'not said'}" in text


def test_a_licence_with_a_name_of_its_own_keeps_it():
    named = (CardSource("s", "1", licence="other (Llama 3 Community: v1)"),)
    matter, _ = parts(write(Facts("me/m", 1, 1, "float32", sources=named)))
    assert (matter["license"], matter["license_name"]) == ("other", "llama-3-community-v1")


def test_licences_of_sources_and_base_are_asked_for(hub, a, tmp_path):
    hub.add("org/b", {**files_of(tmp_path / "b"), "README.md": b"---\nlicense: apache-2.0\n---\n"})
    lm.combine(["org/a", "org/b"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    matter, text = pushed(hub)
    assert matter["license"] == "other"
    for line in ("* org/a: mit", "* org/b: apache-2.0", "* org/base (base): mit"):
        assert line in text
    assert "The terms of all of these apply." in text
    assert "`level`, the default, with" in text


def test_a_licence_in_the_card_of_a_local_folder_counts(hub, a, tmp_path):
    (tmp_path / "b/README.md").write_text("---\ntags:\n- x\nlicense: 'gpl-3.0'  # mine\n---\nlicense: mit\n")
    assert lm.load(tmp_path / "b").provenance.licence == "gpl-3.0"
    (tmp_path / "b/README.md").write_text("license: mit\n")
    assert lm.load(tmp_path / "b").provenance.licence is None
    (tmp_path / "b/README.md").write_text("---\nlicense: other\nlicense_name: my-terms\n---\n")
    assert lm.load(tmp_path / "b").provenance.licence == "other (my-terms)"


HOSTILE = [
    "x\nlicense: mit\n---\n# owned",
    '"}\nlicense: mit',
    "a | b | c",
    "](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<!-- ",
    "`x` `` y",
    "```\n# heading\n```",
    "![x](http://evil/x.png)",
    "http://evil.example www.evil.example mail@evil.example",
    "**bold** _it_ ~~s~~ $x$",
    "{{ jinja }} {% if %}",
    "\x1b[31mred\u202etxt",
    "&lt;img src=x onerror=alert(1)&gt;",
    "\\|",
    "x" * 5000,
]


def hostile(text):
    """Facts with this text wherever others may put some."""
    source = CardSource(text, text, hub=text, commit=text, sha256=text, licence=text)
    report = {
        "energy_lost": text,
        "rounding_error": text,
        "sources": [{"name": text, "cosine": text, "norm_ratio": text}, text],
    }
    said = {text: text, "rank": text}
    return Facts(
        "me/m",
        1,
        1,
        text,
        base=text,
        base_licence=text,
        task=text,
        sources=(source,),
        method=text,
        options=said,
        settings=said,
        report=report,
        versions={"loramerge": text},
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_of_others_does_nothing_in_the_card(text):
    card, plain = write(hostile(text)), write(hostile("harm less"))
    matter, body = parts(card)
    usual, _ = parts(plain)
    assert matter.keys() == usual.keys()
    assert matter["license"] == "other"
    assert matter["tags"] == ["lora", "peft", "merge", "loramerge"]
    assert card.count("\n---\n") == 1, "the front matter ends where it ended"
    assert body.count("\n## ") == parts(plain)[1].count("\n## "), "no headings of others"
    assert len(body.splitlines()) == len(parts(plain)[1].splitlines()), "no lines of others"
    assert all(line.isprintable() for line in card.splitlines())
    body = body.replace("<!-- written by loramerge push -->", "")
    unfenced = re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"(?<!\\)(`+) .*? \1|(?<!\\)`[^`\n]*`", "", unfenced)
    assert "<" not in outside
    assert not re.search(r"(?<!\\)[\[\]*!](?!\s)", re.sub(r"^\* ", "", outside, flags=re.MULTILINE))
    assert not re.search(r"(?i)\w://|\bwww\.|[^\\]@", outside)
    for row in (line for line in body.splitlines() if line.startswith("|")):
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 5, row


def test_a_hostile_record_is_pushed_as_a_harmless_card(hub, a, tmp_path):
    lm.combine(["org/a"], out=tmp_path / "m")
    path = tmp_path / "m/loramerge.json"
    record = json.loads(path.read_text())
    text = "](http://evil)\n---\n<script>"
    record["sources"][0] |= {"name": text, "hub": text, "licence": text, "weight": {"from": text, "to": text}}
    record["method"] = {"name": text, "options": {text: text}}
    path.write_text(json.dumps(record))
    lm.push(tmp_path / "m", "me/m")
    card = hub.repos["me/m"].files()["README.md"].decode()
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", card)
    assert card.count("\n---\n") == 1


def test_a_base_on_somebodys_disk_is_not_named_as_one_of_the_hub(hub, login, tmp_path):
    folder(tmp_path / "x", tensors(1), base_model_name_or_path="/home/somebody/models/llama")
    lm.combine([tmp_path / "x"], out=tmp_path / "m")
    lm.push(tmp_path / "m", "me/m")
    matter, text = pushed(hub)
    assert "base_model" not in matter
    assert "A LoRA adapter of llama, merged" in text
    assert "somebody" not in text


def test_the_card_of_an_image_adapter_is_for_diffusers():
    matter, text = parts(
        write(
            Facts(
                "me/m",
                1,
                1,
                "float32",
                base=BASE,
                place="x.safetensors",
                library="diffusers",
                loaders=("diffusers", "comfyui"),
            )
        )
    )
    assert (matter["library_name"], matter["tags"][:2]) == ("diffusers", ["lora", "diffusers"])
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 'pipeline.load_lora_weights("me/m", weight_name="x.safetensors")' in block
    compile(block, "card", "exec")
    assert "hf download me/m x.safetensors --local-dir ComfyUI/models/loras" in text
    assert "peft" not in text.lower()


def test_a_bare_file_is_told_how_to_become_a_folder(hub, a, tmp_path):
    lm.combine(["org/a"], out=tmp_path / "m.safetensors")
    lm.push(tmp_path / "m.safetensors", "me/m")
    _, text = pushed(hub)
    assert "loramerge combine hf://me/m/m.safetensors -o adapter" in text
    assert "loramerge replay hf://me/m/m.safetensors -o again" in text
    assert "from_pretrained" not in text


@given(st.text())
def test_quoted_text_is_itself_in_yaml_and_in_python(text):
    shown = printable(text)
    assert yaml.safe_load(f"x: {quoted(text)}") == {"x": shown}
    assert ast.literal_eval(quoted(text)) == shown


@given(st.text(alphabet=st.sampled_from("\\\\|`[]<>*ab:/ \n\x1b\u202e")) | st.text())
def test_escaped_text_stays_on_its_line_and_in_its_cell(text):
    assert markdown(text).isprintable()
    assert code(text).isprintable()
    assert not re.search(r"(?<!\\)(\\\\)*\|", markdown(text))
    assert not re.search(r"[<>]|\w://", markdown(text))
    assert re.fullmatch(r"(`+) ?.*? ?\1", code(text))


@given(st.text(alphabet="`ab ", max_size=12))
def test_code_ends_where_it_should(text):
    ticks = re.match("`+", code(text))[0]
    inside = code(text).removeprefix(ticks).removesuffix(ticks)
    assert len(ticks) not in [len(run) for run in re.findall("`+", inside)]
