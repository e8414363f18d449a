"""The programs that load adapters: what each of them reads, refuses and ignores. One small file for each."""

from __future__ import annotations

from loramerge.consumers.table import CONSUMERS, find, meant

__all__ = ["CONSUMERS", "find", "meant"]
