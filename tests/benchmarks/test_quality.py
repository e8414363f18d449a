"""The benchmark of quality, at a size of seconds: all stages, that it goes on, that no seed is mixed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmark trains")
pytest.importorskip("peft", reason="the benchmark compares with it")

import torch

import loramerge as lm
from benchmarks.quality import domains, forward, merges, plan, run, score, stack, train
from benchmarks.quality.contenders import CONTENDERS, Contender
from benchmarks.quality.plan import TOY, Cell, Training
from tests.benchmarks.rows import row

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
SMALL = replace(TOY, domains=("strings",), ranks=(8, 0))
NAMES = ("svd", "shrunk_tsv", "PEFT svd")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def cell():
    pair = tuple(Training("strings", "shared A", 0, task, 0) for task in (0, 1))
    return Cell("strings", "shared A", 0, pair)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(run, "FEW", NAMES)
    monkeypatch.setitem(run.SIZES, "toy", SMALL)


def ask(work, *more):
    run.main(["--size", "toy", "--jobs", "1", "--work", str(work), *more])


def test_all_stages_give_rows_and_tables(small, work, tmp_path, capsys):
    ask(work, "--json", str(tmp_path / "rows.json"), "--page", str(tmp_path / "page.md"))
    made = json.loads((tmp_path / "rows.json").read_text())
    assert set(made["lines"]) == set(NAMES)
    assert {regime for _, regime in made["places"]} == set(plan.REGIMES)
    assert all(len(line) == len(made["columns"]) for each in made["lines"].values() for line in each)
    assert set(made["seeds"]) <= set(plan.half("choosing"))
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Choosing half, toy, 1 seeds\n")
    assert "## 2 adapters, compatible, rank 8, untuned" in page
    assert "| shrunk_tsv · norm |" in page


def test_a_second_run_trains_and_merges_nothing(small, work, monkeypatch, capsys):
    ask(work)
    first = capsys.readouterr().out
    files = sorted(work.rglob("*.json"))
    monkeypatch.setattr(train, "fit_many", None)
    monkeypatch.setattr(score.Bench, "results", None)
    ask(work)
    again = capsys.readouterr().out
    assert again.split("measured")[1].split("\n", 1)[1] == first.split("measured")[1].split("\n", 1)[1]
    assert sorted(work.rglob("*.json")) == files


def test_a_run_goes_on_where_it_ended(small, work, monkeypatch, capsys):
    ask(work)
    lost = sorted((work / "results").rglob("*.json"))[0]
    lost.unlink()
    ask(work)
    assert lost.exists()


def test_a_base_is_trained_once_before_the_adapters_on_it(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(run, "each", lambda made, things, jobs: seen.append((made.func, things)) or [])
    run.main(["--train", "--seeds", "1", "--work", str(tmp_path)])
    (first, domains_), (then, groups) = seen
    assert (first, then) == (run._base, run._train)
    assert domains_ == ["digits", "strings"]
    assert {one.domain for group in groups for one in group} == set(plan.FULL.domains)


def test_trainings_can_be_made_alone(small, tmp_path, capsys):
    ask(tmp_path, "--train")
    assert len(list((tmp_path / "adapters").iterdir())) == 4
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    {
        ("--seeds", "0"): "0 is below 1",
        ("--seeds", "9"): "the choosing half has 8",
        ("--counts", "1"): "1 is below 2",
        ("--ranks", "-1"): "-1 is below 0",
        ("--jobs", "0"): "0 is below 1",
        ("--only", "lgeo"): "invalid choice: 'lgeo'",
        ("--json", "no/rows.json"): "a file in a folder that is there",
        ("--page", "."): "a file in a folder that is there",
        ("--work", "file"): "it is not a folder",
        ("--pictures", "file"): "it is not a folder",
    }.items(),
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_cannot_be_meant_or_written_is_said_before_the_work(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "carried", None)
    with pytest.raises(SystemExit) as stop:
        run.main(["--size", "toy", *typed])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_who_stops_it_is_told_that_it_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "each", stopped)
    with pytest.raises(SystemExit) as stop:
        ask(tmp_path)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from here.\n"


def test_what_is_named_twice_is_measured_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "measured", lambda cells, size, *_: seen.append((cells, size, _[-1])) or [])
    monkeypatch.setattr(run, "each", lambda *_: [])
    ask(tmp_path, "--counts", "2", "2", "--ranks", "8", "8", "--only", "svd", "svd")
    ((cells, size, names),) = seen
    assert (size.counts, size.ranks, names) == ((2,), (8,), ["svd"])
    assert len(cells) == len(set(cells))


def test_many_adapters_are_merged_by_the_best_with_eight(monkeypatch):
    """Of three that were measured with 8 the best one; without 8 all that were named."""
    seen = []

    def noted(cell, size, work, names, ranks):
        seen.append((cell.count, tuple(names), ranks))
        return [row(name, 0, [share, 0, 0]) for name, share in zip(names, (0.5, 0.9, 0.7), strict=False)]

    monkeypatch.setattr(run, "_measure", noted)
    monkeypatch.setattr(run, "BEST", 1)
    for counts, wanted in (((8, 16), ("b", "PEFT svd")), ((16,), ("a", "b", "c", "PEFT svd"))):
        seen.clear()
        size = replace(plan.FULL, domains=("digits",), seeds=1, counts=counts)
        run.measured(list(plan.cells(size, [0], {"digits": 16})), size, Path(), 1, ["a", "b", "c"])
        assert {names for count, names, _ in seen if count == 16} == {wanted}
        assert {ranks for count, _, ranks in seen if count == 16} == {(8,)}


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Other processes find the stages by name, also when the benchmark is run as a module."""
    from subprocess import check_output

    asked = ["--size", "toy", "--train", "--jobs", "2", "--work", str(tmp_path)]
    check_output([sys.executable, "-m", "benchmarks.quality", *asked], cwd=Path(plan.__file__).parents[2])
    made = [next((tmp_path / "adapters").glob(f"{train.name_of(one, TOY)}*")) for one in trained_by(TOY)]
    assert len(made) == 8


def trained_by(size):
    tasks = {name: domain.tasks for name, domain in domains.DOMAINS.items()}
    return run.trainings(list(plan.cells(size, plan.half("choosing"), tasks)))


def test_other_code_of_merging_is_another_result(cell, work, monkeypatch):
    before = score.where(cell, SMALL, work, merging="a", contender="svd")
    assert score.where(cell, SMALL, work, merging="a", contender="svd") == before
    assert score.where(cell, SMALL, work, merging="b", contender="svd") != before


def test_no_seed_is_in_both_halves():
    choosing, reporting = plan.half("choosing"), plan.half("reporting")
    assert len(choosing) >= plan.FULL.seeds <= len(reporting)
    assert not set(choosing) & set(reporting)


def test_the_reporting_seeds_are_closed_until_something_is_chosen(small, work, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plan, "HERE", tmp_path)
    (tmp_path / "split.json").write_text(json.dumps({"choosing": [0], "reporting": [8]}))
    with pytest.raises(SystemExit, match=r"first commit choice\.json"):
        ask(work, "--half", "reporting")
    (tmp_path / "choice.json").write_text(json.dumps({"method": "svd"}))
    assert run.labelled("reporting", tmp_path, "full") == "Reporting half, full"
    assert run.labelled("reporting", tmp_path, "full") == "Reporting half, full"  # it goes on
    (tmp_path / "choice.json").write_text(json.dumps({"method": "tsv"}))
    assert run.labelled("reporting", tmp_path, "full").endswith("run 2: the seeds had been opened before")


def test_adapters_of_one_regime_share_their_start_and_of_the_other_do_not():
    def starts(regime):
        return {Training("strings", regime, s, t, c).start for s in (0, 1) for t in (0, 1) for c in (0, 1)}

    assert len(starts("shared A")) == 1
    assert len(starts("independent A")) == 8


def test_more_adapters_than_tasks_are_several_of_a_task():
    size = replace(plan.FULL, domains=("digits",), counts=(16,), seeds=1)
    cell, _ = plan.cells(size, [0], {"digits": 16})
    assert len({one.task for one in cell.trainings}) == 8
    assert len(set(cell.trainings)) == 16


def test_adapters_of_one_task_are_asked_once_and_each_has_its_answer(work):
    each = [Training("strings", "shared A", 0, task, copy) for copy in (0, 1) for task in (1, 0)]
    bench = score.Bench.of(Cell("strings", "shared A", 0, tuple(each)), SMALL, work)
    assert [(one.task, one.copy) for one in bench.cell.apart()] == [(1, 0), (0, 0)]
    found = bench.accuracy({}, [1.0, 0.5], "test")
    alone = [
        score.Bench.of(Cell("strings", "shared A", 0, (one,)), SMALL, work).accuracy({}, [1.0, 0.5], "test")
        for one in each
    ]
    np.testing.assert_array_equal(found, np.hstack(alone))


@pytest.mark.parametrize("name", domains.DOMAINS)
def test_samples_of_the_splits_are_apart(name):
    def seen(split):
        x, _ = domains.DOMAINS[name].draw(0, split, 200, np.random.default_rng(0))
        return {row.numpy().tobytes() for row in x}

    assert not seen("train") & seen("test")
    assert not seen("tune") & seen("test")
    assert not seen("train") & seen("tune")


def test_conflicting_tasks_answer_one_input_otherwise():
    for name in plan.HARD:
        (x, y), (same, other) = (
            domains.DOMAINS[name].draw(t, "test", 20, np.random.default_rng(0)) for t in (0, 1)
        )
        assert torch.equal(x[:, :7], same[:, :7])
        assert not torch.equal(y, other)


@pytest.fixture(scope="module")
def bench(cell, work):
    """A cell of which every adapter is trained a little."""
    return score.Bench.of(cell, replace(SMALL, steps=(20, 2)), work)


def test_pefts_merge_and_ours_are_measured_on_the_same_update(bench):
    """PEFT's svd is our svd: the two ways of making ΔW, scales and names of modules agree."""
    ours, theirs = (bench.sources.merged(CONTENDERS[name], 4, bench.model) for name in ("svd", "PEFT svd"))
    assert ours.keys() == theirs.keys()
    for path, delta in ours.items():
        assert delta == pytest.approx(theirs[path], abs=1e-5)


def test_pefts_model_is_used_again_without_a_trace(bench):
    first, _, again = (
        bench.sources.merged(CONTENDERS[f"PEFT {kind}"], 8, bench.model) for kind in ("svd", "linear", "svd")
    )
    for path, delta in first.items():
        assert np.array_equal(delta, again[path])


def test_as_loud_is_the_norm_of_the_package(bench):
    deltas = bench.sources.merged(CONTENDERS["svd"], 4, bench.model)
    merge = lm.combine(bench.sources.ours, "svd", rank=4, scale="norm", dtype="float32")
    for path, delta in bench.sources.as_loud(deltas).items():
        assert delta == pytest.approx(merge.adapter[lm.Target(path)].dense(), rel=1e-4, abs=1e-7)


def exact(model, x, y):
    """(N,) of a string all letters count: one that is wrong makes it wrong."""
    return torch.tensor(
        [
            all(a == b for a, b in zip(said, wanted, strict=True) if b != -100)
            for said, wanted in zip(model(x).argmax(dim=-1).tolist(), y.tolist(), strict=True)
        ]
    ).float()


@pytest.mark.parametrize("domain", ["digits", "strings"])
def test_a_grid_of_strengths_is_measured_as_one_after_another(domain, work):
    """And as the model itself says, whose weights are changed by hand."""
    pair = tuple(Training(domain, "shared A", 0, task, 0) for task in (0, 1))
    bench = score.Bench.of(Cell(domain, "shared A", 0, pair), SMALL, work)
    deltas = {f"blocks.0.{name}": np.full((16, 16), 0.3) for name in "qkv"}
    found = bench.accuracy(deltas, [0.5, 1.0, 2.0], "test")
    x, y = score._samples(pair, "test", SMALL)
    for shares, strength in zip(found, (0.5, 1.0, 2.0), strict=True):
        model = train.Transformer(bench.model.head.out_features, bench.model.causal, 16)
        model.load_state_dict(bench.model.state_dict())
        for name in "qkv":
            getattr(model.blocks[0], name).weight.data += 0.3 * strength
        assert exact(model, x, y).view(2, -1).mean(dim=1).numpy() == pytest.approx(shares)


@pytest.mark.parametrize("scale", [0.3, 30.0])  # at 30 the scores of attention are beyond exp
@pytest.mark.parametrize("domain", ["digits", "strings"])
def test_measuring_says_what_the_stacked_model_says(domain, scale, work):
    model = train.base(domain, SMALL, work)
    x, _ = domains.DOMAINS[domain].draw(0, "test", 5, np.random.default_rng(0))
    noise = torch.Generator().manual_seed(0)
    state = {
        name: value + scale * torch.randn(3, *value.shape, generator=noise) if ".q." in name else value
        for name, value in model.state_dict().items()
        if not name.endswith("q.bias")
    } | {f"blocks.{n}.q.bias": model.blocks[n].q.bias for n in range(3)}
    start = 7 if model.causal else 0
    found = forward.logits(forward.joined(state, 3, 3), model.causal, x, 3, start)
    wanted = stack.logits(state, model.causal, x.expand(3, *x.shape), 3)
    torch.testing.assert_close(found, wanted[:, :, start:], rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_merges_that_differ_in_strength_alone_are_tuned_once(bench, monkeypatch):
    """And get what they get when nothing is known before."""
    fresh = replace(bench, directions=[])
    deltas = bench.sources.merged(CONTENDERS["level"], 4, bench.model)
    double = {path: 2 * delta for path, delta in deltas.items()}
    other = {path: delta + 1e-3 * np.abs(delta).max() for path, delta in deltas.items()}
    first, alone = fresh.measured(deltas, True), replace(bench, directions=[]).measured(double, True)
    asked = []
    accuracy = score.Bench.accuracy
    monkeypatch.setattr(
        score.Bench, "accuracy", lambda *given: asked.append(len(given[2])) or accuracy(*given)
    )
    second = fresh.measured(double, True)
    assert second == alone | {
        "strength": pytest.approx(alone["strength"]),
        "norm": pytest.approx(alone["norm"]),
    }
    assert second["curve"] == first["curve"]
    assert asked == [1]  # untuned, on the samples for the result
    fresh.measured(other, True)
    assert len(plan.RHO) in asked


def one_by_one(one, size, work, steps):
    """The training of an adapter by PEFT and torch, as a user would write it."""
    model = train.wrapped(train.base(one.domain, size, work), one.start)
    rng = np.random.default_rng([one.task + 1000 * one.seed + 100_000 * one.copy, one.task + 1])
    some = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = train.descent(some, steps, train.RATE)
    for _ in range(steps):
        x, y = domains.DOMAINS[one.domain].draw(one.task, "train", train.BATCH, rng)
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        schedule.step()
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model)


@pytest.mark.parametrize("domain", ["digits", "strings"])
def test_adapters_trained_together_are_those_that_peft_trains_alone(domain, work):
    size = replace(SMALL, steps=(12, 2))
    group = [Training(domain, "independent A", 0, task, 0) for task in (0, 1, 2)]
    train.adapters(group, size, work)
    for one in group:
        together, alone = train.adapter(one, size, work), one_by_one(one, size, work, 12)
        assert together.keys() == alone.keys()
        for name, wanted in alone.items():
            assert wanted.abs().max() > 1e-3
            torch.testing.assert_close(together[name], wanted, rtol=1e-2, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def headed(work):
    """A cell in which every adapter has learned a head too."""
    pair = tuple(Training("strings-heads", "shared A", 0, task, 0) for task in (0, 1))
    return score.Bench.of(Cell("strings-heads", "shared A", 0, pair), replace(SMALL, steps=(20, 2)), work)


def test_every_task_is_asked_with_its_own_head(headed):
    first, second = headed.sources.heads
    assert not torch.equal(first, second)
    assert not torch.equal(first, headed.model.head.weight)
    deltas = headed.sources.merged(CONTENDERS["svd"], 4, headed.model)
    found = headed.accuracy(deltas, [1.0, 0.5], "test")
    x, y = score._samples(headed.cell.trainings, "test", headed.size)
    for n, head in enumerate(headed.sources.heads):
        for s, strength in enumerate((1.0, 0.5)):
            model = train.Transformer(headed.model.head.out_features, headed.model.causal, 16)
            model.load_state_dict(dict(headed.model.state_dict()) | {train.HEAD: head})
            for path, delta in deltas.items():
                model.get_submodule(path).weight.data += torch.tensor(strength * delta).float()
            assert exact(model, *(each.chunk(2)[n] for each in (x, y))).mean().item() == found[s, n]


def test_a_head_is_no_part_of_what_is_merged_or_routed(headed):
    assert not any("head" in target.path for source in headed.sources.ours for target in source)
    assert "refused" in headed.results(CONTENDERS["routed, arrow"], 0)["as shipped"]
    assert isinstance(headed.sources.merged(CONTENDERS["PEFT svd"], 4, headed.model), dict)


def test_an_adapter_alone_does_what_peft_says_it_does(bench):
    from peft import set_peft_model_state_dict

    model = train.wrapped(bench.model, 0)
    set_peft_model_state_dict(model, bench.sources.tensors[0])
    x, y = score._samples(bench.cell.trainings, "test", bench.size)
    assert bench.alone()["own"][0] == pytest.approx(exact(model, x[:8], y[:8]).mean().item())


def test_what_cannot_be_merged_says_why(bench, cell):
    tensors = bench.sources.tensors
    three = replace(cell, trainings=(*cell.trainings, cell.trainings[0]))
    sources = merges.Sources(three, [*tensors, tensors[0]])
    for name in ("ffa", "slerp"):
        assert isinstance(sources.merged(CONTENDERS[name], 0, bench.model), str)


def test_every_method_of_the_table_takes_part():
    assert set(lm.METHODS) <= set(CONTENDERS)
    assert {one.method for one in CONTENDERS.values() if one.gate} <= set(lm.GATES)
    for one in CONTENDERS.values():
        assert any(one.takes(rank) for rank in plan.FULL.ranks), one.name


@pytest.mark.parametrize("name", [name for name, one in CONTENDERS.items() if one.options or one.shared])
def test_options_of_contenders_are_taken(name, bench):
    one = CONTENDERS[name]
    made = bench.results(one, 0)["as shipped"] if one.gate else bench.sources.merged(one, 4, bench.model)
    assert not isinstance(made, str), made
    assert "refused" not in made


def test_shared_ranks_take_as_many_units_as_one_rank_for_all(bench):
    deltas = bench.sources.merged(CONTENDERS["svd, shared ranks"], 2, bench.model)
    ranks = [np.linalg.matrix_rank(delta, 1e-5 * np.linalg.norm(delta)) for delta in deltas.values()]
    assert sum(ranks) == 2 * len(ranks)
    assert len(set(ranks)) > 1


def test_a_gate_with_fixed_weights_is_the_sum(bench):
    """Two ways: hooks on the model of model.py, and weights of the stacked one."""
    x, _ = score._samples(bench.cell.trainings, "test", bench.size)
    routed = bench.gated(CONTENDERS["routed, static"], x)
    deltas, state = bench.sources.merged(CONTENDERS["linear"], 0, bench.model), bench.model.state_dict()
    base = stack.logits(state, True, x[None], 3)[0]
    summed = {
        f"{path}.weight": state[f"{path}.weight"] + torch.tensor(d).float() for path, d in deltas.items()
    }
    torch.testing.assert_close(routed, stack.logits(state | summed, True, x[None], 3)[0])
    assert (routed - base).abs().max() > 1e-3
    assert len(bench.routed(CONTENDERS["routed, arrow"])) == 2


def test_ranks_of_peft_by_hand():
    def taken(kind):
        return [rank for rank in (4, 8, 16, 0) if Contender(kind, kind, peft=True).takes(rank)]

    assert taken("ties_svd") == [4, 8, 16, 0]
    assert taken("ties") == [8]
    assert taken("cat") == [0]
