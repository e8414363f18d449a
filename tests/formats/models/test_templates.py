"""Names rewritten by templates: a table of beginnings means what its rows mean one by one."""

from hypothesis import example, given
from hypothesis import strategies as st

from loramerge.formats.models.templates import Beginnings, Template

SEGMENTS = st.lists(st.sampled_from(["a", "b", "0", "a*", "*", ""]), max_size=4).map(".".join)


@example(["a..a"], "a.a")
@given(st.lists(SEGMENTS, max_size=6), SEGMENTS)
def test_beginnings_are_those_that_rewrite(olds, path):
    rules = [Template(old, "new", first=True) for old in olds]
    one_by_one = {number for number, rule in enumerate(rules) if rule.rewrite(path) is not None}
    assert Beginnings(rules).of(path) == one_by_one


def test_a_star_is_one_segment():
    rules = [Template(old, "", first=True) for old in ("model.*.q", "model.*", "model", "mod", "*.*.*.*")]
    assert Beginnings(rules).of("model.0.q") == {0, 1, 2}
