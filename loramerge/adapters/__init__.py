"""What an adapter is as a value: targets, low-rank updates, tensors read when asked, provenance, base."""
