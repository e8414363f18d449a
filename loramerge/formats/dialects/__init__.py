"""The dialects of image and language tools: one file each, the same verbs, one table in detection order."""

from __future__ import annotations

from loramerge.formats.dialects.bare import BARE
from loramerge.formats.dialects.clip_lora import CLIP_LORA
from loramerge.formats.dialects.cloneofsimo import CLONEOFSIMO
from loramerge.formats.dialects.comfy import BFL, COMFY, ONETRAINER
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.diffusers import DIFFUSERS
from loramerge.formats.dialects.kohya import KOHYA
from loramerge.formats.dialects.loralib import LORALIB
from loramerge.formats.dialects.mlx import MLX
from loramerge.formats.dialects.nola import NOLA
from loramerge.formats.dialects.omni import OMNI
from loramerge.formats.dialects.peft import PEFT
from loramerge.formats.dialects.sam import SAM
from loramerge.formats.dialects.sora import SORA
from loramerge.formats.dialects.wavllm import WAVLLM
from loramerge.formats.dialects.xlabs import XLABS

__all__ = ["DIALECTS", "DIFFUSERS", "FOLDER_FILES", "FORMATS", "PEFT", "Dialect", "Header", "find", "named"]

DIALECTS: tuple[Dialect, ...] = (  # the first that detects a file reads it; PEFT is last
    KOHYA,
    XLABS,
    COMFY,
    BFL,
    ONETRAINER,
    DIFFUSERS,
    MLX,
    CLONEOFSIMO,
    SORA,
    WAVLLM,
    OMNI,
    CLIP_LORA,
    NOLA,
    LORALIB,
    SAM,
    BARE,
    PEFT,
)
FORMATS = tuple(sorted(dialect.name for dialect in DIALECTS if dialect.writes))  # for --format and --to

FOLDER_FILES = tuple(d.weights for d in DIALECTS if d.weights is not None and d is not PEFT)


def find(header: Header) -> Dialect:
    """The dialect of these files; PEFT's reader says what is wrong with those that none knows."""
    return next(dialect for dialect in DIALECTS if dialect.detects(header))


def named(name: str) -> Dialect:
    """The dialect of this name; PEFT for what has none of its own."""
    return next((dialect for dialect in DIALECTS if dialect.name == name), PEFT)
