"""What headers say of a training: kept for one source, combined for several."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.formats.files.safetensors.write import Layout, header_size

TRAINING = ("ss_", "modelspec.", "ot_")  # what trainers write begins so
TOOLKIT = ("name", "software", "training_info", "version")  # what AI-toolkit writes beside
STALE = (  # it is of the files, or of their factors, and no longer true of others
    "ss_network_", "ss_new_sd_model_hash", "ss_sd_model_hash", "modelspec.hash", "modelspec.thumbnail",
    "modelspec.merged_from", "modelspec.date",
)  # fmt: skip
JOINED = {
    "modelspec.trigger_phrase": ", ", "modelspec.title": " + ", "ss_output_name": " + ",
    "modelspec.author": ", ", "modelspec.tags": ", ",
}  # fmt: skip
TAGS = "ss_tag_frequency"
MODEL, LEGACY = "sshs_model_hash", "sshs_legacy_hash"  # by which user interfaces know a file of kohya
UNKNOWN = {MODEL: "0" * 64, LEGACY: "0" * 8}  # what stands there until the tensors are written
LEGACY_START, LEGACY_SIZE = 0x100000, 0x10000


def trained(adapters: Sequence[Adapter]) -> dict[str, str]:
    """The metadata of training for a merge of these adapters.

    Of one source everything that is still true; of several their titles, trigger words and tags.
    """
    if len(adapters) == 1:
        said = adapters[0].metadata
        own = {k: v for k, v in said.items() if k.startswith(TRAINING) and not k.startswith(STALE)}
        return own | {k: said[k] for k in TOOLKIT if k in said and "training_info" in said}
    found = {}
    for key, between in JOINED.items():
        values = dict.fromkeys(a.metadata[key] for a in adapters if a.metadata.get(key))
        if values:
            found[key] = between.join(values)
    tags = _tags([adapter.metadata for adapter in adapters])
    return found | ({TAGS: json.dumps(tags, sort_keys=True)} if tags else {})


def hashes(path: Path, layout: Layout, metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes that sd-scripts puts into a file: of its tensors, and of 64 KiB of them.

    The second is that of the file with the metadata of its training alone, from its second MiB on.
    """
    start, alone = header_size(layout, metadata), {k: v for k, v in metadata.items() if k.startswith("ss_")}
    whole = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            whole.update(block)
        file.seek(start + LEGACY_START - header_size(layout, alone))
        part = hashlib.sha256(file.read(LEGACY_SIZE)).hexdigest()
    return {MODEL: whole.hexdigest(), LEGACY: part[:8]}


def _tags(headers: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """How often each tag was in the captions: folder -> tag -> count, summed over the sources."""
    found: dict[str, Counter[str]] = {}
    for header in headers:
        for folder, counts in _parsed(header.get(TAGS, "")).items():
            if isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values()):
                found.setdefault(folder, Counter()).update(counts)
    return {folder: dict(counts) for folder, counts in found.items()}


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # what a header says of tags is nobody's contract
        return {}
    return found if isinstance(found, dict) else {}
