"""Helpers of the tests hold no tests and no doctests; some need torch, which is optional."""

import gc
import os
import sys
from inspect import isfunction

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores: a BLAS with threads takes theirs
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: a width that no test has asked for
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # many processes are started: each would compile the package

import pytest
from hypothesis import HealthCheck, settings

from tests.hub import loopback  # noqa: F401  before anything imports huggingface_hub: no test reaches the network

sys.dont_write_bytecode = False
shared = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # others use the machine too
settings.register_profile("few", shared)
settings.register_profile("many", shared, max_examples=400)  # --hypothesis-profile many
settings.load_profile("few")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Tests and libraries live to the end: to look for garbage among them takes seconds, each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_pycollect_makeitem(collector, name, obj):
    """Cases that are slow are not even made where they are left out: they are more than half of all."""
    marks = getattr(obj, "pytestmark", ())
    if isfunction(obj) and marks and "not slow" in collector.config.option.markexpr:
        obj.pytestmark = [_quick(mark) if mark.name == "parametrize" else mark for mark in marks]


def _quick(mark):
    """A parametrisation without its slow cases, unless all are."""
    names, values = mark.args[0], list(mark.args[1])
    quick = [i for i, value in enumerate(values) if "slow" not in _names(getattr(value, "marks", ()))]
    ids, given = mark.kwargs.get("ids"), dict(mark.kwargs)
    if ids is not None and not callable(ids):
        ids = list(ids)
        given["ids"] = [ids[i] for i in quick] if quick else ids
    return pytest.mark.parametrize(names, [values[i] for i in quick] or values, *mark.args[2:], **given).mark


def _names(marks):
    return {mark.name for mark in marks}


collect_ignore = [
    "fuzz/against_atheris.py",
    "cuda/host.py",
    "cuda/nvrtc.py",
    "consumers/pipelines.py",
    "formats/forms/authors.py",
    "formats/forms/samples.py",
    "hub/answers.py",
    "hub/loopback.py",
    "laws/rows.py",
]
collect_ignore_glob = ["helpers/*"]
