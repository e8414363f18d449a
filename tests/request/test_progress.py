"""Who waits is told by the clock: after a second, within a batch, with the true start, stage by stage."""

import io
import sys
import time

import pytest

import loramerge as lm
from loramerge.request.progress import Bar, Stage
from tests.helpers.adapters import random_adapters
from tests.helpers.models import random_model, save_model


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """To be called in the test itself: between fixture and test pytest takes stderr back."""

    def begin():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return begin


def test_a_bar_is_shown_though_nothing_is_done_yet(on_terminal):
    terminal = on_terminal()
    bar = Bar(patience=0.05)
    with Stage(bar, "merging", 6) as stage:
        time.sleep(0.1)
        stage.tick()
        assert "merging" in terminal.getvalue()
        assert "0/6" in terminal.getvalue()
        stage.step()
        time.sleep(0.1)
        stage.tick()
        assert "1/6" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r"), "it goes away"


def test_a_bar_counts_its_time_from_the_start_of_the_stage(on_terminal):
    terminal = on_terminal()
    bar = Bar(patience=0.05)
    with Stage(bar, "merging", 6) as stage:
        time.sleep(1.1)
        stage.tick()
        assert "[00:01<" in terminal.getvalue()


def test_nobody_who_does_not_wait_sees_a_bar(on_terminal):
    terminal = on_terminal()
    with Stage(Bar(), "merging", 6) as stage:
        list(stage.over(range(6)))
    assert terminal.getvalue() == ""


def test_waiting_counts_over_all_stages(on_terminal):
    terminal = on_terminal()
    bar = Bar(patience=0.15)
    for name in ("reading", "merging"):
        with Stage(bar, name, 1) as stage:
            time.sleep(0.1)
            stage.tick()
    assert "reading" not in terminal.getvalue()
    assert "merging" in terminal.getvalue()


def test_a_bar_goes_away_when_the_work_fails(on_terminal):
    terminal = on_terminal()

    def work():
        with Stage(Bar(patience=-1.0), "merging", 2):
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        work()
    assert terminal.getvalue().endswith("\r")


def told(**asked):
    seen = []
    lm.combine(random_adapters(0, (2, 2)), progress=lambda *each: seen.append(each), **asked)
    return seen


@pytest.mark.parametrize("threads", [1, 2])
def test_a_function_hears_every_stage_from_nothing_to_all(tmp_path, threads):
    seen = told(method="linear", out=tmp_path / "m", threads=threads)
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["reading", "merging", "hashing", "proving"]
    for stage in stages:
        counts = [done for name, done, _ in seen if name == stage]
        assert counts == sorted(counts)
        assert counts[0] == 0
        assert {total for name, _, total in seen if name == stage} == {counts[-1]}


def test_looking_at_all_modules_first_is_a_stage_of_its_own():
    assert "looking" in {stage for stage, _, _ in told()}, "the default looks how strong each source is"
    assert "looking" in {stage for stage, _, _ in told(method="svd", energy=0.9)}
    assert "looking" in {stage for stage, _, _ in told(method="linear", scale="cosine")}


def test_an_open_session_tells_too():
    seen = []
    pair = lm.open(random_adapters(0, (2, 2)), progress=lambda *each: seen.append(each[0]))
    pair.combine("svd")
    assert list(dict.fromkeys(seen)) == ["reading", "looking", "merging"]


def test_every_verb_that_may_take_long_tells(tmp_path):
    a, b = random_adapters(0, (2, 2))
    before = random_model()
    save_model(tmp_path / "base", before)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_model(tmp_path / "tuned", {**before, name: before[name] + 1})
    seen = []

    def stages(verb, *args, **asked):
        seen.clear()
        found = verb(*args, progress=lambda *each: seen.append(each), **asked)
        assert all(done <= total for _, done, total in seen)
        assert [done for _, done, total in seen if done == total], "it comes to its end"
        return found, {stage for stage, _, _ in seen}

    assert stages(lm.inspect, a)[1] == {"measuring"}
    assert stages(lm.diff, a, b)[1] == {"reading", "comparing"}
    assert stages(lm.convert, a, tmp_path / "c", "mlx", dtype="float32")[1] == {"reading", "comparing"}
    extracted, told_of = stages(lm.extract, tmp_path / "tuned", tmp_path / "base", rank=1)
    assert told_of == {"extracting"}
    fusing = stages(lm.fuse, extracted.adapter, tmp_path / "base", tmp_path / "fused")[1]
    assert fusing == {"fusing"}
    assert "writing" in stages(lm.route, [a, b], out=tmp_path / "bundle")[1]
    assert {"measuring", "merging"} <= stages(lm.report, [a, b], methods=["svd"])[1]


def test_a_function_may_have_something_to_close():
    closed = []

    class Watch:
        def __call__(self, stage, done, total): ...
        def close(self):
            closed.append(1)

    lm.combine(random_adapters(0, (2, 2)), "linear", progress=Watch())
    assert closed == [1, 1]  # reading, merging


@pytest.mark.parametrize("value", [False, None])
def test_no_progress_is_silence(on_terminal, value):
    terminal = on_terminal()
    lm.combine(random_adapters(0, (2, 2)), progress=value)
    assert terminal.getvalue() == ""


def test_true_is_a_bar(monkeypatch, on_terminal):
    terminal = on_terminal()
    monkeypatch.setattr("loramerge.request.progress.PATIENCE", -1.0)
    monkeypatch.setattr("loramerge.request.kinds.Bar", lambda: Bar(-1.0))
    lm.combine(random_adapters(0, (2, 2)), progress=True)
    assert "merging" in terminal.getvalue()


@pytest.mark.parametrize("value", [3, "yes", lambda: None, lambda done, total: None])
def test_what_cannot_be_told_is_refused(value):
    with pytest.raises(lm.UsageError, match=r"progress=.*\(stage, done, total\)"):
        lm.combine(random_adapters(0, (2, 2)), progress=value)
