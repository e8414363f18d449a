"""Adapters that other people trained, in a bundle: each as it was, and what PEFT would make of it."""

import os
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.sources.expand import expand

PLACE = os.environ.get("LORAMERGE_REAL_ADAPTERS")
if not PLACE:
    pytest.skip("LORAMERGE_REAL_ADAPTERS is not set", allow_module_level=True)


FAMILIES = {  # what PEFT makes of them
    "A-gpt2": [("ignores", "3 of 108 that it finds")],
    "E-roberta-base": [],
    "G-sd15-attn": [("rejects", "to_out.0")],
}


@pytest.mark.parametrize(("family", "said"), FAMILIES.items())
def test_every_adapter_is_in_the_bundle_as_it_was(family, said, tmp_path):
    sources = [lm.load(path) for path, _ in expand(str(Path(PLACE) / family))]
    bundle = lm.route(sources, "arrow", extras="drop", allow_base_mismatch=True, out=tmp_path / "b")
    names = {str(target).removeprefix("unet."): target for target in bundle}
    for expert, source in enumerate(sources):
        for target in list(source)[:: max(1, len(source) // 8)]:
            found = bundle[names[str(target).removeprefix("unet.")]].expert(expert).dense()
            wanted = source[target].dense()
            assert np.linalg.norm(found - wanted) <= 1e-2 * np.linalg.norm(wanted)
    found = lm.check(tmp_path / "b", "peft")
    assert [each.effect for each in found] == [effect for effect, _ in said]
    assert all(words in each.sentence for each, (_, words) in zip(found, said, strict=True))
