"""Names of the field: any spelling, aliases that give the same merge, differences that are told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.algorithms import METHODS, find, name_of
from loramerge.algorithms.names import ALIASES, OTHERWISE, PARAMETERS, known, plain
from tests.helpers.adapters import dense, distance, random_adapters

PAIR = random_adapters(0, (2, 2))
ALL = [(other, own) for own, others in ALIASES.items() for other in others]


@pytest.mark.parametrize("name", METHODS)
def test_case_dashes_and_underscores_do_not_matter(name):
    for other in ("-", "", " "):
        spelt = name.replace("_", other).title()
        assert find(spelt) is METHODS[name]


@pytest.mark.parametrize(("other", "own"), ALL, ids=[other for other, _ in ALL])
def test_an_alias_gives_the_same_merge(other, own):
    assert own in METHODS
    sources = random_adapters(0, (2,)) if METHODS[own]().traits.units == "shared" else PAIR
    merges = [lm.combine(sources, name) for name in (other, own)]
    assert distance(*(dense(merge.adapter) for merge in merges)) == 0
    assert [name_of(merge.method) for merge in merges] == [own, own]


def test_every_name_means_one_thing():
    words = [*map(plain, METHODS), *(plain(other) for other, _ in ALL), *map(plain, OTHERWISE)]
    doubles = {word for word in words if words.count(word) > 1}
    assert not doubles


PEFT = (
    "svd linear cat ties ties_svd dare_linear dare_ties dare_linear_svd dare_ties_svd magnitude_prune "
    "magnitude_prune_svd"
).split()
MERGEKIT = (
    "linear slerp nuslerp multislerp karcher passthrough task_arithmetic ties dare_ties dare_linear "
    "breadcrumbs breadcrumbs_ties della della_linear model_stock sce arcee_fusion nearswap ram ramplus_tl"
).split()


@pytest.mark.parametrize("kind", PEFT)
def test_a_call_of_peft_reads_here_as_python_that_works(kind, tmp_path, monkeypatch):
    """What is answered to a pasted call is run as it stands."""
    for name, adapter in zip("ab", PAIR, strict=True):
        lm.save(adapter, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    call = f'model.add_weighted_adapter(["a", "b"], [1.0, .5], "ab", "{kind}", density=0.4)'
    with pytest.raises(lm.UsageError, match="call of PEFT") as refused:
        lm.combine(call)
    (line,) = (line for line in str(refused.value).splitlines() if line.startswith("lm."))
    exec(line, {"lm": lm})
    record = json.loads((tmp_path / "ab" / "loramerge.json").read_text())
    assert record["method"]["name"] in (kind, kind.removesuffix("_svd"), "magnitude", "dare")
    assert [each["weight"] for each in record["sources"]] == [1.0, 0.5]
    assert "A and to B apart" in str(refused.value) or kind in ("svd", "cat") or kind.endswith("_svd")


CALL = "x.add_weighted_adapter(adapters=['a', name(1)], weights=[1, w], adapter_name='ab', svd_rank=8)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CALL, "lm.combine(['a', 'name(1)'], 'svd', weights=[1, 'w'], rank=8, out='ab')"),
        ("a.add_weighted_adapter(", "lm.combine(['PATH', 'PATH'], 'svd')"),
        ("a.add_weighted_adapter(['(', ')'], svd_clamp=0.9)", "lm.combine(['(', ')'], 'svd')"),
        ("a.add_weighted_adapter(['a'], combination_type='x')", "There is no method 'x'"),
        ("a.add_weighted_adapter(['a'], combination_type='ties_svd', majority_sign_method='frequency')",
         "'ties', election='count', divisor='count')"),
    ],
)  # fmt: skip
def test_a_call_is_read_as_far_as_it_says_anything(text, words):
    with pytest.raises(lm.UsageError, match=re.escape(words)):
        lm.combine([text])


@pytest.mark.parametrize("name", sorted({*PEFT, *MERGEKIT}))
def test_every_name_of_peft_and_mergekit_is_understood_or_answered(name):
    if known(name, METHODS) is not None:
        assert find(name) in METHODS.values()
        return
    with pytest.raises(lm.UsageError, match=f"There is no method '{name}' here: ") as refused:
        find(name)
    assert "There are: " not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("breadcrumbs_ties", ("breadcrumbs", {"election": "weighted"})),
        ("della_linear", ("della", {"election": "none", "divisor": "none", "rescale": "l1"})),
        ("ties_svd", ("ties", {"election": "raw", "divisor": "count", "rank": 2})),
        ("dare_ties_svd", ("dare_ties", {"election": "raw", "divisor": "count", "rank": 2})),
    ],
)
def test_the_options_that_an_answer_names_exist(name, options):
    method, given = options
    for key, value in given.items():
        assert key == "rank" or f"{key}={value}" in OTHERWISE[name]
    assert np.isfinite(lm.combine(PAIR, method, **given).report.rounding_error or 0.0)


@pytest.mark.parametrize(
    ("typo", "meant"), [("linaer", "linear"), ("task-arithmatic", "linear"), ("tise", "ties")]
)
def test_a_misspelt_name_is_answered_with_what_is_near(typo, meant):
    with pytest.raises(lm.UsageError, match=f"Did you mean {meant}"):
        find(typo)


def test_a_mean_is_never_taken_for_federated_training():
    assert find("avg") is find("AVG") is METHODS["average"]
    for typo in ("avrg", "averge", "avgg"):
        with pytest.raises(lm.UsageError, match="Did you mean average"):
            find(typo)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_word_of_peft_or_mergekit_is_answered_with_how_it_reads_here(name):
    with pytest.raises(lm.UsageError, match=rf"^{name} is (of )?(PEFT|mergekit)") as refused:
        lm.combine(PAIR, **{name: "x"})
    here = PARAMETERS[name][1]
    assert here in {"", "method", "sources", "out", "rank", "election", "scale"}
    assert f"{here}=" in str(refused.value) or not here


def test_the_page_of_methods_lists_every_other_name():
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for other in [*(other for other, _ in ALL), *OTHERWISE, *PARAMETERS]:
        assert f"`{other}`" in page
