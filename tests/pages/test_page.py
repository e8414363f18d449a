"""A page is one file: nothing of a stranger runs in it, and nothing is loaded from outside."""

import base64
import hashlib
import os
import re

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapters.adapter import Held, Slot
from tests.helpers.files import folder, tensors
from tests.pages.reading import read
from tests.pages.subjects import PAIR, STRANGE, SUBJECTS, here

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
TAGS = set(  # all that a page is made of; no stranger's text adds one
    "html head meta link title style body a header h1 h2 button nav ul li main section p figure div label "
    "input script details summary table thead tbody tr th td pre footer datalist option".split()
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return SUBJECTS["hostile"](tmp_path_factory.mktemp("hostile")).html()


def test_strangers_names_are_shown_as_text(hostile):
    found = read(hostile)
    assert {tag for tag, _ in found.tags} == TAGS
    assert sum(tag == "script" and attrs == {} for tag, attrs in found.tags) == 1
    modules = {row[0] for row in found.tables["spectra-table"][1:]}
    for text in STRANGE[:6]:
        assert any(text.replace(".", "%2E") in module for module in modules), text
    cells = [cell for rows in found.tables.values() for row in rows for cell in row]
    assert any(STRANGE[1] in cell for cell in cells), "the base, or a trigger word"
    assert any("\\x1b[31m" in cell for cell in cells), "what a terminal would obey is escaped"
    assert found.tables["origin-table"][1][1:3] == [STRANGE[0], STRANGE[0]]


def test_no_attribute_is_a_handler_or_leads_elsewhere(hostile):
    for tag, attrs in read(hostile).tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "action", "srcset", "formaction", "style")
            if name == "href":
                assert value.startswith("#") or value == "data:,"


def test_the_policy_lets_only_this_script_run_and_loads_nothing(hostile):
    found = read(hostile)
    (said,) = (attrs["content"] for tag, attrs in found.tags
               if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    (code,) = (text for attrs, text in found.raw["script"] if not attrs)
    (look,) = (text for _, text in found.raw["style"])
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest(code)}'"
    assert rules["style-src"] == f"'sha256-{digest(look)}'"
    assert rules["img-src"] == "data:"
    assert not re.search("unsafe|http|\\*", said)
    assert hostile.index("Content-Security-Policy") < hostile.index("<style>")
    assert all(attrs["type"] == "application/json" for attrs, _ in found.raw["script"] if attrs)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_a_page_of_a_model_of_seven_billion_is_below_three_megabytes():
    """As many modules and units as two adapters of rank 32 on all projections of such a model have."""
    kinds = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.{kind}" for i in range(32) for kind in kinds]

    def update() -> lm.LowRank:
        return lm.LowRank(rng.normal(size=(48, 32)), rng.normal(size=(32, 48)))

    made = [lm.Adapter.of({name: update() for name in names}, source) for source in "ab"]
    page = lm.report(made, methods=["svd"])
    assert len(page["spectra"].table) == 2 * 224
    assert len(page.html().encode()) < 3e6


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    page = lm.report([here(tmp_path) / PAIR[0]])
    out = page.save(tmp_path / "page.html")
    assert out.read_text(encoding="utf-8") == page.html()
    with pytest.raises(lm.OutputError, match="exists"):
        page.save(out)
    assert page.save(out, overwrite=True) == out


@pytest.mark.parametrize("at", ["drawn", "written"])
def test_a_source_that_changes_before_the_page_is_written_leaves_no_page(tmp_path, monkeypatch, at):
    from loramerge.errors import SourceError
    from loramerge.pages import report as module
    from loramerge.pages.page import Page

    where, real, html = tmp_path / "a", module.Page, Page.html
    folder(where, tensors())
    weights, acted = where / "adapter_model.safetensors", []

    def saved_over():
        if not acted:
            acted.append(weights.write_bytes(weights.read_bytes()[:-1] + b"\1"))

    if at == "drawn":
        monkeypatch.setattr(module, "Page", lambda *args: (saved_over(), real(*args))[1])
    else:
        monkeypatch.setattr(Page, "html", lambda page: (saved_over(), html(page))[1])
    with pytest.raises(SourceError, match="was changed"):
        lm.report([where], methods=["svd"], out=tmp_path / "page.html")
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_report_writes_where_it_is_told(tmp_path):
    page = lm.report([here(tmp_path) / name for name in PAIR], methods=["svd"], out=tmp_path / "page.html")
    assert page.title in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(lm.OutputError, match="exists"):
        lm.report([tmp_path / "nothing"], out=tmp_path / "page.html")


def test_a_page_in_the_folder_of_a_source_is_refused_before_it_is_made(tmp_path, monkeypatch):
    where = folder(tmp_path / "a", tensors())
    monkeypatch.setattr("loramerge.pages.report.page_of", lambda subject: pytest.fail("it was made"))
    with pytest.raises(lm.OutputError, match=r"lies in the folder of .*a, which is merged"):
        lm.report([where], methods=["svd"], out=where / "page.html")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"methods": ["nonsense"]}, "nonsense"),
        ({"dtype": "float32"}, "dtype is not for report"),
        ({"exclude": "."}, "No module is left"),
    ],
)
def test_what_a_page_cannot_be_asked_is_a_sentence(tmp_path, said, words):
    with pytest.raises(lm.UsageError, match=re.escape(words)):
        lm.report([here(tmp_path) / PAIR[0]], **said)


def test_what_lacks_a_library_is_told_the_extra(monkeypatch, tmp_path):
    from loramerge.charts import draw
    from loramerge.pages import bundle

    monkeypatch.setattr(bundle, "find_spec", lambda name: None)
    with pytest.raises(lm.UsageError, match=r"A page needs altair and vl_convert: .*loramerge\[report\]"):
        lm.report([tmp_path / "nothing"], out=tmp_path / "page.html")
    monkeypatch.setitem(__import__("sys").modules, "altair", None)
    with pytest.raises(lm.UsageError, match=r"loramerge\[plot\]"):
        draw.altair()


def test_a_merge_plots_its_spectra_overlaps_and_losses(tmp_path):
    made = lm.combine([here(tmp_path) / name for name in PAIR], "svd", rank=4)
    rows = made.plot.spectra().to_dict()["data"]["values"]
    assert {row["source"] for row in rows} == {"1 a.safetensors", "2 b.safetensors", "the merge"}
    assert made.plot.overlaps().to_dict()["data"]["values"][0]["2"] == made.report.pairwise[0][1]
    assert len(made.plot.layers().to_dict()["data"]["values"]) == len(made.report.modules)
    alone = lm.combine([here(tmp_path) / PAIR[0]], "svd", rank=4)
    with pytest.raises(lm.UsageError, match="No two of the sources"):
        alone.plot.pairs()


def test_the_parts_of_a_page_are_short_in_a_shell_and_tables_in_a_notebook(tmp_path):
    page = SUBJECTS["pair"](tmp_path)
    for part in (page, page["overlaps"], page["overlaps"].table, page.plot):
        assert len(repr(part)) < 160
        assert "<table>" in part._repr_html_()


def test_plot_spectra_is_the_chart_of_an_inspection(tmp_path):
    facts = lm.inspect(here(tmp_path) / PAIR[0])
    rows = lm.plot_spectra(facts).to_dict()["data"]["values"]
    assert {row["module"] for row in rows} == {module.name for module in facts.modules}

    class Axes:
        lines, said = 0, None

        def plot(self, x, y, **_):
            assert len(x) == len(y)
            self.lines += 1

        def set(self, **said):
            self.said = said

    axes = lm.plot_spectra(facts, Axes())
    assert (axes.lines, axes.said["yscale"]) == (len(facts.modules), "log")


@pytest.mark.parametrize(
    ("component", "path", "family"),
    [
        ("transformer", "single_transformer_blocks.3.attn.to_q", "Flux"),
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "Stable Diffusion"),
        ("model", "transformer.h.0.attn.q_proj", "GPTJ"),
        ("model", "model.layers.0.self_attn.q_proj", None),
        ("transformer", "strange.to_q", None),
    ],
)
def test_the_family_is_told_by_the_names_of_modules(component, path, family):
    one = lm.LowRank(np.eye(2), np.eye(2))
    made = lm.Adapter("x", {lm.Target(path, component=component): Slot(Held(one.up), Held(one.down), 1.0)})
    assert lm.report([made], methods=["svd"])["sources"].table.column("family") == [family]


def test_trigger_words_are_those_of_header_card_and_captions(tmp_path):
    from loramerge.pages.triggers import triggers
    from tests.helpers.files import bare

    said = bare(tmp_path / "a.safetensors", tensors(), {"modelspec.trigger_phrase": "a sks dog"})
    tags = bare(tmp_path / "b.safetensors", tensors(),
                {"ss_tag_frequency": '{"10_x": {"dog": 3, "sks": 9, "a": 1, "b": 1}, "y": 3}'})  # fmt: skip
    odd = bare(tmp_path / "c.safetensors", tensors(), {"ss_tag_frequency": "[" * 5000})
    assert triggers(lm.load(said, 4)) == ["a sks dog"]
    assert triggers(lm.load(tags, 4))[:2] == ["sks", "dog"]
    assert triggers(lm.load(odd, 4)) == []
    (tmp_path / "README.md").write_text('---\ninstance_prompt: "photo of sks"\n---\n')
    assert triggers(lm.load(odd, 4)) == ["photo of sks"]
