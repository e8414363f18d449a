"""Helpers of the tests hold no tests and no doctests; some need torch, which is optional."""

from tests.hub import loopback  # noqa: F401  before anything imports huggingface_hub: no test reaches the network

collect_ignore = [
    "adapters.py",
    "consumers/pipelines.py",
    "dialects.py",
    "files.py",
    "hub/answers.py",
    "hub/loopback.py",
    "laws/rows.py",
    "tiny_models.py",
    "zoo.py",
]
