"""The dialects of image and language tools: one file each, the same verbs, one table in detection order."""

from __future__ import annotations

from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.peft import PEFT
from loramerge.formats.dialects.table import DIALECTS, FOLDER_FILES, FORMATS, find, named

__all__ = ["DIALECTS", "FOLDER_FILES", "FORMATS", "PEFT", "Dialect", "Header", "find", "named"]
