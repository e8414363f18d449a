"""A search in module names finds what `re.search` finds, and ends."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loramerge.adapters.patterns import automaton
from loramerge.adapters.patterns.search import Search, searcher
from loramerge.errors import IncompatibleError, UsageError

PIECES = [
    "q",
    "v",
    "a",
    ".",
    r"\.",
    "*",
    "+",
    "?",
    "|",
    "(",
    ")",
    "[qv]",
    "[^a]",
    r"\d",
    "^",
    "$",
    "1",
    r"\b",
    "{2}",
    "(?:",
    "(?=",
    "(?!",
    "(?<=",
    "(?<!",
]
NAMES = ["", "q", "qv", "layers.1.q", "a.v.11", "vv", "q.a.q"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.sampled_from(NAMES))
def test_it_finds_what_python_finds(pattern, name):
    found_as_by_python([pattern], [name])


LOOKS = {
    "(?i)Q": "layers.q",
    "q(?!b)": "qc",
    "q(?<=x.q)": "x.q",
    "(?=q)": "q",
    "(?<!k_)q": "q",
    "^(?!.*vision).*q$": "language.q",
    "(?!.*(?<!vision)_tower).*q": "vision_tower.q",
    "(?=.*(?!.*[st])q)a": "a.q",
}


@pytest.mark.parametrize(("pattern", "name"), LOOKS.items(), ids=LOOKS)
def test_what_looks_around_is_found(pattern, name):
    assert searcher(pattern, "--only")(name)
    assert not searcher(pattern, "--only")("layers.0.v")


UNREAD = [r"(q)\1", "(?>q)", "q*+", "(?x)q", "(q)?(?(1)v|k)", "(" * 60 + ")" * 60]


@pytest.mark.parametrize("pattern", UNREAD)
def test_what_cannot_be_matched_in_little_time_is_refused_whoever_wrote_it(pattern):
    re.compile(pattern)
    with pytest.raises(IncompatibleError, match=r"--only .* which is not read: write it more simply"):
        searcher(pattern, "--only")


@pytest.mark.parametrize("pattern", ["(", "[", "*", "a{3,2}", "(" * 40])
def test_no_regular_expression_is_a_usage_error(pattern):
    with pytest.raises(UsageError, match="is not a regular expression"):
        searcher(pattern, "--only")


HANGING = ["(?=(a+)+$)b", "(?<!(?!(a+)+b)a)c", "(a+)+$", "(a|aa)+$", "(.*a){25}b", "(a*)*b", "a*" * 40 + "b"]


@pytest.mark.parametrize("pattern", HANGING)
def test_no_pattern_hangs(pattern, monkeypatch):
    monkeypatch.setattr("loramerge.adapters.patterns.search.BUDGET", 300_000)  # 0.5 s
    begin = time.process_time()
    found = searcher(pattern, "only")
    try:
        assert not any(found("a" * 3000 + f"c{i}") for i in range(100_000))
    except IncompatibleError as error:
        assert "takes too long" in str(error)  # noqa: PT017
    assert time.process_time() - begin < 10


def test_many_patterns_share_their_steps(monkeypatch):
    """What one of them may take, a thousand may not take each."""
    monkeypatch.setattr("loramerge.adapters.patterns.search.BUDGET", 100_000)
    name, patterns = "a" * 200 + "c", [f"(.*a){{{i},}}b" for i in range(1000)]
    assert not searcher(patterns[3], "match")(name)
    with pytest.raises(IncompatibleError, match="match: 1000 patterns together take too long"):
        Search(patterns, "match").first(name)


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), max_size=6),
    st.lists(st.sampled_from([*NAMES, "q\nv", "q\n"]), min_size=1, max_size=3),
    st.sampled_from([0, automaton.MANY]),
)
def test_many_patterns_are_found_as_one_by_one(patterns, names, many):
    assume("\n" not in "".join(names) or "$" not in "".join(patterns))  # that is the end alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automaton, "MANY", many)
        found_as_by_python(patterns, names)


def found_as_by_python(patterns, names):
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error:
            assume(False)
    try:
        search = Search(patterns, "match")
    except IncompatibleError:
        assume(False)  # possessive
    met = [any(re.search(pattern, name) for name in names) for pattern in patterns]
    assert search.unmet(names) == next((i for i, each in enumerate(met) if not each), None)
    for name in names:
        wanted = next((i for i, pattern in enumerate(patterns) if re.search(pattern, name)), None)
        assert search.first(name) == wanted


def test_what_is_forgotten_is_found_again(monkeypatch):
    monkeypatch.setattr("loramerge.adapters.patterns.automaton.KEPT", 50)
    search = Search([rf"layers\.(x|{i})\..*q$" for i in range(200)], "match")
    assert [search.first(f"layers.{i}.self_attn.q") for i in range(200)] == [*range(200)]
