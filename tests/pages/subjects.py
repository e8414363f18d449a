"""What pages are about in the tests: name -> a function that makes the page in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import loramerge as lm
from loramerge.pages.page import Page
from tests.helpers.adapters import random_adapters
from tests.helpers.files import SHAPES, bare, folder, key, tensors

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PAIR = ["fixtures/a.safetensors", "fixtures/b.safetensors"]
STRANGE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "\"><svg onload=document.title='owned'>",
    "'+(document.title='owned')+'",
    "${document.title='owned'}",
    "javascript:document%2Etitle='owned'",
    "&lt;b&gt;\u2028\x1b[31m",
    "http://example%2Ecom/<!--",
)  # fmt: skip


def here(place: Path) -> Path:
    """The folder with the fixtures in it, as README's commands expect them."""
    if not (place / "fixtures").exists():
        shutil.copytree(FIXTURES, place / "fixtures")
    return place


def pair(place: Path) -> Page:
    return lm.report([str(here(place) / name) for name in PAIR])


def one(place: Path) -> Page:
    return lm.report([here(place) / PAIR[0]])


def merge(place: Path) -> Page:
    made = lm.combine([here(place) / name for name in PAIR], "ties", rank=4, weights=[1, 0.5])
    return lm.report(made, methods=["svd", "lego"])


def merged_source(place: Path) -> Page:
    """A folder that was merged, and one of its sources."""
    lm.combine([here(place) / name for name in PAIR], "svd", out=place / "both", rank=4)
    return lm.report([place / "both", place / PAIR[0]], methods=["svd"])


def many(place: Path) -> Page:
    """More sources than there are colours; one lacks modules."""
    made = random_adapters(0, [2] * 24, {f"model.layers.{i}.{n}": (7, 9) for i in range(3) for n in "qv"})
    return lm.report(made, methods=["svd", "slerp"])


def in_memory(place: Path) -> Page:
    return lm.report(random_adapters(1, (2, 3)), methods=["svd"])


def of_two_models(place: Path) -> Page:
    """They cannot be merged, and still they have a page."""
    folder(place / "tiny", tensors(0))
    folder(place / "other", tensors(1), base_model_name_or_path="other")
    return lm.report([place / "tiny", place / "other"])


def unread(place: Path) -> Page:
    """One of the sources is DoRA, which is not merged."""
    values = tensors(0)
    values |= {key(path, "A").replace("lora_A.weight", "lora_magnitude_vector"): np.ones(outs, np.float32)
               for path, (outs, _) in SHAPES.items()}  # fmt: skip
    folder(place / "dora", values, use_dora=True)
    folder(place / "plain", tensors(1))
    return lm.report([place / "dora", place / "plain"])


def unread_alone(place: Path) -> Page:
    """Nothing of it can be measured."""
    folder(place / "dora", tensors(0), use_dora=True)
    return lm.report([place / "dora"])


def zero(place: Path) -> Page:
    """As before training: every norm is 0, and so no cosine is a number."""
    nothing = {name: 0 * value for name, value in tensors(0).items()}
    folder(place / "untrained", nothing)
    folder(place / "trained", tensors(1))
    return lm.report([place / "untrained", place / "trained"], methods=["svd"])


def hostile(place: Path) -> Page:
    """All that a stranger can write into files and their names: modules, base, header, card, record."""
    shapes = {f"layers.{i}.{text.replace('.', '%2E')}": (6, 5) for i, text in enumerate(STRANGE)}
    made = []
    for i, text in enumerate(STRANGE[:3]):
        where = place / text.replace("/", "∕")
        folder(where, tensors(i, shapes=shapes), base_model_name_or_path=STRANGE[1], task_type=text)
        (where / "README.md").write_text(f"---\ninstance_prompt: {text}\n---\n")
        said = {
            "sources": [{"name": text, "weight": 1}],
            "method": {"name": text},
            "report": {"sources": text},
        }
        (where / "loramerge.json").write_text(json.dumps(said))
        made.append(where)
    header = {"modelspec.trigger_phrase": STRANGE[0], "ss_tag_frequency": json.dumps({"x": {STRANGE[1]: 3}})}
    made.append(bare(place / "last.safetensors", tensors(4, shapes=shapes), header))
    return lm.report(made, alpha={"last.safetensors": 4}, methods=["svd"], allow_base_mismatch=True)


SUBJECTS: Mapping[str, Callable[[Path], Page]] = {
    made.__name__: made
    for made in (
        pair,
        one,
        merge,
        merged_source,
        many,
        in_memory,
        of_two_models,
        unread,
        unread_alone,
        zero,
        hostile,
    )
}
