"""Whole models as values: their files, the modules of their tensors, and their copies with other weights."""
