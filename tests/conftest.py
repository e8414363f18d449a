"""Helpers of the tests hold no tests and no doctests; some need torch, which is optional."""

collect_ignore = ["adapters.py", "dialects.py", "files.py", "tiny_models.py", "zoo.py"]
