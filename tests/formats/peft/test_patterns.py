"""PEFT's rule for rank_pattern keys: the same verdicts, and no key that can hang."""

import re
import warnings

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loramerge.errors import IncompatibleError, SourceError
from loramerge.formats.peft.patterns import BUDGET, MAX_KEY, MAX_KEYS, MAX_PATH, Patterns


def first_match(keys, path):
    return Patterns("rank_pattern", keys, "adapter").first_match(path)


def as_peft(keys, path):
    """`peft.utils.other.get_pattern_key`, but None where nothing matches."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", path)), None)


PATH = "model.layers.10.self_attn.q_proj"

RULES = {
    "the last name": (["q_proj"], PATH, "q_proj"),
    "the last names": (["self_attn.q_proj"], PATH, "self_attn.q_proj"),
    "the whole path": ([PATH], PATH, PATH),
    "not a part of a name": (["proj"], PATH, None),
    "not a name in the middle": (["self_attn"], PATH, None),
    "the first wins": (["q_proj", "self_attn.q_proj"], PATH, "q_proj"),
    "the first wins, also over a name": ([".*proj", "q_proj"], PATH, ".*proj"),
    "the first wins, also over a regex": (["q_proj", ".*proj"], PATH, "q_proj"),
    "the first that matches": (["k_proj", "(k|v)_proj", "q_proj"], PATH, "q_proj"),
    "none": (["k_proj", "(k|v)_proj"], PATH, None),
    "no keys": ([], PATH, None),
    "a dot is any character": (["a.b"], "aXb", "a.b"),
    "an escaped dot is a dot": ([r"a\.b"], "aXb", None),
    "an escaped dot is found": ([r"a\.b"], "x.a.b", r"a\.b"),
    "a dot and an escaped dot": ([r"a\.b.c"], "a.bXc", r"a\.b.c"),
    "an anchor": (["^q_proj"], PATH, None),
    "an anchored path": (["^" + re.escape(PATH)], PATH, "^" + re.escape(PATH)),
    "two anchors": (["^a$"], "a", "^a$"),
    "alternatives stay in the key": (["k_proj|q_proj"], PATH, "k_proj|q_proj"),
    "alternatives end at the end": (["self_attn|k_proj"], PATH, None),
    "a class": ([r"layers.[0-9]+.*q_proj"], PATH, r"layers.[0-9]+.*q_proj"),
    "a count": ([r"layers\.\d{2}\..*"], PATH, r"layers\.\d{2}\..*"),
    "a count that is missed": ([r"layers\.\d{3}\..*"], PATH, None),
    "lazy": (["layers.*?proj"], PATH, "layers.*?proj"),
    "the empty key matches after a dot": ([""], "a.", ""),
    "the empty key matches nothing else": ([""], "a", None),
    "the empty path": (["a?"], "", "a?"),
    "all but a tower": ([r"(?!.*vision).*q_proj"], PATH, r"(?!.*vision).*q_proj"),
    "not of a layer": ([r"layers\.(?!10).*"], PATH, None),
    "what stands before": ([r".*(?<=self_attn)\.q_proj"], PATH, r".*(?<=self_attn)\.q_proj"),
    "what does not stand before": ([r".*(?<!self_attn)\.q_proj"], PATH, None),
    "in either case": (["(?i:Q_PROJ)"], PATH, "(?i:Q_PROJ)"),
    "a group with a name": ([r"(?P<which>q|v)_proj"], PATH, r"(?P<which>q|v)_proj"),
}


@pytest.mark.parametrize(("keys", "path", "expected"), RULES.values(), ids=RULES)
def test_keys_govern_modules_as_in_peft(keys, path, expected):
    assert first_match(keys, path) == expected
    assert as_peft(keys, path) == expected


UNREAD = [
    *(r"(?>a)", r"(?#a)", r"(?x:a)", r"(?P<n>a)(?P=n)", r"(a)?(?(1)b|c)"),
    *(
        r"(a)\1",
        r"\x41",
        r"\n",
        r"a*+",
        r"a{2}+",
        r"[[a]",
        r"[a--b]",
        "(" * 60 + ")" * 60,
    ),
]


@pytest.mark.parametrize("key", UNREAD)
def test_what_is_not_read_is_refused_by_name_with_the_remedy(key):
    with pytest.raises(IncompatibleError) as caught:
        Patterns("alpha_pattern", [key], "adapters/x")
    assert str(caught.value).startswith(f"The alpha_pattern key '{key}' of adapters/x uses ")
    assert str(caught.value).endswith("Write it as plain module names.")


INVALID = [
    "(",
    ")",
    "a)|(b",
    "[",
    "[]",
    "[^]",
    "[b-a]",
    "*",
    "a**",
    "a{2}{3}",
    "a{2,1}",
    "^*",
    r"\Z*",
    "(?i)a",
    "a(?i)b",
    "(?q:a)",
    "(?i-i:a)",
    "(?P<1>a)",
    "(?P<n>a)(?P<n>b)",
    "(?<=a|bc)d",
    "(?<!a+)d",
    "(?=a",
    "a\\",
]


@pytest.mark.parametrize("key", INVALID)
def test_what_is_no_regular_expression_is_a_fault_of_the_file(key):
    with pytest.raises(SourceError, match="of adapters/x is not a regular expression"):
        Patterns("rank_pattern", [key], "adapters/x")


def test_keys_and_paths_have_limits():
    Patterns("rank_pattern", map(str, range(MAX_KEYS)), "x")
    with pytest.raises(IncompatibleError, match="has 100001 keys"):
        Patterns("rank_pattern", map(str, range(MAX_KEYS + 1)), "x")
    with pytest.raises(IncompatibleError, match="has 1001 characters"):
        Patterns("rank_pattern", ["a" * (MAX_KEY + 1)], "x")
    for path in ("a" * (MAX_PATH + 1), "a\n"):
        with pytest.raises(SourceError, match="module name"):
            first_match(["a"], path)


def test_keys_from_files_cannot_write_to_the_terminal():
    with pytest.raises(IncompatibleError) as caught:
        Patterns("rank_pattern", ["(?>\x1b[31m)"], "x\x1b")
    assert "\x1b" not in str(caught.value)


LONG = "a" * 200 + "!"
CATASTROPHES = {
    "nested plus": "(a+)+$",
    "overlapping alternatives": "(a|aa)+$",
    "nested stars": "(((((((((a*)*)*)*)*)*)*)*)*)*b",
    "many optionals": "(a?){100}a{100}",
    "many stars": "(.*a){20}",
    "more stars": ".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*b",
    "nested counts": "((a{1000}){1000}){1000}",
    "nested counts of nothing": "(((a?){1000}){1000}){1000}",
    "huge counts": "((a{0,999999999}){0,999999999}){999999999}",
    "huge counts of nothing": "((){999999999}){999999999}",
    "huge counts of an anchor": "((^){999999999}){999999999}b",
    "looks in all places": "(" * 20 + "(?=.*a)a*" + ")*" * 20 + "(?<!b)c",
    "nested looks": "(?=.*" * 10 + "a" + ")" * 10 + "b",
    "nested looks both ways": "(?!.*(?<!a" * 5 + "))" * 5 + "b",
    "many looks": "".join(f"(?!.*a{{{n}}}b)" for n in range(10)) + "a*",
    "nested plus in a look": "(?=(a+)+$)b",
    "nested counts of optionals": "(" * 40 + "a?" + "){2,}" * 40,
}


@pytest.mark.parametrize("key", CATASTROPHES.values(), ids=CATASTROPHES)
@pytest.mark.parametrize("path", [LONG, "a" * MAX_PATH, "a." * (MAX_PATH // 2)])
def test_hostile_keys_are_decided_within_the_budget(key, path):
    patterns = Patterns("rank_pattern", [key], "x")
    assert patterns.first_match(path) in (key, None)


def test_a_key_that_would_exceed_the_budget_is_refused(monkeypatch):
    monkeypatch.setattr("loramerge.formats.peft.patterns.BUDGET", 300_000)
    patterns = Patterns("rank_pattern", ["((a|b){1,500}c?){1,500}"], "x")
    with pytest.raises(IncompatibleError, match="rank_pattern keys of x take too long"):
        patterns.first_match("ab" * (MAX_PATH // 2))


def test_the_budget_is_shared_by_all_paths_of_an_adapter(monkeypatch):
    monkeypatch.setattr("loramerge.formats.peft.patterns.BUDGET", 300_000)
    patterns = Patterns("rank_pattern", ["(a|b|c)+d"], "x")
    paths = ("abc" * 300 + str(i) for i in range(300_000))
    with pytest.raises(IncompatibleError, match="take too long"):
        all(patterns.first_match(path) is None for path in paths)


def test_a_path_is_decided_once_however_often_it_is_asked_for():
    patterns = Patterns("rank_pattern", ["(a|b|c)+d"], "x")
    assert {patterns.first_match("abc" * 300) for _ in range(BUDGET // 900)} == {None}


def test_keys_that_begin_alike_are_parted_once():
    """Two thousand that are no plain names are far within the budget; once each was paid for by itself."""
    keys = [rf"layers\.{i // 100}\.experts\.{i % 100}\.(up|gate)_proj" for i in range(2_000)]
    patterns = Patterns("rank_pattern", keys, "x")
    paths = [f"model.layers.{i // 100}.experts.{i % 100}.up_proj" for i in range(0, 2_000, 7)]
    assert [patterns.first_match(path) for path in paths] == keys[::7]


def test_keys_that_would_take_long_to_parse_are_refused(monkeypatch):
    monkeypatch.setattr("loramerge.formats.peft.patterns.BUDGET", 300_000)
    with pytest.raises(IncompatibleError, match="take too long"):
        Patterns("rank_pattern", ("a+" * 450 + str(i) for i in range(4_000)), "x")
    with pytest.raises(IncompatibleError, match=r"more than .* characters together"):
        Patterns("rank_pattern", ("a" * 900 + str(i) for i in range(10_000)), "x")


def test_ten_thousand_modules_with_a_key_each_are_far_within_the_budget():
    paths = [f"model.layers.{i // 100}.experts.{i % 100}.up_proj" for i in range(10_000)]
    for keys in (paths, ["^" + re.escape(path) for path in paths]):
        patterns = Patterns("rank_pattern", keys, "x")
        assert [patterns.first_match(path) for path in paths] == keys


atoms = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\.",
        r"\d",
        r"\W",
        "[ab]",
        "[^a]",
        "[]a]",
        "[a-b.]",
        r"[\d-]",
        "1",
        "-",
        "{",
        "}",
    ]
)
quantifiers = st.sampled_from(["*", "+", "?", "*?", "??", "{2}", "{1,}", "{,2}", "{0}", "{1,3}?", "{a"])
regexes = st.recursive(
    atoms | st.sampled_from(["^", "$", "", r"\b", r"\B", r"\A", r"\Z"]),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("|".join)
        | inner.map("({})".format)
        | st.tuples(st.sampled_from(["(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?-i:", "(?s:"]), inner).map(
            lambda parts: f"{parts[0]}{parts[1]})"
        )
        | st.tuples(inner.map("(?:{})".format), quantifiers).map("".join)
        | st.tuples(atoms, quantifiers).map("".join)
    ),
    max_leaves=10,
)
paths = st.text("abA.1-{", max_size=8)


@given(regexes, paths)
@example("(?:^a|b)*", "ab")
@example("(?:a|)*?b", "aab")
def test_verdicts_are_those_of_re(key, path):
    assume(valid(key))  # a look-behind has one length
    assert first_match([key], path) == as_peft([key], path)


def valid(key):
    try:
        re.compile(key)
    except re.error:
        with pytest.raises(SourceError):
            Patterns("rank_pattern", [key], "x")
        return False
    return True


@given(st.text("ab.\\^$*+?{}[]()|1,-:d=!<", max_size=12), paths)
def test_any_text_is_refused_or_read_as_re_reads_it(key, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            re.compile(key)
        except (re.error, OverflowError):
            valid = False
        else:
            valid = True
    try:
        found = first_match([key], path)
    except SourceError:
        assert not valid
    except IncompatibleError:
        pass
    else:
        assert valid
        assert found == as_peft([key], path)


@given(st.lists(st.text("ab.^$", max_size=4) | regexes, max_size=6), paths)
def test_the_order_of_keys_is_that_of_peft(keys, path):
    keys = [key for key in keys if valid(key)]
    assert first_match(keys, path) == as_peft(keys, path)
