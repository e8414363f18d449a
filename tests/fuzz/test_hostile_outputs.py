"""One hostile text in every name, through everything that shows a value: notebooks, frames, charts, pages."""

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms.method import Method
from loramerge.hub.commits import Pushed
from tests.fuzz.test_hostile_names import HOSTILE, NAME, html, terminal
from tests.helpers.files import CONFIG, folder, tensors
from tests.helpers.models import random_model, save_model

pytest.importorskip("altair")
INSIDE = HOSTILE.replace("\r\n", "") + "</script><!--$\\frac$"
SHAPES = {f"layers.{i}.{part}": (16, 16) for i in range(2) for part in (f"q_proj{INSIDE}", "v_proj")}
PACKAGE = Path(lm.__file__).parent
SEEN = "svg g path text rect line title defs clipPath linearGradient stop style"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Values that hold the names, of every class that shows itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shown"))
        yield list(values(Path.cwd()))


def values(place):
    said = {**CONFIG, "base_model_name_or_path": INSIDE, "task_type": INSIDE}
    pair = [f"{i}{NAME}{INSIDE.replace('/', '')}"[:200] for i in range(2)]
    for i, name in enumerate(pair):
        folder(place / name, tensors(i, shapes=SHAPES), config=said)
    other = {f"{INSIDE}.{name}": array for name, array in tensors(2, shapes=SHAPES).items()}
    unread = folder(place / f"u{NAME}", other, config={**said, "peft_type": INSIDE})
    weights = random_model(shapes={f"{path}.weight": shape for path, shape in SHAPES.items()})
    named = {"architectures": [INSIDE], "model_type": INSIDE}
    base, tuned = (save_model(place / f"{kind}{NAME}", weights, config=named) for kind in "bt")
    merge = lm.combine(pair, "svd", rank=1)
    bundle = lm.route(pair, gate="arrow")
    adapter = lm.load(pair[0])
    target = next(iter(adapter))
    fused = lm.fuse(pair[0], base, place / "fused", overwrite=True)
    page = lm.report(pair, methods=["svd", "ties"])
    yield from (merge, merge.report, merge.plan, lm.open(pair), bundle, adapter, adapter.base)
    yield from (adapter.provenance, target, adapter[target], fused, page, page.plot, page.sections[0])
    yield from (table for section in page.sections if (table := section.table) is not None)
    yield lm.inspect(pair[0])
    yield lm.diff(*pair)
    yield lm.convert(pair[0], place / "c", "mlx")
    yield lm.extract(place / "fused", base, rank=1, extras="drop")
    yield lm.inspect(unread)
    yield lm.Tuned(INSIDE, tuned, 1)
    yield bundle.explain(target, np.ones((2, 16), np.float32))
    yield Pushed(INSIDE, INSIDE, INSIDE, notes=(INSIDE,))
    yield next(iter(lm.check(pair[0], "vllm")))
    yield from (lm.Request(only=re.escape(INSIDE[:20])), lm.Effort(), lm.Rule("q"), lm.Ramp(0, 1))
    yield from (lm.METHODS, lm.Lego())


def classes(name):
    """Classes of the package that have such a method."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                if name in own:
                    yield node.name


def is_shown(cls, shown):
    return any(cls in {each.__name__ for each in type(value).__mro__} for value in shown)


@pytest.mark.parametrize("way", ["_repr_html_", "to_frame", "plot"])
def test_every_class_that_shows_itself_is_tried(shown, way):
    assert {cls for cls in classes(way) if not is_shown(cls, shown)} == set()


def test_what_a_notebook_and_a_shell_show(shown):
    for value in shown:
        terminal(repr(value))
        if not isinstance(value, lm.Target):  # whose text is the name by which all else is found
            terminal(str(value))
        if hasattr(value, "_repr_html_"):
            html(value._repr_html_())


def test_tables_have_a_line_for_each_row(shown):
    pytest.importorskip("pandas")
    for value in shown:
        if hasattr(type(value), "to_frame"):
            frame = value.to_frame()
            assert "<script" not in frame.to_html()
            json.loads(frame.to_json())
        if hasattr(type(value), "to_dict"):
            json.loads(json.dumps(value.to_dict()))


def charts(shown):
    """Every chart that a value draws."""
    for value in shown:
        plot = value.plot if hasattr(type(value), "plot") else None
        if callable(plot):
            yield plot()
        elif plot is not None:
            names = [name for name in dir(plot) if not name.startswith("_") and callable(getattr(plot, name))]
            for name in names:
                yield getattr(plot, name)()
    yield lm.plot_spectra(inspection(shown))


def inspection(shown):
    return next(value for value in shown if isinstance(value, lm.Inspection))


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (each for pair in value.items() for part in pair for each in strings(part))
    elif isinstance(value, list):
        yield from (each for part in value for each in strings(part))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_charts(shown, tmp_path, every):
    pytest.importorskip("vl_convert")
    count = 0
    for count, chart in enumerate(charts(shown), 1):
        said = chart.to_dict(validate=False)
        assert all(text.isprintable() and not re.search("<[/!A-Za-z]", text) for text in strings(said))
        if count % every:
            continue
        assert "<script>x" not in chart.to_html()
        chart.save(tmp_path / "x.svg")
        for each in ElementTree.parse(tmp_path / "x.svg").getroot().iter():
            assert each.tag.rpartition("}")[2] in SEEN.split()
            assert not any(key.lower().startswith("on") or "href" in key.lower() for key in each.attrib)
            assert all(text.isprintable() for text in (each.text or "", *each.attrib.values()))
    assert count >= 8


def test_axes_of_matplotlib(shown):
    class Axes:
        def plot(self, *_, **__):
            pass

        def set(self, **said):
            terminal(said["title"])
            assert not re.search(r"(?<!\\)\$", said["title"])

    lm.plot_spectra(inspection(shown), Axes())


def test_methods_are_shown_through_their_base():
    assert "_repr_html_" in vars(Method)
