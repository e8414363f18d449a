"""What the tests of published systems share: random numbers, pickles of torch, the comparison of ΔW."""

import numpy as np
import pytest


def n(rng, *shape):
    return rng.standard_normal(shape).astype("f4")


def same(adapter, wanted, tolerance=1e-6):
    assert {str(target) for target in adapter} == set(wanted)
    for target, update in adapter.items():
        theirs = wanted[str(target)]
        assert np.linalg.norm(update.dense() - theirs) <= tolerance * np.linalg.norm(theirs), target


def pickled(path, value):
    torch = pytest.importorskip("torch")

    def tensors(each):
        if isinstance(each, dict):
            return {key: tensors(inner) for key, inner in each.items()}
        return torch.from_numpy(each) if isinstance(each, np.ndarray) else each

    torch.save(tensors(value), path)
    return path
