"""What a model card says in its author's own words: no front matter, no code, nothing of the templates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from loramerge.adapters.original import read_text

CARD = "README.md"
LIMIT = 2**20
FRONT = re.compile(r"\A\s*---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
NOISE = re.compile(r"<!--.*?(?:-->|\Z)|^(```|~~~).*?(?:^\1|\Z)", re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"!\[[^][]{0,500}\]\([^)]{0,1000}\)")  # bounds, here and below: a card is a stranger's
LINK = re.compile(r"\[([^][]{0,500})\]\([^)]{0,1000}\)")
TAG, HEADING = re.compile(r"<[^>\n]{1,200}>"), re.compile(r"(#{1,6})\s+(.*)")
LABEL = re.compile(r"[-*]?\s*\*\*([^*]{1,100}?):?\*\*:?\s*(.*)|[-*]\s+([^:]{1,60}):\s*(.*)")
NOTHING = {"", "more information needed", "needs more information", "todo", "n a", "na", "tbd", "none"}
METRIC = re.compile(r"[-*]\s+[\w ./@-]{1,60}:\s*[-+]?\d[\d.,e+-]*\s*%?")

MACHINERY = {  # sections that tools write and that say nothing of what an adapter is good at
    "framework versions", "training hyperparameters", "training results", "training procedure",
    "quick start", "citation", "citations", "environmental impact", "technical specifications",
    "model card authors", "model card contact",
    "speeds, sizes, times", "compute infrastructure", "how to get started with the model",
    "model sources", "glossary", "bibtex", "hardware", "software",
}  # fmt: skip
HEADS = {  # headings of the Hub's templates
    "model details", "model description", "uses", "direct use", "downstream use", "out-of-scope use",
    "bias, risks, and limitations", "recommendations", "training details", "training data", "evaluation",
    "preprocessing", "testing data, factors & metrics", "testing data", "factors", "metrics", "results",
    "summary", "model examination", "model architecture and objective", "more information",
    "intended uses & limitations", "training and evaluation data", "model id", "model card", "description",
}  # fmt: skip
SENTENCES = (  # of the templates, in lower case
    "users (both direct and downstream) should be made aware of",
    "this model card has been generated automatically",
    "this modelcard aims to be a base template",
    "use the code below to get started",
    "more information needed",
    "it achieves the following results on the evaluation set",
    "it has been trained using trl",
    "this is the model card of a",
)
UNKNOWN = re.compile(
    r"this model is a fine-tuned version of .{0,200}? on (?:an unknown|the none) dataset\W*", re.I
)


def card(folder: Path, name: str) -> str | None:
    """The text of the model card in a folder; empty if it is only a template, None if there is none.

    Raises:
        SourceError: it cannot be read.
    """
    if not os.path.lexists(folder / CARD):
        return None
    raw = read_text(folder / CARD, f"{CARD} of {name}", LIMIT)
    return said(raw[:LIMIT].decode("utf-8-sig", "replace"))


def said(text: str) -> str:
    """The words of a card's author, one line each.

    >>> said("---\\nlicense: mit\\n---\\n# Model Card for sql\\n\\nTurns *questions* into [SQL](https://x.y).")
    'sql\\nTurns questions into SQL.'
    >>> said("# Model Card for Model ID\\n<!-- in short -->\\n- **Developed by:** [More Information Needed]")
    ''
    """
    text = NOISE.sub("", FRONT.sub("", text.replace("\r\n", "\n")))
    lines = map(_plain, _sections(text.splitlines()))
    return "\n".join(line for line in lines if line)


def _sections(lines: Iterable[str]) -> Iterable[str]:
    """The lines outside of sections that only machinery writes."""
    skipped = 7
    for line in lines:
        heading = HEADING.match(line.strip())
        if heading:
            depth = len(heading[1])
            if depth <= skipped:
                skipped = depth if _title(heading[2]) in MACHINERY else 7
        if skipped == 7:
            yield line


def _title(text: str) -> str:
    text = text[:200]
    return re.sub(r"\[optional\]|\W+$", "", _unmarked(text).lower()).strip().rstrip(":")


def _unmarked(text: str) -> str:
    """Without links, images, tags and emphasis."""
    text = TAG.sub("", LINK.sub(r"\1", IMAGE.sub("", text)))
    return re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).strip()


def _nothing(text: str) -> bool:
    return " ".join(re.findall(r"\w+", text.lower())) in NOTHING


def _plain(line: str) -> str:
    line = line.strip()
    if not line:
        return ""
    if heading := HEADING.match(line):
        title = re.sub(r"(?i)^model card for\s+", "", _unmarked(heading[2]))
        return "" if _title(title) in HEADS else title
    if (label := LABEL.match(line)) and _nothing(_unmarked(label[2] if label[1] else label[4])):
        return ""
    line = UNKNOWN.sub("", _unmarked(line))
    if _nothing(line) or METRIC.fullmatch(line) or any(sentence in line.lower() for sentence in SENTENCES):
        return ""
    return line
