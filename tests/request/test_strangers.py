"""What a file asks for is bounded: its patterns end, and work beyond ten times the defaults needs leave."""

import json
from dataclasses import fields

import pytest

import loramerge as lm
from loramerge.algorithms import METHODS
from loramerge.errors import IncompatibleError, LoramergeError
from loramerge.request.request import Request
from loramerge.request.strangers import MOST_RULES, check_patterns, check_work, work_of
from tests.helpers.files import content, folder, tensors


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed))


def test_work_is_counted_through_every_method_inside_another():
    usual, large = lm.Karcher(iterations=10_000), lm.Karcher(iterations=10_001)
    assert work_of(usual) == {}
    assert work_of(large) == {"karcher.iterations": (10_001, 1000)}
    assert work_of(lm.only(large, "q", otherwise=lm.Lego(rank=1, restarts=41))) == {
        "karcher.iterations": (10_001, 1000),
        "lego.restarts": (41, 4),
    }
    with pytest.raises(
        IncompatibleError, match=r"x asks for karcher.iterations = 10001, and 1000 .*allow_work=True"
    ):
        check_work(large, False, "x")
    assert len(check_work(large, True, "x")) == 1


def test_every_option_that_counts_rounds_is_work():
    """A whole number that is neither a rank nor a number of sources or a seed says how long it takes."""
    other = {"rank", "seed", "per_source", "top_k", "consensus"}
    for name in METHODS:
        for field in fields(METHODS[name]):
            if field.type in ("int", "int | None") and "help" in field.metadata:
                assert field.metadata["work"] == (field.name not in other), (name, field.name)


def test_a_record_needs_leave_for_much_work(cli, tmp_path):
    lm.combine(["a", "b"], "karcher", out="m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    record["method"]["options"]["iterations"] = 10**12
    (tmp_path / "r.json").write_text(json.dumps(record))
    before = content(tmp_path)
    cli("replay", "r.json").refused(3, "r.json asks for karcher.iterations = 1e+12", "--allow-work")
    assert content(tmp_path) == before
    assert cli("replay", "r.json", "--allow-work").code == 0, cli.err
    assert "note: the record r.json asks for karcher.iterations = 1e+12" in cli.err
    with pytest.raises(IncompatibleError, match="allow_work=True"):
        lm.replay("r.json")
    assert lm.replay("r.json", allow_work=True).method.iterations == 10**12


def test_a_recipe_needs_leave_too_but_not_what_is_typed_beside_it(cli, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "sources: [a, b]\nmethod: lego\nparameters: {rank: 2, restarts: 1000000000}\n"
    )
    cli("combine", "--recipe", "r.yaml").refused(3, "restarts = 1e+09", "--allow-work")
    assert cli("combine", "--recipe", "r.yaml", "--restarts", 50, "-o", "m").code == 0, cli.err
    (tmp_path / "r.yaml").write_text("sources: [a, b]\nmethod: lego\nparameters: {rank: 2, restarts: 41}\n")
    assert cli("combine", "--recipe", "r.yaml", "--allow-work", "-o", "n").code == 0, cli.err
    assert "note: the recipe r.yaml asks for lego.restarts = 41, and 4 is the default" in cli.err


ENDLESS = ["(a+)+$" * 3 + "(?>b)", "a" * 10_001, r"(x)\1", "(?x)q"]


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize("field", ["only", "exclude", "modules"])
def test_a_pattern_from_a_file_that_may_not_end_is_refused(cli, tmp_path, pattern, field):
    value = [{"match": pattern, "rank": 1}] if field == "modules" else pattern
    recipe = {"sources": ["a", "b"], "method": "svd", "parameters": {"rank": 1}, field: value}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    cli("combine", "--recipe", "r.yaml").refused(3)
    lm.combine(["a", "b"], out="m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    record["settings"][field] = value
    (tmp_path / "m/loramerge.json").write_text(json.dumps(record))
    cli("replay", "m").refused(3)


def test_the_pattern_of_only_ends_whoever_wrote_it():
    endless = lm.only(lm.Svd(rank=1), "(a+)+b")
    with pytest.raises(LoramergeError, match="characters"):
        lm.only(lm.Svd(rank=1), "a" * 10_001)
    assert endless.at("a" * 4000 + "q") == endless.otherwise


def test_the_pattern_of_only_in_a_record_is_a_strangers(cli, tmp_path):
    lm.combine(["a", "b"], lm.only(lm.Svd(rank=1), "q"), profile="compact", out="m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    assert cli("replay", "m").code == 0
    for text, code, said in ((r"(q)\1", 3, "not read"), ("(q", 1, "cannot be replayed: only '(q' is not a")):
        record["method"]["options"]["match"] = text
        (tmp_path / "m/loramerge.json").write_text(json.dumps(record))
        cli("replay", "m", "-o", "n").refused(code, said)


def test_rules_are_few():
    check_patterns(Request(rules=[lm.Rule("q", rank=1)] * MOST_RULES), "x")
    with pytest.raises(IncompatibleError, match="100001 rules"):
        check_patterns(Request(rules=[lm.Rule("q", rank=1)] * (MOST_RULES + 1)), "x")


@pytest.mark.parametrize("place", ["options", "ranks", "rules"])
def test_a_rank_from_a_file_takes_no_more_than_there_is(cli, tmp_path, place):
    lm.combine(["a", "b"], "svd", rank=1, out="m")
    record = json.loads((tmp_path / "m/loramerge.json").read_text())
    if place == "options":
        record["method"]["options"]["rank"] = 10**9
    elif place == "ranks":
        record["settings"]["ranks"] = {"layers.0.q": 10**9}
    else:
        record["settings"]["modules"] = [{"match": "q", "rank": 10**9}]
    (tmp_path / "m/loramerge.json").write_text(json.dumps(record))
    cli("replay", "m", "-o", "n")
    assert cli.code in (0, 1, 3), cli.err
    if cli.code == 0:
        assert (tmp_path / "n/adapter_model.safetensors").stat().st_size < 10**5
