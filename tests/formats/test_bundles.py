"""A bundle is told by its record. A broken one is said: its adapters do not become sources of one weight."""

import pytest

import loramerge as lm
from tests.helpers.files import folder, tensors

SHAPES = {"layers.0.q": (4, 4)}
VERBS = {
    "combine": lambda: lm.combine(["bundle"], "svd", rank=1, out="out"),
    "inspect": lambda: lm.inspect("bundle"),
    "diff": lambda: lm.diff("bundle", "a"),
    "check": lambda: lm.check("bundle", "vllm"),
    "convert": lambda: lm.convert("bundle", "out", "mlx"),
    "resize": lambda: lm.resize("bundle", rank=1),
    "route": lambda: lm.route(["bundle"], gate="static", out="out"),
    "load": lambda: lm.load("bundle"),
    "load_bundle": lambda: lm.load_bundle("bundle"),
}


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        folder(tmp_path / name, tensors(seed, shapes=SHAPES))
    lm.route(["a", "b"], gate="static", weights=[0.3, 0.7], out="bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("text", ["", '{"kind": "bund', "[]"], ids=["nothing", "cut", "a list"])
def test_a_record_that_cannot_be_read_is_said(verb, text, bundle):
    (bundle / "loramerge.json").write_text(text)
    with pytest.raises(lm.SourceError, match=r"bundle/loramerge\.json"):
        VERBS[verb]()
    assert not (bundle.parent / "out").exists()
