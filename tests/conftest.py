"""Helpers of the tests hold no tests and no doctests; some need torch, which is optional."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores: a BLAS with threads takes theirs

from tests.hub import loopback  # noqa: F401  before anything imports huggingface_hub: no test reaches the network

collect_ignore = [
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
