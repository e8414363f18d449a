"""Laws of every section on every subject: a new section in `SECTIONS` enters by itself."""

import json
import shlex
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms import find
from loramerge.charts.draw import PICKED, TABLE, spec
from loramerge.charts.facts import shown
from loramerge.cli import main
from loramerge.pages.html import data
from loramerge.pages.sections.table import SECTIONS
from tests.pages.reading import read
from tests.pages.subjects import PAIR, SUBJECTS, here

alt = pytest.importorskip("altair")
vl = pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page on a subject, made once."""
    return cache(lambda name: SUBJECTS[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module", params=SUBJECTS)
def page(request, made):
    return made(request.param)


@pytest.fixture(scope="module")
def pair(made):
    return made("pair")


def test_every_section_is_on_some_page(made):
    found = [made(name) for name in ("merge", "merged_source")]
    assert {section.name for page in found for section in page.sections} == set(SECTIONS)
    assert all(page.names == [name for name in SECTIONS if name in page.names] for page in found)


def test_a_section_has_numbers_or_says_why_not(page):
    for section in page.sections:
        assert section.table is not None or section.notes, section.name
        assert section.title
        assert section.words.endswith(".")


def test_a_page_shows_the_numbers_of_its_tables(page):
    found = read(page.html()).tables
    told = {s.name: s.table for s in page.sections if s.table is not None}
    assert found.keys() == {f"{name}-table" for name in told}
    for name, table in told.items():
        assert found[f"{name}-table"] == [table.names, *table.cells()], name


@pytest.mark.parametrize("name", ["merge", "many", "zero"])
def test_a_chart_is_valid_vega_lite_of_the_columns_of_its_table(name, made):
    for section in made(name).sections:
        if section.chart is None or section.table is None:
            continue
        chart = spec(section.chart, section.table)
        assert chart["data"] == {"name": TABLE}
        if name == "merge":
            alt.Chart.from_dict(chart)  # held against the schema, which takes long
        svg = vl.vegalite_to_svg({**chart, "width": 300, "data": {"values": section.table.records()}})
        assert "<svg" in svg
        assert "http" not in json.dumps(chart)


def test_what_can_be_singled_out_can_be_in_the_chart(page):
    for section in page.sections:
        if section.pick is None:
            continue
        params = spec(section.chart, section.table).get("params", [])
        assert [each["select"]["fields"] for each in params if each["name"] == PICKED] == [[section.pick]]
        assert section.pick in section.table.names


def test_a_notebook_keeps_the_tables(page):
    shown_ = read(page._repr_html_())
    assert sum(tag == "table" for tag, _ in shown_.tags) == sum(s.table is not None for s in page.sections)
    assert not [tag for tag, attrs in shown_.tags if tag in ("script", "style", "img")]


def test_the_sources_are_those_that_inspect_tells_of(pair, tmp_path):
    told = pair["sources"].table
    for at, name in enumerate(PAIR):
        facts = lm.inspect(here(tmp_path) / name)
        assert told.column("‖ΔW‖")[at] == facts.norm
        assert told.column("modules")[at] == len(facts.modules)


def test_spectra_and_depth_are_those_of_inspect(pair, tmp_path):
    spectra, depth = pair["spectra"].table, pair["depth"].table
    found = {(row["source"], row["module"]): row for row in spectra.records()}
    ranks = {(row["source"], row["module"]): row["effective rank"] for row in depth.records()}
    count = 0
    for at, name in enumerate(PAIR, 1):
        for module in lm.inspect(here(tmp_path) / name).modules:
            key = (f"{at} {name.rpartition('/')[2]}", module.name)
            assert found[key]["σ"] == module.sigma.tolist()
            assert (found[key]["norm"], found[key]["rank"]) == (module.norm, module.rank)
            assert ranks[key] == module.effective_rank
            count += 1
    assert count == len(spectra) == len(depth)


def test_overlaps_and_pairs_are_those_of_diff(pair, tmp_path):
    a, b = (here(tmp_path) / name for name in PAIR)
    apart = lm.diff(a, b)
    assert pair["overlaps"].table.rows[0][2] == pytest.approx(apart.cosine, abs=1e-12)
    cosines = {module.name: module.cosine for module in apart.modules}
    rows = pair["pairs"].table.records()
    assert {row["module"] for row in rows} == {name for name, value in cosines.items() if value is not None}
    for row in rows:
        assert row["cosine"] == pytest.approx(cosines[row["module"]], abs=1e-9)
        assert row["pair"] == "1 and 2"


def test_methods_are_those_that_combine_makes(pair, tmp_path):
    rows = {row["method"]: row for row in pair["methods"].table.records()}
    assert len(rows) > 6
    for name in ("svd", "lego", "karcher"):
        report = lm.combine([here(tmp_path) / each for each in PAIR], name, rank=8, dtype="float64").report
        row = rows[name]
        assert [row["cos(1)"], row["cos(2)"]] == pytest.approx(report.cosines, abs=1e-9)
        assert row["energy lost"] == pytest.approx(report.energy_lost, abs=1e-9)
        assert row["strength"] == pytest.approx(report.strength, abs=1e-9)


def test_so_many_sources_that_grams_are_not_kept_have_the_same_numbers(pair, tmp_path, monkeypatch):
    from loramerge.pages import subject

    monkeypatch.setattr(subject, "HELD", 0)
    page = lm.report([here(tmp_path) / name for name in PAIR])
    assert page["methods"].table.column("method") == ["svd", "lego"], "few, as each reads all sources again"
    kept = {row["method"]: row for row in pair["methods"].table.records()}
    for row in page["methods"].table.records():
        for name in ("cos(1)", "cos(2)", "strength", "energy lost"):
            assert row[name] == pytest.approx(kept[row["method"]][name], abs=1e-6)
    np.testing.assert_allclose(page["overlaps"].table.rows[0][1:], pair["overlaps"].table.rows[0][1:])


def test_a_fleet_is_merged_for_its_page_only_if_methods_are_named(pair, tmp_path, monkeypatch):
    from loramerge.merge import planner
    from loramerge.pages import subject

    monkeypatch.setattr(subject, "WORK", 0)
    sources, reads = [here(tmp_path) / name for name in PAIR], []
    opened = subject.open_one
    monkeypatch.setattr(subject, "open_one", lambda *args: reads.append(args) or opened(*args))
    monkeypatch.setattr(planner, "open_together", None)  # nothing is opened twice to be merged
    page = lm.report(sources)
    assert len(reads) == len(sources)
    for name in ("losses", "methods"):
        (why,) = page[name].notes
        assert why.startswith("2 sources have")
        assert why.endswith("if you name methods, such as methods='svd'.")
    np.testing.assert_allclose(page["overlaps"].table.rows[0][1:], pair["overlaps"].table.rows[0][1:])
    assert lm.report(sources, methods=["svd"])["methods"].table.column("method") == ["svd"]
    assert lm.report(sources, methods=["svd"])["losses"].table.rows == pair["losses"].table.rows


def test_a_method_that_takes_more_than_there_may_be_is_left_out_and_told(pair, tmp_path):
    sources = [here(tmp_path) / name for name in PAIR]
    plan = lm.plan(sources, "svd", rank=8)
    held = {name: plan.sources.held(find(name)(rank=8)) for name in ("svd", "core", "ctm")}
    memory = held["svd"] * 1.01
    assert memory < min(held["core"], held["ctm"]), "which hold every source in bases of all"
    page = lm.report(sources, memory=memory)
    shown = page["methods"].table.column("method")
    assert "svd" in shown
    assert not {"core", "ctm"} & {*shown}
    (told,) = [note for note in page["methods"].notes if "left out" in note]
    assert "core, ctm" in told
    assert lm.report(sources, methods=["core"], memory=memory)["methods"].table.column("method") == ["core"]


def test_losses_are_those_of_a_dry_run(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(here(tmp_path))
    with pytest.raises(SystemExit):
        main(["combine", *PAIR, "--method", "svd", "--dry-run", "--json"])
    points = json.loads(capsys.readouterr().out)["curve"]
    rows = pair["losses"].table.records()
    assert [row["total rank"] for row in rows] == [point["total_rank"] for point in points]
    assert [row["energy lost"] for row in rows] == [point["energy_lost"] for point in points]


def test_programs_are_answered_as_check_does(pair, tmp_path):
    for row in pair["programs"].table.records():
        names = {"SGLang": "sglang", "vLLM": "vllm", "llama.cpp": "llama.cpp", "ComfyUI": "comfyui"}
        if row["program"] not in names or not row["source"].startswith("1 "):
            continue
        found = lm.check(here(tmp_path) / PAIR[0], names[row["program"]])
        assert row["answer"] == ("does not" if found else "loads")
        assert row["why"] == shown(" ".join(each.sentence for each in found))


def test_the_report_of_a_merge_is_that_of_the_merge(tmp_path):
    made = lm.combine([here(tmp_path) / name for name in PAIR], "ties", rank=4)
    table = lm.report(made, methods=["svd"])["merge"].table
    assert table.column("energy lost") == [module.energy_lost for module in made.report.modules]
    assert table.column("cos(2)") == [module.cosines[1] for module in made.report.modules]


def test_a_source_that_is_a_merge_tells_where_it_comes_from(made):
    rows = made("merged_source")["origin"].table.records()
    assert [(row["source"], row["method"], row["of"]) for row in rows] == [
        ("1 both", "svd", "a.safetensors"), ("1 both", "svd", "b.safetensors"),
    ]  # fmt: skip
    assert all(0.2 < row["cosine with it"] <= 1 for row in rows)


def done(code, capsys, before):
    """Does what a section tells, in this folder, but no command twice: the names that its Python leaves."""
    if "Command" in code and (told := (code["Command"], code.get("Recipe"))) not in before:
        before.add(told)
        run(code, capsys)
    left = {}
    exec(code["Python"], left)
    return left


def run(code, capsys):
    for name in ("page.html", "recipe.yaml"):
        Path(name).unlink(missing_ok=True)
    Path("merged.safetensors").unlink(missing_ok=True)
    shutil.rmtree("merged", ignore_errors=True)
    Path("recipe.yaml").write_text(code.get("Recipe", ""), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(code["Command"])[1:])
    assert stop.value.code in (0, 3), (code["Command"], capsys.readouterr().err)  # 3: what `check` found


@pytest.mark.parametrize("asked", [{}, {"weights": [0.7, -0.3], "only": "self_attn.[qk]", "rank": 3}])
def test_what_makes_a_section_is_told_truly(tmp_path, monkeypatch, capsys, asked):
    """Command, recipe and Python of every section work as they stand, with all that was asked."""
    monkeypatch.chdir(here(tmp_path))
    page, before = lm.report(PAIR, methods=["svd"], **asked), set()
    for section in page.sections:
        code = dict(section.how.items())
        left = done(code, capsys, before)
        if section.name == "methods":
            (row,) = section.table.records()
            read_back = lm.diff("merged", left["merge"].adapter)
            assert read_back.largest < 1e-6
            assert left["merge"].report.cosines == pytest.approx([row["cos(1)"], row["cos(2)"]], abs=1e-6)
        if section.name in ("sources", "overlaps", "spectra") and asked:
            assert "--only" in code["Command"], "else it would show other modules"


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("ties", {"rank": 4, "density": 0.4, "weights": [1, -0.5], "exclude": "v_proj", "scale": "norm"}),
        ("svd", {"size": "40kB", "dtype": "float16"}),
        (lm.only(lm.Svd(rank=2), "q_proj"), {"weights": [lm.Ramp(0.2, 0.8), 1]}),
    ],
)
def test_what_makes_a_merge_again_has_its_weights_and_options(tmp_path, monkeypatch, capsys, method, asked):
    monkeypatch.chdir(here(tmp_path))
    made = lm.combine(PAIR, method, **asked)
    assert method != "svd" or lm.report(made, methods=["svd"])["losses"].table, "a size is no reason for none"
    page = lm.report(made, methods=["svd"])
    before = set()
    for section in page.sections:
        if section.name not in ("merge", "losses", "methods") or section.table is None:
            continue
        left = done(dict(section.how.items()), capsys, before)
        if section.name != "methods":
            assert lm.diff(made.adapter, left["merge"].adapter).largest < 1e-6
        if section.name == "merge" and isinstance(method, str):
            assert lm.diff(made.adapter, lm.load("merged.safetensors")).largest < 1e-6


def test_plots_are_the_charts_of_sections(pair, tmp_path):
    assert set(pair.plot) == {s.name for s in pair.sections if s.chart is not None}
    chart = pair.plot.overlaps()
    assert chart.to_dict()["data"]["values"] == pair["overlaps"].table.records()
    chart.save(tmp_path / "overlaps.svg")
    assert "a.safetensors" in (tmp_path / "overlaps.svg").read_text()
    chart.save(tmp_path / "overlaps.png")
    assert (tmp_path / "overlaps.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_chart_says_why(tmp_path):
    alone = SUBJECTS["one"](tmp_path)
    with pytest.raises(lm.UsageError, match="There is one source"):
        alone.plot.overlaps()
    with pytest.raises(lm.UsageError, match="no section nothing"):
        alone["nothing"]


def test_of_many_lines_the_strongest_are_shown():
    from loramerge.merge import columns

    facts = {name: lm.inspect(lm.Adapter.of({f"layers.{i}.q": lm.LowRank((i + 1) * np.eye(2), np.eye(2))
             for i in range(4)}, name)).modules for name in "ab"}  # fmt: skip
    few = columns.spectra(facts, limit=4)
    assert [(row["source"], row["module"]) for row in few.records()] == [
        (name, f"layers.{i}.q") for name in "ab" for i in (2, 3)
    ]
    medians = columns.depths(facts, limit=4)
    assert set(medians.column("source")) == {"median of 2 sources"}
    assert medians.column("effective rank") == [2.0] * 4


def test_no_two_sources_share_a_colour_unless_all_do(tmp_path):
    """And ticks of layers stand at layers alone."""
    for name, few in {"pair": True, "many": False}.items():
        (tmp_path / name).mkdir()
        page = SUBJECTS[name](tmp_path / name)
        for section in (page["spectra"], page["depth"]):
            made = spec(section.chart, section.table)
            encoding = made.get("layer", [made])[0]["encoding"]
            assert ("field" in encoding["color"]) == few
            assert all(float(tick).is_integer() for tick in encoding["x"]["axis"]["values"])


def test_a_page_says_why_it_compares_no_pairs_of_a_fleet(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for module in ("report", "measure"):
        monkeypatch.setattr(f"loramerge.merge.{module}.PAIRS", 1)
    monkeypatch.setattr("loramerge.pages.subject.PAIRS", 1)
    page = SUBJECTS["pair"](tmp_path / "x")
    assert page["pairs"].notes == page["overlaps"].notes
    assert page["pairs"].notes == ["The pairs of more than 1 sources are not compared."]


def test_sources_that_cannot_be_merged_have_short_names_too(tmp_path):
    page = SUBJECTS["of_two_models"](tmp_path)
    assert page["sources"].table.column("source") == ["1 tiny", "2 other"]
    assert page.title == "tiny, other"


def test_data_cannot_end_a_script():
    assert "<" not in data({"</script>": "<!--"})
    assert json.loads(data({"a": "</script>&\u2028"})) == {"a": "</script>&\u2028"}
