"""What a caller hands to a bundle: what is no tokens, row or prompt is a sentence, in NumPy and in torch."""

from __future__ import annotations

import numpy as np
import pytest

import loramerge as lm
from tests.routing.samples import NAMES, sample, tokens, told

Q = "layers.0.q"
ODD = {
    "another width": (np.ones((2, 8)), "takes 9 inputs, and x has 8"),
    "no dimension": (np.float64(3), "x is a single number"),
    "text": (np.array(["a"] * 9), "finite real numbers"),
    "objects": ([object()] * 9, "finite real numbers"),
    "complex": (np.ones((2, 9), complex), "finite real numbers"),
    "ragged": ([[1, 2], [3]], "finite real numbers"),
    "nothing": (None, "finite real numbers"),
    "not finite": (np.full((2, 9), np.nan), "finite real numbers"),
}


@pytest.mark.parametrize(("x", "words"), ODD.values(), ids=ODD)
def test_tokens_that_are_none_are_a_sentence(x, words):
    for verb in (sample("arrow").forward, sample("arrow").explain):
        with pytest.raises(lm.UsageError, match=words):
            verb(Q, x)


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_have_no_outputs_and_nothing_to_explain(name):
    bundle = sample(name)
    said = told(bundle.gate)
    assert bundle.forward(Q, np.zeros((0, 9)), **said).shape == (0, 7)
    assert bundle.forward(Q, np.zeros((2, 0, 9)), **said).shape == (2, 0, 7)
    with pytest.raises(lm.UsageError, match="no tokens"):
        bundle.explain(Q, np.zeros((0, 9)), **said)


def test_numbers_of_other_kinds_are_taken():
    bundle, x = sample("spectr"), np.round(tokens(3))
    wanted = bundle.forward(Q, x)
    assert np.array_equal(bundle.forward(Q, x.astype(int)), wanted)
    assert np.array_equal(bundle.forward(Q, x.tolist()), wanted)
    torch = pytest.importorskip("torch")
    given = torch.tensor(x, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(bundle.forward(Q, given), wanted)


@pytest.mark.parametrize("name", ["layers.0.qq", 3, lm.Target("layers.0.qq")])
def test_a_module_that_is_not_there_is_a_sentence_and_still_a_key_error(name):
    for verb in (sample("arrow").forward, sample("arrow").explain):
        with pytest.raises(lm.UsageError, match=r"^The bundle has no module") as caught:
            verb(name, tokens(2))
        assert isinstance(caught.value, KeyError)
    with pytest.raises(KeyError):
        sample("arrow")[name]


ROWS = {
    "unknown": ("carl", "no row carl"),
    "a number": (3, "named by text"),
    "numbers": ([3], "named by text"),
    "none": ([], "named by text"),
    "bytes": (b"ann", "named by text"),
    "one unknown of two": (["ann", "carl"], "no row carl"),
    "too many": (["ann", "bob", "ann"], "3 rows for 2 requests"),
}


@pytest.mark.parametrize(("row", "words"), ROWS.values(), ids=ROWS)
def test_a_row_that_is_none_is_a_sentence(row, words):
    with pytest.raises(lm.UsageError, match=words):
        sample("table").forward(Q, tokens(2), row=row)


PROMPTS = {
    "none": (None, "hidden states as prompt="),
    "another width": (np.ones((3, 5)), r"\(tokens, 4\), and has the shape \(3, 5\)"),
    "one dimension": (np.ones(4), r"has the shape \(4,\)"),
    "no tokens": (np.ones((0, 4)), r"has the shape \(0, 4\)"),
    "a number": (3, r"has the shape \(\)"),
    "not finite": (np.full((3, 4), np.nan), "finite real numbers"),
}


@pytest.mark.parametrize(("prompt", "words"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_is_none_is_a_sentence(prompt, words):
    bundle = sample("outchan")
    with pytest.raises(lm.UsageError, match=words):
        bundle.forward(Q, tokens(2), prompt=prompt)
    with pytest.raises(lm.UsageError, match=words):
        bundle.flat(prompt=prompt)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("static", {"weights": [np.nan, 1, 1]}),
        ("static", {"weights": 3}),
        ("static", {"weights": "abc"}),
        ("table", {"rows": [1]}),
        ("table", {"rows": {"a": 3}}),
        ("table", {"rows": {"a": ["x", 1, 2]}}),
        ("task", {"tasks": 3}),
        ("task", {"tasks": "abc"}),
    ],
)
def test_weights_and_names_that_are_none_are_a_sentence(name, options):
    with pytest.raises(lm.UsageError):
        lm.GATES[name](**options).settled(3)
