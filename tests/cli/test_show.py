"""A bar is for people who wait: on a terminal, after a second, over the modules that remain."""

import io
import sys

import pytest

from loramerge.cli import show
from loramerge.request.recipe import Ingredient


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("items", [[], [[1]], [[1, 2], [3], [4, 5, 6]]], ids=str)
@pytest.mark.parametrize("patience", [-1.0, 3600.0])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_everything_passes_and_a_bar_is_shown_to_those_who_wait(monkeypatch, items, patience, stream):
    monkeypatch.setattr(show, "PATIENCE", patience)
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(show.progress(items, 6)) == items
    shown = stream is Terminal and patience < 0 and items != []
    assert ("module" in sys.stderr.getvalue()) == shown
    if shown and len(items) == 3:
        assert "2/6" in sys.stderr.getvalue()


def test_sources_are_counted_one_by_one(monkeypatch):
    monkeypatch.setattr(show, "PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    pair = [Ingredient("a"), Ingredient("b")]
    assert list(show.opening(pair)) == pair
    assert "adapter" in sys.stderr.getvalue()


def test_a_bar_goes_away_when_the_work_fails(monkeypatch):
    monkeypatch.setattr(show, "PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stderr", Terminal())

    def failing():
        yield [1]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(show.progress(failing(), 2))
    assert sys.stderr.getvalue().endswith("\r")
