"""A model card is what its author wrote in it: templates and machinery say nothing."""

import re
from pathlib import Path

import huggingface_hub
import pytest

from loramerge.errors import SourceError
from loramerge.formats.cards.readme import card, said


def hub_template():
    """The Hub's template as its library fills it in when nothing is known."""
    text = (Path(huggingface_hub.__file__).parent / "templates" / "modelcard_template.md").read_text()
    text = re.sub(r"\{\{ *model_id[^}]*\}\}", "Model ID", text)
    return re.sub(r"\{\{[^}]*\}\}", "[More Information Needed]", text)


NOTHING = {
    "nothing": "",
    "blanks": " \n\t\n",
    "front matter alone": "---\nlicense: mit\ntags: [sql]\n---\n",
    "front matter without an end of line": "---\na: b\n---",
    "the template of the Hub": hub_template(),
    "a comment": "<!-- This adapter\nwrites SQL. -->",
    "a comment without an end": "<!-- This adapter writes SQL.",
    "code": "```python\nwrite('sql')\n```\n~~~\nsql\n~~~",
    "an image": "![a plot](plot.png)",
    "headings of the template": "# Model Card for Model ID\n## Uses\n### Direct Use\n#### Metrics\n",
    "labels without values": "- **By:** [More Information Needed]\n- **License:** N/A\n- Author: TODO",
    "a trainer that knows nothing": (
        "This model is a fine-tuned version of [gpt2](https://huggingface.co/gpt2) on an unknown dataset.\n"
        "It achieves the following results on the evaluation set:\n- Loss: 0.1\n- F1: 93.5%\n"
        "## Training procedure\n### Training hyperparameters\nlr 1\n### Framework versions\n- PEFT 0.9\n"
    ),
}


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_a_template_says_nothing(text):
    assert said(text) == ""
    assert said(text.replace("\n", "\r\n")) == ""


WORDS = {
    "a title": ("# sql-lora", "sql-lora"),
    "a title of the template's form": ("# Model Card for sql-lora", "sql-lora"),
    "text after front matter": ("---\na: b\n---\nWrites SQL.", "Writes SQL."),
    "a rule that is no front matter": ("Writes\n---\nSQL", "Writes\nSQL"),
    "links and emphasis": ("Writes **fast** [SQL](https://x.y) `now`.", "Writes fast SQL now."),
    "snake_case is no emphasis": ("for my_big_table _indeed_", "for my_big_table indeed"),
    "a label with a value": ("- **Language(s) (NLP):** German", "- Language(s) (NLP): German"),
    "text under the template's headings": ("## Uses\n\nWriting SQL.", "Writing SQL."),
    "a section after a machine's": ("## Citation\n@x\n### BibTeX\ny\n## Notes\nSQL", "Notes\nSQL"),
    "a known dataset": (
        "This model is a fine-tuned version of gpt2 on the imdb dataset.",
        "This model is a fine-tuned version of gpt2 on the imdb dataset.",
    ),
    "another language": ("# Übersetzt\n日本語を書く", "Übersetzt\n日本語を書く"),
}


@pytest.mark.parametrize(("text", "words"), WORDS.values(), ids=WORDS)
def test_what_the_author_wrote_is_kept(text, words):
    assert said(text) == words


def test_a_card_that_peft_writes_says_nothing(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(2, 2)), peft.LoraConfig(target_modules=["0"])
    )
    model.save_pretrained(tmp_path)
    assert "Model Card for" in (tmp_path / "README.md").read_text()
    assert card(tmp_path, "x") == ""


def test_no_card_is_not_an_empty_card(tmp_path):
    assert card(tmp_path, "x") is None
    assert card(tmp_path / "file" / "below", "x") is None
    (tmp_path / "README.md").write_bytes(b"\xef\xbb\xbf---\na: b\n---\nWrites \xff SQL.")
    assert card(tmp_path, "x") == "Writes \ufffd SQL."


def test_a_card_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "README.md").mkdir()
    with pytest.raises(SourceError, match=r"README.md of x\\x1b is not a file"):
        card(tmp_path, "x\x1b")


@pytest.mark.parametrize(
    "text", ["#" * 10**6, "[" * 10**6, "<!--" * 10**5, "**" * 10**5, "---\n" * 10**5, "- " * 10**5]
)
def test_a_hostile_card_takes_no_long_time(text):
    assert said(text) is not None
