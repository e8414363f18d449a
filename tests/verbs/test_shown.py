"""Every public value is shown on one screen, in a terminal and in a notebook."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Provenance
from tests.helpers.models import random_model, save_model

LONG = 600  # characters of a repr
LINES = 30  # of what print shows


def large(seed):
    rng = np.random.default_rng(seed)
    unit = [lm.LowRank(rng.standard_normal((64, 8)), rng.standard_normal((8, 64))) for _ in range(4)]
    return lm.Adapter.of({f"model.layers.{i}.self_attn.q_proj": unit[i % 4] for i in range(40)}, f"a{seed}")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    here = tmp_path_factory.mktemp("shown")
    before, changed = random_model(), "model.layers.0.self_attn.q_proj.weight"
    save_model(here / "base", before)
    save_model(here / "tuned", {**before, changed: before[changed] + 1})
    extracted = lm.extract(here / "tuned", here / "base", rank=1)
    pair = large(0), large(1)
    merge, many = lm.combine(pair, "svd", rank=4), [large(n) for n in range(30)]
    lm.save(pair[0], here / "a")
    session = lm.open(pair)
    return {
        "Adapter": pair[0],
        "BaseModel": pair[0].base,
        "Provenance": lm.load(here / "a").provenance,
        "LowRank": next(iter(pair[0].values())),
        "Target": next(iter(pair[0])),
        "METHODS": lm.METHODS,
        "Method": lm.only(lm.Lego(rank=2), "q"),
        "Tuned": lm.Tuned("tuned", "base"),
        "Finding": lm.check(here / "a", "comfyui")[0],
        "Plan": merge.plan,
        "Report": lm.combine(many).report,
        "Merge": merge,
        "Session": session,
        "Opened": session,
        "Effort": lm.Effort(),
        "Request": lm.Request(size="20MB", only="q_proj"),
        "Ramp": lm.Ramp(0, 1),
        "Rule": lm.Rule("q", rank=1),
        "Conversion": lm.convert(here / "a", here / "b", "mlx", dtype="float32"),
        "Difference": lm.diff(*pair),
        "Extraction": extracted,
        "Fusion": lm.fuse(extracted.adapter, here / "base", here / "fused"),
        "Inspection": lm.inspect(pair[0]),
        "Bundle": lm.route(pair),
        "Page": lm.report(merge),
    }


def classes():
    """Public names that are classes of values; methods are all alike."""
    for name in lm.__all__:
        value = getattr(lm, name)
        if not isinstance(value, type) or issubclass(value, Exception) or issubclass(value, lm.Method):
            continue
        yield name


def test_every_public_class_is_shown_here(values):
    assert {*classes(), "METHODS", "Method"} == values.keys()
    assert isinstance(values["Provenance"], Provenance)


@pytest.mark.parametrize("name", [*classes(), "METHODS", "Method"])
def test_it_fits_a_screen(values, name):
    value = values[name]
    assert 0 < len(repr(value)) < LONG
    assert "\n" not in repr(value)
    assert 0 < len(str(value).splitlines()) < LINES
    assert " object at 0x" not in repr(value)


def cells(shown):
    """The rows of all tables in some HTML."""
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", shown)]


@pytest.mark.parametrize("name", [*classes(), "METHODS", "Method"])
def test_a_notebook_shows_a_table(values, name):
    shown = values[name]._repr_html_()
    assert "<table>" in shown
    assert not re.search("<pre|<style|<script|style=|class=", shown), "what a conversion may lose"
    assert shown.isprintable()
    for table in re.findall(r"<table>.*?</table>", shown):
        rows = cells(table)
        assert 2 <= len(rows) < (LINES if name != "METHODS" else 50)
        assert len(set(map(len, rows))) == 1, "every row has all columns"


class Tags(HTMLParser):
    """Every tag of some HTML, with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.add((tag, *attrs))


KEPT = {"table", "tr", "th", "td", "p", "h3", "br"}  # by nbconvert, GitHub and mail programs


@pytest.mark.parametrize("name", [*classes(), "METHODS", "Method"])
def test_a_table_is_made_of_what_every_conversion_keeps(values, name):
    assert Tags(values[name]._repr_html_()).found <= {(tag,) for tag in KEPT}


@pytest.mark.parametrize("name", ["Report", "Difference", "Inspection", "Extraction", "Conversion"])
def test_a_frame_has_a_row_for_each_module(values, name):
    pytest.importorskip("pandas")
    value = values[name]
    rows = (value.difference if name == "Conversion" else value).modules
    frame = value.to_frame()
    assert len(frame) == len(rows)
    assert list(frame["name"]) == [str(getattr(each, "name", None) or each.target) for each in rows]


def test_a_frame_of_a_fusion_has_a_row_for_each_tensor(values):
    pytest.importorskip("pandas")
    frame = values["Fusion"].to_frame()
    assert list(frame["name"]) == [each.name for each in values["Fusion"].tensors]
    assert (frame["norm"] > 0).all()


def test_what_is_looked_at_in_passing_is_a_table_too(values):
    pytest.importorskip("pandas")
    bundle = values["Bundle"]
    seen = bundle.explain(next(iter(bundle)), np.ones((3, 64)))
    assert cells(seen._repr_html_())[0] == ["expert", "score", "weight", "units firing", "first for"]
    assert len(seen.to_frame()) == 3 * 16
    assert {"module", "source"} <= set(values["Page"]["spectra"].table.to_frame())


def test_without_pandas_the_answer_says_what_to_install(values, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(lm.UsageError, match="pip install pandas"):
        values["Report"].to_frame()


def test_a_request_says_what_differs_from_the_usual(values):
    assert repr(values["Request"]) == "Request(only='q_proj', size='20MB')"
    assert eval(repr(values["Request"]), {"Request": lm.Request}) == values["Request"]
    assert repr(lm.Request(out="m")) == f"Request(out={Path('m')!r})"
