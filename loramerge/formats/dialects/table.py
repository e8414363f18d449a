"""The table of dialects, and of which a file is. A dialect is loaded where a key may be its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from loramerge.adapters.table import Table
from loramerge.formats.dialects.dialect import Dialect, Header


class Row(NamedTuple):
    """What is said of a dialect before its file is loaded.

    Args:
        home: ``file.VALUE`` in this folder.
        starts, holds, ends: every file of it has a key that begins so, has this in it, or ends so.
        never: how keys of other files begin, if nothing else tells its own.
        writes, weights: as in `Dialect`.
    """

    home: str
    starts: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    never: str = ""
    writes: bool = False
    weights: str | None = None

    def may(self, header: Header) -> bool:
        """Whether a file can be of it; a config that is not PEFT's can be of any."""
        if header.config and "peft_type" not in header.config:
            return True
        if self.never:
            return not all(key.startswith(self.never) for key in header.tensors)
        return any(word in header.lines for word in self.words)

    @property
    def words(self) -> Iterator[str]:
        """What to look for in the keys of a file, each on a line of its own; a key of two lines has more."""
        yield from (f"\n{start}" for start in self.starts)
        yield from self.holds
        yield from (f"{end}\n" for end in self.ends)


PARTS = ("unet.", "transformer.", "transformer_2.", "text_", "connectors.", "prior.")
ROWS: Mapping[str, Row] = {  # the first that detects a file reads it; PEFT is last, and takes what is left
    "kohya": Row("kohya.KOHYA", ("lora_", "lycoris_"), writes=True),
    "xlabs": Row("xlabs.XLABS", holds=(".processor.",)),
    "comfy": Row("comfy.COMFY", ("diffusion_model.", "text_encoders."), writes=True),
    "bfl": Row("comfy.BFL", ("double_blocks.", "single_blocks.")),
    "onetrainer": Row("comfy.ONETRAINER", ("unet.", "transformer.", "clip_", "t5.")),
    "diffusers": Row(
        "diffusers.DIFFUSERS",
        (*PARTS, "down_blocks.", "up_blocks.", "mid_block."),
        writes=True,
        weights="pytorch_lora_weights.safetensors",
    ),
    "mlx": Row("mlx.MLX", ends=(".lora_a", ".lora_b"), writes=True, weights="adapters.safetensors"),
    "cloneofsimo": Row("cloneofsimo.CLONEOFSIMO", ("0",), ends=(":up", ":down"), writes=True),
    "sora": Row("sora.SORA", holds=(".lora.",)),
    "wavllm": Row("wavllm.WAVLLM", holds=("_lora_A", "_lora_B")),
    "omni": Row("omni.OMNI", holds=(".lora_down_", ".lora_up_")),
    "clip-lora": Row("clip_lora.CLIP_LORA", holds=(".w_lora_",)),
    "nola": Row("nola.NOLA", ("fc1_", "fc2_")),
    "loralib": Row("loralib.LORALIB", ends=(".lora_A", ".lora_B")),
    "sam": Row("sam.SAM", ("w_a_", "w_b_"), writes=True),
    "bare": Row("bare.BARE", never="base_model.model.", writes=True),
    "peft": Row("peft.PEFT", ends=("",), writes=True, weights="adapter_model.safetensors"),
}
DIALECTS: Table[Dialect] = Table("loramerge.formats.dialects", {name: row.home for name, row in ROWS.items()})
FORMATS = tuple(sorted(name for name, row in ROWS.items() if row.writes))  # for --format and --to
FOLDER_FILES = tuple(row.weights for name, row in ROWS.items() if row.weights is not None and name != "peft")


def find(header: Header) -> Dialect:
    """The dialect of these files; PEFT's reader says what is wrong with those that none knows."""
    found = (name for name, row in ROWS.items() if row.may(header) and DIALECTS[name].detects(header))
    return DIALECTS[next(found, "peft")]


def named(name: str) -> Dialect:
    """The dialect of this name; PEFT for what has none of its own."""
    return DIALECTS[name if name in DIALECTS else "peft"]
