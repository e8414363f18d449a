"""A search in module names finds what `re.search` finds, and ends."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loramerge.adapters.patterns.search import searcher, searchers
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
]
NAMES = ["", "q", "qv", "layers.1.q", "a.v.11", "vv", "q.a.q"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.sampled_from(NAMES))
def test_it_finds_what_python_finds(pattern, name):
    try:
        wanted = re.search(pattern, name) is not None
    except re.error:
        assume(False)
    assert searcher(pattern, "--only")(name) == wanted


RARE = {"(?i)Q": "layers.q", r"(q)\1": "qq", "q(?!b)": "qc", r"q(?<=x.q)": "x.q", "(?=q)": "q"}


@pytest.mark.parametrize(("pattern", "name"), RARE.items(), ids=RARE)
def test_what_needs_pythons_matcher_is_read_from_the_user_only(pattern, name):
    assert searcher(pattern, "--only")(name)
    assert not searcher(pattern, "--only")("layers.0.v")
    with pytest.raises(IncompatibleError, match="not read from a file"):
        searcher(pattern, "only", trusted=False)


@pytest.mark.parametrize("pattern", ["(", "[", "*", "a{3,2}", "(" * 9_000])
def test_no_regular_expression_is_a_usage_error(pattern):
    with pytest.raises(UsageError, match="is not a regular expression"):
        searcher(pattern, "--only")


HANGING = ["(a+)+$", "(a|aa)+$", "(.*a){25}b", "(a*)*b", "a*" * 40 + "b"]


@pytest.mark.parametrize("pattern", HANGING)
def test_no_pattern_hangs(pattern, monkeypatch):
    monkeypatch.setattr("loramerge.adapters.patterns.search.BUDGET", 1_000_000)  # 0.2 s
    begin = time.process_time()
    found = searcher(pattern, "only", trusted=False)
    try:
        assert not any(found("a" * (3000 + i) + "c") for i in range(100_000))
    except IncompatibleError as error:
        assert "takes too long" in str(error)  # noqa: PT017
    assert time.process_time() - begin < 10


def test_many_patterns_share_their_steps(monkeypatch):
    """What one of them may take, a thousand may not take each."""
    monkeypatch.setattr("loramerge.adapters.patterns.search.ALL", 100_000)
    name, patterns = "a" * 200 + "c", [f"(a*)*b{i}" for i in range(1000)]
    assert not searcher(patterns[0], "match")(name)
    with pytest.raises(IncompatibleError, match="takes too long"):
        assert not any(found(name) for found in searchers(patterns, "match"))
    plain = searchers([f"layers.{i}.q" for i in range(1000)], "match")
    assert [i for i, found in enumerate(plain) if found("layers.3.q")] == [3]
