"""A merge that is much stronger than its sources says so, with the remedy, wherever it is shown."""

import json

import numpy as np
import pytest

import loramerge as lm
from loramerge.hub import card
from tests.helpers.adapters import random_adapters
from tests.helpers.files import folder, tensors

EIGHT = random_adapters(0, (2,) * 8)
WORDS = "times as strong as its sources are on average"


def norm(adapter):
    return sum(update.norm() ** 2 for update in adapter.values()) ** 0.5


def test_strength_is_the_norm_of_the_merge_over_the_mean_of_its_sources():
    merge = lm.combine(EIGHT, weights=[1, -2, 3, 1, 1, 0, 1, 1])
    heard = EIGHT[:5] + EIGHT[6:]
    wanted = norm(merge.adapter) / np.mean([norm(each) for each in heard])
    assert merge.report.strength == pytest.approx(wanted)
    assert merge.report.to_dict()["strength"] == merge.report.strength


def test_a_sum_of_eight_is_said_to_be_strong_and_its_remedies_help():
    report = lm.combine(EIGHT, "linear").report
    assert report.strength > 1.5
    assert WORDS in str(report)
    assert "scale='norm'" in str(report)
    assert "method='level'" in str(report)
    for remedy in ({"scale": "norm"}, {"scale": "fade"}, {"method": "average"}, {"method": "level"}):
        assert WORDS not in str(lm.combine(EIGHT, **{"method": "linear", **remedy}).report)


@pytest.mark.parametrize("asked", [{}, {"scale": 2.0}, {"weights": [3.0, 3.0]}], ids=str)
def test_it_is_said_above_one_and_a_half_times_and_not_below(asked):
    report = lm.combine(EIGHT[:2], "linear", **asked).report
    assert (WORDS in str(report)) == (report.strength > 1.5) == bool(asked)


def test_sources_that_are_zero_do_not_count():
    zero = lm.Adapter.of({"q": lm.LowRank(np.zeros((2, 1)), np.zeros((1, 2)))})
    unit = lm.Adapter.of({"q": lm.LowRank(np.ones((2, 1)), np.ones((1, 2)))})
    assert lm.combine([unit, zero], "linear").report.strength == pytest.approx(1)
    assert lm.combine([zero]).report.strength is None


def test_the_command_says_it_in_its_own_words(tmp_path, monkeypatch, capsys):
    from tests.helpers.files import Cli

    monkeypatch.chdir(tmp_path)
    for n in range(4):
        folder(tmp_path / f"a{n}", tensors(n))
    cli = Cli(capsys)
    assert cli("combine", "a0", "a1", "a2", "a3", "--method", "linear", "--scale", "3", "-o", "m").code == 0
    assert WORDS in cli.out
    assert "--scale norm" in cli.out
    assert (
        cli("combine", "a0", "a1", "a2", "a3", "--method", "linear", "--scale", "norm", "-o", "n").code == 0
    )
    assert WORDS not in cli.out
    assert json.loads((tmp_path / "m" / "loramerge.json").read_text())["report"]["strength"] > 1.5
    for scale, notes in (("3", 1), ("norm", 0)):
        assert (
            cli(
                "combine", "a0", "a1", "--method", "linear", "--scale", scale, "--json", "-o", f"j{scale}"
            ).code
            == 0
        )
        assert sum(WORDS in note for note in json.loads(cli.out)["notes"]) == notes


@pytest.mark.parametrize(("strength", "told"), [(1.4, False), (2.5, True)])
def test_the_card_says_it_and_at_what_strength_to_load_it(strength, told):
    said = card._figures(card.Facts("a/b", modules=1, rank=1, dtype="F32", report={"strength": strength}))
    assert f"{strength:.3g}" in said
    assert ("if it is loaded at 0.4" in said) == told


def test_a_replay_says_it_too(tmp_path, monkeypatch, capsys):
    from tests.helpers.files import Cli

    monkeypatch.chdir(tmp_path)
    for n in range(4):
        folder(tmp_path / f"a{n}", tensors(n))
    cli = Cli(capsys)
    cli("combine", "a0", "a1", "a2", "a3", "--method", "linear", "-o", "m")
    assert WORDS in cli("replay", "m", "-o", "again").out
    assert any(WORDS in note for note in cli("replay", "m", "-o", "json", "--json").json()["notes"])
