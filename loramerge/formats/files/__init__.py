"""Bytes on the disk: safetensors, pickles, JSON, output that appears whole or not at all."""
