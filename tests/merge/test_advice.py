"""A refused merge is advised only what its method and its user have. A new method enters by itself."""

import re
from dataclasses import replace

import pytest

import loramerge as lm
from loramerge import METHODS
from loramerge.errors import VerificationError
from loramerge.merge.prove import check_limits, check_something
from loramerge.request.request import Request
from tests.laws.rows import MERGES, taken

ADVISED = re.compile(r"larger (\w+)")


@pytest.fixture(scope="module")
def report():
    """Of two sources of which the merge holds a little."""
    return lm.combine(MERGES["two of one rank"][0], "svd", rank=1, threads=1).report


def said(act):
    with pytest.raises(VerificationError) as caught:
        act()
    return str(caught.value)


def options(method):
    """Those of a method, and of the methods inside it."""
    inside = [value for name in method.names() if isinstance(value := getattr(method, name), lm.Svd | lm.Cat)]
    return {*method.names()}.union(*map(options, inside))


CASES = {name: cls() for name, cls in METHODS.items()} | {
    "only": lm.only(lm.Cat(), "q", otherwise=lm.Cat()),
    "only, a rank": lm.only(lm.Svd(rank=1), "q", otherwise=lm.Cat()),
}


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
@pytest.mark.parametrize("sources", [1, 2])
def test_a_larger_rank_or_density_is_advised_to_methods_that_have_one(method, sources):
    adapters, weights = taken(method, *MERGES["two of one rank"])
    found = lm.combine(adapters[:sources], "svd", rank=1, weights=weights[:sources], threads=1).report
    nothing = replace(found, modules=tuple(replace(m, merged=0.0, lost=m.wanted) for m in found.modules))
    sentences = {
        "lost": said(lambda: check_limits(nothing, Request(max_lost=0.01), method)),
        "cosine": said(lambda: check_limits(found, Request(min_cosine=1.0), method)),
        "zero": said(lambda: check_something(nothing, method)),
    }
    for sentence in sentences.values():
        assert {*ADVISED.findall(sentence)} <= options(method), sentence
    assert ("larger rank" in sentences["lost"]) == ("rank" in options(method))
    assert ("density" in sentences["zero"]) == ("density" in options(method))
    if sources == 1:
        assert "weight" not in sentences["cosine"], "no weight turns one source"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"total_rank": 4}, "total rank"),
        ({"size": 999}, "size"),
        ({"energy_per_module": 0.5}, "energy per module"),
    ],
)
def test_who_gave_a_size_is_advised_a_larger_one_of_it(report, asked, words):
    sentence = said(lambda: check_limits(report, Request(min_cosine=1.0, **asked), lm.Svd()))
    assert words in sentence
    assert "larger rank" not in sentence
