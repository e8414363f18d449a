"""Helpers of the tests hold no tests and no doctests; some need torch, which is optional."""

import gc
import os
import sys

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
