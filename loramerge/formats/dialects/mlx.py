"""mlx-lm: both factors stored transposed, one rank for all modules, and a scale that is used as it is.

    adapters.safetensors   <module>.lora_a (in, r), <module>.lora_b (r, out)
                           of a mixture of experts (SwitchLinear): (E, r, in) and (E, out, r)
    adapter_config.json    fine_tune_type, num_layers, lora_parameters {rank, scale, dropout, keys}

ΔW = scale · lora_bᵀ @ lora_aᵀ: no alpha, no division by the rank (mlx-lm 0.32, tuner/lora.py). Versions before
`num_layers` was called so multiplied by an alpha over the rank too, some of them; where the two readings differ,
the adapter is refused. Modules are called as in transformers, so that such an adapter merges with one of PEFT.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Slot, Tensor
from loramerge.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.beside import EMBEDDINGS
from loramerge.formats.config import plausible
from loramerge.formats.dialects.dialect import Dialect, Header, Widths
from loramerge.formats.json import read_object
from loramerge.formats.keys import Shape
from loramerge.formats.pairs import check_blocks, check_float, check_full
from loramerge.formats.views import Shared, View, rows, transposed, widened
from loramerge.target import Kind, Layout, Target

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
CHECKPOINT = re.compile(r"\d+_adapters\.safetensors")  # what training saves on its way, beside the same config
SIDES = (".lora_a", ".lora_b")
EMBEDDED = {*EMBEDDINGS, "tok_embeddings", "embedding", "embeddings"} - {"lm_head"}
LAYER = re.compile(r".*?\.(?:layers|h|blocks)\.\d+\.(?P<key>.+)")


class Mlx(Dialect):
    """The folders of mlx-lm's trainer."""

    name = "mlx"
    words = "an mlx-lm adapter"
    writes = True
    weights = WEIGHTS
    single = False

    def detects(self, header: Header) -> bool:
        if header.config is not None and "peft_type" not in header.config:
            if "lora_parameters" in header.config or "fine_tune_type" in header.config:
                return True
        return any(key.endswith(SIDES) for key in header.tensors)
